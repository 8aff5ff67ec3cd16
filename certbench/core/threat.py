"""Threat models: the norm of the perturbation and, where one is meant, the box that inputs live in."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from certbench.errors import ConfigError, UnsupportedError

NAME = re.compile(r"l?[_-]?(0|1|2|inf|infinity)(?:\.0)?", re.IGNORECASE)
"""Names of the norms, as people write them: `L2`, `l_inf`, `inf`, `2`."""


@dataclass(frozen=True)
class ThreatModel:
    """Perturbations of bounded Lp norm.

    Attributes:
        p: 0, 1, 2 or `math.inf`. L0 is no norm: it counts the coordinates that change, and a radius of r there says
            that r changes are tolerated, so the closest counterexample is at least r + 1 away.
        domain: `(low, high)` if only perturbed inputs inside this box count, else None:
            then the claim holds in all of R^d, which is stronger.

    The norm may be given by its name (`"L2"`, `"inf"`), the domain as any pair of numbers.

    Raises:
        ConfigError: for another norm, or a domain that is no pair of numbers, or empty.
    """

    p: float
    domain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Read the norm and the domain."""
        object.__setattr__(self, "p", _norm(self.p))
        if self.domain is not None:
            object.__setattr__(self, "domain", _pair(self.domain))

    @staticmethod
    def of(given: Any) -> "ThreatModel":
        """Return a threat model as it is, or make one without a domain from a norm: `2`, `"L2"`, `"inf"`.

        Raises:
            ConfigError: it is neither.
        """
        return given if isinstance(given, ThreatModel) else ThreatModel(_norm(given))

    def within(self, low: Any, high: Any = None) -> "ThreatModel":
        """Return the same norm for inputs that lie in `[low, high]`, coordinate by coordinate; a pair will do, too."""
        return replace(self, domain=_pair(low if high is None else (low, high)))

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


def _norm(given: Any) -> float:
    """Read a norm."""
    text = NAME.fullmatch(given.strip()) if isinstance(given, str) else None
    try:
        p = float(text[1]) if text else math.nan if isinstance(given, str | bool) else float(given)
    except (TypeError, ValueError):
        p = math.nan
    if p not in (0.0, 1.0, 2.0, math.inf):
        raise ConfigError(f"norm {given!r} is unknown; write 1, 2 or inf, or 0 to count coordinates", ("p",))
    return p


def _pair(given: Any) -> tuple[float, float]:
    """Read a domain."""
    try:
        low, high = (math.nan if isinstance(end, str | bool) else float(end) for end in given)
    except (TypeError, ValueError):
        low = high = math.nan
    if math.isnan(low) or math.isnan(high):
        problem = "is no pair of numbers; write (low, high), the same for every coordinate"
        raise ConfigError(f"domain {given!r} {problem}", ("domain",))
    if not low < high:
        raise ConfigError(f"domain {given!r} is empty; write [low, high], low < high", ("domain",))
    return low, high


L0 = ThreatModel(0.0)
L1 = ThreatModel(1.0)
L2 = ThreatModel(2.0)
Linf = ThreatModel(math.inf)
