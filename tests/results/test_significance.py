import pytest
from scipy.stats import fisher_exact

from certbench.results.significance import fisher, holm

# smoothing


def test_fisher_is_scipys() -> None:
    cases = [(a, n, b, n) for n in (1, 7, 100) for a in {0, n // 3, n} for b in {0, n // 2, n}]
    for a, n, b, m in [*cases, (984, 1000, 900, 1000), (99_000, 100_000, 98_800, 100_000)]:
        assert fisher(a, n, b, m) == pytest.approx(fisher_exact([[a, n - a], [b, m - b]]).pvalue, rel=1e-6)
    for a, n, b, m in [(3, 10, 40, 50), (40, 50, 3, 10), (0, 3, 5, 9), (500, 1000, 49, 100)]:
        tails = [fisher_exact([[a, n - a], [b, m - b]], alternative=tail).pvalue for tail in ("less", "greater")]
        assert fisher(a, n, b, m) == pytest.approx(min(1, 2 * min(tails)), rel=1e-9)


def test_holm() -> None:
    assert holm([0.04, 0.001, 0.02, 0.9], 0.05) == [False, True, False, False]
    assert holm([0.01, 0.001, 0.016, 0.9], 0.05) == [True, True, True, False]
    assert holm([], 0.05) == []
