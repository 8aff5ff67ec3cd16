"""Predictions of the memory and the time that bounds of a network need, from its sizes, before anything is computed.

Numbers of entries and of multiplications are counted; every neuron counts as unstable. What libraries hold beside them
was measured: see the notes of the constants. Times are those of an own backward pass on this machine.
"""

import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from certbench.core.margins import MarginState
from certbench.core.memory import Cost
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Bilinear, Network, RowSoftmax
from certbench.networks.piecewise_linear import IDENTITY
from certbench.verifiers.bounds.backward import ENTRIES, SHARED, backward
from certbench.verifiers.bounds.intervals import interval_bounds
from certbench.verifiers.bounds.region import Region

BYTES = 8
"""Size of a number in float64."""

EVALUATIONS = 6
"""Number of bounds that a search for a radius computes, usually: see `Secant`."""

KEPT = 16
"""Number of entries for each neuron and input while layers are bounded: bounds, intervals and lines. Counted."""

PLANES = 16
"""Number of entries for each pair of entries of a softmax's row while its planes are found. Counted."""

COPIES = 6
"""Number of copies of the coefficients of a layer while they pass its activation. Counted in `backward.through`."""

SAVED = 5
"""Number of entries that torch saves for each neuron of a module and each margin, for the first tangent. Measured on
residual networks with batch normalisation; plain ones save fewer."""

BASE = 6.4e7
"""Number of bytes that torch and other libraries take when they are first used. Measured."""

TIMED = 2**18
"""Least number of coefficients that are pulled back to measure the machine."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network.

    Attributes:
        neurons: number of hidden neurons.
        values: number of those that the module itself has: without the factors of products.
        live: largest number of coefficients that one row of a backward pass has at once, copies included.
        below: by layer, multiplications that take one row from its outputs to the input.
        unfolded: largest number of entries that a map holds beside its result for one vector.
    """

    neurons: int
    values: int
    live: int
    below: tuple[int, ...]
    unfolded: int

    @staticmethod
    def of(network: Network) -> "Sizes":
        """Count."""
        below, total, unfolded = [], 0, 0
        last: dict[int, int] = {}  # the last layer that reads each source
        for i, layer in enumerate(network.layers):
            total += sum(part.products for part in layer.maps.values())
            below.append(total)
            unfolded = max(unfolded, *(part.unfolded for part in layer.maps.values()))
            last |= dict.fromkeys(layer.maps, i)
        sizes = [network.inputs]  # of the sources
        for i, layer in enumerate(network.hidden):
            sizes.append(
                max(part.inputs for after in network.layers[i + 1 :] for s, part in after.maps.items() if s == i + 1)
                if i + 1 in last
                else layer.outputs
            )
        values = sum(
            layer.outputs
            for i, layer in enumerate(network.hidden)
            if i not in network.copied and not isinstance(network.activation(i), Bilinear)
        )
        live = 0
        for i, layer in enumerate(network.layers):
            waiting = sum(size for source, size in enumerate(sizes[: i + 1]) if last.get(source, -1) >= i)
            live = max(live, COPIES * layer.outputs + 2 * waiting)
        return Sizes(sum(layer.outputs for layer in network.hidden), values, live + unfolded, tuple(below), unfolded)


def tangents(sizes: Sizes, rows: int) -> int:
    """Count the entries for one input while the margins' first tangents are computed."""
    return rows * (SAVED * sizes.values + sizes.unfolded)


def rows_of(state: MarginState) -> int:
    """Return the number of rows that are bounded for one input: the margins, or both ends of a single output."""
    return max(state.classifier.num_classes - 1, 2)


def intervals(state: MarginState, network: Network, linear: int = 0) -> Cost:
    """Predict intervals, and after them one backward pass of the rows, `linear` times."""
    sizes, rows = Sizes.of(network), rows_of(state)
    held = max(KEPT * sizes.neurons + rows * sizes.live + sizes.unfolded, tangents(sizes, rows))
    work = EVALUATIONS * (2 * sizes.below[-1] + linear * rows * sizes.below[-1])
    return Cost(
        fixed=BASE,
        each=BYTES * held,
        work=work,
        pace=lambda: pace(network, state.threat),
        advice="use lipschitz",
        device=state.classifier.device,
    )


def relaxed(state: MarginState, network: Network, entries: int = ENTRIES, more: float = 0.0, work: float = 0.0) -> Cost:
    """Predict backward bounds of every hidden layer, and then of the rows.

    Args:
        state: the classifier and the threat model.
        network: its layers.
        entries: largest number of coefficients held at once for one layer.
        more: number of entries that the method holds for each input beside.
        work: multiplications that the method needs beside, for each evaluation.
    """
    sizes, rows = Sizes.of(network), rows_of(state)
    hidden = [
        2 * layer.outputs * sizes.below[i]
        for i, layer in enumerate(network.hidden)
        if i and i not in network.copied and (network.activation(i) != IDENTITY or i in network.bounded)
    ]
    functions = [network.activation(i) for i in range(len(network.hidden))]
    pairs = sum(
        layer.outputs * function.row
        for layer, function in zip(network.hidden, functions, strict=True)
        if isinstance(function, RowSoftmax)
    )
    widest = max(network.inputs, *(layer.outputs for layer in network.layers))
    held = max(KEPT * sizes.neurons + PLANES * pairs + max(rows * sizes.live, more), tangents(sizes, rows))
    shared = 2 * SHARED * sizes.neurons
    return Cost(
        fixed=BASE + BYTES * max(entries, 2 * widest) * sizes.live / widest,
        each=BYTES * (held + shared),
        work=EVALUATIONS * (sum(hidden) + rows * sizes.below[-1] + work),
        pace=lambda: pace(network, state.threat),
        device=state.classifier.device,
    )


CLIMB = 15
"""Number of entries in float32 for each slope of each row that the optimisation holds. Counted in `optimise`."""

STEP = 3
"""Time of a step of the optimisation, in backward passes: there, back, and Adam."""


def optimised(state: MarginState, network: Network, iterations: int, layers: int, entries: int = ENTRIES) -> Cost:
    """Predict backward bounds of every hidden layer whose slopes are optimised, `layers` steps inside."""
    sizes, rows = Sizes.of(network), rows_of(state)
    steps = STEP * iterations * rows * sizes.below[-1]
    for i, layer in enumerate(network.hidden):
        steps += STEP * layers * 2 * layer.outputs * sizes.below[i] if i else 0
    held = rows * (CLIMB * sizes.neurons + sizes.live) + 2 * CLIMB * sizes.neurons * (layers > 0)
    return relaxed(state, network, entries, more=held / 2, work=steps)


_PACES: "WeakKeyDictionary[Network, float]" = WeakKeyDictionary()


@torch.no_grad()
def pace(network: Network, threat: ThreatModel) -> float:
    """Return the multiplications per second of a backward pass through the network, measured once."""
    if network not in _PACES:
        sizes, layer = Sizes.of(network), network.layers[-1]
        widest = max(network.inputs, *(one.outputs for one in network.layers))
        count = max(2, min(256, TIMED // widest))
        x = layer.bias.new_zeros((1, network.inputs))
        low, high = threat.ends(x) if threat.domain is not None else (0.0, 1.0)
        x = (x + (low + high) / 2).nan_to_num(0.0, 0.0, 0.0)
        bounds = interval_bounds(network, Region(threat, x, x.new_full((1,), 1e-3)))
        rows = torch.ones(1, count, layer.outputs, dtype=x.dtype, device=x.device)
        seconds = []
        for _ in range(2):  # the first one also draws the lines
            start = time.perf_counter()
            float(backward(network, rows, len(network.hidden), bounds).b.sum())  # waits for the device
            seconds.append(time.perf_counter() - start)
        _PACES[network] = count * sizes.below[-1] / max(min(seconds), 1e-9)
    return _PACES[network]
