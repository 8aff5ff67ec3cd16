"""Radius search: from "is the margin positive at eps?" to a certified radius, all inputs of a batch at once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.errors import ConfigError

Bound = Callable[[Int[Tensor, " m"], Float[Tensor, " m"]], Float[Tensor, " m"]]
"""`bound(index, eps)`: margin bounds of the inputs `index`, each over the ball of its own eps."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search knows of each input when it ends.

    Attributes:
        certified: the largest eps whose margin bound was positive, 0 if none was.
        refuted: the smallest eps above it whose bound was not, inf if none was tried. The bound
            failed there; that is no counterexample.
        evaluations: bounds computed for this input.
    """

    certified: Float[Tensor, " n"]
    refuted: Float[Tensor, " n"]
    evaluations: Int[Tensor, " n"]


class RadiusSearch(ABC):
    """A strategy for choosing the radii at which the margin is bounded.

    Sound whatever the margin does in between: `certified` is always a radius that was itself bounded.
    """

    @abstractmethod
    def run(self, bound: Bound, clean: Float[Tensor, " n"]) -> Found:
        """Search for every input whose `clean` margin (at eps 0) is positive; the others get radius 0."""


@dataclass(frozen=True)
class Ladder(RadiusSearch):
    """Verify at the given radii, smallest first, and stop at the first that fails.

    `Ladder((0.1,))` asks "is it certified at 0.1?" at the cost of one evaluation.
    """

    eps: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse radii that are no radii."""
        if not self.eps or not all(0 < eps < math.inf for eps in self.eps):
            raise ConfigError("a ladder needs at least one radius, each positive and finite", ("eps",))
        object.__setattr__(self, "eps", tuple(sorted(self.eps)))

    def run(self, bound: Bound, clean: Float[Tensor, " n"]) -> Found:
        """One evaluation per rung, of the inputs that stood on the one below."""
        found = _nothing_yet(clean)
        active = clean > 0
        for eps in self.eps:
            index = active.nonzero().squeeze(1)
            if len(index) == 0:
                break
            certified = bound(index, torch.full_like(clean[index], eps)) > 0
            found.evaluations[index] += 1
            found.certified[index[certified]] = eps
            found.refuted[index[~certified]] = eps
            active[index[~certified]] = False
        return found


@dataclass(frozen=True)
class Bisection(RadiusSearch):
    """Halve the bracket in log eps until its ends agree to `relative`.

    Attributes:
        start: first radius tried, in units of the input.
        relative: (high - low) / high at which an input is finished.
        limit: largest radius ever claimed; an input certified there is finished.
        evaluations: at most so many bounds per input; a failing start is followed downwards meanwhile.
    """

    start: float = 0.1
    relative: float = 1e-3
    limit: float = 1e4
    evaluations: int = 60

    def __post_init__(self) -> None:
        """Refuse settings with which no search could end."""
        _check(self)

    def run(self, bound: Bound, clean: Float[Tensor, " n"]) -> Found:
        """About log2(1 / relative) evaluations, plus those that find the bracket."""

        def propose(bracket: _Bracket) -> Float[Tensor, " m"]:
            return bracket.middle()

        return _close_in(bound, clean, self, propose)


@dataclass(frozen=True)
class Secant(RadiusSearch):
    """Close the bracket where the margin's chord crosses zero (the Illinois variant of regula falsi).

    About half the evaluations of `Bisection`, which it falls back on whenever two proposals in a row
    failed to halve the bracket. Same attributes.
    """

    start: float = 0.1
    relative: float = 1e-3
    limit: float = 1e4
    evaluations: int = 60

    def __post_init__(self) -> None:
        """Refuse settings with which no search could end."""
        _check(self)

    def run(self, bound: Bound, clean: Float[Tensor, " n"]) -> Found:
        """Each input keeps its own bracket and leaves the batch when it is finished."""

        def propose(bracket: _Bracket) -> Float[Tensor, " m"]:
            chord = bracket.crossing()
            width = bracket.high - bracket.low
            # Keep a proposal inside the bracket by a margin that lets a correct guess end the search.
            edge = torch.minimum(0.5 * self.relative * bracket.high, 0.25 * width)
            chord = torch.maximum(torch.minimum(chord, bracket.high - edge), bracket.low + edge)
            return torch.where(bracket.stuck | ~chord.isfinite(), bracket.middle(), chord)

        return _close_in(bound, clean, self, propose)


@dataclass(eq=False)
class _Bracket:
    """Of each active input: certified at `low` with margin `above` > 0, not at `high` with margin `below` <= 0."""

    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]
    above: Float[Tensor, " m"]
    below: Float[Tensor, " m"]
    clean: Float[Tensor, " m"]
    stuck: Tensor

    def middle(self) -> Float[Tensor, " m"]:
        """Up by four while nothing failed, down by four while nothing held, else the geometric mean."""
        return torch.where(
            self.high.isinf(),
            4 * self.low,
            torch.where(self.low == 0, self.high / 4, self.low.sqrt() * self.high.sqrt()),
        )

    def crossing(self) -> Float[Tensor, " m"]:
        """Where the chord through the bracket's ends is zero; while nothing failed, the chord from eps 0."""
        beyond = self.low * self.clean / (self.clean - self.above).clamp(min=0)  # inf if the margin did not fall
        beyond = torch.minimum(torch.maximum(1.05 * beyond, 1.1 * self.low), 16 * self.low)
        within = self.low + (self.high - self.low) * self.above / (self.above - self.below)
        return torch.where(self.high.isinf(), beyond, within)


def _close_in(
    bound: Bound, clean: Float[Tensor, " n"], options: Bisection | Secant, propose: Callable[[_Bracket], Tensor]
) -> Found:
    found = _nothing_yet(clean)
    low, high = found.certified, found.refuted
    above, below = clean.clone(), torch.full_like(clean, -torch.inf)
    side = torch.zeros_like(clean)  # of the last evaluation: +1 certified, -1 not
    slow = torch.zeros_like(clean)  # evaluations in a row that did not halve the bracket
    active = clean > 0
    for step in range(options.evaluations):
        index = active.nonzero().squeeze(1)
        if len(index) == 0:
            break
        if step == 0:
            eps = torch.full_like(clean[index], options.start)
        else:
            eps = propose(_Bracket(low[index], high[index], above[index], below[index], clean[index], slow[index] >= 2))
        eps = eps.clamp(max=options.limit)
        margin = bound(index, eps)
        found.evaluations[index] += 1
        holds = margin > 0
        width = high[index] - low[index]
        up, down = index[holds], index[~holds]
        below[up] = torch.where(side[up] > 0, below[up] / 2, below[up])  # Illinois: the end that stays counts half
        above[down] = torch.where(side[down] < 0, above[down] / 2, above[down])
        low[up], above[up], side[up] = eps[holds], margin[holds], 1.0
        high[down], below[down], side[down] = eps[~holds], margin[~holds], -1.0
        halved = high[index] - low[index] <= width / 2
        slow[index] = torch.where(halved | high[index].isinf(), 0.0, slow[index] + 1)
        done = (high[index] - low[index] <= options.relative * high[index]) & high[index].isfinite()
        active[index[done | (low[index] >= options.limit)]] = False
    return found


def _nothing_yet(clean: Float[Tensor, " n"]) -> Found:
    return Found(
        certified=torch.zeros_like(clean),
        refuted=torch.full_like(clean, torch.inf),
        evaluations=torch.zeros(len(clean), dtype=torch.int64, device=clean.device),
    )


def _check(options: Bisection | Secant) -> None:
    if not 0 < options.start < math.inf:
        raise ConfigError(f"start must be positive and finite, not {options.start}", ("start",))
    if not options.start <= options.limit < math.inf:
        raise ConfigError(f"limit must be finite and at least start, not {options.limit}", ("limit",))
    if not 0 < options.relative < 1:
        raise ConfigError(f"relative must lie between 0 and 1, not {options.relative}", ("relative",))
    if options.evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, not {options.evaluations}", ("evaluations",))


SEARCHES: dict[str, type[RadiusSearch]] = {"secant": Secant, "bisection": Bisection, "ladder": Ladder}
"""The names that a specification may give to the option `search`."""
