"""Radius search: from "is the margin positive at eps?" to a certified radius, all inputs of a batch at once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core import ball
from certbench.core.ranges import Options, PositiveFloat, PositiveInt, RelativeTolerance
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Bounds from one evaluation over the ball of radius eps.

    Attributes:
        margin: a lower bound of the margin; if it is positive, the input is certified at eps.
        crossing: radius at which the linear function below the margin, valid on the whole ball, reaches zero. The input
            is certified at min(eps, crossing); beyond eps the crossing is a guess. NaN if the method has no such
            function.
    """

    margin: Float[Tensor, " m"]
    crossing: Float[Tensor, " m"]


@dataclass(frozen=True, eq=False)
class Start:
    """Guesses before the first evaluation; NaN where there is none.

    Attributes:
        guess: a first radius to try, for example from a cheaper method.
        tangent: the crossing as eps goes to 0: the radius at which the tangents of the margins reach zero.
        size: size of each input, in which radii of the search's options are measured; None: 1. See `ball.size`.
        farthest: radius that is enough, as nothing of the domain lies beyond; None: infinity. See `ball.farthest`.
    """

    guess: Float[Tensor, " n"]
    tangent: Float[Tensor, " n"]
    size: Float[Tensor, " n"] | None = None
    farthest: Float[Tensor, " n"] | None = None

    def scaled(self, radius: float) -> Float[Tensor, " n"]:
        """Return a radius of the search's options in units of the input, for each input."""
        return torch.full_like(self.tangent, radius) * (1.0 if self.size is None else self.size)

    def enough(self, limit: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the radius that ends the search: the limit, or one just beyond the domain if that is nearer."""
        return limit if self.farthest is None else torch.minimum(limit, self.farthest * BEYOND)

    @staticmethod
    def at(
        threat: ThreatModel, x: Float[Tensor, "n d"], guess: Float[Tensor, " n"], tangent: Float[Tensor, " n"]
    ) -> "Start":
        """Return these guesses for inputs, with their sizes and the ends of their domain."""
        return Start(guess, tangent, ball.size(x), ball.farthest(threat, x))


BEYOND = 1 + 1e-9
"""Factor from the farthest point of a domain to a radius beyond it, whatever the rounding."""

Bound = Callable[[Int[Tensor, " m"], Float[Tensor, " m"]], Evaluation]
"""A function `bound(index, eps)` that bounds the inputs `index`, each over the ball of its own eps."""


@dataclass(frozen=True, eq=False)
class Found:
    """Results of a search, for each input.

    Attributes:
        certified: the largest radius that an evaluation proved, 0 if none did.
        refuted: the smallest eps above it whose bound was not positive, inf if none was tried. The bound
            failed there; this is no counterexample.
        evaluations: number of bounds computed for this input.
        limit: largest radius that the search tries; inf if it was asked about given radii.
    """

    certified: Float[Tensor, " n"]
    refuted: Float[Tensor, " n"]
    evaluations: Int[Tensor, " n"]
    limit: Float[Tensor, " n"]


class RadiusSearch(Options, ABC):
    """A strategy for choosing the radii at which the margin is bounded.

    It is sound for any behaviour of the margin in between: `certified` is always a radius that an evaluation proved.
    """

    @abstractmethod
    def run(self, bound: Bound, clean: Float[Tensor, " n"], start: Start) -> Found:
        """Search for every input whose `clean` margin (at eps 0) is positive; the others get radius 0."""

    def attainable(self, radius: float, evaluations: int) -> float:
        """Return the largest radius that a bound may prove if it only falls as the ball grows.

        Args:
            radius: the radius that the search certified.
            evaluations: number of bounds that it computed.
        """
        del radius, evaluations
        return math.inf


@dataclass(frozen=True)
class Ladder(RadiusSearch):
    """A search that verifies the given radii, smallest first, and stops at the first that fails.

    `Ladder((0.1,))` asks "is it certified at 0.1?" at the cost of one evaluation.
    """

    eps: tuple[PositiveFloat, ...]

    def __post_init__(self) -> None:
        """Sort the radii; there must be at least one."""
        RadiusSearch.__post_init__(self)
        if not self.eps:
            raise ConfigError("a ladder needs at least one radius", ("eps",))
        object.__setattr__(self, "eps", tuple(sorted(self.eps)))

    def run(self, bound: Bound, clean: Float[Tensor, " n"], start: Start) -> Found:
        """Evaluate each rung for the inputs that passed the one below."""
        del start
        found = _nothing_yet(clean, torch.full_like(clean, torch.inf))
        active = clean > 0
        for eps in self.eps:
            index = active.nonzero().squeeze(1)
            if len(index) == 0:
                break
            certified = bound(index, torch.full_like(clean[index], eps)).margin > 0
            found.evaluations[index] += 1
            found.certified[index[certified]] = eps
            found.refuted[index[~certified]] = eps
            active[index[~certified]] = False
        return found


@dataclass(frozen=True)
class Bisection(RadiusSearch):
    """A search that halves the bracket in log eps until its ends agree to `relative`: the plain reference.

    Attributes:
        start: first radius tried, in units of the input's size, which is the largest modulus of its entries, or 1 if
            that is larger.
        relative: (high - low) / high at which an input is finished.
        limit: largest radius ever tried, in the same units. An input certified there is finished; its outcome is
            `limited`, unless its whole domain is certified.
        evaluations: largest number of bounds per input, the search below a failing start included.
    """

    start: PositiveFloat = 0.1
    relative: RelativeTolerance = 1e-3
    limit: PositiveFloat = 1e4
    evaluations: PositiveInt = 60

    def check_together(self) -> None:
        """Refuse a start above the limit."""
        if self.start > self.limit:
            raise ConfigError(f"limit must be at least start, {self.start}, not {self.limit}", ("limit",))

    def attainable(self, radius: float, evaluations: int) -> float:
        """Return the end of the bracket; infinity if the search ended early, at its limits."""
        return _attainable(self, radius, evaluations)

    def run(self, bound: Bound, clean: Float[Tensor, " n"], start: Start) -> Found:
        """Bisect with about log2(1 / relative) evaluations, plus those that find the bracket."""
        limit, first = start.scaled(self.limit).to(clean), start.scaled(self.start).to(clean)
        enough = start.enough(limit).to(clean)
        found = _nothing_yet(clean, limit)
        low, high = found.certified, found.refuted
        active = clean > 0
        for step in range(self.evaluations):
            index = active.nonzero().squeeze(1)
            if len(index) == 0:
                break
            eps = middle(low[index], high[index]) if step else first[index]
            eps = torch.minimum(eps, limit[index])
            holds = bound(index, eps).margin > 0
            found.evaluations[index] += 1
            low[index[holds]], high[index[~holds]] = eps[holds], eps[~holds]
            closed = (high[index] - low[index] <= self.relative * high[index]) & high[index].isfinite()
            active[index[closed | (low[index] >= enough[index])]] = False
        return found


@dataclass(frozen=True)
class Secant(RadiusSearch):
    """A search that follows the linear bounds to the radius at which they just cross zero, in 3 to 6 evaluations.

    An evaluation at e gives the crossing r(e) of a linear bound that holds in the whole ball of e. So it certifies
    min(e, r(e)), and the wanted radius is the fixed point r(e) = e. The next e comes from a power law for the loss of
    the relaxation, or from an inverse quadratic through the last evaluations. If it lies outside the bracket, or
    fails to halve the bracket three times in a row, the bracket's middle in log e takes its place.

    Attributes:
        relative: an input is finished when (high - low) / high is at most this, or when an evaluation certified its
            eps with a crossing at most this share above it.
        limit: largest radius ever tried, in units of the input's size, which is the largest modulus of its entries, or
            1 if that is larger. An input certified there is finished; its outcome is `limited`, unless its whole domain
            is certified.
        evaluations: largest number of bounds per input.
    """

    relative: RelativeTolerance = 1e-3
    limit: PositiveFloat = 1e4
    evaluations: PositiveInt = 60

    def attainable(self, radius: float, evaluations: int) -> float:
        """Return the end of the bracket; infinity if the search ended early, at its limits."""
        return _attainable(self, radius, evaluations)

    def run(self, bound: Bound, clean: Float[Tensor, " n"], start: Start) -> Found:
        """Search; each input keeps its own bracket and leaves the batch when it is finished."""
        limit = start.scaled(self.limit).to(clean)
        enough = start.enough(limit).to(clean)
        found = _nothing_yet(clean, limit)
        low, high = found.certified, found.refuted
        points = _Points(clean, start.tangent.to(clean))
        slow = torch.zeros_like(clean)  # evaluations in a row that did not halve the bracket
        eps = start.scaled(0.1).to(clean)
        for known in (start.tangent.to(clean) * FIRST, start.guess.to(clean)):
            eps = torch.where((known > 0) & known.isfinite(), known, eps)
        eps = torch.minimum(eps, limit)
        active = clean > 0
        for _ in range(self.evaluations):
            index = active.nonzero().squeeze(1)
            if len(index) == 0:
                break
            e = eps[index]
            seen = bound(index, e)
            found.evaluations[index] += 1
            holds = seen.margin > 0
            crossing = torch.where(seen.margin.isfinite(), seen.crossing, torch.nan)
            width = high[index] - low[index]
            proved = torch.where(holds, e, torch.minimum(crossing.nan_to_num(0.0).clamp(min=0), e))
            low[index] = torch.maximum(low[index], proved)
            high[index[~holds]] = torch.minimum(high[index], e)[~holds]
            # A method that is not monotone may certify a radius above one at which it failed.
            high[index] = torch.where(high[index] > low[index], high[index], torch.inf)
            points.add(index, e, seen.margin, crossing)
            lower, upper = low[index], high[index]
            slow[index] = torch.where((upper - lower <= width / 2) & upper.isfinite(), 0.0, slow[index] + 1)
            closed = (upper - lower <= self.relative * upper) & upper.isfinite()
            settled = holds & (crossing <= e * (1 + self.relative))
            active[index[closed | settled | (lower >= enough[index])]] = False

            # Aim a little above the crossing: an evaluation there gives both ends of the bracket.
            proposal = points.crossing(index) * (1 + self.relative / 4)
            beyond = torch.where(upper.isinf(), 16 * lower, upper)
            edge = torch.where(upper.isinf(), 0.5 * lower, upper - lower) * 0.25
            edge = torch.minimum(edge, 0.5 * self.relative * beyond)  # lets a correct guess end the search
            proposal = torch.where(upper.isinf(), torch.minimum(proposal, beyond), proposal)
            inside = (proposal > lower * (1 - self.relative)) & (proposal < upper * (1 + self.relative))
            proposal = torch.maximum(torch.minimum(proposal, upper - edge), lower + edge)
            proposal = torch.where(inside & (slow[index] <= 3), proposal, middle(lower, upper))
            eps[index] = torch.minimum(proposal, limit[index])
        return found


FIRST = 0.6
"""First radius tried, in units of the tangent's crossing. A judgement: CROWN's radii lie at 0.3 to 0.9 of it."""

STEEPENING = 3.0
"""Power of eps with which a bound loosens, until two evaluations give it. A judgement, from CROWN on the zoo and on
MNIST networks."""


class _Points:
    """The last evaluations of each input, and a guess where the bound on the margin crosses zero.

    The margin's bound falls with the margin's tangent. It also falls by a loss that grows like a power of eps, as the
    relaxations loosen: clean - (clean / tangent) eps - loss(eps). Two evaluations give the power. Where this does not
    fit, inverse quadratic interpolation of crossing - eps takes over. For a method without linear functions, the chord
    from the clean margin stands for the crossing.
    """

    def __init__(self, clean: Float[Tensor, " n"], tangent: Float[Tensor, " n"]) -> None:
        self.eps = torch.full((3, len(clean)), torch.nan, dtype=clean.dtype, device=clean.device)
        self.margin, self.value = self.eps.clone(), self.eps.clone()
        self.clean, self.tangent = clean, torch.where((tangent > 0) & tangent.isfinite(), tangent, torch.nan)

    def add(
        self,
        index: Int[Tensor, " m"],
        eps: Float[Tensor, " m"],
        margin: Float[Tensor, " m"],
        crossing: Float[Tensor, " m"],
    ) -> None:
        """Remember an evaluation, unless it carries no information."""
        start = self.tangent[index]
        # If a crossing has not moved from the tangent's, the margin at the border tells nothing.
        moved = torch.where((crossing - start).abs() > 0.02 * start, margin, torch.nan)
        fresh = self.eps[2, index].isnan() & ~crossing.isnan() & ~start.isnan()
        self.eps[2, index[fresh]], self.value[2, index[fresh]] = 0.0, start[fresh]
        crossing = torch.where(crossing.isnan(), eps * self.clean[index] / (self.clean[index] - margin), crossing)
        known = crossing.isfinite() & margin.isfinite()
        index = index[known]
        for store, now in ((self.eps, eps), (self.margin, moved), (self.value, crossing - eps)):
            store[:2, index] = store[1:, index]
            store[2, index] = now[known]

    def crossing(self, index: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Return the radius where the bound is zero, NaN if unknown."""
        by_power = self._by_power(index)
        return torch.where(by_power.isfinite(), by_power, self._by_inverse(index))

    def _by_power(self, index: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        clean, eps, margin = self.clean[index], self.eps[1:, index], self.margin[1:, index]
        rate = (clean / self.tangent[index]).nan_to_num(0.0)
        loss = clean - rate * eps - margin
        at, height = eps.log(), torch.where(loss > 1e-9 * clean, loss, torch.nan).log()
        power = ((height[1] - height[0]) / (at[1] - at[0])).clamp(1.05, 20.0)
        power = torch.where(power.isfinite(), power, STEEPENING)
        low, high = at[1] - 3, torch.fmax(at[1], self.tangent[index].log()) + 3 * self.tangent[index].isnan()
        for _ in range(40):  # bisection in log eps of a falling function
            middle = (low + high) / 2
            left = clean - rate * middle.exp() - (height[1] + power * (middle - at[1])).exp()
            low, high = torch.where(left > 0, middle, low), torch.where(left > 0, high, middle)
        return torch.where(height[1].isfinite(), ((low + high) / 2).exp(), torch.nan)

    def _by_inverse(self, index: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        (a, b, c), (fa, fb, fc) = self.eps[:, index], self.value[:, index]
        secant = torch.where(b.isnan(), c + fc, c - fc * (c - b) / (fc - fb))
        quadratic = (
            a * fb * fc / ((fa - fb) * (fa - fc))
            + b * fa * fc / ((fb - fa) * (fb - fc))
            + c * fa * fb / ((fc - fa) * (fc - fb))
        )
        # Three values in falling order have one inverse; else the last two must do.
        order = ((fa - fb) * (a - b) < 0) & ((fb - fc) * (b - c) < 0) & ((fa - fc) * (a - c) < 0)
        return torch.where(order & quadratic.isfinite(), quadratic, secant)


def middle(low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Return 4 `low` while nothing failed, `high` / 4 while nothing held, else the geometric mean."""
    return torch.where(high.isinf(), 4 * low, torch.where(low == 0, high / 4, low.sqrt() * high.sqrt()))


def _attainable(search: "Bisection | Secant", radius: float, evaluations: int) -> float:
    """Return the end of the bracket of a finished input; infinity for an input that is not.

    An input is finished at `limit`, or where its bound fails, or crosses zero, at most `relative` further out.
    """
    ended = evaluations < search.evaluations and radius < search.limit
    return radius / (1 - search.relative) if ended else math.inf


def _nothing_yet(clean: Float[Tensor, " n"], limit: Float[Tensor, " n"]) -> Found:
    return Found(
        certified=torch.zeros_like(clean),
        refuted=torch.full_like(clean, torch.inf),
        evaluations=torch.zeros(len(clean), dtype=torch.int64, device=clean.device),
        limit=limit,
    )


SEARCHES: dict[str, type[RadiusSearch]] = {"secant": Secant, "bisection": Bisection, "ladder": Ladder}
"""Search strategies by the names that a specification may give to the option `search`."""
