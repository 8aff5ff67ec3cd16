r"""Exact work at the leaves of branch and bound: linear programs (L1, Linf) and projections onto polyhedra (L2).

On a domain whose neurons all have a known sign the network is affine. There the least margin over a ball of Linf or L1,
and the closest point of a class, are linear programs. In L2 the closest point is a least distance problem (Lawson and
Hanson, 1974). Elsewhere the programs relax the remaining neurons (Ehlers, 2017). Solvers are not trusted: their duals
become slopes and multipliers, which `bounds.optimise.evaluate` turns into a bound, and their points are candidates.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
from certbench.verifiers.bounds.lines import upper_line
from certbench.verifiers.bounds.optimise import Choice, signs

ENTRIES = 400_000
"""Largest number of entries, of all maps together, for which these programs are worth their time. A judgement."""
ELASTIC = 1e3
"""Price of violating a split, in units of the largest cost. It keeps programs of empty domains feasible."""


class Programs:
    """The programs of one network around one input."""

    def __init__(self, network: Network, threat: ThreatModel, x: Float[Tensor, "1 d"]) -> None:
        """Store the arguments; matrices are made when they are needed."""
        self.network, self.threat, self.x = network, threat, x
        self.sizes = [layer.outputs for layer in network.hidden]

    @property
    def entries(self) -> int:
        """Number of entries of all maps together."""
        return sum(part.inputs * part.outputs for layer in self.network.layers for part in layer.maps.values())

    @property
    def affordable(self) -> bool:
        """Say whether the network is small enough, and has ReLUs alone."""
        return not self.network.activations and self.entries <= ENTRIES

    @cached_property
    def equations(self) -> tuple[scipy.sparse.csr_matrix, NDArray[np.float64]]:
        """Write the layers as z - W h = b; the columns are up, down, t, z, h and the elastic slack."""
        d, n = self.network.inputs, sum(self.sizes)
        ends = np.cumsum([0, *self.sizes])
        blocks, right = [], []
        for i, layer in enumerate(self.network.hidden):
            line = [scipy.sparse.csr_matrix((layer.outputs, size)) for size in (d, d, 1, n, *self.sizes, n)]
            line[3] = scipy.sparse.eye(layer.outputs, n, k=ends[i], format="csr")
            b = layer.bias.clone()
            for source, part in layer.maps.items():
                matrix = part.sparse()
                if source == 0:
                    line[0], line[1] = -matrix, matrix
                    b = b + part.forward(self.x)[0]
                else:
                    line[3 + source] = -matrix
            blocks.append(line)
            right.append(b.cpu().numpy())
        if not blocks:
            return scipy.sparse.csr_matrix((0, 2 * d + 1)), np.zeros(0)
        return scipy.sparse.csr_matrix(scipy.sparse.bmat(blocks)), np.concatenate(right)

    def cost(self, row: Float[Tensor, " outputs"]) -> tuple[NDArray[np.float64], float]:
        """Write `row` times the logits as a function of the columns."""
        d, n = self.network.inputs, sum(self.sizes)
        cost, constant = np.zeros(2 * d + 1 + 3 * n), float(row @ self.network.layers[-1].bias)
        ends = np.cumsum([0, *self.sizes])
        for source, part in self.network.layers[-1].maps.items():
            pulled = part.transpose(row[None])[0]
            if source == 0:
                constant += float(pulled @ self.x[0])
                cost[:d], cost[d : 2 * d] = pulled.cpu().numpy(), -pulled.cpu().numpy()
            else:
                at = 2 * d + 1 + n + ends[source - 1]
                cost[at : at + part.inputs] = pulled.cpu().numpy()
        return cost, constant

    def solve(
        self,
        low: Float[Tensor, " neurons"],
        high: Float[Tensor, " neurons"],
        row: Float[Tensor, " outputs"],
        eps: float,
        closest: float | None = None,
    ) -> tuple[Choice, Float[Tensor, " d"]] | None:
        """Find the least `row` times the logits over the domain, or the closest point where it is at most `-closest`.

        Returns:
            Slopes and multipliers from the dual, and the minimiser; None if the solver gives up.
        """
        d, n = self.network.inputs, len(low)
        equations, right = self.equations
        sign = signs(low, high)
        slope, offset = (part.cpu().numpy() for part in upper_line(low, high))
        known, each = sign.cpu().numpy(), np.arange(n)
        on, off = each[known > 0], each[known < 0]
        z, h, s = (2 * d + 1 + i * n for i in range(3))
        one = np.ones(n)
        entries = [  # z - h (- s where inactive) <= 0; h - slope z <= offset; -z - s <= 0 where active
            (each, z + each, one),
            (each, h + each, -one),
            (off, s + off, -one[off]),
            (n + each, z + each, -slope),
            (n + each, h + each, one),
            (2 * n + np.arange(len(on)), z + on, -one[on]),
            (2 * n + np.arange(len(on)), s + on, -one[on]),
        ]
        limits = [np.zeros(n), offset, np.zeros(len(on))]
        count = 2 * n + len(on)
        ways, both = np.arange(2 * d), np.ones(2 * d)
        if self.threat.p == 1:  # their sum is at most t
            entries += [(np.full(2 * d, count), ways, both), (np.array([count]), np.array([2 * d]), -both[:1])]
            limits, count = [*limits, np.zeros(1)], count + 1
        elif closest is not None:  # each way is at most t
            entries += [(count + ways % d, ways, both), (count + np.arange(d), np.full(d, 2 * d), -both[:d])]
            limits, count = [*limits, np.zeros(d)], count + d
        cost, constant = self.cost(row)
        price = ELASTIC * max(float(np.abs(cost).max(initial=0.0)), 1e-12)
        least = np.zeros_like(cost)
        most = np.full_like(cost, np.inf)
        most[: 2 * d + 1] = eps
        if self.threat.domain is not None:
            low, high = self.threat.ends(self.x)
            most[:d] = (high - self.x[0]).clamp(0, eps).cpu().numpy()
            most[d : 2 * d] = (self.x[0] - low).clamp(0, eps).cpu().numpy()
        least[z:h] = -np.inf
        least[h + on], most[h + off] = -np.inf, 0.0  # h = z where active, and its sign is elastic
        if closest is None:
            goal = cost.copy()
            goal[s:] = price
        else:
            entries.append((np.full(len(cost), count), np.arange(len(cost)), cost))
            limits, count = [*limits, np.array([-closest - constant])], count + 1
            goal = np.zeros_like(cost)
            goal[2 * d] = 1.0
            most[s:] = 0.0
        at, column, value = (np.concatenate([entry[i] for entry in entries]) for i in range(3))
        result: Any = scipy.optimize.linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrices
            goal,
            scipy.sparse.csr_matrix((value, (at, column)), shape=(count, len(cost))),
            np.concatenate(limits),
            equations if n else None,
            right if n else None,
            np.stack([least, most], axis=1),
            method="highs",
            options={"time_limit": 20.0},
        )
        if result.status != 0 or result.x is None:
            return None
        point = self.x[0] + torch.from_numpy(result.x[:d] - result.x[d : 2 * d]).to(self.x)
        prices = torch.from_numpy(np.asarray(result.eqlin.marginals)).to(self.x) if n else self.x.new_zeros(0)
        return self.choice(prices, row, sign), point

    def choice(self, prices: Tensor, row: Tensor, sign: Tensor) -> Choice:
        """Make slopes and multipliers from the duals of z - W h = b: the coefficients of z in the backward pass."""
        parts = [*torch.split(prices, self.sizes), row]
        h = [prices.new_zeros(size) for size in self.sizes]
        for layer, y in zip(self.network.layers, parts, strict=True):
            for source, part in layer.maps.items():
                if source > 0:
                    h[source - 1] = h[source - 1] + part.transpose(y[None])[0]
        pulled = torch.cat(h) if h else prices
        alpha = torch.where(pulled > 0, prices / pulled.clamp(min=1e-300), 0.0).clamp(0, 1)
        beta = torch.where(sign > 0, pulled - prices, torch.where(sign < 0, prices, 0.0)).clamp(min=0)
        return Choice(alpha[None, None], beta[None, None])

    def affine(self, sign: Float[Tensor, " neurons"]) -> tuple[Float[Tensor, "_ d"], Float[Tensor, " _"]]:
        """Write pre-activations, then logits, as functions of the perturbation, for neurons with the given signs."""
        d = self.network.inputs
        moved = [torch.cat([torch.eye(d, dtype=self.x.dtype, device=self.x.device), self.x])]
        z = []
        for i, layer in enumerate(self.network.layers):
            value = self.x.new_zeros(d + 1, layer.outputs)
            value[-1] = layer.bias
            for source, part in layer.maps.items():
                value = value + part.forward(moved[source])
            z.append(value)
            if i < len(self.sizes):
                moved.append(value * (torch.split(sign, self.sizes)[i] > 0))
        whole = torch.cat(z, dim=1)
        return whole[:-1].T, whole[-1]

    def project(
        self, sign: Float[Tensor, " neurons"], row: Float[Tensor, " outputs"], eps: float
    ) -> tuple[Choice, Float[Tensor, " d"]] | None:
        """Return the point of the domain closest to the input in L2 where `row` times the logits is at most 0.

        min |d| with G d >= h is the residual of non-negative least squares; the weights are the duals.
        """
        n = len(sign)
        slopes, values = self.affine(sign)
        g = torch.cat([-(row @ slopes[n:])[None], sign[:, None] * slopes[:n]])
        h = torch.cat([(row @ values[n:])[None], -sign * values[:n]])
        if self.threat.domain is not None:
            eye = torch.eye(self.network.inputs, dtype=g.dtype, device=g.device)
            g = torch.cat([g, eye, -eye])
            low, high = self.threat.ends(self.x)
            h = torch.cat([h, low - self.x[0], self.x[0] - high])
            g, h = g[h.isfinite()], h[h.isfinite()]  # not where the domain has no end
        g = g * eps  # in units of the ball
        size = torch.linalg.vector_norm(torch.cat([g, h[:, None]], dim=1), dim=1).clamp(min=1e-300)
        matrix = (torch.cat([g, h[:, None]], dim=1) / size[:, None]).T.cpu().numpy()
        target = np.zeros(len(matrix))
        target[-1] = 1.0
        try:
            weights, _ = scipy.optimize.nnls(matrix, target, maxiter=10 * matrix.shape[1])
        except RuntimeError:  # too many iterations
            return None
        rest = matrix @ weights - target
        duals = torch.from_numpy(weights).to(self.x) / size
        if not rest[-1] < -1e-14 or not float(duals[0]) > 0:
            return None
        point = self.x[0] + eps * torch.from_numpy(-rest[:-1] / rest[-1]).to(self.x)
        beta = (duals[1 : n + 1] / duals[0]).nan_to_num(0.0, posinf=0.0)
        return Choice(torch.zeros_like(beta)[None, None], beta[None, None]), point


def closest_point(programs: Programs, sign: Tensor, row: Tensor, reach: float, beyond: float) -> Tensor | None:
    """Return the closest point of the linear piece `sign` where `row` times the logits is at most about `-beyond`."""
    if programs.threat.p == 2:
        found = programs.project(sign, row, reach)
    else:
        low, high = torch.where(sign > 0, 0.0, -math.inf), torch.where(sign > 0, math.inf, 0.0)
        found = programs.solve(low.to(sign), high.to(sign), row, reach, beyond)
    return None if found is None else found[1]
