r"""The semidefinite relaxation of a ReLU network (Raghunathan, Steinhardt and Liang, 2018), proved by weak duality.

The variables y are the input and the hidden neurons whose sign is open, scaled so that $|y_i| \leq 1$ for a neuron; all
others are affine functions of them. What is known of y reads $q_k(y) = v^T F_k v \geq 0$, or = 0, with $v = (1, y)$:

    1 - y_i^2,  the ball or the box of inputs,  h - z,  u (z - l) / (u - l) - h  (the cuts),  h (h - z) = 0.

For all multipliers w, nonnegative except for equalities, and all $\gamma$, a linear function of the logits,
$c(y) = v^T C v$, obeys

$$c(y) \geq c(y) - \sum_k w_k q_k(y) = \gamma + v^T M v \geq \gamma + T \min(0, \lambda_{\min}(M)),
  \quad M = C - \sum_k w_k F_k - \gamma e_0 e_0^T, \quad |v|^2 \leq T.$$

A solver proposes w and `SemidefiniteProgram.bound` proves. So the solver's tolerance, status and objective do not
matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.checker.reading import written
from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, margin_rows, tangent
from certbench.core.ranges import at_least, one_of
from certbench.core.search import RadiusSearch, Secant, Start
from certbench.core.threat import ThreatModel
from certbench.errors import MissingBackendError, UnsupportedError
from certbench.networks.layers import Network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.proof import adaptive
from certbench.verifiers.bounds.region import LayerBounds, Linear, Region
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.linear.semidefinite import (
    BACKENDS,
    Array,
    SemidefiniteProgram,
    bound_by_box,
    cvxpy_package,
    propose,
)

WIDER = 1e-9
"""Relative widening of exported bounds of the first hidden layer; a hundred times as much with each later layer. So the
checker, which starts from the widened bounds of earlier layers, can prove them."""

CLEAR = 1e-6
"""Relative size below which a margin that CROWN proves is exported with multipliers."""

GROWTH = 1.15
"""First radius tried, in units of CROWN's. A judgement."""


@dataclass(frozen=True)
class SDP(MarginCertifier[NetworkState]):
    """The semidefinite relaxation of small ReLU networks (Raghunathan, Steinhardt and Liang, 2018).

    A bound is the larger of CROWN's and of what the solver's multipliers prove. Where a solver gives none, CROWN's
    remains. Only rows that may hold the smallest margin are solved. The claim is about the real-arithmetic network.

    Attributes:
        search: strategy for choosing radii.
        solver: "scs", a first-order method, or "clarabel", an interior-point method: precise, for tiny networks.
        cuts: whether the upper edges of the LP relaxation's triangles are added. They make it at least as tight.
        limit: largest dimension that the matrix could have: one more than inputs and hidden neurons. Other networks are
            refused. None: what the solver can solve, 300 for SCS and 110 for Clarabel. The actual matrix is smaller: it
            has no row for a neuron whose sign is known in the ball.
    """

    search: RadiusSearch = field(default_factory=lambda: Secant(relative=1e-2))
    solver: Annotated[str, one_of(*BACKENDS)] = "scs"
    cuts: bool = True
    limit: Annotated[int, at_least(2)] | None = None

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0, math.inf})
    one_by_one: ClassVar[bool] = True
    repeatable = False

    def intermediate(self) -> str:
        """Name CROWN as the method."""
        return "crown"

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network, and refuse it if the matrix could be too large.

        Raises:
            UnsupportedError: it is no ReLU network, or too large.
            MissingBackendError: cvxpy or the solver is missing.
        """
        backend = BACKENDS[self.solver]
        if backend.name not in cvxpy_package().installed_solvers():
            raise MissingBackendError(f"sdp needs {backend.name}; pip install 'certbench[solvers]'")
        state = NetworkState.of(classifier, threat)
        neurons = sum(layer.outputs for layer in state.network.hidden)
        size, limit = 1 + state.network.inputs + neurons, backend.limit if self.limit is None else self.limit
        if neurons and size > limit:
            raise UnsupportedError(
                f"the matrix could have dimension {size} (1 + {state.network.inputs} inputs + {neurons} neurons); "
                f"{limit} is the limit for {self.solver}"
            )
        return state

    def start(self, state: NetworkState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """Start a little above the radius that CROWN proves."""
        crown = crown_radius(state, x, label, x.new_zeros(len(x)), Secant(relative=1e-2))
        return Start(GROWTH * crown, tangent(state, x, label))

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Return CROWN's bounds, improved for the rows that may be the lowest; one input at a time."""
        region = Region(state.threat, x.flatten(1), eps)
        if not state.network.hidden:
            below = crown(state.network, region, rows)[1]
            return Bounds.linear(below.a, below.at(region.x), region.threat, region.x, eps)
        each = [self._row(state.network, region[i : i + 1], rows[i : i + 1]) for i in range(len(x))]
        return Bounds(torch.cat(each) if each else rows.new_zeros(rows.shape[:2]))

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> dict[str, Any]:
        """Return CROWN's bounds and slopes, and multipliers for the margins that these do not prove to be positive."""
        region, network = Region(state.threat, x.flatten(1), eps), state.network
        network.chain()  # refuses what the checker cannot follow
        exact = layer_bounds(network, region)
        wider = [
            WIDER * 100**i * float((high - low).max()) for i, (low, high) in enumerate(zip(*_ends(exact), strict=True))
        ]
        bounds = exact.widened([torch.full_like(low, by) for low, by in zip(exact.lower, wider, strict=True)])
        slopes = [written(slope.numpy()[None]) for slope in adaptive(bounds)]
        layers: list[dict[str, Any]] = []
        for i, (low, high) in enumerate(zip(*_ends(bounds), strict=True)):
            every = list(range(low.shape[1]))
            by = {"lower": every, "upper": every, "slopes": slopes[:i]} if i else None
            layers.append({"lower": written(low[0].numpy()), "upper": written(high[0].numpy()), "backward": by})
        rows = margin_rows(label, state.classifier.num_classes)
        below = backward(network, rows, len(network.layers) - 1, bounds)
        lower, scale = region.minimum(below.a, below.b)[0], float(below.at(region.x).abs().max())
        relaxation = SemidefiniteProgram.of(network, region, bounds, self.cuts)
        multipliers: list[dict[str, Any] | None] = []
        for k in range(rows.shape[1]):
            w = None
            if float(lower[k]) < CLEAR * scale:
                row = rows[0, k].cpu().numpy()
                w = propose(relaxation, row, BACKENDS[self.solver])
                w = None if w is None else relaxation.polished(row, w)
            multipliers.append(None if w is None else _named(w, region, bounds, self.cuts))
        return {"kind": "semidefinite", "layers": layers, "slopes": slopes, "multipliers": multipliers}

    def _row(self, network: Network, region: Region, rows: Float[Tensor, "1 k outputs"]) -> Float[Tensor, "1 k"]:
        """Bound the rows of one input. It is computed alone, so that not even rounding depends on its neighbours."""
        bounds, below = crown(network, region, rows)
        lower = region.minimum(below.a, below.b)
        if not any(bool(bounds.unstable(i).any()) for i in range(len(network.hidden))):
            return lower  # affine in the ball
        relaxation = SemidefiniteProgram.of(network, region, bounds, self.cuts)
        smallest = math.inf
        for k in lower[0].argsort().tolist():
            if float(lower[0, k]) >= smallest:
                break  # the remaining rows cannot hold the smallest bound
            row = rows[0, k].cpu().numpy()
            w = propose(relaxation, row, BACKENDS[self.solver])
            found = -math.inf if w is None else relaxation.bound(row, relaxation.polished(row, w))
            lower[0, k] = max(float(lower[0, k]), found)
            smallest = min(smallest, float(lower[0, k]))
        return lower


def crown(network: Network, region: Region, rows: Float[Tensor, "n k outputs"]) -> tuple[LayerBounds, Linear]:
    """Return CROWN's bounds of the hidden neurons, and its linear functions below `rows` times the logits."""
    bounds = layer_bounds(network, region)
    return bounds, backward(network, rows, len(network.layers) - 1, bounds)


def _ends(bounds: LayerBounds) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return bounds.lower, bounds.upper


def _named(w: Array, region: Region, bounds: LayerBounds, cuts: bool) -> dict[str, Any]:
    """Name multipliers by what they multiply, as `certbench.checker` reads them: functions that are not scaled."""
    d, rest = region.x.shape[1], w
    low, high = (end[0].cpu().numpy() for end in region.box())
    ball, inputs = 0.0, np.zeros(d)
    if region.threat.p == math.inf:
        inputs, rest = rest[:d], rest[d:]
    else:
        ball, rest = float(rest[0]), rest[1:]
        if region.threat.domain is not None:
            k, width = bound_by_box(region, low, high)
            inputs[k], rest = rest[: len(k)] * width**2, rest[len(k) :]
    ends = [(low[0].numpy(), high[0].numpy()) for low, high in zip(*_ends(bounds), strict=True)]
    open_ = [np.flatnonzero(bounds.unstable(i)[0].cpu().numpy()) for i in range(len(ends))]
    total = sum(map(len, open_))
    found: dict[str, list[Array]] = {"gap": [], "complement": [], "cut": []}
    unit, rest = rest[:total], rest[total:]
    for (start, end), k in zip(ends, open_, strict=True):
        width = 1 / (end - start)[k]
        found["gap"].append(rest[: len(k)] * width)
        found["complement"].append(rest[len(k) : 2 * len(k)] * width / end[k])
        rest = rest[2 * len(k) :]
        found["cut"].append(rest[: len(k)] * width if cuts else np.zeros(len(k)))
        rest = rest[len(k) :] if cuts else rest
    parts = {name: written(np.concatenate([np.zeros(0), *part])) for name, part in found.items()}
    return {"input": written(inputs), "ball": ball, "unit": written(unit), **parts}
