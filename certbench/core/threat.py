"""Threat models: the norm of the perturbation and, where one is meant, the box that inputs live in."""

import math
from dataclasses import dataclass, replace

from certbench.errors import ConfigError, UnsupportedError


@dataclass(frozen=True)
class ThreatModel:
    """Perturbations of bounded Lp norm.

    Attributes:
        p: 0, 1, 2 or `math.inf`. L0 is no norm: it counts the coordinates that change, and a radius of r there says
            that r changes are tolerated, so the closest counterexample is at least r + 1 away.
        domain: `(low, high)` if only perturbed inputs inside this box count, else None:
            then the claim holds in all of R^d, which is stronger.

    Raises:
        ConfigError: for another norm, or an empty domain.
    """

    p: float
    domain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse another norm and an empty domain."""
        if self.p not in (0.0, 1.0, 2.0, math.inf):
            raise ConfigError(f"norm {self.p!r} is unknown; write 1, 2 or inf, or 0 to count coordinates", ("p",))
        object.__setattr__(self, "p", float(self.p))
        if self.domain is not None and not self.domain[0] < self.domain[1]:
            raise ConfigError(f"domain {self.domain!r} is empty; write [low, high], low < high", ("domain",))

    def within(self, low: float, high: float) -> "ThreatModel":
        """Return the same norm for inputs that lie in `[low, high]`, coordinate by coordinate."""
        return replace(self, domain=(float(low), float(high)))

    @property
    def q(self) -> float:
        """The dual exponent, 1/p + 1/q = 1.

        Raises:
            UnsupportedError: L0 has none.
        """
        if self.p == 0.0:
            raise UnsupportedError("L0 counts coordinates and has no dual norm")
        return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[self.p]

    @property
    def name(self) -> str:
        """`L0`, `L1`, `L2` or `Linf`."""
        return f"L{self.p:g}"

    def __str__(self) -> str:
        """Name and domain, as reports print them."""
        return self.name if self.domain is None else f"{self.name} in [{self.domain[0]:g}, {self.domain[1]:g}]"


L0 = ThreatModel(0.0)
L1 = ThreatModel(1.0)
L2 = ThreatModel(2.0)
Linf = ThreatModel(math.inf)
