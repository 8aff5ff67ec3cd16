"""Methods that auto-LiRPA alone has here (Xu et al., 2020)."""

from dataclasses import dataclass, field
from typing import Literal

from certbench.core.search import RadiusSearch, Secant
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.lirpa.graph import Lirpa


@dataclass(frozen=True)
class Forward(Engined):
    """Linear bounds propagated forwards through the layers (Xu et al., 2020): cheap where inputs are few."""

    engine: Literal["auto-lirpa"] = "auto-lirpa"
    search: RadiusSearch = field(default_factory=Secant)

    def lirpa(self) -> Lirpa:
        """Bound every layer by linear functions of the input."""
        return Lirpa("forward")


@dataclass(frozen=True)
class ForwardBackward(Engined):
    """Forward linear bounds inside, one backward linear bound at the end (Xu et al., 2020)."""

    engine: Literal["auto-lirpa"] = "auto-lirpa"
    search: RadiusSearch = field(default_factory=Secant)

    def lirpa(self) -> Lirpa:
        """Bound intermediate layers by forward propagation."""
        return Lirpa("forward+backward")
