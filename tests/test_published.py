"""Published figures, reproduced: slow, and only where the networks are at hand. Run by `make check-slow`."""

import csv
from pathlib import Path
from types import ModuleType

import pytest
import torch

import certbench
from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.audit import attack

from .conftest import SHARED

pytestmark = pytest.mark.slow


def verified(
    certifier: str, classifier: Classifier, x: torch.Tensor, y: torch.Tensor, eps: float, domain: bool
) -> torch.Tensor:
    """Whether each input is classified correctly and certified at eps."""
    spec = {"name": certifier, "search": {"name": "ladder", "eps": [eps]}}
    threat = Linf.within(0, 1) if domain else Linf
    certificate = certbench.certify(spec, classifier, x.double(), threat, batch_size=10)
    return (certificate.prediction == y) & (certificate.radius >= eps)


def test_wong_kolter_network_has_the_published_verified_error(bundle: ModuleType, lirpa: ModuleType) -> None:
    """Wong and Kolter (2018): 5.82 % of the MNIST test images are not verified at Linf 0.1, no input domain."""
    x, y = bundle.dataset("mnist-test")
    module, _ = bundle.network("wk/mnist")
    classifier = Classifier(module, (1, 28, 28), 10, "wk/mnist")
    first = verified("wong-kolter", classifier, x[:1000], y[:1000], 0.1, domain=False)
    rest = verified("wong-kolter", classifier, x[1000:], y[1000:], 0.1, domain=False)
    print("verified:", int(first.sum()), "of the first 1000,", int(first.sum() + rest.sum()), "of 10000")
    assert int(first.sum()) == 933
    assert int(first.sum() + rest.sum()) == 9418


@pytest.mark.parametrize(("certifier", "known"), [("ibp", 0), ("wong-kolter", 467), ("crown", 471)])
def test_no_certificate_contradicts_an_exact_solver(
    bundle: ModuleType, lirpa: ModuleType, certifier: str, known: int
) -> None:
    """Tjeng et al. (2019), the same architecture, Linf 0.1 in [0, 1]: of the first 500 inputs 16 are refuted."""
    x, y = bundle.dataset("mnist-test")
    module, _ = bundle.network("mipverify/wk17a")
    classifier = Classifier(module, (1, 28, 28), 10, "mipverify/wk17a")
    holds = verified(certifier, classifier, x[:500], y[:500], 0.1, domain=True)
    refuted = refuted_indices(SHARED / "results" / "mip_wk17a_linf0.1_first500.csv")
    print(f"{certifier}: {int(holds.sum())} certified; refuted by the solver: {len(refuted)}")
    assert len(refuted) == 16
    assert not holds[refuted].any()
    assert abs(int(holds.sum()) - known) <= 1


@pytest.mark.parametrize("network", ["toy/mnist_2_20", "eran/mnist_6_100", "auto_lirpa/mnist_fc_3layer"])
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_no_attack_refutes_a_certificate_of_a_published_network(
    bundle: ModuleType, lirpa: ModuleType, network: str, threat: ThreatModel
) -> None:
    x = bundle.dataset("mnist-test")[0][:12].double()
    module, _ = bundle.network(network)
    classifier = Classifier(module, (1, 28, 28), 10, network)
    threat = threat.within(0, 1)
    distance = attack(classifier, x, (threat,), (0.0, 1.0), steps=40)[threat].distance
    for certifier in ("lipschitz", "ibp", "crown-ibp", "wong-kolter", "crown"):
        radius = certbench.certify(certifier, classifier, x, threat, batch_size=6).radius
        print(
            f"{network} {threat} {certifier}: mean radius {radius.mean():.4f}, {(radius / distance).mean():.3f} of it"
        )
        assert (radius > 0).any()
        assert (radius <= distance).all()


def refuted_indices(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["test_index"]) for row in csv.DictReader(file) if row["verdict_eps0.1"] == "not_robust"]
