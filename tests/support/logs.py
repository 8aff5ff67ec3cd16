"""Logs of smoothing, made by hand, and what the audit says of them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.special import ndtri
from scipy.stats import beta

from certbench.external.findings import Severity
from certbench.external.ladder import Sampling, infer, judge
from certbench.external.smoothing_logs import Log, read
from tests.conftest import SHARED

COHEN = SHARED / "logs" / "cohen2019" / "certify"

HEADER = ["idx", "label", "predict", "radius", "correct", "time"]

Row = list[Any]


def radius(k: int, n: int, alpha: float, sigma: float) -> float:
    """Compute the radius of CERTIFY from the definition of its bound."""
    return sigma * float(ndtri(alpha ** (1 / n) if k == n else beta.ppf(alpha, k, n - k + 1)))


def counts(n: int, rows: int, seed: int = 0, pile: float = 0.2) -> list[int]:
    """How many draws agree: all of them for a share of the rows, else any number above half."""
    rng = random.Random(seed)
    return [n if rng.random() < pile else round(n * (1 - 0.45 * rng.random() ** 3)) for _ in range(rows)]


def honest(
    n: int = 100_000, alpha: float = 0.001, sigma: float = 0.25, rows: int = 120, form: str = "{:.3}", seed: int = 0
) -> list[Row]:
    """Rows of a log: an abstention in 10, a wrong prediction in 7."""
    result: list[Row] = []
    for i, k in enumerate(counts(n, rows, seed)):
        label, claimed = i % 10, radius(k, n, alpha, sigma)
        predicted = -1 if i % 10 == 3 or claimed <= 0 else (label + (i % 7 == 2)) % 10
        shown = form.format(0.0 if predicted == -1 else claimed)
        result.append([20 * i, label, predicted, shown, int(predicted == label), f"0:00:14.{(i * 7919) % 10**6:06}"])
    return result


def text(rows: Sequence[Row], header: Sequence[str] = HEADER) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows])


def log(rows: Sequence[Row], header: Sequence[str] = HEADER, name: str = "sigma_0.25") -> Log:
    return read(Path(name), text(rows, header))


Audit = Callable[..., tuple[int, str, Any]]


def claimed(rows: Sequence[Row], claim: Sampling, sigma: float = 0.25) -> list[Severity]:
    radii = log(rows).radii
    draws, alphas = [claim.n] if claim.n else [], [claim.alpha] if claim.alpha else []
    return [f.severity for f in judge(radii, infer(radii, sigma, draws=draws, alphas=alphas), claim)]


def right(rows: Sequence[Row], upto: int) -> int:
    return sum(row[1] == row[2] for row in rows[: upto + 1])


def results(**answers: str) -> str:
    return "".join(
        f"mnist,./benchmarks/mnist/onnx/net.onnx,./benchmarks/mnist/vnnlib/{prop}.vnnlib,2.5,{word},7.1\n"
        for prop, word in answers.items()
    )
