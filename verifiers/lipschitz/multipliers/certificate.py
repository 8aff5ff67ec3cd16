r"""The semidefinite certificate behind LipSDP (Fazlyab et al., 2019), layer by layer, proved by Cholesky (Rump, 2006).

For $h_j = \max(W_j h_{j-1} + b_j, 0)$ and $f = R h_N$, increments obey
$\Delta_j^T \Lambda_j (W_j \Delta_{j-1} - \Delta_j) \geq 0$ for every diagonal $\Lambda_j \geq 0$, because slopes of a
ReLU lie in [0, 1]. So, if there are symmetric matrices $S_j$, $S_0 = \operatorname{diag}(g)$, with

$$\begin{pmatrix} S_{j-1} & -W_j^T \Lambda_j / 2 \\ -\Lambda_j W_j / 2 & \Lambda_j - S_j \end{pmatrix} \succeq 0
  \quad (j = 1, \ldots, N), \qquad \begin{pmatrix} S_N & R^T \\ R & \rho I \end{pmatrix} \succeq 0,$$

then their sum says $|R \Delta_N|_2^2 \leq \rho \sum_i g_i \Delta_{0,i}^2$. With g = 1 that bounds the constant from the
2-norm by $\sqrt\rho$; from the inf-norm it is at most $\sqrt{\rho \sum_i g_i}$ (Wang et al., 2022).

The best $S_j$ for given multipliers are the Schur complements $M_j = \Lambda_j - \Lambda_j W_j M_{j-1}^{-1} W_j^T
\Lambda_j / 4$, and $\rho = R M_N^{-1} R^T$: any $\Lambda$ whose $M_j$ are positive definite is a certificate. Its
derivative needs no more than the null vector $y$ of the sum, $y_N = M_N^{-1} R^T$, $y_{j-1} = M_{j-1}^{-1} W_j^T
\Lambda_j y_j / 2$: it is $-y_j \circ (y_j - W_j y_{j-1})$ for $\Lambda_j$ and $-y_0 \circ y_0$ for g.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.networks.maps import Dense
from certbench.numerics.rounding import TINY, UNIT, dual, gamma, lengths, products
from certbench.verifiers.lipschitz.operator_norms import identity_norm, norm, spectral_norm

INNER = 2.0**-22
"""Relative slack that the search keeps from the boundary of the feasible set, where nothing could be proved."""

COARSEST = 1e-3
"""Relative slack at which a proof that still fails is given up; a bound without multipliers then remains."""

ENTRIES = 2**24
"""Largest number of entries of matrices that are handled together. A judgement: 128 MB."""


@dataclass(frozen=True, eq=False)
class Multipliers:
    r"""Logarithms of $\Lambda_j$ and of g, for m networks that differ in their last rows.

    Attributes:
        hidden: log of each Lambda_j, by hidden layer.
        entry: log g; zero for the 2-norm and the 1-norm.
    """

    hidden: tuple[Float[Tensor, "m _"], ...]
    entry: Float[Tensor, "m inputs"]

    def __getitem__(self, index: Tensor | slice) -> "Multipliers":
        """Select some of the networks."""
        return Multipliers(tuple(part[index] for part in self.hidden), self.entry[index])

    def expand(self, m: int) -> "Multipliers":
        """Repeat the multipliers for m networks."""
        return Multipliers(tuple(part.expand(m, -1).clone() for part in self.hidden), self.entry.expand(m, -1).clone())

    @staticmethod
    def concatenate(parts: "Sequence[Multipliers]") -> "Multipliers":
        """Join multipliers, one after the other."""
        return Multipliers(
            tuple(torch.cat(layer) for layer in zip(*(part.hidden for part in parts), strict=True)),
            torch.cat([part.entry for part in parts]),
        )


def product_bound(weights: Sequence[Dense], rows: Dense, p: float = 2.0, whole: bool = False) -> Float[Tensor, " rows"]:
    """Multiply the layers' norms by the length of each row, or by the norm of all: a bound without multipliers."""
    last = torch.tensor([spectral_norm(rows)], dtype=torch.float64) if whole else lengths(rows.entries, 2.0)
    for index, weight in enumerate(weights):
        last = products(last, norm(weight, p, 2.0) if index == 0 else spectral_norm(weight))
    if not weights and not whole:
        return lengths(rows.entries, dual(p))
    return products(last, identity_norm(p, 2.0, rows.inputs)) if not weights else last


def start(weights: Sequence[Dense], p: float = 2.0) -> Multipliers:
    r"""Return the multipliers of ECLipsE-Fast (Xu and Sivaranjani, 2024), layer by layer.

    $\Lambda_j = 2 / \lambda_{\max}(W_j M_{j-1}^{-1} W_j^T)$.
    """
    inputs = weights[0].inputs
    entry = torch.zeros(1, inputs, dtype=torch.float64)
    if p == math.inf:  # the scaling by which `box_norm` bounds the first layer
        sums = (weights[0].weight.T @ weights[0].weight).abs().sum(dim=1)
        entry = sums.clamp(min=max(1e-12 * float(sums.max()), TINY)).log()[None]
        entry = entry - entry.logsumexp(dim=1, keepdim=True)
    m, hidden = torch.diag(entry[0].exp()), []
    for weight in weights:
        factor = torch.linalg.cholesky_ex(m)[0]
        half = torch.linalg.solve_triangular(factor, weight.weight.T, upper=False)
        s = half.T @ half
        value = (
            2 / torch.linalg.eigvalsh(s)[-1] if bool(s.isfinite().all()) else s.new_ones(())
        )  # then nothing is proved
        hidden.append(value.log().expand(1, len(s)).clone())
        m = value * torch.eye(len(s), dtype=torch.float64) - value.square() / 4 * s
    return Multipliers(tuple(hidden), entry)


def evaluate(
    weights: Sequence[Tensor],
    rows: Float[Tensor, "m r n"],
    multipliers: Multipliers,
    p: float = 2.0,
    whole: bool = False,
) -> tuple[Float[Tensor, "m values"], Multipliers]:
    r"""Return $\log L^2$ of each row (or of all at once), and the derivative of the mean by the logarithms.

    Rounding is not enclosed here; NaN or infinite where some $M_j$ is not positive definite.
    """
    lam = [part.exp() for part in multipliers.hidden]
    g = multipliers.entry.exp()
    bad = torch.zeros(len(g), dtype=torch.bool)
    factors: list[Tensor] = []
    m = torch.empty(0)
    for index, (weight, scale) in enumerate(zip(weights, lam, strict=True)):
        if index == 0:
            gram = (weight / g[:, None]) @ weight.T
            m = gram * (scale[:, :, None] * scale[:, None] / -4)
        else:
            half = torch.linalg.solve_triangular(factors[-1], weight.T * scale[:, None], upper=False)
            m = half.mT @ half / -4
        m.diagonal(dim1=1, dim2=2).add_(scale * (1 - INNER))
        factor, info = torch.linalg.cholesky_ex(m)
        bad |= info != 0
        factors.append(factor)
    y = torch.cholesky_solve(rows.mT, factors[-1])
    rho = (rows.mT * y).sum(dim=1)
    if whole:
        rho, vectors = torch.linalg.eigh(torch.where(bad[:, None, None], 0.0, (rows @ y).nan_to_num()))
        rho, y = rho[:, -1:], y @ vectors[..., -1:]
    y = y / (rho.sqrt() * math.sqrt(rho.shape[1]))[:, None]
    hidden: list[Tensor] = []
    keep = 1 - INNER
    for index in reversed(range(len(weights))):
        before = weights[index].T @ (lam[index][..., None] * y) / 2
        before = torch.cholesky_solve(before, factors[index - 1]) if index else before / g[..., None]
        hidden.append(-(y * (keep * y - weights[index] @ before)).sum(dim=2) * lam[index])
        y = before
    entry = g / g.sum(dim=1, keepdim=True) - y.square().sum(dim=2) * g
    total = multipliers.entry.logsumexp(dim=1, keepdim=True) if p == math.inf else 0.0
    value = torch.where(bad[:, None], torch.inf, rho.log() + total)
    return value, Multipliers(tuple(reversed(hidden)), entry)


def positive(
    top: Float[Tensor, "m a a"],
    corner: Float[Tensor, "m b a"],
    bottom: Float[Tensor, "m b b"],
    error: Float[Tensor, "m b a"] | None = None,
) -> Bool[Tensor, " m"]:
    r"""Say whether each symmetric matrix $B = (top, corner^T; corner, bottom)$ is proved positive semidefinite.

    `top` and `bottom` are read in their lower triangles. B stands for all matrices whose entries differ from it by one
    rounding, and by half of `error` in the corner. Scaled so that its diagonal lies in [1/2, 2], B - cI has a Cholesky
    factor, where c is more than the Frobenius norm of these differences and of scaling, and twice the
    $\gamma_{n+1} / (1 - \gamma_{n+1}) \operatorname{tr} B$ that rounding can do to the factorisation (Rump, 2006;
    twice as a BLAS may multiply by reciprocals).
    """
    upper = torch.zeros_like(corner).mT
    blocks = torch.cat([torch.cat([top, upper], dim=2), torch.cat([corner, bottom], dim=2)], dim=1)
    n, a = blocks.shape[-1], top.shape[-1]
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    good = (diagonal > 0).all(dim=1) & blocks.isfinite().flatten(1).all(dim=1)
    by = torch.where(good[:, None], diagonal, 1.0).log2().div(-2).round().exp2()
    blocks *= by[:, :, None] * by[:, None]
    kappa = gamma(n + 2)
    trace = blocks.diagonal(dim1=1, dim2=2).sum(dim=1)
    loss = 2 * kappa / (1 - kappa) * trace + 8 * UNIT * blocks.square().sum(dim=(1, 2)).sqrt() + n * TINY
    if error is not None:
        loss += (error * by[:, a:, None] * by[:, None, :a]).square().sum(dim=(1, 2)).sqrt()
    blocks.diagonal(dim1=1, dim2=2).sub_(1.01 * loss[:, None])
    factor, info = torch.linalg.cholesky_ex(blocks)
    proved: Tensor = good & (info == 0) & factor.diagonal(dim1=1, dim2=2).isfinite().all(dim=1)
    return proved


def prove(
    weights: Sequence[Dense], rows: Dense, multipliers: Multipliers, p: float = 2.0, whole: bool = False
) -> Float[Tensor, " values"]:
    """Prove upper bounds of the constants of all rows, by shared multipliers or one set each; inf where none holds.

    The bound exceeds the value of `evaluate` by the slack that the proof needs, tried in steps of 4.
    """
    shared = len(multipliers.entry) == 1
    side = max([0 if shared else weight.inputs + len(weight.weight) for weight in weights] + [rows.inputs + 1])
    step = len(rows.weight) if whole else max(1, ENTRIES // side**2)
    squares, sums = [], []
    for first in range(0, len(rows.weight), step):
        index = slice(first, first + step)
        part = multipliers if shared else multipliers[index]
        r, e = (each[None] if shared else each[:, None] for each in (rows.weight[index], rows.error[index]))
        squares.append(_prove(weights, r, e, part, whole))
        total = part.entry.exp().sum(dim=1) if p == math.inf else part.entry.new_ones(len(part.entry))
        sums.append(total.expand(len(squares[-1])) * (1 + gamma(weights[0].inputs + 16)))
    raised = torch.cat(squares) * torch.cat(sums) * (1 + 4 * UNIT)
    bounds: Tensor = raised.sqrt() * (1 + 4 * UNIT)
    return bounds


def _prove(
    weights: Sequence[Dense],
    rows: Float[Tensor, "m r n"],
    error: Float[Tensor, "m r n"],
    multipliers: Multipliers,
    whole: bool,
) -> Float[Tensor, " values"]:
    """Prove bounds of rho: m times r, or m where the rows are one function."""
    found = torch.full((len(rows), 1 if whole else rows.shape[1]), torch.inf, dtype=torch.float64)
    side = max([*(weight.inputs + len(weight.weight) for weight in weights), rows.shape[2] + 1])
    slack = 4 * UNIT * side**2  # of the size of what `positive` takes off
    while slack < COARSEST:
        left = found.isinf().any(dim=1).nonzero().squeeze(1)
        if not len(left):
            break
        tried = _attempt(weights, rows[left], error[left], multipliers[left], whole, slack)
        found[left] = torch.minimum(found[left], tried)
        slack *= 4
    return found.flatten()


def _attempt(
    weights: Sequence[Dense],
    rows: Float[Tensor, "m r n"],
    error: Float[Tensor, "m r n"],
    multipliers: Multipliers,
    whole: bool,
    slack: float,
) -> Float[Tensor, "m values"]:
    """Prove each block, with $S_j$ below the Schur complements by `slack` of the multipliers."""
    s = torch.diag_embed(multipliers.entry.exp())
    proved = torch.ones(len(rows), dtype=torch.bool)
    for weight, part in zip(weights, multipliers.hidden, strict=True):
        lam = part.exp()
        corner = lam[:, :, None] * weight.weight / -2
        half = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(s)[0], corner.mT, upper=False)
        schur = torch.diag_embed(lam * (1 - slack)) - half.mT @ half
        schur = (schur + schur.mT) / 2
        blur = lam[:, :, None] * weight.error if weight.entry_roundings else None
        proved &= positive(s, corner, torch.diag_embed(lam) - schur, blur)
        s = schur
    m, r, n = rows.shape
    if not bool(proved.any()):
        return torch.full((m, 1 if whole else r), torch.inf, dtype=torch.float64)
    y = torch.cholesky_solve(rows.mT, torch.linalg.cholesky_ex(s)[0])
    if whole:
        guess = (rows @ y).nan_to_num(0.0, 0.0, 0.0)
        rho = torch.linalg.eigvalsh(guess)[:, -1:] * (1 + 4 * slack)
        last, blur = torch.diag_embed(rho.expand(m, r)), 2 * error
    else:
        rho = (rows.mT * y).sum(dim=1) * (1 + 4 * slack)
        last, s = rho.view(m * r, 1, 1), s[:, None].expand(m, r, n, n).flatten(0, 1)
        rows, blur = rows.reshape(m * r, 1, n), 2 * error.reshape(m * r, 1, n)
    good = positive(s, rows, last, blur).view(m, -1) & proved[:, None]
    return torch.where(good & rho.isfinite(), rho, torch.inf)
