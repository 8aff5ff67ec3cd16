"""Executors compute the work of a run, in this process or in others. One process alone writes the results.

To add one, write its file here, a class with the method of `Executor`, and its line in `TABLE`. It is made with a
`Settings`. What comes back from it is plain (see `certbench.runs.work`), so that it may come over any wire.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from certbench.core.registry import unknown
from certbench.errors import ConfigError
from certbench.runs.events import Stop
from certbench.runs.suite import Limits
from certbench.runs.work import Failure, Work


@dataclass(frozen=True, eq=False)
class Assignment:
    """A piece of work, and the jobs in which it is done.

    Attributes:
        work: the work.
        inputs: all inputs of the run.
        jobs: the places of the inputs of each job. Inputs of one job may be computed at once. Rows depend on this
            division by rounding errors, and on nothing that an executor decides.
        limits: time and memory of this work.
        like: its method, model and norm, as far as it has them; work that shares them is expected to take alike.
        stored: number of its inputs whose results are stored, and the seconds that they took.
    """

    work: Work
    inputs: Tensor
    jobs: tuple[tuple[int, ...], ...]
    limits: Limits = field(default_factory=Limits)
    like: tuple[str, ...] = ()
    stored: tuple[int, float] = (0, 0.0)

    def rows(self, places: Sequence[int]) -> Tensor:
        """Return the inputs at these places."""
        return self.inputs[torch.tensor(places, dtype=torch.long)]


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a job, or the failure of all that is left of a piece of work.

    Attributes:
        work: place of the work in the list.
        places: places of the inputs.
        results: a JSON value for each of these inputs, or why there is none.
        prepared: seconds that the preparation took.
        halved: number of inputs that were computed at once after memory had run out with more; 0 if it did not.
    """

    work: int
    places: tuple[int, ...]
    results: list[Any] | Failure
    prepared: float = 0.0
    halved: int = 0


@dataclass(frozen=True)
class Settings:
    """Settings of an executor.

    Attributes:
        workers: largest number of processes; 0: as many as there are cores.
        threads: number of threads of each.
        address: address of a cluster; None: that in the environment, or none.
    """

    workers: int = 0
    threads: int = 1
    address: str | None = None


@runtime_checkable
class Executor(Protocol):
    """Something that computes work."""

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield answers as they come, in any order; each input of each job is in exactly one of them.

        None says that nothing has come for a moment: what was kept together is then stored.

        The state of a certifier is prepared once, and kept while jobs of its work come. Work whose preparation or whose
        job fails is given up: one answer has the failure, for all inputs that are left.

        Args:
            assignments: the work.
            stop: hears what begins, and says when to stop.

        Raises:
            Interrupted: it was to stop; what was computed has been yielded.
        """


TABLE = {
    "inline": "certbench.runs.executors.inline:Inline",
    "process": "certbench.runs.executors.process:Processes",
    "ray": "certbench.runs.executors.ray:Ray",
}
"""Executors by name, each with its class as `module:Class`."""


def find(name: str, settings: Settings) -> Executor:
    """Return the executor of that name.

    Raises:
        ConfigError: there is none, or it has no use for an address.
        MissingBackendError: it needs a package that is not installed.
    """
    if name not in TABLE:
        raise ConfigError(unknown("executor", name, TABLE), ("executor",))
    if settings.address is not None and name in ("inline", "process"):
        raise ConfigError(f"the executor {name} has no address; write --executor ray, or leave --address out")
    module, _, attribute = TABLE[name].partition(":")
    return cast(Executor, getattr(importlib.import_module(module), attribute)(settings))
