"""What a radius costs in bounds, a count that no machine changes: CROWN over the zoo, secant against bisection."""

from types import ModuleType

import pytest
import torch

import certbench
from certbench.models import data, zoo
from certbench.runs import suite

RELATIVE = 1e-3
SUITE = suite.load("default")
MODELS = [model.name for model in SUITE.settings.models]


@pytest.fixture(scope="module")
def found(lirpa: ModuleType) -> dict[str, tuple[torch.Tensor, ...]]:
    """By search: radii and evaluations, of one input per class with every model and norm of the default suite."""
    x = data.load("digits").inputs[:10].double()
    results: dict[str, list[torch.Tensor]] = {"secant": [], "bisection": []}
    for name in MODELS:
        classifier = zoo.load(name)
        for threat in SUITE.threats:
            state = certbench.build("crown").prepare(classifier, threat)
            for search, columns in results.items():
                spec = {"name": "crown", "search": {"name": search, "relative": RELATIVE}}
                certificate = certbench.certify(spec, classifier, x, threat, state=state)
                evaluations = torch.tensor([float(row["evaluations"]) for row in certificate.evidence])
                columns.append(torch.stack([certificate.radius, evaluations.double()]))
    return {search: torch.stack(columns, dim=1).unbind() for search, columns in results.items()}


def test_a_radius_costs_at_most_six_evaluations_where_bisection_takes_twelve(
    found: dict[str, tuple[torch.Tensor, ...]],
) -> None:
    counts = {search: count.view(len(MODELS), len(SUITE.threats), -1) for search, (_, count) in found.items()}
    for i, name in enumerate(MODELS):
        print(name, {search: count[i].mean(dim=1).tolist() for search, count in counts.items()})
    assert counts["secant"].mean() <= 6
    assert counts["bisection"].mean() >= 12


def test_fewer_evaluations_lose_no_radius(found: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """Both brackets are `RELATIVE` wide around the same crossing; where there are several, a secant may find another,
    and none here finds a smaller one."""
    radii, reference = found["secant"][0], found["bisection"][0]
    assert (radii >= (1 - 2 * RELATIVE) * reference).all()
    assert ((radii > 0) == (reference > 0)).all()
