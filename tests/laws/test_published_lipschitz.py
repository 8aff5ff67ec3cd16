"""Lipschitz certificates on published networks and the whole zoo; slow, run by `make check-slow`."""

import time
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import certbench
from certbench import L1, L2, Certificate, Classifier, Linf, ThreatModel, UnsupportedError
from certbench.attacks.battery import attack
from certbench.models import zoo
from tests.support import mnist

pytestmark = pytest.mark.slow

GLOBAL = [
    *({"name": "lipschitz", "rule": rule} for rule in ("pairwise", "absolute", "tsuzuku", "centred", "naive")),
    {"name": "eclipse"},
    {"name": "lipsdp", "multipliers": "shared", "iterations": 30},
]
LOCAL = [
    {"name": "fast-lip"},
    {"name": "fast-lip", "chords": True, "gram": True},
    {"name": "fast-lip", "shells": 8},
    {"name": "masked-product"},
    {"name": "masked-product", "chords": True},
    {"name": "jacobian-zonotope"},
    {"name": "jacobian-zonotope", "refine": True},
    {"name": "jacobian-zonotope", "chords": False, "shells": 8},
    {"name": "jacobian-zonotope", "rounding_safe": True},
    {"name": "best-of"},
]
DENSE = ["toy/mnist_2_20", "eran/mnist_6_100", "auto_lirpa/mnist_fc_3layer"]
CONVOLUTIONAL = ["eran/mnist_conv_small", "wk/mnist", "auto_lirpa/mnist_cnn_small", "sdp/mnist_cnn_a_adv"]
PAIRS = 120_000
"""Number of pairs of points per network of the digits; a sixth of it with images of MNIST."""

UNREAD = ("cnn-diffusion", "cnn-diffusion-multistep")
"""Networks that the reader refuses: their code makes a Python number of a tensor that it computes."""

DEEP = ("mnist-cnn-denoised", "mnist-cnn-denoised-stability")
"""Networks behind a denoiser of MNIST. A local constant of theirs takes minutes for each input: one is tried."""


def published(bundle: ModuleType, name: str, count: int) -> tuple[Classifier, Tensor]:
    """A network of MNIST and the first test images."""
    return Classifier(bundle.network(name)[0], (1, 28, 28), 10, name), bundle.dataset("mnist-test")[0][:count].double()


def answered(classifier: Classifier, x: Tensor, threat: ThreatModel) -> Iterator[tuple[str, Certificate]]:
    """The certificates of all that do not refuse."""
    local = [{"name": "fast-lip"}] if classifier.name in DEEP else [*LOCAL, {"name": "recurjac"}]
    for spec in [*GLOBAL, *local]:
        built = certbench.build(spec)
        try:
            yield certbench.core.options.label(built), certbench.certify(built, classifier, x, threat, batch_size=4)
        except UnsupportedError as error:
            print(f"{classifier.name} {threat} {spec['name']}: refused, {error}")


@pytest.mark.parametrize("threat", [L1, L2, Linf, L2.within(0, 1)], ids=str)
@pytest.mark.parametrize("name", [*zoo.names(), *DENSE])
def test_no_attack_and_no_random_point_refutes_a_certificate(
    bundle: ModuleType, name: str, threat: ThreatModel
) -> None:
    if name in DENSE:
        classifier, x = published(bundle, name, 2)
    else:
        classifier, x = zoo.load(name), mnist.load(zoo.TABLE[name].data).inputs[:8].double()
    x = x if x[0].numel() <= 100 else x[:1]  # minutes for each input of MNIST
    box = threat.domain or (-1.0, 2.0)
    distance = attack(classifier, x, (threat,), box, steps=60)[threat].distance
    exact = classifier.double()
    for label, certificate in answered(classifier, x, threat):
        share = (certificate.radius / distance).mean()
        print(f"{name} {threat} {label}: mean radius {certificate.radius.mean():.4f}, {share:.3f} of the attack's")
        assert (certificate.radius <= distance).all()
        for i, radius in enumerate(certificate.radius.tolist()):
            moved = x[i] + steps(x[i], threat, 2000, seed=i) * radius * (1 - 1e-9)
            moved = moved if threat.domain is None else moved.clamp(*threat.domain)
            assert (exact(moved).argmax(dim=1) == certificate.prediction[i]).all()


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
@pytest.mark.parametrize("name", [*zoo.names(), *DENSE, *CONVOLUTIONAL])
def test_no_pair_of_points_is_steeper_than_its_constant(bundle: ModuleType, name: str, threat: ThreatModel) -> None:
    if name in zoo.names():
        classifier, x = zoo.load(name), mnist.load(zoo.TABLE[name].data).inputs[:200].double()
    else:
        classifier, x = published(bundle, name, 200)
    tables = {}
    for spec in GLOBAL:
        built = certbench.build(spec)
        try:
            tables[certbench.core.options.label(built)] = built.prepare(classifier, threat).constants[:-1, :-1]
        except UnsupportedError as error:
            print(f"{name} {threat} {spec['name']}: refused, {error}")
    assert bool(tables) == (name not in UNREAD)
    if name in UNREAD:
        return
    exact, steepest = classifier.double(), torch.zeros(classifier.num_classes, classifier.num_classes).double()
    for part in range(PAIRS // (2000 if x[0].numel() <= 100 else 12_000)):
        start = x[torch.randint(len(x), (2000,), generator=torch.Generator().manual_seed(part))]
        far = 10.0 ** (-3 + 4 * (7 * part % 20) / 20)
        delta = steps(x[0], threat, 2000, seed=part) * far
        moved = exact(start + delta) - exact(start)
        ratio = (moved[:, :, None] - moved[:, None]).abs() / far
        steepest = torch.maximum(steepest, ratio.amax(dim=0))
    for label, constants in tables.items():
        off = ~torch.eye(classifier.num_classes, dtype=torch.bool)
        print(f"{name} {threat} {label}: largest share of a constant {(steepest / constants)[off].max():.3f}")
        assert (steepest <= constants * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_zonotope_beats_crown_in_l2_on_convolutional_networks(bundle: ModuleType, name: str) -> None:
    """20 images of MNIST, without a domain; the table is printed."""
    classifier, x = published(bundle, name, 20)
    distance = attack(classifier, x, (L2,), (-1.0, 2.0), steps=60)[L2].distance
    mean = {}
    for spec in [
        {"name": "lipschitz"},
        {"name": "fast-lip"},
        {"name": "fast-lip", "chords": True, "gram": True},
        {"name": "crown"},
        {"name": "jacobian-zonotope"},
        {"name": "jacobian-zonotope", "refine": True},
    ]:
        start = time.process_time()
        radius = certbench.certify(spec, classifier, x, L2, batch_size=5).radius
        seconds = (time.process_time() - start) / len(x)
        label = certbench.core.options.label(certbench.build(spec))
        mean[label] = radius.mean()
        print(f"{name} {label}: {radius.mean():.4f}, {(radius / distance).mean():.3f}, {seconds:.2f} s", flush=True)
        assert (radius <= distance).all()
    assert mean["jacobian-zonotope"] > mean["crown"]


def steps(like: Tensor, threat: ThreatModel, count: int, seed: int) -> Tensor:
    """Random perturbations of length 1, some in a few coordinates."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(count, like.numel(), generator=generator, dtype=torch.float64)
    share = torch.rand(count, 1, generator=generator)
    delta = delta * (torch.rand(delta.shape, generator=generator) < share**3 + 2 / like.numel())
    delta = delta.sign() if threat.p == torch.inf else delta
    delta[delta.abs().sum(dim=1) == 0, 0] = 1.0
    delta = delta / torch.linalg.vector_norm(delta, threat.p, dim=1, keepdim=True)
    return delta.view(count, *like.shape)
