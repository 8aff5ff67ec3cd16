import pytest

from certbench.external.findings import Severity
from certbench.external.ladder import RadiusLadder, Sampling, infer, printed
from tests.support.logs import claimed, honest, log, radius


def test_the_half_unit_follows_the_format() -> None:
    def halves(form: str, *values: float) -> list[float]:
        return [r.half for r in printed([form.format(value) for value in values])]

    assert halves("{:.3}", 1.9612, 0.9776, 0.05, 0.0) == pytest.approx([0.005, 0.0005, 0.00005], rel=1e-2)
    assert halves("{:.4f}", 1.9612, 0.9776, 0.05, 0.0) == pytest.approx([0.00005] * 3, rel=1e-2)
    assert max(halves("{}", 1.96123456789012, 0.97762345678901)) < 1e-6
    assert [r.rows for r in printed(["0.5", "0.25", "0.5", "nan", "-1", "inf"])] == [2, 1]


@pytest.mark.parametrize("form", ["{:.3}", "{:.4f}", "{:.5}", "{}"])
@pytest.mark.parametrize(("n", "alpha"), [(100_000, 0.001), (100_000, 0.01), (10_000, 0.001), (1000, 0.05)])
def test_the_ladder_behind_a_log_is_found(n: int, alpha: float, form: str) -> None:
    for sigma in (0.12, 1.0):
        found = infer(log(honest(n, alpha, sigma, form=form)).radii, sigma)
        assert found.explained == (RadiusLadder(sigma, n, alpha),)
        levels = found.levels(n)
        assert found.pile is not None and levels is not None and levels[0] <= alpha <= levels[1]


@pytest.mark.parametrize("n", [777, 100_000])
def test_a_log_always_fits_the_ladder_it_was_made_with(n: int) -> None:
    for alpha in (0.3, 0.007):
        for k in (n, n - 1, n - 5, round(0.8 * n), round(0.6 * n)):
            for form in ("{:.3}", "{:.6f}", "{}"):
                ladder = RadiusLadder(0.5, n, alpha)
                shown = printed([form.format(radius(k, n, alpha, 0.5))])
                assert ladder.fit(shown).whole
                assert ladder.rung(k) == pytest.approx(radius(k, n, alpha, 0.5), rel=1e-9)


def test_without_a_row_near_the_top_it_stays_open() -> None:
    few = [f"{radius(k, 100_000, 0.001, 0.5):.3}" for k in range(70_000, 90_000, 1000)]
    found = infer(printed(few), 0.5)
    assert len(found.alphas) > 1 and found.verdict.startswith("undetermined") and found.levels(100_000) is None


def test_radii_printed_larger_than_they_were() -> None:
    n, alpha, sigma = 100_000, 0.001, 0.25
    true = [radius(k, n, alpha, sigma) for k in [*range(n - 40, n + 1), *range(60_000, 90_000, 5000)]]
    shown = [f"{value:.3}" for value in true]
    fit = RadiusLadder(sigma, n, alpha).fit(printed(shown))
    up, unclear = ({line for r in those for line in r.lines} for those in (fit.up, fit.unclear))
    larger = {i for i, (value, digits) in enumerate(zip(true, shown, strict=True), 1) if float(digits) > value}
    assert up and up <= larger <= up | unclear


def test_a_fit_by_chance_is_no_explanation() -> None:
    radii = printed([f"{radius(k, 1000, 0.001, 0.5):.3}" for k in (700, 800)])  # two radii: something always fits
    found = infer(radii, 0.5)
    assert RadiusLadder(0.5, 1000, 0.001) in found.fitting and found.explained == found.fitting


def test_claims_about_n_and_alpha() -> None:
    rows = honest(100_000, 0.01)
    assert (
        claimed(rows, Sampling()) == claimed(rows, Sampling(100_000, 0.01)) == claimed(rows, Sampling(None, 0.01)) == []
    )
    assert claimed(rows, Sampling(100_000, 0.001)) == [Severity.REFUTED]  # what the radii allow is less confidence
    assert claimed(rows, Sampling(10_000, 0.01)) == [Severity.REFUTED]  # above the top
    assert claimed(rows, Sampling(None, 0.001)) == [Severity.REFUTED]
    assert claimed(rows, Sampling(100_000, 0.1)) == [Severity.WARNING]  # more confidence than is claimed
    assert claimed(rows, Sampling(50_000, None)) == [Severity.WARNING]
    assert claimed(rows, Sampling(10_000_000, 0.01)) == [Severity.WARNING]  # fits, but is cut off below its top
    for form, severity in (("{:.3}", Severity.WARNING), ("{:.4f}", Severity.REFUTED)):
        below = [row for row in honest(100_000, 0.01, form=form) if float(row[3]) < 0.92]  # only between the rungs
        assert claimed(below, Sampling(100_000, 0.001)) == [severity]  # three digits leave open what it was instead
    odd = [[*row[:3], f"{0.9 * float(row[3]):.4f}", *row[4:]] for row in rows]
    assert (
        claimed(odd, Sampling()) == claimed(odd, Sampling(100_000, 0.01)) == [Severity.WARNING]
    )  # smaller than was proved
