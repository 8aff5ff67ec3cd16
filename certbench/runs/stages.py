"""The stages of a run: attacks, estimates, certificates."""

import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from certbench.attacks.battery import attack
from certbench.attacks.clever import clever
from certbench.core.certificate import Certificate
from certbench.core.certification import certify, prepare
from certbench.core.claims import Outcome
from certbench.core.classifier import Classifier
from certbench.core.evidence import ReasonEvidence, TracebackEvidence
from certbench.core.memory import limits, out_of_memory, patience
from certbench.core.threat import ThreatModel
from certbench.errors import (
    CertificationError,
    ConfigError,
    CrashError,
    MissingBackendError,
    StoreError,
    UnsupportedError,
)
from certbench.files.writing import writing
from certbench.results.store import Counterexample, PlannedEstimate, Store, StoredAnswer
from certbench.runs.events import Watcher
from certbench.runs.executors import Executor, Job
from certbench.runs.plan import Pair
from certbench.runs.suite import Suite

_ERRORS = frozenset({Outcome.FAILED, Outcome.OUT_OF_MEMORY})


ATTACK_BATCH = 256
"""Number of inputs that are attacked at once."""


def attack_inputs(
    suite: Suite,
    store: Store,
    model: Classifier,
    inputs: torch.Tensor,
    wanted: list[tuple[int, dict[ThreatModel, str]]],
    attacked: Mapping[str, float],
    watcher: Watcher,
    folder: Path,
) -> int:
    """Attack the inputs whose counterexamples are not stored; return the number of attacked inputs."""
    todo = [(i, keys) for i, keys in wanted if any(key not in attacked for key in keys.values())]
    count = 0
    threat = suite.threats[0]
    box = (float(inputs.min()), float(inputs.max())) if threat.domain is None else threat.ends(inputs)
    for start in range(0, len(todo), ATTACK_BATCH):
        part = todo[start : start + ATTACK_BATCH]
        watcher.now(f"attacks on {model.name}")
        x = inputs[[i for i, _ in part]]
        try:
            found = attack(model, x, suite.threats, box, steps=suite.settings.attacks.steps, seed=suite.settings.seed)
        except Exception as error:  # these stay unaudited, as the run's result says; the next run tries again
            _log(folder, f"attacks on {model.name}")
            watcher.note(f"attacks on {model.name} failed: {type(error).__name__}: {error} (traceback in errors.log)")
            continue
        new = []
        for threat, examples in found.items():
            for row, (_, keys) in enumerate(part):
                distance = float(examples.distance[row])
                point = examples.point[row].contiguous().numpy().tobytes() if math.isfinite(distance) else None
                new.append(Counterexample(keys[threat], distance, examples.attack[row], point))
        store.put_attacks(new)
        count += len(part)
        watcher.advance({"attacked": len(part)})
    return count


def estimate_inputs(
    suite: Suite,
    store: Store,
    model: Classifier,
    threat: ThreatModel,
    inputs: torch.Tensor,
    planned: list[PlannedEstimate],
    estimated: set[str],
    watcher: Watcher,
    stop: Callable[[], None],
    folder: Path,
) -> int:
    """Estimate the inputs whose estimates are not stored; return their number. If that fails, the report lacks them."""
    asked, count = suite.settings.clever, 0
    todo = [estimate for estimate in planned if estimate.key not in estimated]
    assert asked is not None
    for start in range(0, len(todo), suite.settings.batch):
        stop()
        part = todo[start : start + suite.settings.batch]
        name = f"estimates of {model.name}, {threat.name}"
        watcher.now(name)
        try:
            values = clever(
                model, inputs[[estimate.input for estimate in part]], threat, radius=part[0].cap,
                batches=asked.batches, samples=asked.samples, seed=suite.settings.seed,
            )  # fmt: skip
        except Exception as error:
            _log(folder, name)
            watcher.note(f"{name} failed: {type(error).__name__}: {error} (traceback in errors.log)")
            continue
        store.put_estimates({e.key: value for e, value in zip(part, values.tolist(), strict=True)})
        count += len(part)
        watcher.advance({"estimated": len(part)})
    return count


def certify_inputs(
    suite: Suite,
    store: Store,
    pair: Pair,
    inputs: torch.Tensor,
    fresh: set[str],
    watcher: Watcher,
    stop: Callable[[], None],
    folder: Path,
    executor: Executor,
) -> int:
    """Certify the inputs of a pair that are not stored; return the number of new rows."""
    todo = [i for i, planned in enumerate(pair.planned) if planned.key not in fresh]
    if not todo:
        return 0
    name = f"{pair.planned[0].certifier} on {pair.classifier.name}, {pair.threat.name}"
    watcher.now(name)

    def put(indices: list[int], certificate: Certificate) -> None:
        store.put(_results([pair.planned[i].key for i in indices], certificate, prepared))
        watcher.advance(Counter(outcome.value for outcome in certificate.outcome))

    def fail(outcome: Outcome, reason: str) -> None:
        put(left, Certificate.nothing(len(left), outcome, reason))
        if outcome is not Outcome.UNSUPPORTED:
            watcher.note(f"{name}: {reason}")

    left, prepared = todo, 0.0  # left: not stored yet
    start = time.perf_counter()
    limit = suite.settings.limits.seconds
    allowed = {"memory": suite.settings.limits.memory, "seconds": patience(limit) if math.isfinite(limit) else None}
    try:
        with limits(**allowed):
            state = prepare(pair.certifier, pair.classifier, pair.threat)
        prepared = time.perf_counter() - start
        stop()

        def jobs() -> Iterator[Job]:
            for at in range(0, len(todo), suite.settings.batch):
                if time.perf_counter() - start > limit:
                    return
                yield partial(
                    _limited, allowed, pair.certifier, pair.classifier, inputs[todo[at : at + suite.settings.batch]],
                    pair.threat, state=state, batch_size=suite.settings.batch, seed=suite.settings.seed, throw=False,
                )  # fmt: skip

        for certificate in executor.answers(jobs()):
            for crash in crashes(certificate):
                _write_log(folder, name, crash.traceback)
                watcher.note(f"{name}: {crash.reason}; the traceback is in errors.log")
            put(left[: len(certificate)], certificate)
            left = left[len(certificate) :]
            stop()
        if left and time.perf_counter() - start <= limit:
            raise CertificationError(f"the executor gave no answer for {len(left)} inputs")
        if left:
            fail(Outcome.TIMED_OUT, f"the limit of {limit:g} s was spent with {len(left)} inputs left")
    except UnsupportedError as error:
        fail(Outcome.UNSUPPORTED, str(error))
    except CrashError as error:  # a bug, here or in a backend: this pair is lost, the others are not
        _write_log(folder, name, error.trace)
        fail(Outcome.FAILED, f"{error}; the traceback is in errors.log")
    except (MissingBackendError, CertificationError, ConfigError) as error:
        fail(Outcome.FAILED, str(error))
    except StoreError:
        raise
    except Exception as error:
        if out_of_memory(error):
            fail(Outcome.OUT_OF_MEMORY, f"out of memory in the preparation: {error}")
        else:
            _log(folder, name)
            fail(Outcome.FAILED, f"{type(error).__name__}: {error} (a bug; the traceback is in errors.log)")
    return len(todo)


def _limited(allowed: Mapping[str, float | None], *arguments: Any, **options: Any) -> Certificate:
    """Certify within limits, wherever the job runs."""
    with limits(**allowed):
        return certify(*arguments, **options)


def crashes(certificate: Certificate) -> list[TracebackEvidence]:
    """Return the bugs that a certificate's rows tell of, each once."""
    found = [TracebackEvidence.read(evidence) for evidence in certificate.evidence]
    return list({crash.traceback: crash for crash in found if crash is not None}.values())


def _log(folder: Path, name: str) -> None:
    """Append the traceback of the current exception to the folder's log."""
    _write_log(folder, name, traceback.format_exc())


def _write_log(folder: Path, name: str, trace: str) -> None:
    with writing(folder / "errors.log"), open(folder / "errors.log", "a", encoding="utf-8") as file:
        file.write(f"{name}\n{trace}\n")


def _results(keys: list[str], certificate: Certificate, prepared: float) -> Iterator[StoredAnswer]:
    for i, key in enumerate(keys):
        evidence, answered = certificate.evidence[i], certificate.outcome[i].answered
        said = None if answered else ReasonEvidence.read(evidence)
        yield StoredAnswer(
            key=key,
            prediction=int(certificate.prediction[i]),
            radius=float(certificate.radius[i]),
            upper=float(certificate.upper[i]),
            seconds=float(certificate.seconds[i]),
            prepare_seconds=prepared,
            outcome=certificate.outcome[i],
            reason="" if said is None else str(said.reason),
            evidence=evidence,
        )
