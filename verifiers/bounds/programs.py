"""ReLU networks over a ball as rows of linear and mixed-integer programs (Ehlers, 2017; Tjeng et al., 2019), for HiGHS.

A program is built once per ball; its objective changes, and the solver starts from its last basis.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from certbench.core import ball
from certbench.errors import MissingBackendError, SolverError
from certbench.networks.layers import Network
from certbench.networks.maps import Chain, Dense, Map, Sum
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.lines import lower_slope
from certbench.verifiers.bounds.region import LayerBounds, Region

if TYPE_CHECKING:
    import highspy

Columns = NDArray[np.int64]
Vector = NDArray[np.float64]
Terms = list[tuple[Columns, scipy.sparse.csr_matrix]]
"""A sum of matrices, each times some columns of a program."""


def highs() -> "type[highspy.Highs]":
    """Import HiGHS.

    Raises:
        MissingBackendError: it is not installed.
    """
    try:
        import highspy
    except ImportError as error:
        raise MissingBackendError(f"this certifier needs HiGHS ({error}): pip install 'certbench[solvers]'") from error
    return highspy.Highs


NONZERO = 160
"""Number of bytes for each nonzero coefficient of a program: SciPy's and HiGHS's copies. Measured."""


def nonzeros(network: Network) -> float:
    """Count the coefficients of the program of a network at most: entries of its maps that are not zero."""
    return sum(_nonzeros(part) for layer in network.hidden for part in layer.maps.values())


def _nonzeros(part: Map) -> float:
    if isinstance(part, Dense):
        return float(part.weight.count_nonzero())
    if isinstance(part, Chain):  # each entry of one map meets the average row of the next
        whole = math.prod(_nonzeros(one) / one.inputs for one in part.maps) * part.inputs
    else:
        whole = sum(_nonzeros(one) for one in part.maps) if isinstance(part, Sum) else part.products
    return float(min(whole, part.inputs * part.outputs))


class Program:
    """A linear or mixed-integer program to be minimised, as it grows."""

    def __init__(self) -> None:
        """Begin with no columns and no rows."""
        self.lower: list[Vector] = []
        self.upper: list[Vector] = []
        self.integer: list[NDArray[np.bool_]] = []
        self.width = 0
        self.row_lower: list[Vector] = []
        self.row_upper: list[Vector] = []
        self.entries: list[tuple[Columns, Columns, Vector]] = []
        self.height = 0

    def columns(self, lower: Vector, upper: Vector, integer: bool = False) -> Columns:
        """Add variables between the bounds."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(np.full(len(lower), integer))
        self.width += len(lower)
        return np.arange(self.width - len(lower), self.width)

    def rows(self, terms: Terms, lower: Vector, upper: Vector) -> Columns:
        """Add rows: the sum of the terms lies between the bounds."""
        for columns, matrix in terms:
            entries = matrix.tocoo()
            self.entries.append((entries.row.astype(np.int64) + self.height, columns[entries.col], entries.data))
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        self.height += len(lower)
        return np.arange(self.height - len(lower), self.height)

    def solver(self, **options: str | float | int) -> "highspy.Highs":
        """Load the program into HiGHS; `options` are the solver's own.

        Raises:
            SolverError: HiGHS does not accept it.
        """
        from highspy import HighsLp, HighsStatus, HighsVarType, MatrixFormat

        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        row, column, data = (np.concatenate(parts) for parts in zip(empty, *self.entries, strict=True))
        matrix = scipy.sparse.csr_matrix((data, (row, column)), shape=(self.height, self.width))
        lp = HighsLp()
        lp.num_col_, lp.num_row_ = self.width, self.height
        lp.col_cost_ = np.zeros(self.width)
        lp.col_lower_, lp.col_upper_ = np.concatenate(self.lower), np.concatenate(self.upper)
        lp.row_lower_ = np.concatenate([*self.row_lower, np.zeros(0)])
        lp.row_upper_ = np.concatenate([*self.row_upper, np.zeros(0)])
        lp.a_matrix_.format_ = MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        integer = np.concatenate(self.integer)
        if integer.any():
            lp.integrality_ = [HighsVarType.kInteger if one else HighsVarType.kContinuous for one in integer]
        solver = highs()()
        solver.silent()
        for name, value in {"threads": 1, "parallel": "off", "small_matrix_value": 1e-12, **options}.items():
            if solver.setOptionValue(name, value) != HighsStatus.kOk:
                raise SolverError(f"HiGHS does not take {name} = {value}")
        if solver.passModel(lp) == HighsStatus.kError:
            raise SolverError("HiGHS does not accept the program; are a layer's bounds infinite?")
        return solver


@lru_cache(maxsize=4)
def matrices(network: Network) -> tuple[dict[int, scipy.sparse.csr_matrix], ...]:
    """Return the maps of every layer as sparse matrices, by source."""
    return tuple({source: part.sparse() for source, part in layer.maps.items()} for layer in network.layers)


@dataclass(frozen=True, eq=False)
class PlanetModel:
    """The hidden layers before `layer` over one ball and its bounds, as rows of a program.

    Inputs are x + `spread` @ columns: the change itself for Linf, its positive and negative part for L1. A neuron that
    is off has no column; for a neuron that is on, z and h are the same column.

    Attributes:
        network: the network.
        x: the centre of the ball.
        bounds: bounds of its layers, one row.
        layer: the layer whose outputs can be minimised.
        program: columns and rows.
        inputs: columns of the change of the input.
        spread: the matrix that makes the change out of them.
        z: column of each pre-activation, by hidden layer; -1: none.
        h: column of each ReLU, by hidden layer; -1: it is 0.
        unstable: neurons whose sign is open, by hidden layer.
        above: rows h >= z of the unstable neurons, by hidden layer; none in a mixed-integer program.
        binary: binaries of the unstable neurons, 1 where z >= 0, by hidden layer; none in a linear program.
    """

    network: Network
    x: Float[Tensor, " d"]
    bounds: LayerBounds
    layer: int
    program: Program
    inputs: Columns
    spread: scipy.sparse.csr_matrix
    z: tuple[Columns, ...]
    h: tuple[Columns, ...]
    unstable: tuple[Columns, ...]
    above: tuple[Columns, ...]
    binary: tuple[Columns, ...]

    @staticmethod
    def of(
        network: Network, region: Region, bounds: LayerBounds, layer: int, *, integer: bool = False
    ) -> "PlanetModel":
        """Build the program over a single ball; with `integer`, binaries take the place of triangles.

        Raises:
            SolverError: a bound is infinite.
        """
        low, high = (end.detach().cpu().numpy()[0] for end in ball.rooms(region.threat, region.x, region.eps))
        program, identity = Program(), scipy.sparse.identity(network.inputs, format="csr")
        if region.threat.p == 1.0:
            spread = scipy.sparse.csr_matrix(scipy.sparse.hstack([identity, -identity]))
            inputs = program.columns(np.zeros(2 * len(low)), np.concatenate([high, low]))
            total = scipy.sparse.csr_matrix(np.ones((1, len(inputs))))
            program.rows([(inputs, total)], np.array([-np.inf]), np.array([region.eps.item()]))
        else:
            spread, inputs = identity, program.columns(-low, high)
        nothing: tuple[Columns, ...] = ()
        model = PlanetModel(
            network, region.x[0], bounds, 0, program, inputs, spread, nothing, nothing, nothing, nothing, nothing
        )
        for _ in range(layer):
            model = model._with_layer(integer)
        return model

    def _with_layer(self, integer: bool) -> "PlanetModel":
        """Add a hidden layer."""
        i, program = self.layer, self.program
        low, high = (ends[i][0].detach().cpu().numpy() for ends in (self.bounds.lower, self.bounds.upper))
        unstable = ((low < 0) & (high > 0)).nonzero()[0]
        on = (low >= 0) | ((low < 0) & (high > 0))
        if not (np.isfinite(low[on]).all() and np.isfinite(high[on]).all()):
            raise SolverError("a layer's bounds are infinite")
        z, h, size = np.full(len(low), -1), np.full(len(low), -1), int(on.sum())
        # The triangles imply the bounds of z, and the dual of the backward pass has no multipliers for them.
        ends = (low[on], high[on]) if integer else (np.full(size, -np.inf), np.full(size, np.inf))
        z[on] = program.columns(*ends)
        terms, constant = self.affine(i, _select(on.nonzero()[0], len(low)))
        one = -scipy.sparse.identity(size, format="csr")
        program.rows([*terms, (z[on], one)], -constant, -constant)
        h[on] = z[on]
        above, binary = np.zeros(0, np.int64), np.zeros(0, np.int64)
        m = len(unstable)
        if m:
            below, u = low[unstable], high[unstable]
            h[unstable] = program.columns(np.zeros(m), u if integer else np.full(m, np.inf))
            eye, inf = scipy.sparse.identity(m, format="csr"), np.full(m, np.inf)
            ours, before = h[unstable], z[unstable]
            above = program.rows([(ours, eye), (before, -eye)], np.zeros(m), inf)
            if integer:
                binary = program.columns(np.zeros(m), np.ones(m), integer=True)
                program.rows([(ours, eye), (before, -eye), (binary, _diagonal(-below))], -inf, -below)
                program.rows([(ours, eye), (binary, _diagonal(-u))], -inf, np.zeros(m))
            else:
                slope = u / (u - below)
                program.rows([(ours, eye), (before, _diagonal(-slope))], -inf, -slope * below)
        return replace(
            self,
            layer=i + 1,
            z=(*self.z, z),
            h=(*self.h, h),
            unstable=(*self.unstable, unstable),
            above=(*self.above, above),
            binary=(*self.binary, binary),
        )

    def affine(self, layer: int, rows: scipy.sparse.csr_matrix) -> tuple[Terms, Vector]:
        """Return `rows` times the outputs of a layer, as terms and a constant."""
        constant = rows @ self.network.layers[layer].bias.detach().cpu().numpy()
        terms: Terms = []
        for source, matrix in matrices(self.network)[layer].items():
            product = rows @ matrix
            if source == 0:
                constant = constant + product @ self.x.detach().cpu().numpy()
                terms.append((self.inputs, scipy.sparse.csr_matrix(product @ self.spread)))
            else:
                kept = (self.h[source - 1] >= 0).nonzero()[0]
                terms.append((self.h[source - 1][kept], scipy.sparse.csr_matrix(product[:, kept])))
        return terms, constant

    def cost(self, row: Float[Tensor, " outputs"]) -> Vector:
        """Return the objective `row` times the outputs of `layer`, without its constant."""
        cost = np.zeros(self.program.width)
        for columns, matrix in self.affine(self.layer, scipy.sparse.csr_matrix(row.detach().cpu().numpy()[None]))[0]:
            np.add.at(cost, columns, matrix.toarray()[0])
        return cost

    @cached_property
    def _solver(self) -> "highspy.Highs":
        return self.program.solver(solver="simplex")

    def slopes(self, row: Float[Tensor, " outputs"]) -> list[Tensor] | None:
        """Return the lower slopes that the program's dual proposes for `row`, or None if the solver has no dual."""
        solver = self._solver
        solver.changeColsCost(self.program.width, np.arange(self.program.width, dtype=np.int32), self.cost(row))
        solver.run()
        solution = solver.getSolution()
        if not solution.dual_valid:
            return None
        return self.slopes_of(np.array(solution.row_dual), np.array(solution.col_dual))

    def slopes_of(self, row_dual: Vector, column_dual: Vector) -> list[Tensor]:
        """Return the slopes of a dual solution, good or bad; CROWN's choice where both multipliers are 0."""
        slopes = self.default_slopes()
        for i, neurons in enumerate(self.unstable):
            over, off = row_dual[self.above[i]].clip(min=0), column_dual[self.h[i][neurons]].clip(min=0)
            with np.errstate(invalid="ignore"):
                ratio = torch.from_numpy(over / (over + off)).to(slopes[i])
            index = torch.from_numpy(neurons).to(ratio.device)
            slopes[i][0, 0, index] = torch.where(ratio.isfinite(), ratio, slopes[i][0, 0, index])
        return slopes

    def default_slopes(self) -> list[Tensor]:
        """Return CROWN's slopes."""
        ends = zip(self.bounds.lower, self.bounds.upper, strict=True)
        return [lower_slope(low, high, None)[:, None].clone() for low, high in list(ends)[: self.layer]]


def _diagonal(entries: Vector) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(scipy.sparse.diags(entries))


def _select(neurons: Columns, size: int) -> scipy.sparse.csr_matrix:
    """Return the matrix that picks some entries of a vector."""
    return scipy.sparse.csr_matrix((np.ones(len(neurons)), (np.arange(len(neurons)), neurons)), (len(neurons), size))


@torch.no_grad()
def tightened(network: Network, region: Region, bounds: LayerBounds) -> LayerBounds:
    """Sharpen the bounds over a single ball by two LPs per unstable neuron; the first layer's are exact already."""
    for i in range(1, len(network.hidden)):
        neurons = bounds.unstable(i)[0].nonzero().squeeze(1)
        if len(neurons) == 0 or not any(bool(bounds.unstable(j).any()) for j in range(i)):
            continue
        rows = torch.zeros(2 * len(neurons), network.layers[i].outputs).to(region.x)
        rows[torch.arange(len(neurons)), neurons] = 1.0
        rows[torch.arange(len(neurons)) + len(neurons), neurons] = -1.0
        model = PlanetModel.of(network, region, bounds, i)
        found = [model.slopes(row) or model.default_slopes() for row in rows]
        slopes = [torch.cat([one[j] for one in found], dim=1) for j in range(i)]
        linear = backward(network, rows[None], i, bounds, slopes)
        ends = region.minimum(linear.a, linear.b)[0].nan_to_num(-torch.inf)
        low, high = bounds.lower[i].clone(), bounds.upper[i].clone()
        low[0, neurons] = torch.maximum(low[0, neurons], ends[: len(neurons)])
        high[0, neurons] = torch.minimum(high[0, neurons], -ends[len(neurons) :])
        sharper = LayerBounds(
            (*bounds.lower[:i], low, *bounds.lower[i + 1 :]), (*bounds.upper[:i], high, *bounds.upper[i + 1 :]), "crown"
        )
        bounds = layer_bounds(network, region, known=sharper)
    return replace(bounds, method="lp")
