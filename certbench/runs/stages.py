"""The stages of a run, attacks, certificates and estimates: what an executor is given, and what becomes of its answers.

Each stage makes assignments of what is not stored yet, and stores their answers. Only the process of the run stores.
"""

import base64
import math
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from certbench.core.claims import ABSTAIN, Outcome
from certbench.core.classifier import Classifier
from certbench.core.evidence import HalvedEvidence, ReasonEvidence, TracebackEvidence
from certbench.core.memory import limits, now, patience
from certbench.core.threat import ThreatModel
from certbench.errors import CertificationError
from certbench.files import safe_text
from certbench.files.writing import writing
from certbench.results.store import Counterexample, PlannedEstimate, Store, StoredAnswer
from certbench.runs.events import Stop, Watcher
from certbench.runs.executors import Answer, Assignment, Executor
from certbench.runs.plan import Pair
from certbench.runs.suite import Limits, Suite
from certbench.runs.work import Attacking, Certifying, Estimating, Failure, ModelSource

ATTACK_BATCH = 256
"""Number of inputs that are attacked at once."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A piece of work of a run, and what becomes of its answers.

    Attributes:
        assignment: what the executor is given.
        keep: function that stores the answer to a job.
    """

    assignment: Assignment
    keep: Callable[[Answer], None]


TOGETHER = 0.2
"""Seconds for which rows are kept, to be stored together: each transaction waits for the disk."""


@dataclass(eq=False)
class Desk:
    """What all stages write to.

    Attributes:
        store: the store.
        watcher: the observer of the run.
        folder: folder of the run.
        answers: rows that are not stored yet.
        last: time of the last transaction.
    """

    store: Store
    watcher: Watcher
    folder: Path
    answers: list[StoredAnswer] = field(default_factory=list)
    last: float = -math.inf

    def store_some(self) -> None:
        """Store the rows, if the last ones were stored a moment ago."""
        if time.monotonic() - self.last > TOGETHER:
            self.store_all()

    def store_all(self) -> None:
        """Store the rows."""
        if self.answers:
            answers, self.answers = self.answers, []
            self.store.put(answers)
            self.last = time.monotonic()

    def failed(self, name: str, failure: Failure) -> None:
        """Tell of a failure; a traceback goes to the log."""
        if failure.trace:
            self.log(name, failure.trace)
        self.watcher.note(f"{name}: {failure.reason}")

    def log(self, name: str, trace: str) -> None:
        """Append a traceback to the folder's log."""
        path = self.folder / "errors.log"
        with writing(path), open(path, "a", encoding="utf-8") as file:
            told = safe_text.lines(trace).replace("\n", "\n  ")  # no line but ours begins at the margin
            file.write(f"{safe_text.terminal(name)}\n{told}\n")


def perform(stages: Sequence[Stage], desk: Desk, executor: Executor, stop: Stop) -> int:
    """Compute and store; return the number of inputs of which something was computed.

    Raises:
        CertificationError: the executor left out an input, or answered twice.
        Interrupted: Ctrl-C was pressed; what was computed is stored.
    """
    open_places = [{place for job in stage.assignment.jobs for place in job} for stage in stages]
    count = 0
    try:
        for answer in executor.answers([stage.assignment for stage in stages], stop):
            if answer is not None:
                extra = len(answer.places) - len(open_places[answer.work].intersection(answer.places))
                if extra:
                    raise CertificationError(f"the executor answered twice for {extra} inputs")
                open_places[answer.work].difference_update(answer.places)
                stages[answer.work].keep(answer)
                count += len(answer.places)
            desk.store_some()
    finally:
        desk.store_all()
    for number, (stage, left) in enumerate(zip(stages, open_places, strict=True)):
        if left:
            reason = f"the executor gave no answer for {len(left)} inputs"
            stage.keep(Answer(number, tuple(sorted(left)), Failure(Outcome.FAILED, reason)))
            count += len(left)
    desk.store_all()
    return count


def source_of(suite: Suite, model: Classifier, fingerprint: str) -> ModelSource:
    """Return the source of a model of the suite."""
    spec = next(spec for spec in suite.settings.models if spec.name == model.name)
    return ModelSource(spec, model.input_shape, fingerprint, model)


def certifying(suite: Suite, source: ModelSource, pair: Pair) -> Certifying:
    """Return the work of a pair."""
    settings = suite.settings
    name = f"{pair.planned[0].certifier} on {pair.classifier.name}, {pair.threat.name}"
    longest = min(settings.limits.seconds, settings.limits.input_seconds)
    with limits(settings.limits.memory, patience(longest) if longest < math.inf else None):
        allowed = now()
    return Certifying(name, source, pair.certifier, pair.threat, settings.seed, settings.batch, allowed)


def divided(places: Sequence[int], starts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divide places into jobs, at fixed places: what a run that was stopped left is divided as it was before."""
    return tuple(tuple(part) for _, part in groupby(places, key=lambda place: bisect_right(starts, place)))


def starts_of(n: int, batch: int) -> list[int]:
    """Return the first place of each job, when each has `batch` inputs."""
    return list(range(0, n, batch))


def growing_starts(n: int, batch: int) -> list[int]:
    """Return the first place of each job when jobs grow from 1 to `batch` inputs, so that a limit loses few."""
    starts, size = [0], 1
    while starts[-1] + size < n:
        starts.append(starts[-1] + size)
        size = min(2 * size, batch)
    return starts


def attacks(
    suite: Suite, desk: Desk, source: ModelSource, inputs: Tensor, wanted: list[tuple[int, dict[ThreatModel, str]]],
    attacked: Mapping[str, float],
) -> list[Stage]:  # fmt: skip
    """Return the attacks on the inputs whose counterexamples are not stored."""
    keys_of = dict(wanted)
    todo = [i for i, keys in wanted if any(key not in attacked for key in keys.values())]
    if not todo:
        return []
    threat = suite.threats[0]
    box = (float(inputs.min()), float(inputs.max())) if threat.domain is None else threat.ends(inputs)
    work = Attacking(
        f"attacks on {source.spec.name}", source, suite.threats, box, suite.settings.attacks.steps, suite.settings.seed
    )

    def keep(answer: Answer) -> None:
        if isinstance(answer.results, Failure):  # these stay unaudited, as the run says; the next run tries again
            desk.failed(f"{work.name} failed", answer.results)
            return
        desk.store.put_attacks(
            Counterexample(keys_of[i][threat], distance, attack, None if point is None else base64.b64decode(point))
            for i, found in zip(answer.places, answer.results, strict=True)
            for threat, (distance, attack, point) in zip(suite.threats, found, strict=True)
        )
        desk.watcher.advance({"attacked": len(answer.places)})

    jobs = divided(todo, starts_of(len(inputs), ATTACK_BATCH))
    limits, like = Limits(memory=suite.settings.limits.memory), ("attacks", source.spec.name)
    return [Stage(Assignment(work, inputs, jobs, limits, like), keep)]


def estimates(
    suite: Suite, desk: Desk, source: ModelSource, threat: ThreatModel, inputs: Tensor, planned: list[PlannedEstimate],
    estimated: set[str],
) -> list[Stage]:  # fmt: skip
    """Return the estimates that are not stored. If one fails, the report lacks it."""
    asked = suite.settings.clever
    todo = {estimate.input: estimate for estimate in planned if estimate.key not in estimated}
    if not todo or asked is None:
        return []
    name = f"estimates of {source.spec.name}, {threat.name}"
    work = Estimating(name, source, threat, planned[0].cap, asked.batches, asked.samples, suite.settings.seed)

    def keep(answer: Answer) -> None:
        if isinstance(answer.results, Failure):
            desk.failed(f"{name} failed", answer.results)
            return
        desk.store.put_estimates({todo[i].key: value for i, value in zip(answer.places, answer.results, strict=True)})
        desk.watcher.advance({"estimated": len(answer.places)})

    jobs = divided(list(todo), starts_of(len(inputs), suite.settings.batch))
    limits, like = Limits(memory=suite.settings.limits.memory), ("estimates", source.spec.name, threat.name)
    return [Stage(Assignment(work, inputs, jobs, limits, like), keep)]


def certificates(
    suite: Suite, desk: Desk, source: ModelSource, pair: Pair, inputs: Tensor, fresh: Mapping[str, float],
    mine: frozenset[int],
) -> list[Stage]:  # fmt: skip
    """Return the rows of a pair that are not stored, of the inputs of a shard.

    What is stored says how long the others take, and those of pairs that are like it: all pairs have a stage.

    Args:
        suite: the suite.
        desk: what the stage writes to.
        source: the model.
        pair: the pair.
        inputs: all inputs.
        fresh: seconds of the stored rows, by key.
        mine: places of the inputs of this shard.
    """
    todo = [i for i, planned in enumerate(pair.planned) if i in mine and planned.key not in fresh]
    kept = [seconds for planned in pair.planned if (seconds := fresh.get(planned.key, 0.0))]  # 0: it was refused
    settings = suite.settings
    work = certifying(suite, source, pair)
    name = work.name

    def keep(answer: Answer) -> None:
        results = answer.results
        if isinstance(results, Failure):
            rows = [_nothing(results.outcome, results.reason)] * len(answer.places)
            if results.outcome is not Outcome.UNSUPPORTED:
                desk.failed(name, results)
        else:
            rows = results
            for crash in crashes(rows):
                desk.log(name, crash.traceback)
                desk.watcher.note(f"{name}: {crash.reason}; the traceback is in errors.log")
            if answer.halved:
                desk.watcher.note(f"{name}: memory ran out; now {answer.halved} inputs are computed at once")
                rows = [_halved(row, answer.halved) for row in rows]
        keys = [pair.planned[i].key for i in answer.places]
        desk.answers += _answers(keys, rows, answer.prepared)
        desk.watcher.advance(Counter(row["outcome"] for row in rows))

    alone = pair.certifier.one_by_one or settings.limits.input_seconds < math.inf
    starts = starts_of(len(inputs), 1 if alone else settings.batch)
    if settings.limits.seconds < math.inf and not alone:
        starts = growing_starts(len(inputs), settings.batch)
    like = pair.planned[0].certifier, pair.classifier.name, pair.threat.name
    jobs, stored = divided(todo, starts), (len(kept), sum(kept))
    return [Stage(Assignment(work, inputs, jobs, settings.limits, like, stored), keep)]


def _nothing(outcome: Outcome, reason: str) -> dict[str, Any]:
    return {
        "prediction": ABSTAIN, "radius": 0.0, "upper": math.inf, "seconds": 0.0, "cpu_seconds": 0.0,
        "outcome": outcome.value, "evidence": ReasonEvidence(reason=reason).to_json(),
    }  # fmt: skip


def _halved(row: dict[str, Any], size: int) -> dict[str, Any]:
    return {**row, "evidence": HalvedEvidence(batch_after_out_of_memory=size).to_json() | row["evidence"]}


def crashes(rows: Sequence[Mapping[str, Any]]) -> list[TracebackEvidence]:
    """Return the bugs that rows tell of, each once."""
    found = [TracebackEvidence.read(row["evidence"]) for row in rows]
    return list({crash.traceback: crash for crash in found if crash is not None}.values())


def _answers(keys: list[str], rows: Sequence[Mapping[str, Any]], prepared: float) -> Iterator[StoredAnswer]:
    for key, row in zip(keys, rows, strict=True):
        outcome = Outcome(row["outcome"])
        said = None if outcome.answered else ReasonEvidence.read(row["evidence"])
        yield StoredAnswer(
            key=key,
            prediction=row["prediction"],
            radius=row["radius"],
            upper=row["upper"],
            seconds=row["seconds"],
            cpu_seconds=row["cpu_seconds"],
            prepare_seconds=prepared,
            outcome=outcome,
            reason="" if said is None else str(said.reason),
            evidence=row["evidence"],
        )
