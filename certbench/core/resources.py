"""What a certifier needs of the machine that computes it, where machines differ: on a cluster."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from certbench.errors import ConfigError


@dataclass(frozen=True)
class Resources:
    """What one process of a certifier reserves. Executors that know of one machine alone do not read it.

    Attributes:
        cpus: number of cores.
        gpus: number of GPUs; parts of one are shared.
        memory: bytes; 0: nothing is reserved.

    Raises:
        ConfigError: a number is negative or not finite.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} of resources must be 0 or more, not {value}")

    def __str__(self) -> str:
        """Name what is reserved."""
        parts = [(self.cpus, "CPUs"), (self.gpus, "GPUs"), (self.memory, "bytes of memory")]
        return ", ".join(f"{value:g} {name}" for value, name in parts if value) or "nothing"

    @classmethod
    def largest(cls, several: Iterable["Resources"]) -> "Resources":
        """Return what suffices for each of several, one after the other."""
        found = [cls(), *several]
        return cls(*(max(getattr(one, name) for one in found) for name in ("cpus", "gpus", "memory")))
