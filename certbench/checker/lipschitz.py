r"""Margins over Lipschitz constants of pairs of classes (Leino et al., 2021), or by LipSDP (Fazlyab et al., 2019).

The network is a chain of layers with ReLUs between them. The file gives bounds of 2-norms, each proved here by a
Cholesky factorisation of $L^2 I - A^T A$, or LipSDP's multipliers, proved by a factorisation of LipSDP's matrix. All
else is computed here. A pair's constant is the least that follows from products of norms, in the claim's norm and the
2-norm side by side, and from moduli of weights multiplied along all paths. No rule of certbench gives less, so the
rule's name does not matter.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from certbench.checker.network import EnclosedLayer, Network
from certbench.checker.reading import Claim, Refused, array, fields, items, number
from certbench.checker.rounding import TINY, UNIT, gamma, norm_up, positive_semidefinite, product_up, raised, up

SIDE = 2500
"""Largest side of a matrix that is factorised."""
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def check(claim: Claim, evidence: dict[str, Any], network: Network | None) -> str | None:
    """Return None if each margin exceeds what its constant allows in the ball, else the reason."""
    if network is None:
        return "a claim about a network needs one"
    layers = network.layers()
    _, spectral, box, multipliers = fields(evidence, ("kind", "spectral", "box", "multipliers"), "evidence")
    bounds = [[number(b, name) for b in items(value, name)] for name, value in (("spectral", spectral), ("box", box))]
    rows = rows_of(layers[-1], claim)
    allowed = constants(claim, layers, rows, *bounds)
    margins = margins_of(layers, rows, claim, bounds[0])
    if not (margins > 0).all():
        return "another output is as large at the input"
    if len(items(multipliers, "multipliers")) != len(margins):
        return "evidence.multipliers must be null or an object for each other class"
    for k, given in enumerate(multipliers):
        if given is not None:
            allowed[k] = by_multipliers(claim, layers, rows, margins[k], k, given)
    for margin, constant in zip(margins, allowed, strict=True):
        if not margin > raised(constant * claim.radius):
            return "a margin is no larger than its Lipschitz constant times the radius"
    return None


def rows_of(last: EnclosedLayer, claim: Claim) -> EnclosedLayer:
    """Return the last layer of the differences between the class and each other class."""
    own, others = claim.prediction, [j for j in range(len(last.bias)) if j != claim.prediction]
    weight, bias = last.weight[own] - last.weight[others], last.bias[own] - last.bias[others]
    weight_error = up(last.weight_error[own] + last.weight_error[others] + UNIT * np.abs(weight))
    return EnclosedLayer(
        weight, weight_error, bias, up(last.bias_error[own] + last.bias_error[others] + UNIT * np.abs(bias))
    )


def margins_of(
    layers: Sequence[EnclosedLayer], rows: EnclosedLayer, claim: Claim, spectral: Sequence[float]
) -> np.ndarray:
    """Compute lower bounds of the margins at the input; `spectral` bounds the 2-norms of all layers but the last.

    Rounding errors are carried along entry by entry and in the 2-norm, where they grow less.
    """
    h, off, far = claim.input, np.zeros_like(claim.input), 0.0
    for layer, bound in zip(layers[:-1], spectral, strict=True):
        value, local = _forward(layer, h, off)
        far = raised(bound * far + float(norm_up(local[None], 2.0)[0]), 2)
        off = np.minimum(up(product_up(np.abs(layer.weight), off) + local), far)
        h = np.maximum(value, 0.0)
    value, local = _forward(rows, h, off)
    moved = np.minimum(product_up(np.abs(rows.weight), off), up(norm_up(rows.weight, 2.0) * far))
    result: np.ndarray = value - up(moved + local + UNIT * np.abs(value), 3)
    return result


def _forward(layer: EnclosedLayer, h: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute a layer's value at h and a bound of its error. What the weights make of h's own error is not included.

    The true input of the layer lies within `off` of h.
    """
    size, moduli = up(np.abs(h) + off), np.abs(layer.weight)
    rounded = gamma(len(h) + 2) * up(product_up(moduli, size) + np.abs(layer.bias))
    return layer.weight @ h + layer.bias, up(product_up(layer.weight_error, size) + rounded + layer.bias_error, 4)


def constants(
    claim: Claim, layers: Sequence[EnclosedLayer], rows: EnclosedLayer, spectral: Sequence[float], box: Sequence[float]
) -> np.ndarray:
    """Compute an upper bound of each margin's Lipschitz constant; claimed bounds of 2-norms are proved first."""
    p, d, hidden = claim.norm, len(claim.input), len(layers) - 1
    if len(spectral) != hidden or len(box) != (hidden if p == math.inf else 0):
        raise Refused(f"evidence must have bounds of the 2-norms of {hidden} layers, in Linf also of the scaled ones")
    reach = {2.0: 1.0 if p < math.inf else _root(d), p: 1.0}  # constants so far, by the norm of the output
    for i, (layer, bound) in enumerate(zip(layers[:-1], spectral, strict=True)):
        prove_norm(layer.weight, bound, f"layer {i + 1}")
        entries, frobenius = _moduli(layer), float(norm_up(layer.weight_error.reshape(1, -1), 2.0)[0])
        norm = {(2.0, 2.0): raised(bound + frobenius)}
        m, n = entries.shape
        if p == 1:
            norm |= {(1.0, r): float(norm_up(entries.T, r).max()) for r in (1.0, 2.0)}
            norm[2.0, 1.0] = raised(_root(m) * norm[2.0, 2.0])
        if p == math.inf:
            norm |= {(s, math.inf): float(norm_up(entries, DUAL[s]).max()) for s in (2.0, math.inf)}
            ways = [_root(n) * norm[2.0, 2.0], float(norm_up(norm_up(entries, 1.0)[None], 2.0)[0])]
            ways.append(box_norm(layer.weight, box[i]) + _root(n) * frobenius)
            norm[math.inf, 2.0] = raised(min(ways), 2)
        reach = {r: min(raised(reach[s] * norm[s, r]) for s in reach) for r in reach}
    entries = _moduli(rows)
    if len(layers) == 1:
        return norm_up(entries, DUAL[p])
    found = np.min([up(reach[r] * norm_up(entries, DUAL[r])) for r in reach], axis=0)
    for layer in reversed(layers[:-1]):
        entries = product_up(entries, _moduli(layer))
    best: np.ndarray = np.minimum(found, norm_up(entries, DUAL[p]))
    return best


def prove_norm(matrix: np.ndarray, bound: float, where: str) -> None:
    """Refuse a bound of a matrix's 2-norm that is not proved: $L^2 I - A^T A$ must have no negative eigenvalue."""
    a = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if a.shape[1] > SIDE:
        raise Refused(f"{where} is larger than {SIDE}: this checker proves no 2-norm of such a matrix")
    largest = float(np.abs(a).max(initial=0.0))
    if bound < 0:
        raise Refused(f"{where}: {bound!r} is not proved to bound a 2-norm")
    if largest == 0:
        return
    power = float(2.0 ** -np.floor(np.log2(largest)))  # scaled without rounding, so that nothing underflows
    a, scaled = a * power, bound * power
    gram = a.T @ a
    gram = np.tril(gram) + np.tril(gram, -1).T
    size = float(norm_up(a.reshape(1, -1), 2.0)[0]) ** 2 + scaled**2
    error = 1.01 * (gamma(a.shape[0] + 2) * float(norm_up(a.reshape(1, -1), 2.0)[0]) ** 2 + 8 * UNIT * size) + TINY
    if not 0 < bound * power < 1e100 or not positive_semidefinite(scaled**2 * np.eye(len(gram)) - gram, error):
        raise Refused(f"{where}: {bound!r} is not proved to bound a 2-norm")


def box_norm(matrix: np.ndarray, bound: float) -> float:
    r"""Compute an upper bound of the norm from inf to 2, $||A S^{-1}||_2 ||s||_2$, with the scales s of `scales`."""
    s = scales(matrix)
    scaled = matrix / s
    rounding = float(norm_up((np.abs(scaled) * 2 * UNIT).reshape(1, -1), 2.0)[0])
    prove_norm(scaled, bound, "a layer, scaled")
    return raised((bound + rounding) * float(norm_up(s[None], 2.0)[0]), 2)


def scales(matrix: np.ndarray) -> np.ndarray:
    r"""Choose one scale for each column, $s_i^2 = \sum_j |A^T A|_{ij}$; any would be sound."""
    s = np.sqrt(np.abs(matrix.T @ matrix).sum(axis=1))
    result: np.ndarray = np.maximum(s, max(1e-8 * float(s.max(initial=0.0)), TINY))
    return result


def by_multipliers(
    claim: Claim, layers: Sequence[EnclosedLayer], rows: EnclosedLayer, margin: float, k: int, multipliers: Any
) -> float:
    r"""Return a constant that suffices for a margin, if LipSDP's matrix proves it for the pair's own multipliers.

    Increments obey $\Delta_j^T \Lambda_j (W_j \Delta_{j-1} - \Delta_j) \geq 0$ for diagonal $\Lambda_j \geq 0$, so

    $$\begin{pmatrix} G & -W_1^T \Lambda_1 / 2 & & \\ & \Lambda_1 & -W_2^T \Lambda_2 / 2 & \\ & & \Lambda_2 & R^T \\
      & & & \rho \end{pmatrix} \succeq 0 \quad \text{(symmetric)} \qquad
      \text{proves} \quad |R \Delta_N|^2 \leq \rho \, \Delta_0^T G \Delta_0, \quad G = \operatorname{diag}(g).$$

    The right side is at most $\rho \max g |\Delta_0|_2^2$, and $\rho \sum g$ in the inf-norm. The largest $\rho$
    that leaves the margin is tried.
    """
    sizes = [len(claim.input), *(len(layer.bias) for layer in layers[:-1])]
    entry, parts = fields(multipliers, ("entry", "layers"), "multipliers")
    if len(items(parts, "multipliers.layers")) != len(layers) - 1 or len(layers) < 2 or sum(sizes) >= SIDE:
        raise Refused(f"there must be multipliers for each hidden layer, and at most {SIDE} inputs and neurons")
    diagonals = [array(part, "multipliers", (size,)) for part, size in zip((entry, *parts), sizes, strict=True)]
    if not all(((part > 1e-50) & (part < 1e50)).all() for part in diagonals):
        raise Refused("multipliers must be positive, between 1e-50 and 1e50")
    total = norm_up(diagonals[0][None], 1.0)[0] if claim.norm == math.inf else diagonals[0].max()
    allowed = margin / claim.radius * (1 - 1e-14)
    rho = float(allowed**2 / total * (1 - 1e-14))
    if not 1e-100 < rho < 1e100 or not _proved(layers, rows, k, diagonals, rho):
        raise Refused(f"the multipliers of other class number {k + 1} prove no constant that is small enough")
    return float(allowed)


def _proved(
    layers: Sequence[EnclosedLayer], rows: EnclosedLayer, k: int, diagonals: Sequence[np.ndarray], rho: float
) -> bool:
    """Say whether LipSDP's matrix is proved to have no negative eigenvalue, by its smaller Schur complement after G."""
    g, lam, n = diagonals[0], diagonals[1][:, None], len(diagonals[1])
    diagonal = np.concatenate([*diagonals[1:], [rho]])
    matrix, error = np.diag(diagonal), np.diag(4 * UNIT * diagonal)
    half, off = lam * layers[0].weight / 2, up(lam * layers[0].weight_error / 2)
    off = up(off + 2 * UNIT * np.abs(half))
    gram, size = (half / g) @ half.T, up(np.abs(half) + off)
    matrix[:n, :n] -= np.tril(gram) + np.tril(gram, -1).T
    spread = product_up(up(off / g), size.T)
    error[:n, :n] += up(spread + spread.T + gamma(len(g) + 8) * product_up(up(size / g), size.T), 4)
    blocks = [(part[:, None] * layer.weight / -2, part[:, None] * layer.weight_error / 2)
              for layer, part in zip(layers[1:-1], diagonals[2:], strict=True)]  # fmt: skip
    blocks.append((rows.weight[[k]], rows.weight_error[[k]]))
    column = 0
    for block, off in blocks:
        row = column + block.shape[1]
        at = slice(row, row + len(block)), slice(column, row)
        matrix[at], error[at] = block, up(off + 2 * UNIT * np.abs(block), 2)
        matrix[at[::-1]], error[at[::-1]] = matrix[at].T, error[at].T
        column = row
    power = np.exp2(np.round(np.log2(diagonal) / -2))  # scaled without rounding, to a diagonal of about 1
    off = norm_up((error * power * power[:, None]).reshape(1, -1), 2.0)[0]
    return positive_semidefinite(matrix * power * power[:, None], raised(float(off)))


def _moduli(layer: EnclosedLayer) -> np.ndarray:
    return up(np.abs(layer.weight) + layer.weight_error)


def _root(n: int) -> float:
    return math.nextafter(math.sqrt(n), math.inf)
