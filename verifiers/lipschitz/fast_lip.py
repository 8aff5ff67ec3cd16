r"""Fast-Lip (Weng et al., 2018) and RecurJac (Zhang et al., 2019): local Lipschitz constants from interval Jacobians.

Slopes of ReLUs in [a, b] put every entry of the Jacobian $R W_L S_{L-1} W_{L-1} \cdots S_1 W_1$ in an interval,
from the outputs back to the input, and a margin is at most as steep as the dual norm of the largest moduli,
$\|\max(|l|, |u|)\|_q$. The two methods differ in how intervals pass a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.memory import Cost
from certbench.core.ranges import PositiveInt
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.networks.maps import Map
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.local import LocalLipschitz, Steepness

WORK = 2**31
"""Largest number of multiplications that RecurJac may need for one margin of one input. A judgement: about a second."""

ENTRIES = 2**21
"""Largest number of entries that are held at once; a judgement, for a processor's cache."""


@dataclass(frozen=True)
class FastLip(LocalLipschitz):
    r"""Fast-Lip (Weng et al., 2018): the Jacobian's intervals, multiplied layer by layer.

    An interval of a coefficient times one of a slope is exact, and so is its product with a matrix, entry by entry:
    narrower slopes never give wider intervals. With `gram`, the last step takes the rows $v \in c \pm r$ of the first
    layer's outputs together: with $G = W_1 W_1^T$,

    $$\|v W_1\|_2^2 \leq \|c W_1\|^2 + 2 r \cdot |G c| + r \cdot |G| r,$$

    or the plain norm, whichever is less. This concerns L2 alone, and only networks in which no later layer reads the
    input; elsewhere `gram` changes nothing.

    Attributes:
        chords: whether slopes are those of chords from the input.
        shells: number of parts of the ball in the radial integral; 1 for no integral.
        gram: whether the first layer's rows are taken together.
        rounding_safe: whether rounding errors are counted, also those of the float program.
    """

    chords: bool = False
    shells: PositiveInt = 1
    gram: bool = False
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND

    def steepness(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        """Bound the steepness by the Jacobian's interval, or with `gram` by the smaller of two norms."""
        network, slopes = state.network, self.slopes(state, region, bounds)
        centres: dict[int, Tensor] = {}
        radii: dict[int, Tensor] = {}
        at, centre, radius = len(network.hidden), rows, torch.zeros_like(rows)
        together: Tensor | None = None
        while True:
            for source, step in network.layers[at].maps.items():
                _add(centres, source, _transpose(step, centre))
                if at < len(network.hidden):  # the rows themselves are known exactly
                    _add(radii, source, _transpose(network.absolute[at][source], radius))
            at = max(centres)
            centre = centres.pop(at)
            radius = radii.pop(at) if at in radii else torch.zeros_like(centre)
            if at == 0:
                found = Steepness.between(centre - radius, centre + radius, region)
                return found if together is None else replace(found, slope=torch.minimum(found.slope, together))
            at -= 1
            low, high = _times(centre - radius, centre + radius, slopes.low[at][:, None], slopes.high[at][:, None])
            centre, radius = (low + high) / 2, (high - low) / 2
            if self.gram and at == 0 and 0 not in centres and region.threat.q == 2:
                together = _together(network.layers[0].maps[0], centre, radius)


@dataclass(frozen=True)
class RecurJac(LocalLipschitz):
    r"""RecurJac (Zhang et al., 2019): Fast-Lip, with coefficients of known sign followed to the outputs.

    Let $y_i \in [L_i, U_i]$ be a row's coefficients of the outputs of a layer of ReLUs, with slopes
    $s_i \in [a_i, b_i]$, and $w$ a column of the layer's weights. Term by term,

    - where $L_i \geq 0$: $y_i s_i w_i \leq y_i \hat w_i$ with $\hat w_i = \max(a_i w_i, b_i w_i)$, whatever $y_i$ is;
    - where $U_i \leq 0$: likewise with the minimum; and where $a_i = b_i$, with $\hat w_i = a_i w_i$;
    - else: $y_i s_i w_i \leq b_i \max(L_i w_i, U_i w_i)$, a constant.

    What is left, $\sum_i y_i \hat w_i$, is linear in y, and $y = y' S' W'$ with the coefficients $y'$ of the next
    layer: it is such a sum again, with $W' \hat w$ for w. At the last layer y is known, and the sum is exact. Lower
    bounds are upper bounds for $-w$. Every step is sublinear in w, so by induction no interval is wider than
    Fast-Lip's. Each entry of each layer's Jacobian has a recursion of its own, so networks must be small, and plain
    chains.

    Attributes:
        chords: whether slopes are those of chords from the input.
        shells: number of parts of the ball in the radial integral; 1 for no integral.
        rounding_safe: whether rounding errors are counted, also those of the float program.
    """

    chords: bool = False
    shells: PositiveInt = 1
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network.

        Raises:
            UnsupportedError: it is no chain of layers with ReLUs between, or too large.
        """
        state = NetworkState.of(classifier, threat)
        state.network.chain()
        sizes = [state.network.inputs, *(layer.outputs for layer in state.network.hidden)]
        steps = [wide * after for wide, after in pairwise(sizes[1:])]
        work = 2 * sum(size * sum(steps[i:]) for i, size in enumerate(sizes[:-2]))
        if work > WORK:
            raise UnsupportedError(f"recursions of every entry take {work:.0e} multiplications per margin, over {WORK}")
        return self.fitting(state)

    def cost(self, state: NetworkState) -> Cost:
        """Predict as all of its family, without the recursions, which take most of the time."""
        return replace(super().cost(state), partial=True)

    def steepness(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        """Bound the steepness by the Jacobian's interval."""
        *maps, last = state.network.chain()
        slopes = self.slopes(state, region, bounds)
        low = high = _transpose(last, rows)
        rules: list[_Rule] = []
        for i in reversed(range(len(maps))):
            a, b = slopes.low[i][:, None], slopes.high[i][:, None]
            rules.insert(0, _Rule.known(low, a, b) if i == len(maps) - 1 else _Rule.recursive(low, high, a, b))
            size = max(1, ENTRIES // max(1, rows.shape[0] * rows.shape[1] * max(part.outputs for part in maps)))
            parts = [
                _recursion(maps[i].forward(one_hot(part, maps[i].inputs).to(rows)), rules, maps[i + 1 :])
                for part in torch.split(torch.arange(maps[i].inputs, device=rows.device), size)
            ]
            low, high = (torch.cat(ends, dim=2) for ends in zip(*parts, strict=True))
        return Steepness.between(low, high, region)


@dataclass(frozen=True, eq=False)
class _Rule:
    """The way in which a column w passes a layer of ReLUs, by its positive and its negative part.

    From above: a constant `above . w+ + below . w-`, and `up w+ + down w-` for the next layer. From below: with the
    names exchanged.
    """

    above: Float[Tensor, "n k m"]
    below: Float[Tensor, "n k m"]
    up: Float[Tensor, "n k m"]
    down: Float[Tensor, "n k m"]

    @staticmethod
    def known(y: Float[Tensor, "n k m"], a: Float[Tensor, "n 1 m"], b: Float[Tensor, "n 1 m"]) -> "_Rule":
        """Make the rule for known coefficients, where only the slopes vary."""
        plus, minus = y.clamp(min=0), y.clamp(max=0)
        nothing = torch.zeros_like(y)
        return _Rule(plus * b + minus * a, plus * a + minus * b, nothing, nothing)

    @staticmethod
    def recursive(
        low: Float[Tensor, "n k m"],
        high: Float[Tensor, "n k m"],
        a: Float[Tensor, "n 1 m"],
        b: Float[Tensor, "n 1 m"],
    ) -> "_Rule":
        """Make the rule for intervals: a constant where both the sign of a coefficient and the slope are open."""
        positive, negative = (low >= 0) | (a == b), (high <= 0) & ~(low >= 0)
        open_ = ~(positive | negative)  # and whatever is NaN
        up = torch.where(positive, b, torch.where(negative, a, 0.0))
        down = torch.where(positive, a, torch.where(negative, b, 0.0))
        return _Rule(torch.where(open_, high * b, 0.0), torch.where(open_, low * b, 0.0), up, down)


def _recursion(
    columns: Float[Tensor, "c m"], rules: Sequence[_Rule], maps: Sequence[Map]
) -> tuple[Float[Tensor, "n k c"], Float[Tensor, "n k c"]]:
    """Bound the Jacobian's entries in these columns; `maps` lead from each rule's layer to the next one's."""
    first, plus, minus = rules[0], columns.clamp(min=0), columns.clamp(max=0)
    ends = []
    for upper in (False, True):
        above, below = (first.above, first.below) if upper else (first.below, first.above)
        bound = above @ plus.T + below @ minus.T
        w: Tensor = columns
        for here, rule, step in zip(rules, rules[1:], maps, strict=False):
            up, down = (here.up, here.down) if upper else (here.down, here.up)
            hat = w.clamp(min=0) * up[:, :, None] + w.clamp(max=0) * down[:, :, None]
            w = step.forward(hat.flatten(0, 2)).view(*hat.shape[:3], step.outputs)
            above, below = (rule.above, rule.below) if upper else (rule.below, rule.above)
            for part, constant in ((w.clamp(min=0), above), (w.clamp(max=0), below)):
                bound = bound + (part @ constant[..., None]).squeeze(-1)
        ends.append(bound)
    return ends[0], ends[1]


def _times(low: Tensor, high: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the interval [low, high] by [a, b], 0 <= a <= b."""
    return low.clamp(min=0) * a + low.clamp(max=0) * b, high.clamp(min=0) * b + high.clamp(max=0) * a


def _transpose(step: Map, a: Float[Tensor, "n k outputs"]) -> Float[Tensor, "n k inputs"]:
    return step.transpose(a.flatten(0, 1)).view(*a.shape[:2], step.inputs)


def _add(sums: dict[int, Tensor], key: int, term: Tensor) -> None:
    sums[key] = sums[key] + term if key in sums else term


def _together(first: Map, centre: Float[Tensor, "n k m"], radius: Float[Tensor, "n k m"]) -> Float[Tensor, "n k"]:
    """Return the Gram norm, infinite where squares overflow; the Gram matrix is made for the open rows alone."""
    n, k, m = centre.shape
    c, r = centre.flatten(0, 1), radius.flatten(0, 1)
    at_centre = first.transpose(c)
    squared = at_centre.square().sum(dim=1) + 2 * (r * first.forward(at_centre).abs()).sum(dim=1)
    for part in torch.split(r.amax(dim=0).nonzero().squeeze(1), max(1, ENTRIES // max(m, first.inputs))):
        gram = first.forward(first.transpose(one_hot(part, m).to(c)))
        squared = squared + (r[:, part] * (r @ gram.abs().T)).sum(dim=1)
    result = torch.where((squared > 1e-200) & squared.isfinite(), squared.sqrt(), torch.inf)
    return result.view(n, k)
