"""The update of a baseline by a run. Imports nothing heavy."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certbench.comparison.baseline import read_baseline, read_run, text_of
from certbench.comparison.classes import Kind
from certbench.comparison.compare import compare, distances, wrong
from certbench.comparison.side import merge
from certbench.errors import ConfigError
from certbench.exit_codes import ExitCode
from certbench.files.writing import write
from certbench.results.rows import Row


@dataclass(frozen=True)
class BaselineUpdate:
    """The result of a baseline's update.

    Attributes:
        run: folder of the run.
        file: path of the baseline.
        changed: number of the run's rows in each class, compared with the old baseline.
        wrong: rows that no baseline may hold, each with its class and the reason.
        uncomputed: number of rows of the run that have not been computed.
    """

    run: Path
    file: Path
    changed: str
    wrong: tuple[tuple[Row, Kind, str], ...] = ()
    uncomputed: int = 0

    @property
    def written(self) -> bool:
        """Whether the run became the baseline; otherwise the old one stays."""
        return not self.wrong and not self.uncomputed

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command: `UNSOUND` if rows are wrong, `INCOMPLETE` if some are missing."""
        return ExitCode.UNSOUND if self.wrong else ExitCode.INCOMPLETE if self.uncomputed else ExitCode.OK


def update_baseline(run: Path | str, reason: str, file: Path | str | None = None) -> BaselineUpdate:
    """Make a run the baseline; a run that is wrong or incomplete is refused, and the old baseline stays.

    Distances of counterexamples that the old baseline knows are kept.

    Args:
        run: folder of the run.
        reason: reason for the change, for the baseline's history.
        file: path of the baseline; None: `reports/NAME/baseline.json`.

    Returns:
        The changes; `BaselineUpdate.written` says whether the run became the baseline.

    Raises:
        ConfigError: the folder holds no run or no rows, no reason is given, or `file` is something else.
        StoreError: a file cannot be read or written.
    """
    folder = Path(run)
    if not reason.strip():
        raise ConfigError("say why the baseline changes: --reason TEXT", ("reason",))
    side, manifest = read_run(folder)
    if not side.rows and not side.uncomputed:
        raise ConfigError(f"{folder} holds no rows, so that there is nothing to make a baseline of")
    path = Path("reports") / str(manifest["suite"]["name"]) / "baseline.json" if file is None else Path(file)
    known, changed = distances(side.rows), f"{len(side.rows)} rows, new"
    history: list[Mapping[str, str]] = []
    if path.exists():
        before = read_baseline(path)
        history += before.history
        counts = Counter(change.kind for change in compare(before.side, side).changes)
        changed = ", ".join(f"{counts[kind]} {kind.value}" for kind in Kind if counts[kind])
        fits = {name: not before.side.mismatch(side, name) for name in side.models}
        known = merge(known, {place: one for place, one in before.side.known.items() if fits.get(place[0])})
    bad = tuple((row, *found) for row in side.rows if (found := wrong(row, known, row)) is not None)
    update = BaselineUpdate(folder, path, changed, bad, side.uncomputed)
    if update.written:
        entry = {"date": datetime.now(UTC).date().isoformat(), "reason": reason.strip(), "changed": changed}
        entry |= {"certbench": side.versions.get("certbench", ""), "commit": str(manifest.get("commit", ""))}
        write(path, "".join(text_of(side, known, [*history, entry])), create_folder=True)
    return update
