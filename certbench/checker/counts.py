r"""Counts of sampled classes: binomial tails, then the radius of the noise (Cohen et al., 2019; Yang et al., 2020).

Decimals of 60 digits are rounded in the direction that weakens the claim. The standard library rounds `exp`, `ln` and
`sqrt` correctly, so the exact value lies between the neighbours of the result. No file can prove that the counts come
from independent draws of the noise; the claim assumes it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np

from certbench.checker.reading import Claim, Refused, fields, items, number, text, whole

DOWN, UP = (Context(prec=60, rounding=rounding) for rounding in (ROUND_FLOOR, ROUND_CEILING))
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
"""Pi, rounded down by less than 1e-80."""
ONE, TWO, HALF = Decimal(1), Decimal(2), Fraction(1, 2)
TERMS = 10**6
"""Maximum number of terms of a series. A tail that needs more is taken to be 1."""
SMALLEST = Fraction(1, 10**25)
"""Smallest distance of a probability from 0 and 1. Probabilities that are closer prove nothing here."""
LARGEST = 2 * 10**5
"""Maximum dimension of the input."""
SAMPLED = ("kind", "counts", "selection", "n", "alpha", "rule", "p_lower", "p_upper", "seed")


def check(claim: Claim, evidence: Mapping[str, Any], network: object) -> str | None:
    """Return None if counts prove a claim about a smoothed classifier, else the reason why not."""
    del network
    if claim.subject != "smoothed" or len(claim.input) > LARGEST:
        return f"counts prove a claim about a smoothed classifier of at most {LARGEST} inputs"
    if claim.guarantee != ("sound" if "grid" in evidence else "probabilistic"):
        return "sampled counts prove a probabilistic claim, and all votes a sound one"
    if "grid" in evidence:
        return _all_shifts(claim, evidence)
    if evidence.keys() & {"layer", "constants", "also"}:
        return "the noise is at a hidden layer: counts do not prove the Lipschitz constants of the layers before it"
    if Decimal(claim.radius) <= largest(claim, evidence, *probabilities(claim, evidence)):
        return None
    return "the radius is larger than the probabilities prove"


def largest(claim: Claim, evidence: Mapping[str, Any], p_lower: Fraction, p_upper: Fraction) -> Decimal:
    """Return the largest radius that bounds of probabilities prove in the claim's norm, rounded down."""
    d = len(claim.input)
    if "lam" in evidence:
        radii = _splitting(d, _positive(evidence, "lam"), p_lower, p_upper)
    else:
        if evidence["dimension"] != d or evidence.get("shared", True) is not True:
            raise Refused("the noise has another dimension than the input")
        name, scale = _noise(evidence)
        radii = NOISES[name][1](p_lower, p_upper, scale, claim)
    # |v|_a <= d^max(0, 1/a - 1/p) |v|_p, and the probability exceeds p_lower
    factors = {0.0: ONE, 0.5: _root(Fraction(d), UP), 1.0: Decimal(d)}
    return max(DOWN.divide(r, factors[max(0.0, 1 / norm - 1 / claim.norm)]) for norm, r in radii.items())


@dataclass(frozen=True)
class Votes:
    """Votes of n draws: `votes` for class `top`, which other draws had selected, at most `rivals` for any other class.

    Each bound of a probability must hold at confidence 1 - share. Draws that voted for no class count as one more
    rival. No union over classes is needed: a bound is monotone in the count, and the count of the true runner-up is at
    most the largest count.
    """

    top: int
    votes: int
    rivals: int
    n: int
    share: Decimal
    rule: str


def read_votes(evidence: Mapping[str, Any]) -> Votes:
    """Read the counts of the file; refuse evidence that is incomplete or has no valid counts."""
    noise = ("lam",) if "lam" in evidence else ("noise", "sigma", "scale", "dimension")
    shared = ("shared",) if "shared" in evidence and "lam" not in evidence else ()
    fields(evidence, (*SAMPLED, *noise, *shared), "evidence")
    counts, selection = ([whole(count, name) for count in items(evidence[name], name)] for name in SAMPLED[1:3])
    n, rule = whole(evidence["n"], "n", 1), text(evidence["rule"], "rule", ("one-vs-rest", "two-class"))
    alpha, seed = _positive(evidence, "alpha"), text(evidence["seed"], "seed")
    if len(seed) != 32 or not set(seed) <= set("0123456789abcdef"):
        raise Refused("the seed is not written in 32 hexadecimal digits")
    if alpha >= 1 or len(counts) < 2 or len(counts) != len(selection) or sum(counts) > n or sum(selection) < 1:
        raise Refused("alpha is no probability, or the counts are not those of n draws")
    top = selection.index(max(selection))
    rivals = max(*(count for label, count in enumerate(counts) if label != top), n - sum(counts))
    share = _decimal(alpha if rule == "one-vs-rest" else alpha / 2, DOWN)
    return Votes(top, counts[top], rivals, n, share, rule)


def probabilities(claim: Claim, evidence: Mapping[str, Any]) -> tuple[Fraction, Fraction]:
    """Return the file's bounds p_lower and p_upper, if the counts prove both together at confidence 1 - alpha."""
    found, p_lower = read_votes(evidence), _positive(evidence, "p_lower")
    p_upper = Fraction(number(evidence["p_upper"], "p_upper"))
    if claim.prediction != found.top:
        raise Refused(f"the draws of the selection name class {found.top}, not class {claim.prediction}")
    if not SMALLEST <= p_upper < p_lower <= 1 - SMALLEST or p_upper >= HALF:
        raise Refused("p_upper must lie below p_lower and below 1/2, both between 1e-25 and 1 - 1e-25")
    if tail(found.votes, found.n, p_lower) > found.share:
        raise Refused("p_lower is larger than the counts prove")
    single = found.rule == "one-vs-rest"
    if p_upper < 1 - p_lower and (single or tail(found.n - found.rivals, found.n, 1 - p_upper) > found.share):
        raise Refused("p_upper is smaller than the counts prove")
    return p_lower, p_upper


def tail(k: int, n: int, p: Fraction) -> Decimal:
    """Compute P[Bin(n, p) >= k] for 0 < p < 1, rounded up.

    Divide all terms by the k-th. Then the tail is A / (A + B), where A sums the terms from k on and B those below. It
    grows with A, which is rounded up; a geometric series bounds the terms that A leaves out. It falls with B, so B may
    leave terms out.
    """
    if k <= 0:
        return ONE
    odds, against = _decimal(p / (1 - p), UP), _decimal((1 - p) / p, DOWN)
    above = term = ONE
    for i in range(k, n):
        ratio = UP.divide(UP.multiply(odds, Decimal(n - i)), Decimal(i + 1))
        term = UP.multiply(term, ratio)
        above = UP.add(above, term)
        if ratio < 1 and term < above.scaleb(-25):
            above = UP.add(above, UP.divide(UP.multiply(term, ratio), DOWN.subtract(ONE, ratio)))
            break
        if i - k > TERMS:
            return ONE
    below, term = Decimal(0), ONE
    for i in range(k, max(0, k - TERMS), -1):
        term = DOWN.divide(DOWN.multiply(DOWN.multiply(against, Decimal(i)), term), Decimal(n - i + 1))
        below = DOWN.add(below, term)
        if term < below.scaleb(-25):
            break
    return UP.divide(above, DOWN.add(above, below))


def _noise(evidence: Mapping[str, Any]) -> tuple[str, Decimal]:
    """Return the noise's name and its scale, rounded down; refuse a sigma or a scale that is not the noise's."""
    noise = evidence["noise"]
    name = noise.get("name") if isinstance(noise, dict) else None
    if not isinstance(name, str) or name not in NOISES:
        raise Refused(f"noise {name!r} is not re-checkable; {', '.join(NOISES)} are")
    fields(noise, ("name", "sigma"), "noise")
    sigma, square = _positive(evidence, "sigma"), NOISES[name][0]
    exact = sigma**2 * square
    if _positive(noise, "sigma") != sigma or abs(_positive(evidence, "scale") ** 2 - exact) > exact / 2**50:
        raise Refused("sigma and the scale are not the noise's")
    return name, _root(exact, DOWN)


def _splitting(d: int, lam: Fraction, p_lower: Fraction, p_upper: Fraction) -> dict[float, Decimal]:
    """Compute the radius of splitting noise (Levine and Feizi, 2021).

    Subtracted is what the rounding of cuts to multiples of 2^-53 can change.
    """
    return {1.0: _decimal(lam * (p_lower - p_upper) - d * (1 + 2 * lam) / 2**49, DOWN)}


def _all_shifts(claim: Claim, evidence: Mapping[str, Any]) -> str | None:
    """Check all votes of shifted cuts (Levine and Feizi, 2021): to change m + 1 votes, m + 1 cuts must be crossed."""
    fields(evidence, ("kind", "counts", "n", "lam", "grid", "points", "offsets", "claim"), "evidence")
    counts = [whole(count, "counts") for count in items(evidence["counts"], "counts")]
    n, grid, _ = (whole(evidence[name], name) for name in ("n", "grid", "offsets"))
    if evidence["points"] != "all" or evidence["claim"] != "all perturbed inputs":
        return "the votes were counted for perturbed inputs on the grid, but the claim is about all"
    if claim.norm != 1 or not all(0 <= value <= 1 for value in claim.input):
        return "shifted cuts prove claims in L1, for inputs in [0, 1]"
    if not 0 < n == math.floor(2 * _positive(evidence, "lam") * grid + Fraction(1, 10**9)):
        return "n, lam and the grid contradict one another"
    top = claim.prediction
    if len(counts) < 2 or not 0 < sum(counts) <= n or counts.index(max(counts)) != top:
        return "the counts are not those of n cuts, or name another class"
    room = min(counts[top] - count - (label < top) for label, count in enumerate(counts) if label != top) // 2
    steps = [Fraction(float(value)) * grid for value in claim.input]
    nearest = sorted(HALF - abs(step - round(step)) for step in steps)[: room + 1]
    crossed = sum(nearest, Fraction(max(0, room + 1 - len(steps))))
    return None if Fraction(claim.radius) * grid < crossed else "the radius is larger than the votes prove"


def _gaussian(p_lower: Fraction, p_upper: Fraction, sigma: Decimal, claim: Claim) -> dict[float, Decimal]:
    r"""Compute the L2 radius $\sigma/2 (\Phi^{-1}(p_A) + \Phi^{-1}(1 - p_B))$."""
    del claim
    return {2.0: _half(sigma, quantile(p_lower), quantile(1 - p_upper))}


def _laplace(p_lower: Fraction, p_upper: Fraction, b: Decimal, claim: Claim) -> dict[float, Decimal]:
    """Compute the radii: half the difference of quantiles in L1, half the difference of `height`s in Linf."""
    norms = {1.0: 1} if claim.norm == 1 else {1.0: 1, math.inf: len(claim.input)}  # in L1 nothing is larger
    return {norm: _half(b, height(p_lower, d), height(1 - p_upper, d)) for norm, d in norms.items()}


def _uniform(p_lower: Fraction, p_upper: Fraction, half_side: Decimal, claim: Claim) -> dict[float, Decimal]:
    r"""Compute the radii from the total variation $T = 1 - \prod (1 - |\delta_i| / 2 \lambda) < (p_A - p_B) / 2$.

    In L1 the worst shift fills the coordinates to which the domain leaves most room, one after the other, because that
    vector majorises the others; without a domain it has one coordinate. In L2 (as $T < 1/2$) and Linf it is a diagonal.
    """
    side, keep, d = DOWN.multiply(TWO, half_side), _decimal(1 - (p_lower - p_upper) / 2, UP), len(claim.input)
    box = (-math.inf, math.inf) if claim.domain is None else claim.domain
    rooms = np.nextafter(np.maximum(np.abs(claim.input - box[0]), np.abs(box[1] - claim.input)), math.inf)
    product, spent = ONE, Decimal(0)
    for room in map(Decimal, np.sort(rooms)[::-1].tolist()):
        left = Decimal(0) if room >= side else DOWN.subtract(ONE, UP.divide(room, side))
        if DOWN.multiply(product, left) <= keep:
            part = DOWN.multiply(side, DOWN.subtract(ONE, UP.divide(keep, product)))
            spent = DOWN.add(spent, max(Decimal(0), part))
            break
        product, spent = DOWN.multiply(product, left), DOWN.add(spent, room)
    else:
        spent = Decimal("Infinity")  # no point of the domain is too far
    root = _exp(UP.divide(_ln(keep, UP), Decimal(d)), UP)
    diagonal = DOWN.multiply(side, DOWN.subtract(ONE, root))
    return {1.0: spent, 2.0: DOWN.multiply(diagonal, _root(Fraction(d), DOWN)), math.inf: diagonal}


NOISES = {"gaussian": (Fraction(1), _gaussian), "laplace": (HALF, _laplace), "uniform": (Fraction(3), _uniform)}
"""Noises by name: the square of the scale for sigma 1, and the function of the radii by norm, rounded down."""


def quantile(p: Fraction) -> Decimal:
    """Compute a lower bound of the normal p-quantile: a guess, lowered until the tail beyond it proves it."""
    smaller, upper = min(p, 1 - p), p >= HALF
    guess = Decimal(abs(NormalDist().inv_cdf(float(smaller))))
    for step in range(-14, -6):
        factor = Decimal(10) ** step
        y = DOWN.multiply(guess, DOWN.subtract(ONE, factor) if upper else UP.add(ONE, factor))
        low, high = upper_tail(y)
        if low >= smaller if upper else high <= smaller:
            return y if upper else y.copy_negate()
    raise Refused("a quantile of the normal distribution could not be proved")


def upper_tail(y: Decimal) -> tuple[Decimal, Decimal]:
    r"""Enclose P[N(0, 1) > y], y >= 0: $1/2 - \phi(y) \sum_k y^{2k+1} / (1 \cdot 3 \cdots (2k + 1))$."""
    ends = []
    for near, far, pi in ((UP, DOWN, Fraction(PI)), (DOWN, UP, Fraction(PI) + Fraction(1, 10**80))):
        square = near.multiply(y, y)
        total = term = y
        for k in range(1, TERMS):
            ratio = near.divide(square, Decimal(2 * k + 1))
            term = near.multiply(term, ratio)
            total = near.add(total, term)
            if ratio < Decimal("0.5") and term < Decimal("1e-70"):
                break
        total = near.add(total, term) if near is UP else total  # more than all terms that are left
        power = far.divide(far.multiply(y, y), TWO).copy_negate()
        density = near.divide(_exp(power, near), _root(2 * pi, far))
        ends.append(far.subtract(Decimal("0.5"), near.multiply(density, total)))
    return ends[0], ends[1]


def height(p: Fraction, d: int) -> Decimal:
    r"""Compute a lower bound of h(p), the Linf shift of Laplace noise of scale 1 that leads from probability 1/2 to p.

    For d = 1 it is the shift in L1.

    $h(p) = \int_{1-p}^{1/2} ds / F(s)$ and h(1 - p) = -h(p), where F(s) is the largest E[S; A] over P[A] = s, for
    S = 2 Bin(d, 1/2) - d. Between $T_{m+1}$ and $T_m = P[S \geq 2m - d]$ it is linear, of slope $2m - d$, and
    $F(T_m) = m \binom{d}{m} / 2^d$, so that this piece is $\ln(m / (d - m)) / (2m - d)$, or 1/d where the slope is 0.
    Lines that bound one piece lie above F elsewhere. `near` rounds towards the bound, `far` away from it.
    """
    t, near, far = (1 - p, DOWN, UP) if p >= HALF else (p, UP, DOWN)
    m, end, found = d // 2, Decimal("0.5"), Decimal(0)
    chance = _decimal(Fraction(math.comb(d, m), 2**d), far)  # where d is odd, that of m + 1 too
    if d % 2 == 0:
        end = near.subtract(end, far.divide(chance, TWO))
        if end < t:
            found = near.divide(_decimal(HALF - t, near), far.multiply(Decimal(m), chance))
            return found if near is DOWN else found.copy_negate()
        found = near.divide(ONE, Decimal(d))
        chance = far.divide(far.multiply(chance, Decimal(d - m)), Decimal(m + 1))
    m += 1
    while m < d and (following := near.subtract(end, chance)) >= t:
        piece = _ln(near.divide(Decimal(m), Decimal(d - m)), near)
        found = near.add(found, near.divide(piece, Decimal(2 * m - d)))
        chance = far.divide(far.multiply(chance, Decimal(d - m)), Decimal(m + 1))
        end, m = following, m + 1
    slope = Decimal(2 * m - d)
    share = near.divide(near.multiply(slope, near.subtract(end, _decimal(t, far))), far.multiply(Decimal(m), chance))
    rest = _ln(far.subtract(ONE, share), far).copy_negate()
    found = near.add(found, near.divide(rest, slope))
    return found if near is DOWN else found.copy_negate()


def _positive(values: Mapping[str, Any], name: str) -> Fraction:
    """Return a positive number of the file as an exact fraction."""
    found = number(values[name], name)
    if not found > 0:
        raise Refused(f"{name} must be positive, not {found}")
    return Fraction(found)


def _outward(value: Decimal, context: Context) -> Decimal:
    """Return the neighbour of a correctly rounded result that bounds the exact value."""
    return context.next_plus(value) if context is UP else context.next_minus(value)


def _decimal(value: Fraction, context: Context) -> Decimal:
    return context.divide(Decimal(value.numerator), Decimal(value.denominator))


def _root(value: Fraction, context: Context) -> Decimal:
    return _outward(context.sqrt(_decimal(value, context)), context)


def _ln(value: Decimal, context: Context) -> Decimal:
    return _outward(context.ln(value), context)


def _exp(value: Decimal, context: Context) -> Decimal:
    return _outward(context.exp(value), context)


def _half(scale: Decimal, a: Decimal, b: Decimal) -> Decimal:
    """Compute half the scale times the sum, rounded down where it is positive."""
    return DOWN.divide(DOWN.multiply(scale, DOWN.add(a, b)), TWO)
