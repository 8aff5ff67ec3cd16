"""The semidefinite relaxation as a program, and weak duality that proves its bounds."""

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from certbench.errors import MissingBackendError
from certbench.networks.layers import Network
from certbench.numerics.rounding import TINY, UNIT, gamma
from certbench.verifiers.bounds.region import LayerBounds, Region

Array = NDArray[np.float64]


Index = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Backend:
    """A solver: its name in cvxpy, its settings, and the largest matrix that it can take.

    Attributes:
        name: the solver's name in cvxpy.
        limit: largest dimension of the matrix.
        settings: settings that are given to cvxpy as they are.
    """

    name: str
    limit: int
    settings: Mapping[str, Any]


BACKENDS = {
    "scs": Backend("SCS", 300, {"scale": 10.0, "eps_abs": 1e-5, "eps_rel": 1e-5, "max_iters": 500}),
    "clarabel": Backend("CLARABEL", 110, {}),
}
"""Solvers by name; limits and settings are judgements. On two images of the digits, radii through 500 steps of SCS and
through Clarabel agreed to 0.5 %. At dimension 75 both are as fast. At 97 one bound took 2 s by SCS, 23 s by Clarabel,
which took 94 s and 1.4 GB at 110, and more than 15 GB at 264."""


@dataclass(frozen=True, eq=False)
class Affine:
    """Affine functions of y.

    Attributes:
        rows: coefficients of v = (1, y), one row per function.
        sizes: the same sums with the moduli of all terms; rounding errors are relative to them.
    """

    rows: Array
    sizes: Array

    def __getitem__(self, index: Any) -> "Affine":
        """Select some of the functions."""
        return Affine(self.rows[index], self.sizes[index])

    def __add__(self, other: "Affine") -> "Affine":
        """Add function by function."""
        return Affine(self.rows + other.rows, self.sizes + other.sizes)

    def __sub__(self, other: "Affine") -> "Affine":
        """Subtract function by function."""
        return Affine(self.rows - other.rows, self.sizes + other.sizes)

    def times(self, factor: Array | float) -> "Affine":
        """Multiply each function by its own positive factor, or all by the same."""
        by = np.reshape(factor, (-1, 1))
        return Affine(by * self.rows, by * self.sizes)

    def mapped(self, matrix: Array) -> "Affine":
        """Return linear combinations."""
        return Affine(matrix @ self.rows, np.abs(matrix) @ self.sizes)

    @staticmethod
    def of(constants: Array, n: int, at: Index | None = None, slopes: Array | float = 0.0) -> "Affine":
        """Make functions: constants, plus `slopes` times the entries `at` of v."""
        rows = np.zeros((len(constants), n))
        rows[:, 0] = constants
        if at is not None:
            rows[np.arange(len(constants)), at] = slopes
        return Affine(rows, np.abs(rows))


class Forms:
    """A collector of quadratic forms as columns of sparse matrices; entry i n + j of a column belongs to v_i v_j."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.one = Affine.of(np.ones(1), n)
        self.forms: list[Any] = []
        self.sizes: list[Any] = []
        self.free: list[bool] = []
        self.shift: list[float] = []

    def product(self, p: Affine, q: Affine | None = None, *, free: bool = False, shift: float = 0.0) -> None:
        """Add the constraint p q >= 0 for each pair of functions, = 0 where multipliers are free; without q, p >= 0."""
        pairs = [(p[k], self.one[0] if q is None else q[k]) for k in range(len(p.rows))]
        self._add([outer([pair], self.n) for pair in pairs], free, shift)

    def ball(self, p: Affine, squared: float) -> None:
        """Add the constraint that the sum of p_k^2 is at most `squared`."""
        squares, sizes = outer([(p[k], p[k]) for k in range(len(p.rows))], self.n)
        one = scipy.sparse.csc_matrix(([squared], ([0], [0])), shape=squares.shape)
        self._add([(one - squares, one + sizes)], False, 1.0)

    def _add(self, columns: Sequence[tuple[Any, Any]], free: bool, shift: float) -> None:
        self.forms += [form for form, _ in columns]
        self.sizes += [size for _, size in columns]
        self.free += [free] * len(columns)
        self.shift += [shift] * len(columns)


def outer(pairs: Sequence[tuple[Affine, Affine]], n: int) -> tuple[Any, Any]:
    """Return the sum of the products of pairs of functions, symmetric, and its sizes: two columns."""
    at: list[Index] = []
    forms: list[Array] = []
    sizes: list[Array] = []
    for p, q in pairs:
        i, j = np.flatnonzero(p.sizes), np.flatnonzero(q.sizes)
        form = np.outer(p.rows[i], q.rows[j]).ravel() / 2
        size = np.outer(p.sizes[i], q.sizes[j]).ravel() / 2
        at += [np.add.outer(i * n, j).ravel(), np.add.outer(i, j * n).ravel()]
        forms += [form, form]
        sizes += [size, size]
    where = np.concatenate(at)
    column = np.zeros_like(where)
    return tuple(  # type: ignore[return-value]
        scipy.sparse.csc_matrix((np.concatenate(data), (where, column)), shape=(n * n, 1)) for data in (forms, sizes)
    )


@dataclass(frozen=True, eq=False)
class SemidefiniteProgram:
    """The known facts about one ball: the logits as functions of y, and the quadratic constraints.

    Attributes:
        outputs: the logits.
        forms: the constraints, one column each; entry i n + j belongs to v_i v_j.
        sizes: the same with moduli.
        free: whether each constraint is an equality.
        shift: multipliers with which the forms add up to at least the identity on y, at the least cost.
        trace: an upper bound of |v|^2.
        largest: an upper bound of every v_i^2.
        roundings: number of roundings behind an entry of the forms, or of a sum of them.
    """

    outputs: Affine
    forms: Any
    sizes: Any
    free: NDArray[np.bool_]
    shift: Array
    trace: float
    largest: float
    roundings: int

    @property
    def dimension(self) -> int:
        """Length of v."""
        return int(self.outputs.rows.shape[1])

    @staticmethod
    def of(network: Network, region: Region, bounds: LayerBounds, cuts: bool = True) -> "SemidefiniteProgram":
        """Make the relaxation of a single ball, with bounds of the hidden neurons in it."""
        open_ = [np.flatnonzero(bounds.unstable(i)[0].cpu().numpy()) for i in range(len(network.hidden))]
        d, at = network.inputs, 1 + network.inputs
        n = at + sum(len(k) for k in open_)
        forms = Forms(n)
        x, room = inputs_of(forms, region)
        y = Affine.of(np.zeros(n - at), n, np.arange(at, n), 1.0)
        unit = Affine.of(np.ones(n - at), n)
        forms.product(unit - y, unit + y, shift=1.0)
        sources = [x]
        depth = 8 * d
        for i, layer in enumerate(network.layers):
            z = Affine.of(layer.bias.cpu().numpy(), n)
            for source, part in layer.maps.items():
                z = z + sources[source].mapped(part.matrix().cpu().numpy())
                depth += 2 * part.inputs + 8
            if i == len(network.hidden):
                break
            low, high = bounds.lower[i][0].cpu().numpy(), bounds.upper[i][0].cpu().numpy()
            k = open_[i]
            h = z.times((low >= 0).astype(np.float64))
            height, width = high[k], high[k] - low[k]
            own = Affine.of(height / 2, n, np.arange(at, at + len(k)), height / 2)
            h.rows[k], h.sizes[k] = own.rows, own.sizes
            at += len(k)
            sources.append(h)
            share, gap = own.times(1 / height), (own - z[k]).times(1 / width)
            forms.product(gap)
            forms.product(share, gap, free=True)
            if cuts:
                forms.product((z[k] - Affine.of(low[k], n)).times(1 / width) - share)
        return SemidefiniteProgram(
            outputs=z,
            forms=scipy.sparse.hstack(forms.forms, format="csr"),
            sizes=scipy.sparse.hstack(forms.sizes, format="csr"),
            free=np.array(forms.free),
            shift=np.array(forms.shift),
            trace=1 + room + n - 1 - d,
            largest=max(1.0, room if region.threat.p == 2.0 else 1.0),
            roundings=2 * depth + len(forms.free) + 64,
        )

    def objective(self, row: Array) -> Array:
        """Return C for the function `row` times the logits."""
        c = np.zeros((self.dimension, self.dimension))
        c[0] = row @ self.outputs.rows
        return (c + c.T) / 2

    def matrix(self, row: Array, w: Array) -> Array:
        """Return C less the constraints, times their multipliers."""
        m: Array = self.objective(row) - np.reshape(self.forms @ w, (self.dimension, self.dimension))
        return (m + m.T) / 2

    def polished(self, row: Array, w: Array) -> Array:
        """Give multipliers the right sign, and add as much of `shift` as serves the bound best.

        A solver's matrix M has eigenvalues a little below zero. The cheapest shift that corrects this is taken.
        """
        w = np.where(self.free, w, np.maximum(w, 0))
        m = self.matrix(row, w)
        if not np.isfinite(m).all():
            return w
        added = np.reshape(self.forms @ self.shift, m.shape)
        size = np.abs(m).max()
        t = max([0.0, *(size * np.logspace(-14, 2, 49))], key=lambda t: _corner_room(m - t * added))
        t = max([t, *(t * np.logspace(-0.3, 0.3, 21))], key=lambda t: _corner_room(m - t * added))
        return np.asarray(w + t * self.shift)

    def bound(self, row: Array, w: Array) -> float:
        """Return a lower bound of `row` times the logits in the ball for any w; -inf if it holds NaN or infinity.

        The entries of M are off by at most `gamma(roundings)` times the sums of the moduli, and the eigenvalue is
        proved by `lift`.
        """
        w = np.where(self.free, w, np.maximum(w, 0))
        m = self.matrix(row, w)
        if not (np.isfinite(w).all() and np.isfinite(m).all()):
            return -math.inf
        top = _corner_room(m)
        top = top if math.isfinite(top) else float(m[0, 0])
        n, m = len(m), m.copy()
        size = float(np.abs(row) @ self.outputs.sizes.sum(axis=1)) + float((self.sizes @ np.abs(w)).sum()) + abs(top)
        m[0, 0] -= top
        rounding = gamma(self.roundings) * (1 + gamma(n**2)) * self.largest * size
        lost = (rounding + self.trace * lift(m)) * (1 + gamma(8)) + TINY
        found = top - lost - 4 * UNIT * (abs(top) + lost)
        return found if math.isfinite(found) else -math.inf


def inputs_of(forms: Forms, region: Region) -> tuple[Affine, float]:
    """Return the input as a function of y, add its constraints, and bound the sum of its y_i^2.

    Boxes are widened by more than the rounding of their ends, so that they hold the real ones.
    """
    n, p = forms.n, region.threat.p
    low, high = (end[0].cpu().numpy() for end in region.box())
    centre, eps = region.x[0].cpu().numpy(), float(region.eps[0])
    d = len(centre)
    at = np.arange(1, 1 + d)
    slack = 8 * UNIT * (np.abs(low) + np.abs(high) + np.abs(centre) + eps)
    if p == math.inf:
        y, unit = Affine.of(np.zeros(d), n, at, 1.0), Affine.of(np.ones(d), n)
        forms.product(unit - y, unit + y, shift=1.0)
        return Affine.of((low + high) / 2, n, at, np.abs(high - low) / 2 + slack), float(d)
    spread = math.sqrt(d) / 2  # so that entries of y are of size one, as those of the neurons
    y = Affine.of(np.zeros(d), n, at, 1.0)
    forms.ball(y, d / 4)
    x = Affine.of(centre, n, at, eps / spread)
    if region.threat.domain is not None:  # where it binds; elsewhere the ball says more
        k, width = bound_by_box(region, low, high)
        below, above = low - slack, high + slack
        forms.product((x[k] - Affine.of(below[k], n)).times(width), (Affine.of(above[k], n) - x[k]).times(width))
    return x, d / 4


def _corner_room(m: Array) -> float:
    """Return the largest number that the corner of m can lose before an eigenvalue is negative, up to rounding."""
    try:
        factor = scipy.linalg.cholesky(m[1:, 1:], lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return -math.inf
    half = scipy.linalg.solve_triangular(factor, m[1:, 0], lower=True, check_finite=False)
    value = float(m[0, 0] - half @ half)
    return value if math.isfinite(value) else -math.inf


def lift(m: Array) -> float:
    r"""Return a number t >= 0 such that m + t I has no negative eigenvalue, proved.

    If the Cholesky factorisation of B completes, then $R^T R = B + E$ with
    $\|E\|_2 \leq \gamma_{n+2} / (1 - \gamma_{n+2}) \operatorname{tr} B$; the code takes twice that, because a LAPACK
    may multiply by reciprocals, and $8 u$ for the diagonal. Infinity if no shift helps.
    """
    n = len(m)
    kappa = gamma(n + 2)
    loss = 2 * kappa / (1 - kappa)
    diagonal = np.abs(np.diag(m))
    try:
        least = max(0.0, -float(np.linalg.eigvalsh(m)[0]))
    except np.linalg.LinAlgError:
        return math.inf
    room = loss * float(diagonal.sum()) + loss * n * least + TINY
    for _ in range(60):
        shift = least + room
        try:
            np.linalg.cholesky(m + shift * np.eye(n))
        except np.linalg.LinAlgError:
            room *= 2
            continue
        return shift + loss * (float(diagonal.sum()) + n * shift) + 8 * UNIT * (float(diagonal.max()) + shift)
    return math.inf


def cvxpy_package() -> Any:
    """Import cvxpy.

    Raises:
        MissingBackendError: it is not installed.
    """
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise MissingBackendError("sdp needs cvxpy; pip install 'certbench[solvers]'") from error


def propose(relaxation: SemidefiniteProgram, row: Array, backend: Backend) -> Array | None:
    """Return multipliers that a solver finds for the dual, in float64 and not proved; None if it gives none."""
    cvxpy = cvxpy_package()
    n = relaxation.dimension
    c = relaxation.objective(row)
    unit = float(np.abs(c[0, 1:]).sum()) or 1.0
    w, top = cvxpy.Variable(len(relaxation.free)), cvxpy.Variable()
    corner = np.eye(1, n * n).ravel()
    m = cvxpy.reshape(c.ravel() / unit - relaxation.forms @ w - top * corner, (n, n), order="C")
    problem = cvxpy.Problem(cvxpy.Maximize(top), [m >> 0, w[np.flatnonzero(~relaxation.free)] >= 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inaccurate solutions are welcome
        try:
            problem.solve(solver=backend.name, **backend.settings)
        except cvxpy.SolverError:
            return None
    return None if w.value is None else unit * np.asarray(w.value, dtype=np.float64)


def bound_by_box(region: Region, low: Array, high: Array) -> tuple[Index, Array]:
    """Return the inputs that the box bounds more than the ball, and one over the widths of their intervals."""
    centre, eps = region.x[0].cpu().numpy(), float(region.eps[0])
    slack = 8 * UNIT * (np.abs(low) + np.abs(high) + np.abs(centre) + eps)
    k = np.flatnonzero((low > centre - eps) | (high < centre + eps))
    return k, 1 / np.maximum((high + slack) - (low - slack), TINY)[k]
