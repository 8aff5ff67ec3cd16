"""The ball, cut by the domain, over which auto-LiRPA bounds a network."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.ball import box, support
from certbench.core.threat import ThreatModel
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa


def perturbation(threat: ThreatModel, x: Float[Tensor, "n ..."], eps: Float[Tensor, " n"]) -> Any:
    """Return balls of one radius per input, cut by the domain, as auto-LiRPA's bounds take them."""
    low, high = box(threat, x.flatten(1), eps)
    return _ball_class()(threat.p, eps, x.flatten(1), low, high, x.shape)


@dataclass(frozen=True, eq=False)
class _Line:
    """The rows of a linear function that was bounded from below, and how far it falls inside the ball."""

    rows: Float[Tensor, "n k d"]
    change: Float[Tensor, "n k"]


@cache
def _ball_class() -> type[Any]:
    """Make auto-LiRPA's perturbation class, with the box for interval arithmetic and the cut ball for linear bounds."""
    auto_lirpa()
    from auto_LiRPA.patches import Patches
    from auto_LiRPA.perturbations import PerturbationLpNorm

    class CutBall(PerturbationLpNorm):  # type: ignore[misc]
        """Lp balls, one eps per input, cut by the domain."""

        def __init__(self, p: float, eps: Tensor, x: Tensor, low: Tensor, high: Tensor, shape: torch.Size) -> None:
            super().__init__(norm=math.inf, eps=0.0, x_L=low.view(shape), x_U=high.view(shape))
            self.p, self.radii, self.down, self.up = p, eps, x - low, high - x
            self.last: _Line | None = None

        def concretize(self, x: Tensor, A: Any, sign: int = -1, *args: Any, **kwargs: Any) -> Any:
            """Bound A x over the perturbation set, from below (sign -1) or above; the last from below is remembered."""
            patches = isinstance(A, Patches)
            if A is None or not (isinstance(A, Tensor) or (patches and not A.identity)):
                self.last = None if sign == -1 else self.last
                return super().concretize(x, A, sign, *args, **kwargs)
            if self.p == math.inf and patches:
                if sign == -1:
                    self.last = None  # of features, not of the margins
                return super().concretize(x, A, sign, *args, **kwargs)
            rows = A.to_matrix(x.shape) if patches else A
            rows = rows.reshape(rows.shape[0], rows.shape[1], -1)
            change = support(rows, self.p, self.radii, *((self.down, self.up) if sign == 1 else (self.up, self.down)))
            if sign == -1:
                self.last = _Line(rows.detach(), change.detach())
            bound = (rows @ x.reshape(x.shape[0], -1, 1)).squeeze(-1) + sign * change
            if patches and A.unstable_idx is None:
                bound = bound.view(len(x), A.patches.size(0), A.patches.size(2), A.patches.size(3))
            return bound

    return CutBall
