"""What a run would compute."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certbench.results.folder import RESULTS
from certbench.results.store import Store
from certbench.runs.load import load
from certbench.runs.plan import pairs_of
from certbench.runs.run import RERUN
from certbench.runs.suite import Suite
from certbench.runs.threats import with_threats


@dataclass(frozen=True)
class Preview:
    """One certifier on one model.

    Attributes:
        model: name of the model.
        threat: threat model, in words.
        certifier: name in tables.
        rows: number of rows that the suite asks for.
        stored: number of rows that would not be computed again.
        seconds: time for the others at the pace of the stored rows; None if there are none, or nothing is left.
        reason: why the certifier refuses the model; None if it does not before it prepares.
    """

    model: str
    threat: str
    certifier: str
    rows: int
    stored: int
    seconds: float | None
    reason: str | None


def preview(suite: Suite, folder: Path, rerun: str = "errors") -> Iterator[Preview]:
    """List what a run would compute; nothing is computed or written.

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
        yield Preview(
            model=pair.classifier.name,
            threat=str(pair.threat),
            certifier=pair.planned[0].certifier,
            rows=len(pair.planned),
            stored=len(kept),
            seconds=left * sum(kept) / len(kept) if kept and left else None,
            reason=pair.certifier.unsupported(pair.classifier, pair.threat),
        )
