"""Multipliers for LipSDP (Fazlyab et al., 2019): by a barrier method, by Adam, or by a solver of cvxpy's.

Nothing here is a bound; `certificate.prove` makes one of any multipliers.
"""

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import MissingBackendError, UnsupportedError
from certbench.networks.maps import Dense
from certbench.verifiers.lipschitz.multipliers.barrier import newton
from certbench.verifiers.lipschitz.multipliers.certificate import ENTRIES, Multipliers, evaluate

LIMITS = {"newton": 1500, "scs": 300, "clarabel": 130}
"""Largest dimension of F for each solver. Judgements: a step of the barrier method takes 10 ms at 264 and a quarter
of a second at 1000; Clarabel takes 30 s at 124 and more than 15 GB at 264."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "scs": {"eps_abs": 1e-5, "eps_rel": 1e-5, "max_iters": 5000},
    "clarabel": {},
}


@contextmanager
def one_thread(side: int) -> Iterator[None]:
    """Run small matrices on one thread: several wait for each other, on a busy machine fifty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if side < 400 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dimension(weights: Sequence[Dense], p: float) -> int:
    """Return the dimension of F: hidden neurons plus inputs; from the 2-norm, at most as many as first neurons."""
    inputs, first = weights[0].inputs, len(weights[0].weight)
    return sum(len(weight.weight) for weight in weights) + (inputs if p == math.inf else min(inputs, first))


def check(solver: str, weights: Sequence[Dense], p: float) -> None:
    """Refuse networks that a solver cannot take.

    Raises:
        UnsupportedError: the matrix is too large.
        MissingBackendError: cvxpy or the solver is missing.
    """
    if solver in SETTINGS and solver.upper() not in _cvxpy().installed_solvers():
        raise MissingBackendError(f"lipsdp needs {solver}; pip install 'certbench[solvers]'")
    if weights and solver in LIMITS and dimension(weights, p) > LIMITS[solver]:
        raise UnsupportedError(
            f"the matrix of LipSDP has dimension {dimension(weights, p)}; {LIMITS[solver]} is the limit for {solver}, "
            "solver: gradient takes more"
        )


def find_multipliers(
    solver: str,
    weights: Sequence[Dense],
    rows: Float[Tensor, "m r n"],
    first: Multipliers,
    p: float,
    *,
    iterations: int,
    layer: bool = False,
    whole: bool = False,
) -> Multipliers:
    """Find feasible multipliers for m networks, from the feasible `first`; r rows share theirs.

    "gradient" minimises the mean of the logarithms of the r constants. The others minimise the constant of the r rows
    as one function, scaled to length 1 each unless they are `whole`.
    """
    if solver == "gradient":
        side = max(len(weight.weight) for weight in weights)
        step = max(1, ENTRIES // side**2)
        with one_thread(side):
            return Multipliers.concatenate(
                [
                    gradient(
                        weights,
                        rows[i : i + step],
                        first[i : i + step],
                        p,
                        iterations=iterations,
                        layer=layer,
                        whole=whole,
                    )
                    for i in range(0, len(rows), step)
                ]
            )
    found = []
    with one_thread(dimension(weights, p)):
        for i, part in enumerate(rows):
            lengths = part.norm(dim=1, keepdim=True)
            scaled = part if whole else part / torch.where(lengths > 0, lengths, 1.0)
            one = first[i : i + 1]
            if solver == "newton":
                other = newton(weights, scaled, one, p, iterations=iterations, layer=layer)
            else:
                other = solve(solver, weights, scaled, one, p, layer=layer)[1]
            found.append(best_feasible(weights, part[None], one, other, p, whole))
    return Multipliers.concatenate(found)


def gradient(
    weights: Sequence[Dense],
    rows: Float[Tensor, "m r n"],
    multipliers: Multipliers,
    p: float = 2.0,
    *,
    iterations: int,
    layer: bool = False,
    whole: bool = False,
    rate: float = 0.1,
) -> Multipliers:
    """Minimise the mean of log rho over the rows of each network, by Adam on the logarithms; networks are independent.

    A step out of the feasible set goes back to the best point, without momentum and at half the rate.

    Args:
        weights: weights of the hidden layers.
        rows: rows of the last layer, r per network.
        multipliers: a feasible start.
        p: 2, or inf: then g is optimised, too.
        iterations: number of steps.
        layer: whether the multipliers of a layer are all the same.
        whole: whether the rows are one vector-valued function.
        rate: step size at the start; it falls to zero along a cosine.
    """
    matrices = [weight.weight for weight in weights]
    parts = [*multipliers.hidden, multipliers.entry]
    fixed = p != math.inf
    theta = [part.clone() for part in parts]
    best = [part.clone() for part in parts]
    first, second = ([torch.zeros_like(part) for part in parts] for _ in range(2))
    lowest = torch.full((len(rows),), torch.inf, dtype=rows.dtype)
    slower, steps = torch.ones_like(lowest), torch.zeros_like(lowest)
    for iteration in range(iterations + 1):
        values, rise = evaluate(matrices, rows, Multipliers(tuple(theta[:-1]), theta[-1]), p, whole)
        value = values.mean(dim=1)
        slopes = [part.mean(dim=1, keepdim=True).expand_as(part) if layer else part for part in rise.hidden]
        slopes.append(torch.zeros_like(rise.entry) if fixed else rise.entry)
        feasible = value.isfinite() & torch.stack([part.isfinite().all(dim=1) for part in slopes]).all(dim=0)
        better = feasible & (value < lowest)
        lowest = torch.where(better, value, lowest)
        slower = torch.where(feasible, slower, slower / 2)
        steps = torch.where(feasible, steps + 1, 0.0)
        now = (rate * (1 + math.cos(math.pi * iteration / (iterations + 1))) / 2 * slower)[:, None]
        went, at = feasible[:, None], steps[:, None].clamp(min=1)
        for i, slope in enumerate(slopes):
            slope = torch.where(went, slope, 0.0)
            best[i] = torch.where(better[:, None], theta[i], best[i])
            first[i] = torch.where(went, 0.9 * first[i] + 0.1 * slope, 0.0)
            second[i] = torch.where(went, 0.99 * second[i] + 0.01 * slope.square(), 0.0)
            mean, square = first[i] / (1 - 0.9**at), second[i] / (1 - 0.99**at)
            theta[i] = torch.where(went, theta[i] - now * mean / (square.sqrt() + 1e-12), best[i])
    return Multipliers(tuple(best[:-1]), best[-1])


def _cvxpy() -> Any:
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise MissingBackendError("lipsdp needs cvxpy for this solver; pip install 'certbench[solvers]'") from error


def solve(
    solver: str, weights: Sequence[Dense], rows: Float[Tensor, "r n"], first: Multipliers, p: float, *, layer: bool
) -> tuple[float, Multipliers | None]:
    """Ask a solver of cvxpy's for the constant of all rows as one function, which is no bound, and for its multipliers.

    The layers are scaled to norm 1; otherwise SCS stalls.
    """
    cvxpy, fixed = _cvxpy(), p != math.inf
    norms = [torch.linalg.matrix_norm(weight.weight, 2) for weight in weights]
    matrices = [(weight.weight / norm).numpy() for weight, norm in zip(weights, norms, strict=True)]
    length = torch.linalg.matrix_norm(rows, 2)
    last, inputs = (rows / length).numpy(), weights[0].inputs
    g = cvxpy.Variable(1 if fixed else inputs, nonneg=True)
    lam = [cvxpy.Variable(1 if layer else len(matrix), nonneg=True) for matrix in matrices]
    full = [cvxpy.multiply(part, [1.0] * len(matrix)) for part, matrix in zip(lam, matrices, strict=True)]
    sizes = [inputs, *(len(matrix) for matrix in matrices)]
    blocks: list[list[Any]] = [[torch.zeros(i, j).numpy() for j in sizes] for i in sizes]
    blocks[0][0] = cvxpy.diag(cvxpy.multiply(g, [1.0] * inputs))
    for i, (part, matrix) in enumerate(zip(full, matrices, strict=True)):
        blocks[i + 1][i + 1] = cvxpy.diag(part)
        blocks[i + 1][i] = -cvxpy.diag(part) @ matrix / 2
        blocks[i][i + 1] = blocks[i + 1][i].T
    blocks[-1][-1] -= last.T @ last
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(g)), [cvxpy.bmat(blocks) >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inaccurate solutions, which are welcome
        try:
            problem.solve(solver=solver.upper(), **SETTINGS[solver])
        except cvxpy.SolverError:
            return math.nan, None
    if g.value is None or any(part.value is None for part in full):
        return math.nan, None
    value = math.sqrt(max(problem.value, 0.0)) * float(length) * math.prod(float(norm) for norm in norms)
    entry = torch.as_tensor(g.value, dtype=torch.float64)
    unit, hidden = float(entry[0]) if fixed else 1.0, []
    for part, norm in zip(full, norms, strict=True):
        unit *= float(norm) ** 2
        hidden.append(_logarithm(torch.as_tensor(part.value, dtype=torch.float64) / unit))
    return value, Multipliers(tuple(hidden), first.entry if fixed else _logarithm(entry))


def _logarithm(values: Float[Tensor, " n"]) -> Float[Tensor, "1 n"]:
    """Take logarithms of numbers that should be positive and may not be."""
    return values.clamp(min=1e-9 * float(values.max())).log()[None]


def best_feasible(
    weights: Sequence[Dense],
    rows: Float[Tensor, "1 r n"],
    first: Multipliers,
    other: Multipliers | None,
    p: float = 2.0,
    whole: bool = False,
) -> Multipliers:
    """Return the better of `first` and `other`, which is shrunk as little as needed to be feasible."""
    if other is None or not all(bool(part.isfinite().all()) for part in (*other.hidden, other.entry)):
        return first
    shrunk = torch.tensor([0.0, *(10.0**k for k in range(-8, 0))], dtype=torch.float64).neg().log1p()[:, None]
    tried = Multipliers(
        tuple(torch.cat([part + shrunk, start]) for part, start in zip(other.hidden, first.hidden, strict=True)),
        torch.cat([other.entry.expand(len(shrunk), -1), first.entry]),
    )
    matrices = [weight.weight for weight in weights]
    values = evaluate(matrices, rows.expand(len(tried.entry), -1, -1), tried, p, whole)[0].mean(dim=1)
    best = int(values.nan_to_num(math.inf).argmin())
    return tried[best : best + 1]
