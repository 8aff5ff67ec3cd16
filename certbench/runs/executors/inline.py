"""An executor in this process, one batch after the other: for debugging."""

from collections.abc import Iterable, Iterator

from certbench.core.certificate import Certificate
from certbench.runs.executors import Job


class Inline:
    """Computes each job when its answer is asked for."""

    def answers(self, jobs: Iterable[Job]) -> Iterator[Certificate]:
        """Yield the answer of each job."""
        for job in jobs:
            yield job()
