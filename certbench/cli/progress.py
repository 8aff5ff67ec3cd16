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
    TimeRemainingColumn,
)

from certbench.cli.console import err, tell
from certbench.files.safe_text import terminal


class ProgressWatcher:
    """A watcher that shows progress: a bar on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=err,
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
            self.task = self.bar.add_task("", total=total, completed=done, counts="")

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

    def note(self, text: str) -> None:
        """Print what went wrong above the bar."""
        tell("note:", "yellow", text)
