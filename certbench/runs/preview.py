"""What a run would compute, and what it would take."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certbench.core.certifier import Certifier
from certbench.core.claims import Outcome
from certbench.core.memory import limits as limited
from certbench.results.folder import RESULTS
from certbench.results.store import Store
from certbench.runs.load import load
from certbench.runs.plan import Pair, pairs_of
from certbench.runs.run import RERUN
from certbench.runs.stages import certifying, source_of
from certbench.runs.suite import Suite
from certbench.runs.threats import with_threats
from certbench.runs.work import attempt

HANDLING = 0.005
"""Seconds for one input beside the multiplications that are predicted: steps of a search, evidence, checks. Measured:
1 to 9 ms in batches of 12 and of 50 inputs of networks so small that hardly anything else takes time."""


@dataclass(frozen=True)
class Preview:
    """One certifier on one model.

    Attributes:
        model: name of the model.
        threat: threat model, in words.
        certifier: name in tables.
        rows: number of rows that the suite asks for.
        stored: number of rows that would not be computed again.
        seconds: time for the others, at the pace of the stored rows, else predicted from sizes; None if unknown.
        memory: bytes that a batch is predicted to need at most; None if unknown.
        reason: why the certifier refuses the model; None if nothing is known of a refusal.
    """

    model: str
    threat: str
    certifier: str
    rows: int
    stored: int
    seconds: float | None
    memory: float | None
    reason: str | None


def preview(suite: Suite, folder: Path, rerun: str = "errors") -> Iterator[Preview]:
    """List what a run would compute. Networks are read, for predictions; nothing is certified or written.

    Args:
        suite: the suite.
        folder: folder of the run, which may not exist yet.
        rerun: a key of `certbench.runs.run.RERUN`.

    Raises:
        ConfigError: a model or the data cannot be loaded.
        StoreError: the folder cannot be read.
    """
    dataset, models = load(suite)
    suite = with_threats(suite, dataset)
    inputs = dataset.inputs[: suite.settings.inputs].double()
    labels = dataset.labels[: suite.settings.inputs]
    times = {}
    if (folder / RESULTS).exists():
        store = Store(folder / RESULTS, create=False)
        try:
            times = store.times()
        finally:
            store.close()
    for pair in pairs_of(suite, models, inputs, labels):
        kept = [times[p.key][1] for p in pair.planned if p.key in times and times[p.key][0] not in RERUN[rerun]]
        left = len(pair.planned) - len(kept)
        pace, memory, reason = _predicted(suite, pair, left)
        if any(kept):
            pace = sum(kept) / len(kept)
        limits = suite.settings.limits
        seconds = None if pace is None else min(left * min(pace, limits.input_seconds), limits.seconds)
        yield Preview(
            model=pair.classifier.name,
            threat=str(pair.threat),
            certifier=pair.planned[0].certifier,
            rows=len(pair.planned),
            stored=len(kept),
            seconds=seconds if left and reason is None else 0.0,
            memory=memory,
            reason=reason,
        )


def _predicted(suite: Suite, pair: Pair, left: int) -> tuple[float | None, float | None, str | None]:
    """Return seconds for an input, bytes for a batch, and why the pair is refused, as far as they are known.

    Only certifiers whose preparation reads sizes are prepared: ours that predict something and have no members.
    Where coordinates do not move, the sizes depend on the input.
    """
    certifier, settings = pair.certifier, suite.settings
    reason = certifier.unsupported(pair.classifier, pair.threat)
    work = certifying(suite, source_of(suite, pair.classifier, ""), pair)
    silent = type(certifier).cost is Certifier.cost or certifier.members or pair.threat.scale is not None
    if reason is not None or silent or work.foreign or not left:
        return None, None, reason
    alone = certifier.one_by_one or settings.limits.input_seconds < math.inf
    found = list[tuple[float | None, float | None]]()

    def predict() -> None:
        with limited(work.limits.memory, work.limits.seconds):
            cost = certifier.cost(work.prepare(pair.classifier))
            if cost is not None:
                found.append((cost.time(), cost.memory(1 if alone else min(left, settings.batch)) or None))

    failure = attempt(predict, "in the preparation", (KeyboardInterrupt,))
    if failure is not None:
        said = failure.reason if failure.outcome is Outcome.UNSUPPORTED else f"it fails: {failure.reason}"
        return None, None, said
    seconds, memory = found[0] if found else (None, None)
    return None if seconds is None else seconds + HANDLING, memory, None
