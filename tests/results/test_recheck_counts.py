"""Rows of smoothed classifiers against their own counts."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from certbench import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core import options
from certbench.results.recheck_counts import largest, wrong
from certbench.results.rows import Row
from certbench.verifiers.smoothing.smoothing import Smoothing
from certbench.verifiers.smoothing.splitting import SplittingSmoothing

D = 6


def rows(spec: dict[str, Any], norm: float, counts: list[int], top: int = 1) -> Row:
    """What `Smoothing` would store for given counts."""
    certifier = options.build({"name": "smoothing", **spec})
    assert isinstance(certifier, Smoothing)
    low, high = certifier.probabilities(top, counts, certifier.n)
    radius = certifier.noise.radius(low, high, norm, D) if low > high else 0.0
    evidence = {
        "counts": counts, "selection": [9 if label == top else 1 for label in range(len(counts))], "n": certifier.n,
        "alpha": certifier.alpha, "rule": certifier.rule, "noise": options.describe(certifier)["noise"],
        "sigma": certifier.noise.sigma, "scale": certifier.noise.scale(D), "dimension": D, "p_lower": low,
        "p_upper": high, "seed": "0" * 32,
    }  # fmt: skip
    return Row(
        model="net", certifier="smoothing", guarantee=Guarantee.PROBABILISTIC, subject=Subject.SMOOTHED, norm=norm,
        input=0, label=1, prediction=top if radius > 0 else ABSTAIN, radius=radius, outcome=Outcome.COMPLETED,
        evidence=evidence,
    )  # fmt: skip


def made() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for name, norm, rule, n in itertools.product(
        ("gaussian", "laplace", "uniform"), (1.0, 2.0, math.inf), ("one-vs-rest", "two-class"), (300, 50_000)
    ):
        top = int(n * (0.55 + 0.45 * rng.random()))
        for counts in ([n - top, top, 0], [0, n, 0], [(n - top) // 3, top, (n - top) // 3]):
            yield rows({"noise": {"name": name, "sigma": 0.5}, "n": n, "rule": rule}, norm, counts)


def test_what_the_certifier_says_is_what_its_counts_prove() -> None:
    found = [row for row in made() if row.radius > 1e-3]
    assert len(found) > 80
    for row in found:
        assert wrong(row) is None
        assert largest(row) == pytest.approx(row.radius, rel=1e-7)
        assert wrong(replace(row, radius=row.radius * (1 + 1e-6))) is not None
        assert wrong(replace(row, radius=row.radius / 2)) is None  # a weak claim is no wrong one
        assert largest(replace(row, radius=0.0, prediction=ABSTAIN)) == largest(row)


def test_the_largest_radius_does_not_rest_on_the_row_s_own_bounds() -> None:
    row = rows({"n": 1000}, 2.0, [10, 984, 6])
    weak = replace(row, evidence={**row.evidence, "p_lower": 0.6, "p_upper": 0.4})
    assert largest(weak) == largest(row)
    assert wrong(weak) is not None and wrong(replace(weak, radius=0.01)) is None
    low, high = (beta.ppf(0.0005, 984, 17), beta.ppf(0.9995, 11, 990))
    best = largest(row)
    assert best is not None and row.radius <= best * (1 + 1e-12)
    assert row.evidence["p_lower"] == pytest.approx(low, rel=1e-9)
    assert row.evidence["p_upper"] == pytest.approx(high, rel=1e-9)


def test_what_is_wrong_is_said() -> None:
    row = rows({"n": 1000}, 2.0, [10, 984, 6])
    for change, words in (
        ({"prediction": 2}, "name class 1, not class 2"),
        ({"prediction": 2, "radius": 0.0}, "name class 1"),
        ({"prediction": ABSTAIN}, "abstains, but"),
        ({"radius": math.nan}, "the radius is nan"),
        ({"radius": -0.1}, "the radius is -0.1"),
        ({"radius": math.inf}, "the radius is inf"),
        ({"evidence": {**row.evidence, "counts": [10, 900, 6]}}, "p_lower"),
        ({"evidence": {**row.evidence, "counts": [10, "984", 6]}}, "whole number"),
        ({"evidence": {**row.evidence, "counts": [-10, 984, 6]}}, "whole number"),
        ({"evidence": {**row.evidence, "counts": [100, 984, 6]}}, "not those of n draws"),
        ({"evidence": {**row.evidence, "sigma": 1.0}}, "sigma"),
    ):
        found = wrong(replace(row, **change))
        assert found is not None and words in found, change
    assert wrong(replace(row, radius=0.0, prediction=ABSTAIN)) is None
    assert wrong(replace(row, radius=0.0)) is None
    assert largest(replace(row, evidence={**row.evidence, "counts": [1, "984", 6]})) is None
    assert largest(rows({"n": 1000}, 2.0, [480, 500, 20])) == 0.0
    assert largest(rows({"n": 1000}, 2.0, [10, 984, 6], top=0)) == 0.0
    assert largest(rows({"n": 1000}, 2.0, [0, 1000, 0], top=0)) == 0.0


def test_what_rests_on_more_than_counts_is_not_re_checked() -> None:
    row = rows({"n": 1000}, 2.0, [10, 984, 6])
    for change in (
        {"evidence": {}},
        {"evidence": {**row.evidence, "layer": "0", "constants": {"2": 1.0}}},
        {"evidence": {**row.evidence, "noise": {"name": "pareto", "sigma": 0.25, "a": 3}}},
        {"evidence": {name: row.evidence[name] for name in ("counts", "n", "rule", "seed")}},  # a baseline's
        {"evidence": {**row.evidence, "dimension": 10**6}},
        {"subject": Subject.BASE},
        {"guarantee": Guarantee.SOUND},
        {"norm": 0.0},
    ):
        odd = replace(row, radius=99.0, **change)
        assert wrong(odd) is None and largest(odd) is None
    for beside in ({"stream": "cuda"}, {"precision": "bfloat16"}, {"won": "smoothing"}, {"shared": True}):
        assert wrong(replace(row, radius=99.0, evidence={**row.evidence, **beside})) is not None


def test_uniform_noise_in_a_domain_needs_the_input() -> None:
    row = replace(rows({"noise": {"name": "uniform", "sigma": 0.5}, "n": 1000}, 1.0, [10, 984, 6]), domain=(0.0, 1.0))
    assert wrong(replace(row, radius=row.radius * 9)) is None and largest(row) is None
    corner = [0.0] * D
    assert wrong(row, corner) is None and wrong(replace(row, radius=row.radius * 9), corner) is not None
    best = largest(row, [0.5] * D)
    assert best is not None and best > row.radius


def test_splitting_noise() -> None:
    row = rows({"n": 1000}, 1.0, [10, 984, 6])
    low, high = row.evidence["p_lower"], row.evidence["p_upper"]
    names = ("counts", "selection", "n", "alpha", "rule", "p_lower", "p_upper", "seed")
    evidence = {name: row.evidence[name] for name in names} | {"lam": 0.75}
    row = replace(row, radius=SplittingSmoothing(lam=0.75).radius(low, high, D), evidence=evidence)
    assert row.radius > 0.5 and wrong(row) is None and largest(row) == pytest.approx(row.radius, rel=1e-7)
    assert wrong(replace(row, radius=row.radius * (1 + 1e-6))) is not None


def test_nothing_heavy_is_imported() -> None:
    code = "from certbench.results import recheck_counts; import sys\n"
    code += "assert not {'torch', 'numpy', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
