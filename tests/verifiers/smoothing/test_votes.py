import pytest

from certbench.verifiers.smoothing.votes import bounds


@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_bounds_cross_at_ties_and_where_most_draws_had_no_vote(rule: str) -> None:
    for votes in ([500, 500, 0], [400, 0, 0], [100, 900, 0]):
        low, high = bounds(0, votes, 1000, 0.001, rule)  # type: ignore[arg-type]
        assert low <= high
