"""The progress of a run: a bar on a terminal, a line per step elsewhere."""

from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from certbench.cli.console import err, tell
from certbench.files.safe_text import terminal

BAR = 12
"""Number of characters of the bar. Names and counts share what numbers and times leave of the line."""


def lasting(seconds: float) -> str:
    """Write an expected time, in no more figures than are known: `40 s`, `12 min`, `3.5 h`."""
    for name, unit in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * unit:
            return f"{seconds / unit:.2g} {name}" if seconds < 100.0 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1.0 else "under 1 s"


class ProgressWatcher:
    """A watcher that shows progress: a bar on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
            BarColumn(BAR),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[counts]}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
            console=err,
            expand=True,
            transient=True,
        )
        self.task: TaskID | None = None
        self.done = self.total = 0
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "ProgressWatcher":
        if err.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if err.is_terminal:
            self.bar.stop()

    def data(self, text: str) -> None:
        """Print how the data were read."""
        err.print(text, soft_wrap=True)

    def begin(self, total: int, done: int) -> None:
        """Start the bar."""
        self.total, self.done = total, done
        err.print(f"{total} rows, attacks and estimates, {done} of them stored already")
        if err.is_terminal:
            self.task = self.bar.add_task("", total=total, completed=done, counts="", left="")

    def now(self, text: str) -> None:
        """Name what is being computed."""
        if self.task is not None:
            self.bar.update(self.task, description=escape(terminal(text)))
        else:
            err.print(f"[{self.done}/{self.total}] {text}", soft_wrap=True)

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """Move the bar."""
        self.counts.update(outcomes)
        self.done += sum(outcomes.values())
        if self.task is not None:
            counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
            self.bar.update(self.task, completed=self.done, counts=counts)

    def left(self, seconds: float | None) -> None:
        """Show the time that is expected to be left."""
        if self.task is not None:
            self.bar.update(self.task, left="" if seconds is None else f"{lasting(seconds)} left")

    def note(self, text: str) -> None:
        """Print what went wrong above the bar."""
        tell("note:", "yellow", text)
