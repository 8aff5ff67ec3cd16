"""Equal methods are equal over engines, and under both names under which one was found."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, MarginCertifier, ThreatModel
from certbench.core import registry
from certbench.core.options import Spec
from certbench.errors import ConfigError
from certbench.models import data, zoo
from certbench.testing import inputs, network

THREATS = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]
RADII = {1.0: [0.05, 0.3, 1.0], 2.0: [0.02, 0.1, 0.4], math.inf: [0.005, 0.03, 0.1]}
METHODS = ["ibp", "crown-ibp", "fast-lin", "wong-kolter", "crown"]


def margins(spec: Spec, classifier: Classifier, threat: ThreatModel, x: Tensor) -> Tensor:
    certifier = certbench.build(spec)
    assert isinstance(certifier, MarginCertifier)
    state, label = certifier.prepare(classifier, threat), classifier.double()(x).argmax(dim=1)
    return certifier.margins(state, x, label, torch.tensor(RADII[threat.p], dtype=torch.float64)).lower


class Bypass(nn.Module):
    """The second hidden layer reads the first one and the input, the logits read both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(16, 9), nn.Linear(9, 9), nn.Linear(16, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        h = torch.relu(self.a(x))
        return self.d(torch.relu(self.b(h) + self.c(x)) + h)


def bypass() -> Classifier:
    torch.manual_seed(3)
    return Classifier(Bypass().eval(), (1, 4, 4), 4)


NETWORKS: dict[str, Callable[[], Classifier]] = {
    "linear": lambda: network("linear"),
    "mlp": lambda: network("mlp"),
    "cnn": lambda: network("cnn"),
    "residual": lambda: network("residual"),
    "bypass": bypass,
}


@pytest.mark.usefixtures("lirpa")
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_equal_methods_are_equal_over_engines(name: str, kind: str, threat: ThreatModel) -> None:
    classifier, x = NETWORKS[kind](), inputs(3)
    own, lirpa = (margins({"name": name, "engine": e}, classifier, threat, x) for e in ("own", "auto-lirpa"))
    torch.testing.assert_close(lirpa, own, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("lirpa")
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_equal_methods_are_equal_on_trained_networks(name: str, threat: ThreatModel) -> None:
    x = data.load("digits").inputs[:3].double()
    for model in ("mlp-small", "cnn-plain"):
        classifier = zoo.load(model)
        own, lirpa = (margins({"name": name, "engine": e}, classifier, threat, x) for e in ("own", "auto-lirpa"))
        torch.testing.assert_close(lirpa, own, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_fast_lin_is_wong_and_kolters_dual_network(kind: str, threat: ThreatModel) -> None:
    classifier, x = NETWORKS[kind](), inputs(3)
    first, second = (margins(name, classifier, threat, x) for name in ("fast-lin", "wong-kolter"))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_our_own_engine_is_the_usual_one_and_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        pytest.fail("auto-LiRPA was imported")

    monkeypatch.setattr("certbench.verifiers.linear.lirpa.graph.auto_lirpa", missing)
    for name in (*METHODS, "alpha-crown"):
        found = certbench.certify(name, network("mlp"), inputs(2), Linf)
        assert [evidence["engine"] for evidence in found.evidence] == ["own", "own"]


FORMER: list[tuple[Spec, Spec]] = [
    ("crown-lirpa", {"name": "crown", "engine": "auto-lirpa"}),
    ({"name": "alpha-crown-lirpa", "iterations": 7}, {"name": "alpha-crown", "engine": "auto-lirpa", "iterations": 7}),
    ({"name": "alpha-crown-lirpa", "layers": True}, {"name": "alpha-crown", "engine": "auto-lirpa", "layers": 1}),
]


@pytest.mark.parametrize(("former", "now"), FORMER, ids=str)
def test_former_names_are_understood(former: Spec, now: Spec) -> None:
    assert certbench.build(former) == certbench.build(now)
    best = certbench.build({"name": "best-of", "of": ["lipschitz", former]})
    assert best.members[1] == certbench.build(now)


def test_a_former_name_is_no_name_of_a_certifier() -> None:
    assert not registry.FORMER.keys() & registry.table().keys()
    assert {str(now["name"]) for now in registry.FORMER.values()} <= registry.table().keys()


def test_rounding_errors_are_counted_for_our_own_engine_alone() -> None:
    for name in ("ibp", "crown", "alpha-crown"):
        with pytest.raises(ConfigError, match="write `engine: own`"):
            certbench.build({"name": name, "engine": "auto-lirpa", "rounding_safe": True})
