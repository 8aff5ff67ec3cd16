r"""The chord-slope Jacobian zonotope: local Lipschitz constants from a zonotope of matrices and its Gram matrix.

Every ReLU's slope is $d + e \sigma$, $|\sigma| \leq 1$. Backwards through the layers, rows of the product of weights
and slopes become $C_j + \sum_s \sigma_{js} A_{js} B_s$: directions B that all rows share, with a new one for every
unstable neuron, and coefficients $A \geq 0$ that bound what the neuron's interval times the row's entry can be. Then

$$L_j^2 = \|C_j\|^2 + 2 \sum_s A_{js} |C_j \cdot B_s| + \sum_{st} A_{js} A_{jt} |B_s \cdot B_t|$$

in L2, and moduli entry by entry in L1 and Linf. Zonotopes of vector-Jacobian products are those of ZLip (Jordan and
Dimakis, 2021), chords from the centre those of Avant and Morgansen (2023), the Gram matrix is Gershgorin's idea; we
know of no other place where they are put together.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.claims import Guarantee
from certbench.core.ranges import PositiveInt
from certbench.core.search import RadiusSearch, Secant
from certbench.networks.layers import Network
from certbench.networks.maps import Dense, Map
from certbench.verifiers.bounds.backward import ENTRIES
from certbench.verifiers.bounds.costs import Sizes, rows_of
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.rounding import bound_errors
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.local import LocalLipschitz, Slopes, Steepness, raised

GRAM = 2**22
"""Largest number of entries of a Gram matrix that are held at once: 32 MB."""

DIRECTIONS = 3
"""Number of copies of the directions while they pass a layer. Counted in `zonotope`."""

SMALLEST = 1e-200
"""Smallest square that counts. Below it, underflow may have lost terms, and the zonotope proves nothing."""


@dataclass(frozen=True)
class JacobianZonotope(LocalLipschitz):
    """Chord-slope Jacobian zonotope with the Gram norm: a local Lipschitz constant for ReLU networks (this project).

    Attributes:
        chords: slopes are those of chords from the input, which suffice for its robustness; else of tangents.
        shells: number of balls in the radial integral of the steepness; only with tangents.
        refine: whether the same bound sharpens those of the hidden layers first, from the second on.
        rounding_safe: whether rounding errors are counted, also those of the float program, which the claim then is
            about.
    """

    chords: bool = True
    shells: PositiveInt = 1
    refine: bool = False
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND

    def steepness(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        """Bound the steepness by the zonotope, as many inputs at once as memory allows."""
        network = state.network
        widest = max([network.inputs, *(layer.outputs for layer in network.layers)])
        symbols = torch.full((len(region),), rows.shape[1], device=rows.device)
        for i in range(1, len(network.hidden)):
            symbols = symbols + bounds.unstable(i).sum(dim=1)
        order = symbols.argsort(stable=True)  # inputs with as many symbols stand together
        counts, parts, start = symbols[order].tolist(), [], 0
        while start < len(region):
            end = start + 1
            while end < len(region) and (end + 1 - start) * counts[end] * widest <= ENTRIES:
                end += 1
            index = order[start:end]
            parts.append(self._some(state, region[index], rows[index], bounds[index]))
            start = end
        back = order.argsort()
        slope = torch.cat([part.slope for part in parts])[back]
        if region.threat.domain is None:
            return Steepness(slope)
        return Steepness(slope, torch.cat([part.fall for part in parts if part.fall is not None])[back])

    def slopes_cost(self, state: NetworkState) -> tuple[float, float]:
        """Predict the zonotope of one input if every neuron had a symbol."""
        network, rows = state.network, rows_of(state)
        sizes, first = Sizes.of(network), network.layers[0].outputs
        symbols, held, work = [rows], 0.0, 0.0
        for layer in reversed(network.hidden[1:]):
            symbols.append(symbols[-1] + layer.outputs)
        for layer, count in zip(reversed(network.layers), [*symbols, symbols[-1]], strict=False):
            widest = max(layer.outputs, *(part.inputs for part in layer.maps.values()))
            work += count * sum(part.products for part in layer.maps.values())
            held = max(held, DIRECTIONS * count * (widest + max(part.unfolded for part in layer.maps.values())))
        if state.threat.p == 2:
            work += symbols[-1] ** 2 * (network.inputs + rows) / 2 + rows * symbols[-1] * first
        if self.refine:
            work *= len(network.hidden)
            units = max((layer.outputs for layer in network.hidden), default=0)
            held += 2.0 * units * (symbols[-1] + sizes.live)
        return held + 2.0 * rows * symbols[-1], work

    def _some(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        if self.refine:
            bounds = self._refined(state, region, bounds)
        return zonotope(state.network, len(state.network.hidden), rows, self.slopes(state, region, bounds)).steepness(
            region
        )

    def _refined(self, state: NetworkState, region: Region, bounds: LayerBounds) -> LayerBounds:
        """Sharpen the bounds by those that the zonotope gives, layer after layer."""
        network, values = state.network, state.network.preactivations(region.x)
        errors = bound_errors(network, region) if self.rounding_safe else None
        for i in range(1, len(network.hidden)):
            unstable = bounds.unstable(i)
            count = int(unstable.sum(dim=1).amax())
            if count == 0:
                continue
            at = unstable.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
            units = region.x.new_zeros(len(region), count, network.layers[i].outputs).scatter(2, at[..., None], 1.0)
            reach = zonotope(network, i, units, self.slopes(state, region, bounds)).steepness(region)
            slope = reach.slope if errors is None else raised(network, i, units, reach.slope, region.threat.q)
            far = slope * region.eps[:, None] * (1 + 1e-9)
            far = far if errors is None else far + errors[i].gather(1, at)
            centre = values[i].gather(1, at)
            low = torch.full_like(values[i], -torch.inf).scatter(1, at, centre - far)
            high = torch.full_like(values[i], torch.inf).scatter(1, at, centre + far)
            lower = (*bounds.lower[:i], torch.maximum(bounds.lower[i], low), *bounds.lower[i + 1 :])
            upper = (*bounds.upper[:i], torch.minimum(bounds.upper[i], high), *bounds.upper[i + 1 :])
            bounds = LayerBounds(lower, upper, bounds.method)
        return bounds


@dataclass(frozen=True, eq=False)
class Rows:
    """Zonotopes of n times k rows: centre + sum_s (anything in [-1, 1]) coefficients_s directions_s.

    Attributes:
        network: the network; the rows of its first layer are directions, too.
        centre: the rows where all symbols are 0.
        coefficients: nonnegative coefficients of the directions.
        directions: directions of hidden layers from the second on, shared by all rows of an input.
        first: coefficients of the rows of the first layer; None if there is no hidden layer.
    """

    network: Network
    centre: Float[Tensor, "n k d"]
    coefficients: Float[Tensor, "n k s"]
    directions: Float[Tensor, "n s d"]
    first: Float[Tensor, "n k neurons"] | None

    def steepness(self, region: Region) -> Steepness:
        """Return the largest dual norm, and how far a linear function by one of the rows can fall in the ball."""
        if region.threat.p != 2.0:
            radius = self.coefficients @ self.directions.abs()
            if self.first is not None:
                radius = radius + _pull(self.network.absolute[0][0], self.first)
            return Steepness.between(self.centre - radius, self.centre + radius, region)
        spread = self._spread()
        slope = self._length(self.centre, spread)
        if region.threat.domain is None:
            return Steepness(slope)
        # A coordinate that meets the border pays by the way to it for all that is taken off its entry of the centre.
        down, up = (room[:, None] for room in ball.rooms(region.threat, region.x, region.eps))
        per_unit = (slope / region.eps[:, None])[..., None]
        clipped = torch.maximum(torch.minimum(self.centre, per_unit * down), -per_unit * up)
        paid = torch.where(self.centre > 0, down, up) * (self.centre - clipped).abs()
        return Steepness(slope, paid.sum(dim=-1) + region.eps[:, None] * self._length(clipped, spread))

    def _length(self, centre: Float[Tensor, "n k d"], spread: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        mixed = (self.coefficients * (centre @ self.directions.transpose(1, 2)).abs()).sum(dim=-1)
        if self.first is not None:
            mixed = mixed + (self.first * _push(self.network.layers[0].maps[0], centre).abs()).sum(dim=-1)
        squared = centre.square().sum(dim=-1) + 2 * mixed + spread
        constant = (centre == 0).all(dim=-1) & (self.coefficients == 0).all(dim=-1)
        if self.first is not None:
            constant = constant & (self.first == 0).all(dim=-1)
        length = torch.where((squared > SMALLEST) & squared.isfinite(), squared.sqrt(), torch.inf)
        return torch.where(constant, 0.0, length)

    def _spread(self) -> Float[Tensor, "n k"]:
        """Multiply the moduli of the directions' Gram matrix by the coefficients from both sides."""
        n, s, _ = self.directions.shape
        size = max(1, GRAM // max(n * s, 1))
        total = self.centre.new_zeros(self.centre.shape[:2])
        for at in range(0, s, size):
            chosen = slice(at, at + size)
            own = self.directions[:, chosen]
            gram = (own @ self.directions[:, at:].transpose(1, 2)).abs_()  # symmetric: what lies above counts twice
            gram[:, :, size:] *= 2
            mixed = (self.coefficients[:, :, chosen] @ gram) * self.coefficients[:, :, at:]
            total = total + mixed.sum(dim=-1)
            if self.first is not None:
                with_first = self.coefficients[:, :, chosen] @ _push(self.network.layers[0].maps[0], own).abs_()
                total = total + 2 * (with_first * self.first).sum(dim=-1)
        if self.first is None:
            return total
        flat = self.first.flatten(0, 1)
        return total + ((self.network.first_gram @ flat.T.contiguous()).T * flat).sum(dim=-1).view_as(total)


def zonotope(network: Network, layer: int, rows: Float[Tensor, "n k outputs"], slopes: Slopes) -> Rows:
    """Enclose `rows` times the product of matrices from the input to `layer`, for slopes in these intervals."""
    n, k = rows.shape[:2]
    centres: dict[int, Tensor] = {layer + 1: rows}
    directions: dict[int, Tensor] = {layer + 1: rows.new_zeros(n, 0, rows.shape[2])}
    coefficients, fresh, first = rows.new_zeros(n, k, 0), None, None
    while (at := max(centres) - 1) >= 0:
        centre, shared = centres.pop(at + 1), directions.pop(at + 1)
        shared = _padded(shared, coefficients.shape[2])
        if at < layer:
            middle, half = (slopes.low[at] + slopes.high[at]) / 2, (slopes.high[at] - slopes.low[at]) / 2
            new = (centre.abs() + coefficients @ shared.abs()) * half[:, None]
            centre, shared = centre * middle[:, None], shared * middle[:, None]
            if at == 0:
                first = new
            else:
                count = int((half > 0).sum(dim=1).amax()) if n else 0
                fresh = (half > 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
                coefficients = torch.cat([coefficients, new.gather(2, fresh[:, None].expand(n, k, count))], dim=2)
        for source, step in network.layers[at].maps.items():
            pulled, moved = _pull(step, centre), _pull(step, shared)
            if fresh is not None:
                moved = torch.cat([moved, _rows_of(step, fresh)], dim=1)
            known = source in centres
            centres[source] = centres[source] + pulled if known else pulled
            directions[source] = _padded(directions[source], moved.shape[1]) + moved if known else moved
        fresh = None
    return Rows(network, centres[0], coefficients, _padded(directions[0], coefficients.shape[2]), first)


def _pull(step: Map, rows: Float[Tensor, "n k after"]) -> Float[Tensor, "n k before"]:
    """Multiply rows by a map."""
    n, k = rows.shape[:2]
    if n * k == 0:
        return rows.new_zeros(n, k, step.inputs)
    return step.transpose(rows.flatten(0, 1)).view(n, k, step.inputs)


def _rows_of(step: Map, index: Tensor) -> Float[Tensor, "n s before"]:
    """Return the given rows of a map, for each input its own."""
    if isinstance(step, Dense):
        return step.weight[index]
    units = torch.zeros(*index.shape, step.outputs, dtype=torch.float64, device=index.device)
    return _pull(step, units.scatter(2, index[..., None], 1.0))


def _push(step: Map, rows: Float[Tensor, "n k before"]) -> Float[Tensor, "n k after"]:
    """Apply a map to every row."""
    n, k = rows.shape[:2]
    if n * k == 0:
        return rows.new_zeros(n, k, step.outputs)
    return step.forward(rows.flatten(0, 1)).view(n, k, step.outputs)


def _padded(directions: Float[Tensor, "n s d"], count: int) -> Float[Tensor, "n t d"]:
    """Append zeros for the symbols that came later."""
    more = count - directions.shape[1]
    return torch.nn.functional.pad(directions, (0, 0, 0, more)) if more else directions
