r"""A barrier method for LipSDP (Fazlyab et al., 2019): nearly optimal multipliers, which prove nothing by themselves.

It follows the minima of $t \sum_i g_i - \log\det F$ over the matrix F that LipSDP wants positive semidefinite, which is
linear in g and $\lambda$: with $e_i$ for neuron i and $w_i$ its weights, in their places in F,

$$F = \operatorname{diag}(g) + \tfrac{1}{2} \sum_i \lambda_i (e_i u_i^T + u_i e_i^T) - R^T R, \qquad u_i = e_i - w_i.$$

So, with $G = F^{-1}$, the derivative of $-\log\det F$ by $\lambda_i$ is $-e_i^T G u_i$, and the second one by
$\lambda_i$ and $\lambda_k$ is $(u_i^T G e_k \; u_k^T G e_i + u_i^T G u_k \; e_i^T G e_k) / 2$: a step costs a few
products of matrices of F's size, where a general solver pays its fourth power.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.maps import Dense
from certbench.verifiers.lipschitz.multipliers.certificate import Multipliers, evaluate

GAP = 1e-4
"""Relative gap at which the barrier method stops: its value, a squared constant, is at most that far from the least."""

LENGTH = 5.0
"""Growth of t in one step, in the norm in which Newton's method converges. A judgement: with 12, networks of six layers
came too close to the boundary, where the second derivatives drown in rounding; with 3 it takes longer."""

HIGHEST = 1e8
"""Largest growth of a multiplier. Neurons that could exceed it have next to no weights, and get it for good."""


@dataclass(frozen=True, eq=False)
class Inequality:
    """The matrix F as a function of x: g and the multipliers, or fewer numbers that they are multiples of.

    Attributes:
        u: the rows $u_i$.
        squares: R^T R.
        entry: matrix from the first numbers of x to g; None: these numbers are g.
        hidden: matrix from the other numbers to the multipliers; None: they are the multipliers.
        fixed: multipliers that do not depend on x.
    """

    u: Float[Tensor, "neurons size"]
    squares: Float[Tensor, "n n"]
    entry: Float[Tensor, "inputs a"] | None
    hidden: Float[Tensor, "neurons b"] | None
    fixed: Float[Tensor, " neurons"]

    def split(self, x: Float[Tensor, " ab"]) -> tuple[Float[Tensor, " inputs"], Float[Tensor, " neurons"]]:
        """Return the vector g and the multipliers."""
        a = self.u.shape[1] - len(self.u) if self.entry is None else self.entry.shape[1]
        g = x[:a] if self.entry is None else self.entry @ x[:a]
        return g, (x[a:] if self.hidden is None else self.hidden @ x[a:]) + self.fixed

    def factor(self, x: Float[Tensor, " ab"]) -> Float[Tensor, "size size"] | None:
        """Return the Cholesky factor of F, or None where there is none."""
        g, lam = self.split(x)
        half = torch.cat([torch.zeros(len(g), self.u.shape[1], dtype=x.dtype), lam[:, None] * self.u / 2])
        f = half + half.T
        f.diagonal()[: len(g)] += g
        n = len(self.squares)
        f[-n:, -n:] -= self.squares
        factor, info = torch.linalg.cholesky_ex(f)
        return factor if int(info) == 0 and bool((x > 0).all()) and bool(factor.isfinite().all()) else None

    def derivatives(self, factor: Float[Tensor, "size size"]) -> tuple[Float[Tensor, " ab"], Float[Tensor, "ab ab"]]:
        """Return the first and the second derivatives of - log det F."""
        k = self.u.shape[1] - len(self.u)
        inverse = torch.cholesky_inverse(factor)
        ug = self.u @ inverse
        mixed = ug[:, k:]
        first, second = -inverse.diagonal()[:k], -mixed.diagonal()
        top, corner = inverse[:k, :k].square(), ug[:, :k].T * inverse[:k, k:]
        bottom = (mixed * mixed.T + ug @ self.u.T * inverse[k:, k:]) / 2
        if self.entry is not None:
            first, top, corner = self.entry.T @ first, self.entry.T @ top @ self.entry, self.entry.T @ corner
        if self.hidden is not None:
            second, bottom, corner = self.hidden.T @ second, self.hidden.T @ bottom @ self.hidden, corner @ self.hidden
        curvature = torch.cat([torch.cat([top, corner], dim=1), torch.cat([corner.T, bottom], dim=1)])
        return torch.cat([first, second]), curvature


def newton(
    weights: Sequence[Dense],
    rows: Float[Tensor, "r n"],
    first: Multipliers,
    p: float,
    *,
    iterations: int,
    layer: bool = False,
) -> Multipliers | None:
    """Run the barrier method for all rows as one function; return None where it cannot start.

    Args:
        weights: weights of the hidden layers.
        rows: rows of the last layer.
        first: one feasible set of multipliers.
        p: 2, or inf: then g is found, too.
        iterations: largest number of Newton steps.
        layer: whether the multipliers of a layer are all the same.
    """
    matrices = [weight.weight for weight in weights]
    fixed = p != math.inf
    if fixed and matrices[0].shape[1] > len(matrices[0]):  # an orthogonal map of the input changes nothing
        matrices[0] = torch.linalg.qr(matrices[0].T)[1].T
    sizes = [matrices[0].shape[1], *(len(matrix) for matrix in matrices)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    inputs, neurons = sizes[0], ends[-1] - sizes[0]
    u = torch.cat([torch.zeros(neurons, inputs, dtype=rows.dtype), torch.eye(neurons, dtype=rows.dtype)], dim=1)
    spans = [slice(start - inputs, end - inputs) for start, end in pairwise(ends)]
    for i, (span, matrix) in enumerate(zip(spans, matrices, strict=True)):
        u[span, ends[i] - sizes[i] : ends[i]] = -matrix
    g = torch.ones(inputs, dtype=rows.dtype) if fixed else first.entry[0].exp()
    squared = float(evaluate([weight.weight for weight in weights], rows[None], first, p, whole=True)[0].exp())
    if not 0 < squared < math.inf:
        return None
    squares = rows.T @ rows / squared * (1.0 if fixed else float(g.sum()))
    lam = torch.cat([part[0].exp() for part in first.hidden])
    entry = torch.ones(inputs, 1, dtype=rows.dtype) if fixed else None
    if layer:
        inequality = Inequality(
            u,
            squares,
            entry,
            _blocks(sizes[1:]),
            torch.zeros(neurons, dtype=rows.dtype),
        )
        unknown = torch.stack([part[0, 0].exp() for part in first.hidden])
    else:
        lift = _lift(matrices, spans, g, lam)
        free, lam = lift < HIGHEST, lam * lift
        kept = None if bool(free.all()) else torch.eye(neurons, dtype=rows.dtype)[:, free]
        inequality = Inequality(u, squares, entry, kept, torch.where(free, 0.0, lam))
        unknown = lam[free]
    a = 1 if fixed else inputs
    cost = torch.zeros(a + len(unknown), dtype=rows.dtype)
    cost[:a] = 1.0 if fixed else 1 / g.sum()
    x = torch.cat([2 * g[:1] if fixed else 2 * g, unknown])
    g, lam = inequality.split(follow(inequality, x, cost, iterations))
    unit = float(g[0]) if fixed else 1.0
    hidden = tuple((lam[span] / unit).log()[None] for span in spans)
    return Multipliers(hidden, first.entry if fixed else g.log()[None])


def _blocks(sizes: Sequence[int]) -> Float[Tensor, "neurons layers"]:
    """Say which layer each neuron is in."""
    layer = torch.repeat_interleave(torch.tensor(sizes))
    return torch.nn.functional.one_hot(layer, len(sizes)).to(torch.float64)


def _lift(
    matrices: Sequence[Tensor], spans: Sequence[slice], g: Float[Tensor, " inputs"], lam: Float[Tensor, " neurons"]
) -> Float[Tensor, " neurons"]:
    """Return factors by which multipliers of neurons with small weights may grow at little cost, for a better start."""
    inverse, lifts = torch.diag(1 / g), []
    for matrix, span in zip(matrices, spans, strict=True):
        part, s = lam[span], matrix @ inverse @ matrix.T
        inverse = torch.linalg.inv_ex(torch.diag(part) - part[:, None] * s * part / 4)[0]
        lifts.append((0.02 / (part * s.diagonal())).nan_to_num(1.0, HIGHEST).clamp(1.0, HIGHEST))
    return torch.cat(lifts)


def follow(
    inequality: Inequality, x: Float[Tensor, " ab"], cost: Float[Tensor, " ab"], iterations: int
) -> Float[Tensor, " ab"]:
    """Follow the central path by Newton's method until the duality gap is small; every point is feasible."""
    factor = inequality.factor(x)
    if factor is None:
        return x
    t, centred = 0.0, False
    for _ in range(iterations):
        slope, curvature = inequality.derivatives(factor)
        scale = curvature.diagonal().rsqrt()
        eye = torch.eye(len(x), dtype=x.dtype)
        root, info = torch.linalg.cholesky_ex(scale[:, None] * curvature * scale + 1e-14 * eye)
        if int(info):
            break
        both = torch.stack([slope, cost], dim=1) * scale[:, None]
        toward = torch.cholesky_solve(both, root) * scale[:, None]  # along the barrier's slope and along the cost
        if t == 0:
            t = max(1.0, -float(cost @ toward[:, 0]) / float(cost @ toward[:, 1]))  # x is nearest to the path there
        step = -toward[:, 0] - t * toward[:, 1]
        decrement = -float((slope + t * cost) @ step)
        if decrement < 0.5 and centred:
            if len(inequality.u[0]) / t < GAP * float(cost @ x):
                break
            t += LENGTH / math.sqrt(float(cost @ toward[:, 1]))
            step = -toward[:, 0] - t * toward[:, 1]
        centred = True
        moved = _step(inequality, x, step, factor, t * cost)
        if moved is None:
            break
        x, factor = moved
    return x


def _step(
    inequality: Inequality,
    x: Float[Tensor, " ab"],
    step: Float[Tensor, " ab"],
    factor: Float[Tensor, "size size"],
    cost: Float[Tensor, " ab"],
) -> tuple[Float[Tensor, " ab"], Float[Tensor, "size size"]] | None:
    """Return the best point 1, 1/2, 1/4, ... along the step, and F's factor there; None if all are worse than x."""
    start = lowest = float(cost @ x - 2 * factor.diagonal().log().sum())
    best = None
    for halvings in range(40):
        tried = x + step * 0.5**halvings
        now = inequality.factor(tried)
        value = math.inf if now is None else float(cost @ tried - 2 * now.diagonal().log().sum())
        if now is not None and value < lowest:
            lowest, best = value, (tried, now)
        elif lowest < start:
            break
    return best
