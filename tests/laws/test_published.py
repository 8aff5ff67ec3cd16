"""Published figures, reproduced: slow, and only where the networks are at hand. Run by `make check-slow`."""

import csv
import gzip
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import certbench
from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.attacks.battery import attack
from tests.conftest import SHARED

pytestmark = pytest.mark.slow


def verified(
    certifier: str, classifier: Classifier, x: torch.Tensor, y: torch.Tensor, eps: float, domain: bool
) -> torch.Tensor:
    """Whether each input is classified correctly and certified at eps."""
    spec = {"name": certifier, "search": {"name": "ladder", "eps": [eps]}}
    threat = Linf.within(0, 1) if domain else Linf
    certificate = certbench.certify(spec, classifier, x.double(), threat, batch_size=10)
    return (certificate.prediction == y) & (certificate.radius >= eps)


def decided(
    classifier: Classifier, x: torch.Tensor, y: torch.Tensor, eps: float, seconds: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which inputs branch and bound certifies at eps and classifies correctly, and which it refutes there."""
    spec = {"name": "branch-and-bound", "eps": eps, "seconds": seconds}
    certificate = certbench.certify(spec, classifier, x.double(), Linf.within(0, 1), batch_size=1)
    right = certificate.prediction == y
    return right & (certificate.radius >= eps), right & (certificate.upper <= eps)


def test_the_verified_errors_that_wong_and_kolter_published(bundle: ModuleType) -> None:
    """Wong and Kolter (2018): 5.82 % of the MNIST test images are not verified at Linf 0.1, no input domain."""
    x, y = bundle.dataset("mnist-test")
    module, _ = bundle.network("wk/mnist")
    classifier = Classifier(module, (1, 28, 28), 10, "wk/mnist")
    holds = verified("wong-kolter", classifier, x, y, 0.1, domain=False)
    print("verified:", int(holds[:1000].sum()), "of the first 1000,", int(holds.sum()), "of 10000")
    assert (int(holds[:1000].sum()), int(holds.sum())) == (933, 9418)


def test_fast_lin_verifies_what_the_dual_network_does(bundle: ModuleType) -> None:
    x, y = bundle.dataset("mnist-test")
    module, _ = bundle.network("wk/mnist")
    classifier = Classifier(module, (1, 28, 28), 10, "wk/mnist")
    assert int(verified("fast-lin", classifier, x[:1000], y[:1000], 0.1, domain=False).sum()) == 933


@pytest.mark.parametrize(("certifier", "known"), [("ibp", 0), ("fast-lin", 467), ("crown", 471)])
def test_no_certificate_contradicts_an_exact_solver(
    bundle: ModuleType, lirpa: ModuleType, certifier: str, known: int
) -> None:
    """Tjeng et al. (2019), the same architecture, Linf 0.1 in [0, 1]: of the first 500 inputs 16 are refuted."""
    x, y, classifier = wk17a(bundle)
    holds = verified(certifier, classifier, x, y, 0.1, domain=True)
    refuted = [i for i, row in enumerate(verdicts()) if row["verdict_eps0.1"] == "not_robust"]
    print(f"{certifier}: {int(holds.sum())} certified; refuted by the solver: {len(refuted)}")
    assert len(refuted) == 16
    assert not holds[refuted].any()
    assert abs(int(holds.sum()) - known) <= 1


def test_branch_and_bound_agrees_with_every_verdict_of_an_exact_solver(bundle: ModuleType) -> None:
    x, y, classifier = wk17a(bundle)
    safe, unsafe = decided(classifier, x, y, 0.1, seconds=20)
    known = [row["verdict_eps0.1"] for row in verdicts()]
    print(f"certified {int(safe.sum())}, refuted {int(unsafe.sum())}, misclassified {known.count('misclassified')}")
    for i, verdict in enumerate(known):
        assert not (safe[i] and verdict != "robust"), f"certified, but {verdict}: {i}"
        assert not (unsafe[i] and verdict == "robust"), f"refuted, but {verdict}: {i}"
    assert int(safe.sum()) >= 471


@pytest.mark.parametrize("certifier", ["branch-and-bound", "milp"])
def test_known_minimal_distortions_lie_inside_our_brackets(bundle: ModuleType, certifier: str) -> None:
    x, _, classifier = wk17a(bundle)
    known = {
        i: (float(row["min_linf_distortion_low"]), float(row["min_linf_distortion_high"]))
        for i, row in enumerate(verdicts())
        if row["min_linf_distortion_low"]
    }
    assert len(known) == 14
    spec = {"name": certifier, "seconds": 30}
    for i, (low, high) in known.items():
        found = certbench.certify(spec, classifier, x[i : i + 1].double(), Linf.within(0, 1))
        print(f"{certifier} {i}: [{found.radius.item():.6f}, {found.upper.item():.6f}], known [{low:.6f}, {high:.6f}]")
        assert found.radius.item() <= high * (1 + 1e-6)
        assert found.upper.item() >= low * (1 - 1e-4)  # their solver works in float64 with a tolerance of its own


def test_no_contradiction_with_the_verdicts_of_vnncomp_2022(bundle: ModuleType) -> None:
    """mnist_fc: 60 instances on two networks, verdicts agreed upon by the tools of that year."""
    pytest.importorskip("onnx")
    with (SHARED / "results" / "vnncomp2022_mnist_fc_verdicts.csv").open() as file:
        instances = list(csv.DictReader(file))
    solved, theirs = 0, sum(row["abcrown_result"] in ("sat", "unsat") for row in instances)
    networks = {name: bundle.network(f"vnncomp/mnist_256x{name[-6]}")[0] for name in {row["onnx"] for row in instances}}
    for row in instances:
        classifier = Classifier(networks[row["onnx"]], (1, 28, 28), 10, row["onnx"])
        x, eps = instance(SHARED / "networks" / "vnncomp2022" / "mnist_fc" / "vnnlib" / (row["vnnlib"] + ".gz"))
        safe, unsafe = decided(classifier, x, torch.tensor([int(row["label"])]), eps, seconds=40)
        print(
            row["onnx"], row["vnnlib"], row["verdict"], "unsat" if safe else "sat" if unsafe else "unknown", flush=True
        )
        assert not (safe and row["verdict"] == "sat"), row
        assert not (unsafe and row["verdict"] == "unsat"), row
        solved += bool(safe or unsafe)
    print(f"solved {solved} of {len(instances)}; alpha-beta-CROWN in 2022: {theirs}")
    assert solved >= 40


def test_verified_accuracy_of_the_sdp_benchmark(bundle: ModuleType) -> None:
    """sdp/mnist_cnn_a_adv, 200 images, Linf 0.3: beta-CROWN 71.0, GCP-CROWN 71.5, BICCOS 76.0, upper bound 76.5."""
    x, y = bundle.dataset("mnist-sdp200")
    classifier = Classifier(bundle.network("sdp/mnist_cnn_a_adv")[0], (1, 28, 28), 10, "sdp/mnist_cnn_a_adv")
    safe, unsafe = decided(classifier, x, y, 0.3, seconds=20)
    right = classifier(x).argmax(dim=1) == y
    print(f"verified {100 * safe.double().mean():.1f} %, not refuted {100 * (right & ~unsafe).double().mean():.1f} %")
    assert safe.double().mean() >= 0.5
    assert safe.double().mean() <= 0.765


def wk17a(bundle: ModuleType) -> tuple[torch.Tensor, torch.Tensor, Classifier]:
    x, y = bundle.dataset("mnist-test")
    return x[:500], y[:500], Classifier(bundle.network("mipverify/wk17a")[0], (1, 28, 28), 10, "mipverify/wk17a")


def verdicts() -> list[dict[str, str]]:
    with (SHARED / "results" / "mip_wk17a_linf0.1_first500.csv").open() as file:
        return list(csv.DictReader(file))


def instance(path: Path) -> tuple[torch.Tensor, float]:
    """The image and the radius of a VNN-LIB file whose input set is a ball cut by [0, 1]."""
    text = gzip.decompress(path.read_bytes()).decode()
    sides = {
        side: torch.tensor([float(value) for value in re.findall(rf"\({side} X_\d+ ([-.\deE]+)\)", text)])
        for side in ("<=", ">=")
    }
    low, high = sides[">="].double(), sides["<="].double()
    eps = float(re.findall(r"_(0\.\d+)\.vnnlib", path.name)[0])
    x = torch.where(high < 1, high - eps, low + eps)
    assert ((x - eps).clamp(0, 1) - low).abs().max() < 1e-6 and ((x + eps).clamp(0, 1) - high).abs().max() < 1e-6
    return x.clamp(0, 1).view(1, 1, 28, 28), eps


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
    for certifier in ("lipschitz", "ibp", "crown-ibp", "wong-kolter", "deepz", "crown", "alpha-crown"):
        radius = certbench.certify(certifier, classifier, x, threat, batch_size=6).radius
        print(
            f"{network} {threat} {certifier}: mean radius {radius.mean():.4f}, {(radius / distance).mean():.3f} of it"
        )
        assert (radius > 0).any()
        assert (radius <= distance).all()
