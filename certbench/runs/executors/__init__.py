"""Executors compute the batches of a run, in this process or in others. One process alone writes the results.

To add one, write its file here, a class with the method of `Executor`, and its line in `TABLE`.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, cast, runtime_checkable

from certbench.core.certificate import Certificate
from certbench.core.registry import unknown
from certbench.errors import ConfigError

Job = Callable[[], Certificate]
"""A call that certifies one batch, independent of all other jobs.

Jobs that run at the same time need copies of the classifier, since its hooks are used meanwhile.
"""


@runtime_checkable
class Executor(Protocol):
    """Something that computes jobs."""

    def answers(self, jobs: Iterable[Job]) -> Iterator[Certificate]:
        """Yield the answer of each job, in the order of the jobs; raise a job's exception in place of its answer.

        A job is taken from the iterable only when it starts: the iterable ends when the time of a pair is spent.
        """


TABLE = {"inline": "certbench.runs.executors.inline:Inline"}
"""Executors by name, each with its class as `module:Class`."""


def find(name: str) -> Executor:
    """Return the executor of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TABLE:
        raise ConfigError(unknown("executor", name, TABLE), ("executor",))
    module, _, attribute = TABLE[name].partition(":")
    return cast(Executor, getattr(importlib.import_module(module), attribute)())
