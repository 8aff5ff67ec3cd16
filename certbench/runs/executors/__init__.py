"""Who computes the batches of a run: this process, or others. One process writes, whoever computes.

To add one: write its file here, a class with the method of `Executor`, and its line in `TABLE`.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, cast, runtime_checkable

from certbench.core.certificate import Certificate
from certbench.core.registry import unknown
from certbench.errors import ConfigError

Job = Callable[[], Certificate]
"""A call that certifies one batch. It depends on nothing that another job does."""


@runtime_checkable
class Executor(Protocol):
    """Computes jobs."""

    def answers(self, jobs: Iterable[Job]) -> Iterator[Certificate]:
        """Yield the answer of each job, in the order of the jobs; a job's exception is raised in place of its answer.

        Jobs are taken from the iterable no earlier than they are to start: it ends when the time of a pair is spent.
        """


TABLE = {"inline": "certbench.runs.executors.inline:Inline"}
"""Every executor: its name, and the class as `module:Class`."""


def find(name: str) -> Executor:
    """Return the executor of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TABLE:
        raise ConfigError(unknown("executor", name, TABLE), ("executor",))
    module, _, attribute = TABLE[name].partition(":")
    return cast(Executor, getattr(importlib.import_module(module), attribute)())
