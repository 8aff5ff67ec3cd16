"""Published networks come in by their own files, and classify as many images as their manifest says."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import Classifier


class Scaled(nn.Module):
    """A network behind a normalisation that its file does not hold."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)  # type: ignore[no-any-return]


def convolutions(channels: int, flat: int, padding: int, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, padding), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, padding), nn.ReLU(),
        nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def perceptron(*sizes: int) -> nn.Sequential:
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def eran_9_100() -> nn.Module:
    return perceptron(784, *[100] * 8, 10)


def toy() -> nn.Module:
    return perceptron(784, 20, 10)


def eran_small() -> nn.Module:
    return Scaled(convolutions(1, 800, 0), [0.1307], [0.3081])


def eran_cifar() -> nn.Module:
    return Scaled(convolutions(3, 1152, 0), [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


def wong_kolter() -> nn.Module:
    return convolutions(1, 1568, 1)


def sdp_cifar() -> nn.Module:
    return Scaled(convolutions(3, 2048, 1), [125.3 / 255, 123.0 / 255, 113.9 / 255], [63 / 255, 62.1 / 255, 66.7 / 255])


def oval() -> nn.Module:
    return Scaled(convolutions(3, 1024, 1, 8), [0.485, 0.456, 0.406], [0.225] * 3)


PUBLISHED: dict[str, tuple[Callable[[], nn.Module] | None, str, str, int]] = {
    "eran 9x100": (eran_9_100, "abcrown/eran/mnist_9_100_nat.pth", "mnist", 947),
    "toy": (toy, "abcrown/toy/mnist_2_20.pth", "mnist", 869),
    "eran conv small": (eran_small, "abcrown/eran/mnist_conv_small_nat.pth", "mnist", 980),
    "eran cifar": (eran_cifar, "abcrown/eran/cifar_conv_small_pgd.pth", "cifar10", 630),
    "sdp mnist": (wong_kolter, "abcrown/sdp/mnist_cnn_a_adv.model", "mnist", 956),
    "sdp cifar": (sdp_cifar, "abcrown/sdp/cifar_cnn_a_mix.model", "cifar10", 760),
    "oval base": (oval, "abcrown/oval/cifar_base.pth", "cifar10", 611),
    "wong and kolter": (wong_kolter, "wong_kolter/models/mnist.pth", "mnist", 982),
    "mipverify": (wong_kolter, "mipverify/WK17a/linf0.1/master_seed_1_epochs_100.pth", "mnist", 980),
    "vnncomp 256x2": (None, "vnncomp2022/mnist_fc/onnx/mnist-net_256x2.onnx.gz", "mnist", 978),
    "vnncomp 256x4": (None, "vnncomp2022/mnist_fc/onnx/mnist-net_256x4.onnx.gz", "mnist", 974),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_classifies_as_its_manifest_says(name: str, bundle: ModuleType) -> None:
    """`first 1000` of the manifest."""
    make, file, data, correct = PUBLISHED[name]
    path = Path(bundle.P("networks", file))
    if not path.is_file():
        pytest.skip(f"{file} is not at hand")
    if make is None:
        pytest.importorskip("onnxruntime")
    x, labels = bundle.dataset(f"{data}-test")
    shape = tuple(x.shape[1:])
    if make is None:
        classifier: Classifier = certbench.load(path, input_shape=shape)
    else:
        classifier = certbench.load(f"{__name__}:{make.__name__}", path, input_shape=shape)
    assert classifier.num_classes == 10 and math.prod(classifier.input_shape) == math.prod(shape)
    assert int((classifier(x[:1000]).argmax(1) == labels[:1000]).sum()) == correct
