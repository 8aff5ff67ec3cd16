r"""What linear relaxations must know of a function f: R -> R that a network applies entry by entry.

Joints cut the line into pieces. On each piece f is continuously differentiable inside and convex, concave or linear,
which the classes prove from the sign of f''. At a joint f is continuous; it may have a kink there.

A joint c that is no double is replaced by the nearest one, off by some $\delta$. Between the two f bends the wrong way,
but only with $|f''| \leq M \delta$, where M bounds |f'''|. Adding $M \delta (z - c)^2 / 2$ there mends it, and changes
f by at most $M \delta^3$ and f' by at most $M \delta^2$: below 1e-25 for all functions here, while the error bounds at
such joints are above 1e-17. So lines that are widened by these bounds hold for f itself.

Of torch's elementary functions in float64 (exp, expm1, log, log1p, pow, sin, cos, tanh, atan, erf, erfc) it is assumed
that a result is off by at most 4 units in the last place (erfc: 16), or by 1e-300. The tests compare with mpmath.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.numerics.rounding import TINY, UNIT

LINEAR, CONVEX, CONCAVE = 0, 1, -1
"""How a piece bends: the sign of the second derivative."""


class Activation(ABC):
    """A function that a network applies to each entry; instances with equal parameters are equal.

    All methods work entry by entry, in the precision and on the device of their arguments. Only float64 is rigorous.

    Attributes:
        joints: the points between two pieces, in increasing order.
        bends: how each piece bends; one more than there are joints.
        turning: points between which f is monotone; kinks among them. A point off by a rounding is good enough.
        limits: bounds of f on all of its domain.
    """

    joints: ClassVar[tuple[float, ...]] = ()
    bends: tuple[int, ...]
    turning: ClassVar[tuple[float, ...]] = ()
    limits: ClassVar[tuple[float, float]] = (-torch.inf, torch.inf)

    @property
    def name(self) -> str:
        """Return the function's name, for messages."""
        return type(self).__name__

    @abstractmethod
    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z); at infinite z the limit, where there is one."""

    @abstractmethod
    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z); at a kink that of either side, at infinite z the limit."""

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return about the point of a convex or concave piece where f' is `slope`.

        A bad one costs tightness alone: the tangent at any point of a convex piece lies below f. Where there is none,
        the result may be any number or NaN. `low` is what `joints_near` was given.
        """
        raise NotImplementedError(f"{self.name} has no piece that bends")

    def supporting(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Float[Tensor, "2 ..."] | None:
        """Return about the slopes of the lines below f and below -f on [low, high] with the largest integrals.

        A bad one costs tightness alone. Where there is none, the result may be any number or NaN. None: not known.
        """
        return None

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`, the computed f(z), in float64."""
        return (16 * UNIT) * value.abs() + TINY

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`, the computed f'(z), in float64."""
        return (32 * UNIT) * slope.abs() + TINY

    def joints_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "joints ..."]:
        """Return the joints, of all entries or for each entry of `low`; those of a periodic function begin near it."""
        return low.new_tensor(self.joints)

    def turning_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "points ..."]:
        """Return the turning points, likewise."""
        return low.new_tensor(self.turning)

    def defined(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say where f is defined on all of [low, high]."""
        return low <= high

    def covered(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say where the joints near `low` are all that [low, high] contains, and are accurate."""
        return low <= high

    def excess(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Tensor | None:
        """Bound how far programs may fall below f on [low, high]; None: they compute f up to rounding."""
        return None

    def at(self, neurons: Tensor) -> "Activation":
        """Return the function of some of the neurons alone; they differ where parameters have an entry per neuron."""
        return self
