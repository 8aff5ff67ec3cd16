r"""Interval arithmetic and linear relaxations of ReLU networks, checked from the claimed bounds of earlier layers.

Over bounds $l < 0 < u$ of z, $\alpha z \leq \max(z, 0) \leq s (z - l)$ for every $\alpha \in [0, 1]$ and every
$s \geq u / (u - l)$: the right side is at least 0 at l and at least u at u, and the rest follows by convexity. Backward
substitution puts these bounds into a row times the outputs, from the last layer to the first. The result is a linear
function of the input that lies below (Zhang et al., 2018). Only the slopes $\alpha$ are taken from the file: any in
[0, 1] are sound, and those of an optimal dual solution give the bound of the linear program (Salman et al., 2019).
Claimed bounds of layers and claimed linear functions are used once they are proved.

Coefficients are floats that are taken as exact. What a rounding takes from the true function is bounded by the sizes of
the factors, and subtracted from the constant.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from certbench.checker.network import Network
from certbench.checker.reading import Claim, Refused, array, fields, items, number, whole
from certbench.checker.rounding import TINY, UNIT, gamma, norm_up, product_up, up

LARGEST = 1e100
"""Largest bound that is read, so that differences do not overflow."""

ENTRIES = 2**23
"""Maximum number of coefficients in memory at once, 8 bytes each."""


def below(value: np.ndarray) -> np.ndarray:
    """Compute a lower bound of the numbers that are rounded to `value`."""
    lowered: np.ndarray = value - (np.abs(value) * 4 * UNIT + TINY)
    return lowered


@dataclass(frozen=True, eq=False)
class CutBall:
    """The ball, cut by the domain.

    Attributes:
        claim: the claim, with the radius of the ball.
        down: how far each coordinate can go down.
        high: how far each coordinate can go up.
        size: the largest modulus of each coordinate.
    """

    claim: Claim
    down: np.ndarray
    high: np.ndarray
    size: np.ndarray

    @staticmethod
    def of(claim: Claim, radius: float) -> "CutBall":
        """Make the region of the ball of this radius around the claim's input."""
        x, box = claim.input, (-math.inf, math.inf) if claim.domain is None else claim.domain
        down, high = (np.minimum(radius, up(np.maximum(side, 0.0))) for side in (x - box[0], box[1] - x))
        return CutBall(replace(claim, radius=radius), down, high, up(np.abs(x) + np.maximum(down, high)))

    def minimum(self, a: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Compute a lower bound of a . x + constant in the region."""
        x = self.claim.input
        rounding = up(product_up(np.abs(a), np.abs(x)) * gamma(len(x) + 2))
        return below(below(below(a @ x - rounding) + constant) - self.fall(a))

    def fall(self, a: np.ndarray) -> np.ndarray:
        r"""Bound from above how far a . x can fall: $\epsilon ||a'||_q + \sum_i |a_i - a'_i| room_i$ for any a'.

        The best a' cuts |a| at a multiple of 1 (L1) or of the rooms (L2), where the ball and the box both bind.
        """
        moduli, room, eps = np.abs(a), np.where(a > 0, self.down, self.high), self.claim.radius
        best: np.ndarray = up((moduli * room).sum(axis=1), len(room) + 1)
        if self.claim.norm < math.inf:
            dual = math.inf if self.claim.norm == 1 else 2.0
            best = np.minimum(best, up(eps * norm_up(a, dual)))
            if self.claim.domain is not None:
                kept = np.minimum(moduli, _cut(moduli, room, eps, self.claim.norm))
                boxed = up((up(moduli - kept) * room).sum(axis=1), len(room) + 1)
                value = up(up(eps * norm_up(kept, dual)) + boxed)
                best = np.where(value < best, value, best)
        return best


def _cut(moduli: np.ndarray, room: np.ndarray, eps: float, norm: float) -> np.ndarray:
    """Choose where to cut |a|; any choice is sound."""
    if norm == 1:
        order = np.argsort(-moduli, axis=1)
        filled = np.take_along_axis(room, order, 1).cumsum(axis=1) < eps
        last = np.minimum(filled.sum(axis=1, keepdims=True), room.shape[1] - 1)
        cut: np.ndarray = np.take_along_axis(moduli, np.take_along_axis(order, last, 1), 1)
        return cut
    level = np.sqrt(np.square(moduli).sum(axis=1, keepdims=True)) / eps
    for _ in range(4):
        boxed = moduli > level * room
        left = np.sqrt(np.maximum(eps**2 - np.square(np.where(boxed, room, 0.0)).sum(axis=1, keepdims=True), 0.0))
        free = np.sqrt(np.square(np.where(boxed, 0.0, moduli)).sum(axis=1, keepdims=True))
        level = np.minimum(level, free / np.maximum(left, TINY))
    cut = level * room
    return cut


class Prover:
    """A proof in progress about a network in a region: proved bounds of the ReLUs' inputs, and sizes of the nodes."""

    def __init__(self, network: Network, region: CutBall) -> None:
        self.network, self.region = network, region
        self.bounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.sizes: list[np.ndarray] = [region.size]

    def advance(self) -> None:
        """Compute the sizes of the nodes up to the next ReLU without bounds."""
        for i in range(len(self.sizes), len(self.network.nodes)):
            node = self.network.nodes[i]
            size = self.sizes[node.inputs[0]]
            if node.op == "affine":
                self.sizes.append(node.largest(size))
            elif node.op == "add":
                self.sizes.append(up(size + self.sizes[node.inputs[1]]))
            elif i in self.bounds:
                self.sizes.append(np.minimum(size, np.maximum(self.bounds[i][1], 0.0)))
            else:
                return

    def below(self, at: int, rows: np.ndarray, slopes: list[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Compute linear functions a . x + constant of the input that lie below `rows` times node `at` in the region.

        ReLUs have these lower slopes, by node; if None, their intervals are put in instead.
        """
        arrived, constant = {at: rows}, np.zeros(len(rows))
        for i in range(at, 0, -1):
            c, node = arrived.pop(i, None), self.network.nodes[i]
            if c is None:
                continue
            if node.op == "affine":
                # The sums of c b, of c W, and the entries of W and b round by gamma of |c| (|W| |h| + |b|) in all.
                loss = product_up(np.abs(c), self.sizes[i]) * gamma(node.size + node.roundings + 4)
                loss = up(loss + TINY * (1 + np.abs(c).sum(axis=1) + self.sizes[node.inputs[0]].sum()), 8)
                constant = below(below(constant + c @ node.bias) - loss)
                c = node.pull(c)
            elif node.op == "relu":
                low, high = self.bounds[i]
                if slopes is None:
                    ends = np.maximum(c, 0.0) @ np.maximum(low, 0.0) + np.minimum(c, 0.0) @ np.maximum(high, 0.0)
                    loss = product_up(np.abs(c), np.maximum(high, 0.0)) * gamma(node.size + 4)
                    constant = below(below(constant + ends) - up(loss + TINY))
                    continue
                c, offset = _relax(c, low, high, slopes[self.network.relus.index(i)])
                constant = below(constant - offset)
            for source in node.inputs:
                if source in arrived:
                    total = arrived[source] + c
                    constant = below(constant - up(product_up(np.abs(total), self.sizes[source]) * 2 * UNIT))
                    arrived[source] = total
                else:
                    arrived[source] = c
        a = arrived.get(0, np.zeros((len(rows), len(self.region.size))))
        return a, constant

    def least(self, at: int, index: np.ndarray, sign: float, slopes: list[np.ndarray] | None) -> np.ndarray:
        """Compute lower bounds of `sign` times some neurons of a node."""
        node, found = self.network.nodes[at], [np.zeros(0)]
        step = max(1, ENTRIES // max(part.size for part in self.network.nodes))
        for start in range(0, len(index), step):
            part = slice(start, start + step)
            chosen = None if slopes is None else [s if len(s) == 1 else s[part] for s in slopes]
            if node.op == "affine":  # its rows are those of W, no product is needed
                rows, source = sign * node.rows(index[part]), node.inputs[0]
                loss = up(self.sizes[at][index[part]] * gamma(2 * node.roundings + 2)) if node.roundings else 0.0
                constant = below(sign * node.bias[index[part]] - loss)
            else:
                rows, source, constant = sign * np.eye(node.size)[index[part]], at, np.zeros(len(index[part]))
            a, more = self.below(source, rows, chosen)
            found.append(self.region.minimum(a, below(constant + more)))
        return np.concatenate(found)

    def prove(self, at: int, value: Any, where: str) -> None:
        """Prove the claimed bounds of the input of ReLU `at`, and keep them; refuse them otherwise."""
        node, lower, upper, backward = fields(value, ("node", "lower", "upper", "backward"), where)
        self.advance()
        source = self.network.nodes[at].inputs[0]
        n = self.network.nodes[source].size
        low, high = array(lower, f"{where}.lower", (n,)), array(upper, f"{where}.upper", (n,))
        if whole(node, f"{where}.node") != at or not (np.maximum(np.abs(low), np.abs(high)) < LARGEST).all():
            raise Refused(f"{where} has bounds of another node, or too large ones")
        proved = [self.least(source, np.arange(n), sign, None) for sign in (1.0, -1.0)]
        if backward is not None:
            sides = fields(backward, ("lower", "upper", "slopes"), f"{where}.backward")
            index = [_index(side, n, f"{where}.backward") for side in sides[:2]]
            slopes = self.slopes(sides[2], sum(map(len, index)), at, f"{where}.backward.slopes")
            halves = (
                [s[: len(index[0])] if len(s) > 1 else s for s in slopes],
                [s[len(index[0]) :] if len(s) > 1 else s for s in slopes],
            )
            for side, sign in enumerate((1.0, -1.0)):
                found = self.least(source, index[side], sign, halves[side])
                proved[side][index[side]] = np.maximum(proved[side][index[side]], found)
        if not ((low <= high) & (proved[0] >= low) & (proved[1] >= -high)).all():
            raise Refused(f"the bounds of {where} are not proved")
        self.bounds[at] = low, high

    def slopes(self, value: Any, rows: int, at: int, where: str) -> list[np.ndarray]:
        """Read lower slopes for the ReLUs before a node: one row of them for each row, or the same for all."""
        relus = [i for i in self.network.relus if i < at]
        if len(items(value, where)) != len(relus):
            raise Refused(f"{where} must have an array for each of {len(relus)} ReLUs")
        found = [array(part, where, (None, self.network.nodes[i].size)) for part, i in zip(value, relus, strict=True)]
        if not all(len(s) in (1, rows) and ((s >= 0) & (s <= 1)).all() for s in found):
            raise Refused(f"{where} must lie between 0 and 1, in one row or {rows}")
        return found


def _relax(c: np.ndarray, low: np.ndarray, high: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn coefficients of a ReLU's output into those of its input, with an upper bound of the constant that is lost.

    A rounded product c alpha lies between 0 and c, so it is the exact product with another slope in [0, 1].
    """
    open_ = (low < 0) & (high > 0)
    above = up(np.where(open_, high, 0.0) / np.where(open_, high - low, 1.0), 3)
    steep = np.where(open_ & (c < 0), -up(-c * above), 0.0)
    moved = np.where(open_, np.where(c < 0, steep, c * slopes), np.where(low >= 0, c, 0.0))
    return moved, product_up(-steep, np.where(open_, -low, 0.0))


def _index(value: Any, n: int, where: str) -> np.ndarray:
    found = [whole(i, where) for i in items(value, where)]
    if found != sorted(set(found)) or any(i >= n for i in found):
        raise Refused(f"{where} must name neurons in order, each once")
    return np.array(found, dtype=np.int64)


def check(claim: Claim, evidence: dict[str, Any], network: Network | None) -> str | None:
    """Return None if every margin of the class is proved positive in the ball, else the reason."""
    if network is None:
        return "a claim about a network needs one"
    kind, region, layers, margins = fields(evidence, ("kind", "region", "layers", "margins"), "evidence")
    radius, relus = number(region, "evidence.region"), network.relus
    if not claim.radius <= radius:
        return "evidence.region is smaller than the ball of the claim"
    prover = Prover(network, CutBall.of(claim, radius))
    if len(items(layers, "evidence.layers")) != len(relus):
        return f"evidence.layers must have bounds for each of {len(relus)} ReLUs"
    for i, (at, layer) in enumerate(zip(relus, layers, strict=True)):
        prover.prove(at, layer, f"evidence.layers[{i}]")
    prover.advance()
    names = ("rivals", "lower") if kind == "interval" else ("rivals", "lower", "slopes", "coefficients", "constants")
    rivals, lower, *rest = fields(margins, names, "evidence.margins")
    others = [j for j in range(network.outputs) if j != claim.prediction]
    if [whole(j, "evidence.margins.rivals") for j in items(rivals, "evidence.margins.rivals")] != others:
        return "evidence.margins.rivals must be all other classes, in order"
    rows, last, k = np.eye(network.outputs), len(network.nodes) - 1, len(others)
    rows = rows[[claim.prediction]] - rows[others]
    slopes = prover.slopes(rest[0], k, last + 1, "evidence.margins.slopes") if rest else None
    a, constant = prover.below(last, rows, slopes)
    if rest:  # the claimed functions must lie below these, and replace them
        claimed = (
            array(rest[1], "evidence.margins.coefficients", a.shape),
            array(rest[2], "evidence.margins.constants", (k,)),
        )
        apart = product_up(up(np.abs(a - claimed[0])), prover.sizes[0])
        if not (claimed[1] <= below(constant - apart)).all():
            return "evidence.margins: the linear functions are not proved to lie below the margins"
        a, constant = claimed
    proved = CutBall.of(claim, claim.radius).minimum(a, constant)
    least = array(lower, "evidence.margins.lower", (k,))
    if not (proved >= least).all():
        return "evidence.margins.lower is not proved"
    if not (least > 0).all():
        return f"the margin over class {others[int(np.argmin(least))]} is not positive"
    return None
