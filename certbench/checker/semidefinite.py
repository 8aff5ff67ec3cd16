r"""The semidefinite relaxation of ReLU networks (Raghunathan, Steinhardt and Liang, 2018), checked by weak duality.

Let v = (1, y), where y are the inputs and the hidden neurons of open sign, scaled. All else is an affine function of y.
The constraints are products of such functions: 1 - y_i^2, the ball or the box of inputs, h - z and
z - l - (1 - l / u) h are nonnegative, and h (h - z) = 0. For multipliers w, nonnegative but for the last, and every
$\gamma$, a margin $v^T C v$ is at least

$$\gamma + T \min(0, \lambda_{\min}(M)), \quad M = C - \sum_k w_k F_k - \gamma e_0 e_0^T, \quad |v|^2 \leq T.$$
"""

import math
from typing import Any

import numpy as np

from certbench.checker.network import EnclosedLayer, Network
from certbench.checker.reading import Claim, Refused, array, fields, items, number
from certbench.checker.relaxation import CutBall, Prover
from certbench.checker.rounding import TINY, UNIT, gamma, least_eigenvalue, product_up, raised, up


def check(claim: Claim, evidence: dict[str, Any], network: Network | None) -> str | None:
    """Return None if a linear relaxation or multipliers prove every margin positive in the ball, else the reason."""
    if network is None:
        return "a claim about a network needs one"
    _, bounds, slopes, multipliers = fields(evidence, ("kind", "layers", "slopes", "multipliers"), "evidence")
    region, layers, relus = CutBall.of(claim, claim.radius), network.layers(), network.relus
    prover = Prover(network, region)
    if len(items(bounds, "evidence.layers")) != len(relus):
        return f"evidence.layers must have bounds for each of {len(relus)} ReLUs"
    for i, (at, given) in enumerate(zip(relus, bounds, strict=True)):
        parts = fields(given, ("lower", "upper", "backward"), f"evidence.layers[{i}]")
        named = dict(zip(("lower", "upper", "backward"), parts, strict=True))
        prover.prove(at, {"node": at, **named}, f"evidence.layers[{i}]")
    prover.advance()
    others = [j for j in range(network.outputs) if j != claim.prediction]
    rows, last = np.eye(network.outputs)[[claim.prediction]] - np.eye(network.outputs)[others], len(network.nodes) - 1
    below = prover.below(last, rows, prover.slopes(slopes, len(others), last + 1, "evidence.slopes"))
    found = region.minimum(*below)
    if len(items(multipliers, "evidence.multipliers")) != len(others):
        return "evidence.multipliers must be null or an object for each other class"
    relaxation = QuadraticForms(region, layers, [prover.bounds[at] for at in relus])
    for k, given in enumerate(multipliers):
        if given is not None:
            found[k] = max(found[k], relaxation.bound(rows[k], given))
    if not (found > 0).all():
        return f"the margin over class {others[int(np.argmin(found))]} is not proved to be positive"
    return None


class QuadraticForms:
    """Affine functions of y, each as coefficients of v with bounds of their errors, and products of them."""

    def __init__(
        self, region: CutBall, layers: list[EnclosedLayer], bounds: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Follow the network, and keep the factors of the products."""
        d, x = len(region.down), region.claim.input
        self.open = [np.flatnonzero((low < 0) & (high > 0)) for low, high in bounds]
        self.d, self.n = d, 1 + d + sum(map(len, self.open))
        self.box = region.claim.norm == np.inf
        self.size = np.ones(self.n)  # upper bounds of the entries of v
        h = np.zeros((d, self.n))
        if self.box:
            h[:, 0] = x + (region.high - region.down) / 2
            reach = up((region.high + region.down) / 2 + 8 * UNIT * (np.abs(x) + region.high + region.down), 4)
            self.squared = 0.0
        else:  # the ball is |y|^2 <= squared, of about d / 4
            scale = region.claim.radius / (math.sqrt(d) / 2)
            h[:, 0], reach = x, np.full(d, scale)
            self.squared = raised((region.claim.radius / scale) ** 2, 4)
            self.size[1 : 1 + d] = raised(math.sqrt(self.squared))
        h[np.arange(d), 1 + np.arange(d)] = reach
        self.one = np.eye(1, self.n)
        inner = np.where(np.arange(self.n) > 0, h, 0.0)  # x less its centre
        self.inputs = inner + region.down[:, None] * self.one, region.high[:, None] * self.one - inner
        value, off, at = h, np.zeros_like(h), 1 + d
        self.forms = [(np.zeros((0, self.n)),) * 5]  # gaps h - z and their errors, h itself, cuts and their errors
        for i, layer in enumerate(layers):
            z, error = _through(layer, value, off)
            if i == len(bounds):
                break
            (low, high), k = bounds[i], self.open[i]
            on = (low >= 0)[:, None]
            value, off = np.where(on, z, 0.0), np.where(on, error, 0.0)
            value[k, 0] = value[k, at + np.arange(len(k))] = high[k] / 2
            at += len(k)
            share = value[k] * (((high - low)[k] / high[k]) * (1 - 8 * UNIT))[:, None]  # at most (1 - l / u) h
            floor = low[k, None] * self.one
            moduli = np.abs(z[k]) + np.abs(value[k]) + np.abs(share) + np.abs(floor)
            rounded = up(error[k] + 8 * UNIT * moduli, 6)
            self.forms.append((value[k] - z[k], rounded, value[k], z[k] - share - floor, rounded))
        self.outputs = z, error

    def bound(self, row: np.ndarray, given: Any) -> float:
        """Compute a lower bound of a row times the outputs by these multipliers; -inf if they give none."""
        names = ("input", "ball", "unit", "gap", "cut", "complement")
        parts = dict(zip(names, fields(given, names, "multipliers"), strict=True))
        gaps, gap_errors, shares, cuts, cut_errors = map(np.concatenate, zip(*self.forms, strict=True))
        k = len(gaps)
        ball = number(parts.pop("ball"), "multipliers.ball")
        w = {name: array(part, name, (self.d if name == "input" else k,)) for name, part in parts.items()}
        if ball < 0 or not all((part >= 0).all() for name, part in w.items() if name != "complement"):
            raise Refused("multipliers of inequalities must not be negative")
        ones, exact = np.repeat(self.one, k, axis=0), np.zeros_like(gaps)
        factors = [
            (gaps, gap_errors, ones, exact, w["gap"]),
            (cuts, cut_errors, ones, exact, w["cut"]),
            (shares, exact, gaps, gap_errors, w["complement"]),
        ]
        squares = np.zeros(self.n)  # weights of 1 - y_i^2 and of the ball
        squares[1 + self.d :] = w["unit"]
        if self.box:
            squares[1 : 1 + self.d], constant = w["input"], w["input"].sum() + w["unit"].sum()
        else:
            above, under = self.inputs
            factors.append((above, np.zeros_like(above), under, np.zeros_like(under), w["input"]))
            squares[1 : 1 + self.d], constant = ball, ball * self.squared + w["unit"].sum()
        c, c_error = row @ self.outputs[0], product_up(np.abs(row), self.outputs[1])
        m = np.diag(squares)
        m[0, 0] -= constant
        m[0] += c
        moduli = product_up(np.abs(row), np.abs(self.outputs[0])) @ self.size + squares @ self.size**2 + abs(constant)
        error, count = c_error @ self.size, len(row) + self.n + 24
        for p, p_error, q, q_error, weights in factors:
            m -= p.T @ (weights[:, None] * q)
            a, a_error, b, b_error = (np.abs(part) @ self.size for part in (p, p_error, q, q_error))
            moduli += np.abs(weights) @ (a * b)
            error += np.abs(weights) @ up(a * b_error + a_error * b + a_error * b_error, self.n + 4)
            count += len(p)
        lost = raised(float(error + gamma(3 * count) * raised(float(moduli), 3 * count)), 3 * count) + TINY * self.n**2
        m = (m + m.T) / 2
        with np.errstate(all="ignore"):
            try:
                top = float(m[0, 0] - m[0, 1:] @ np.linalg.solve(m[1:, 1:], m[1:, 0]))
                m[0, 0] -= top
                least = float(np.linalg.eigvalsh(m)[0])
            except np.linalg.LinAlgError:
                return -np.inf
            spread = float(np.abs(m).sum(axis=1).max())
            least = least_eigenvalue(m, min(least, 0.0) - 8 * len(m) * UNIT * spread)
            trace = self.n + self.squared
            lost = raised(lost + trace * max(0.0, -least) + 4 * UNIT * (abs(top) + abs(float(m[0, 0]))), 6)
            found = float(top - lost - 4 * UNIT * (abs(top) + lost))
        return found if np.isfinite(found) else -np.inf


def _through(layer: EnclosedLayer, value: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply an affine layer to affine functions of y; return them and bounds of their errors."""
    moduli, size = np.abs(layer.weight), up(np.abs(value) + off)
    error = product_up(up(moduli + layer.weight_error), off) + product_up(layer.weight_error, size)
    error = error + gamma(len(value) + 4) * product_up(moduli, size)
    z = layer.weight @ value
    z[:, 0] += layer.bias
    error[:, 0] += layer.bias_error + 2 * UNIT * np.abs(layer.bias) + 2 * UNIT * np.abs(z[:, 0])
    return z, up(error, 8)
