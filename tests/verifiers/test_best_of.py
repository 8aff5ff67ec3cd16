"""The best of several certificates: the largest radius, its evidence, and no work that cannot change it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Certificate, Certifier, Classifier, ConfigError, Guarantee, Linf, UnsupportedError
from certbench.core.options import label
from certbench.testing import inputs, network
from certbench.verifiers.best_of import BestOf
from certbench.verifiers.linear.crown import Crown
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz

pytestmark = pytest.mark.machine

MEMBERS = [{"name": "lipschitz"}, {"name": "crown"}, {"name": "jacobian-zonotope"}]


@dataclass(frozen=True)
class Counting(Certifier[Classifier]):
    """Says what it is told to, and counts the inputs that it was asked about."""

    radius: float = 0.0
    upper: float = float("inf")
    prediction: int | None = None
    asked: list[int] = field(default_factory=list)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: certbench.ThreatModel) -> Classifier:
        return classifier.double()

    def certify(self, state: Classifier, x: Tensor, seeds: Sequence[int]) -> Certificate:
        self.asked.append(len(x))
        label = state(x).argmax(dim=1)
        label = label if self.prediction is None else torch.full_like(label, self.prediction)
        full = torch.full((len(x),), 1.0, dtype=torch.float64)
        return Certificate.of(label, self.radius * full, upper=self.upper * full)


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_the_radius_is_the_largest_and_the_winner_is_named(threat: certbench.ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(20)
    best = certbench.certify({"name": "best-of", "of": MEMBERS}, classifier, x, threat)
    each = {str(spec["name"]): certbench.certify(spec, classifier, x, threat) for spec in MEMBERS}
    most = torch.stack([certificate.radius for certificate in each.values()]).amax(dim=0)
    assert (best.radius <= most * (1 + 2e-3)).all()  # a search may end elsewhere in its tolerance
    assert (best.radius >= most * (1 - 3e-3)).all()
    for i, evidence in enumerate(best.evidence):
        assert best.radius[i] == pytest.approx(float(each[evidence["won"]].radius[i]), rel=2e-3)
        assert evidence["bracket"][0] == best.radius[i]
    assert len({evidence["won"] for evidence in best.evidence}) > 1 or threat != L2


def test_a_member_without_a_chance_does_not_search(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, x, calls = network("mlp"), inputs(6), []
    lower = LayerwiseLipschitz.lower

    def counted(*args: object) -> object:
        calls.append(len(args[2]))  # type: ignore[arg-type]
        return lower(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerwiseLipschitz, "lower", counted)
    certificate = certbench.certify(BestOf((Crown(), LayerwiseLipschitz())), classifier, x, L2)
    assert {evidence["won"] for evidence in certificate.evidence} == {"crown"}
    assert calls == [6]  # one look at each


def test_a_counterexample_at_the_radius_ends_the_matter() -> None:
    classifier, x = network("mlp"), inputs(3)
    first, second = Counting(radius=0.01, upper=0.01), Counting(radius=0.02)
    best = certbench.certify(BestOf((first, second)), classifier, x, L2)
    assert best.radius.tolist() == [0.01] * 3
    assert first.asked == [3] and second.asked == []


def test_upper_ends_come_from_everyone() -> None:
    classifier, x = network("mlp"), inputs(2)
    best = certbench.certify(BestOf((Counting(radius=0.01, upper=0.5), Counting(radius=0.02))), classifier, x, L2)
    assert best.radius.tolist() == [0.02] * 2 and best.upper.tolist() == [0.5] * 2


def test_members_that_contradict_each_other_certify_nothing() -> None:
    classifier, x = network("mlp"), inputs(2)
    other = int(1 - (classifier(x).argmax(dim=1) == 1).long()[0])
    with pytest.raises(certbench.NumericalError, match="different classes"):
        certbench.certify(BestOf((Counting(radius=0.01), Counting(0.02, prediction=other))), classifier, x[:1], L2)
    with pytest.raises(certbench.NumericalError, match="above the distance"):
        certbench.certify(BestOf((Counting(0.01, upper=0.1), Counting(0.2))), classifier, x, L2)


def test_members_that_refuse_are_left_out_and_said_to() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    classifier, x = Classifier(module, (1, 4, 4), 4), inputs(2)
    members = ["lipschitz", "fast-lip", "jacobian-zonotope"]
    best = certbench.certify({"name": "best-of", "of": members}, classifier, x, L2)
    assert best.radius.tolist() == certbench.certify("lipschitz", classifier, x, L2).radius.tolist()
    assert set(best.evidence[0]["refused"]) == {"fast-lip", "jacobian-zonotope"}
    with pytest.raises(UnsupportedError, match=r"fast-lip: .*; jacobian-zonotope: "):
        certbench.certify({"name": "best-of", "of": members[1:]}, classifier, x, L2)


def test_only_sound_certificates_of_the_base_classifier_have_a_best() -> None:
    with pytest.raises(ConfigError, match="no sound statement") as caught:
        certbench.build({"name": "best-of", "of": ["crown", "smoothing"]})
    assert caught.value.path == ("of", 1)
    with pytest.raises(ConfigError, match="at least one"):
        certbench.build({"name": "best-of", "of": []})
    with pytest.raises(ConfigError, match="list of certifiers"):
        certbench.build({"name": "best-of", "of": "crown"})
    with pytest.raises(ConfigError, match="did you mean 'crown'"):
        certbench.build({"name": "best-of", "of": ["corwn"]})
    assert label(certbench.build({"name": "best-of", "of": MEMBERS[:2]})) == "best-of(of=lipschitz+crown)"
