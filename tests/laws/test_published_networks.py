"""Published networks come in by their own files, and classify as many images as their manifest says."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor, nn

import certbench
from certbench import Classifier
from tests.conftest import SHARED


class Scaled(nn.Module):
    """A network behind a normalisation that its file does not hold."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)  # type: ignore[no-any-return]


def convolutions(channels: int, flat: int, padding: int, width: int = 16, hidden: int = 100) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, padding), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, padding), nn.ReLU(),
        nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 10),
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


def eran_6_100() -> nn.Module:
    return perceptron(784, *[100] * 5, 10)


def named(network: nn.Sequential, names: Sequence[str]) -> nn.Sequential:
    """Give the layers with parameters these names, as the file has them."""
    left = iter(names)
    layers = ((next(left) if [*layer.parameters()] else f"between{i}", layer) for i, layer in enumerate(network))
    return nn.Sequential(OrderedDict(layers))


def lirpa_small() -> nn.Module:
    return named(convolutions(1, 784, 1, 8, 256), ["conv1", "conv2", "fc1", "fc2"])


def lirpa_mlp() -> nn.Module:
    return named(perceptron(784, 128, 64, 10), ["fc1", "fc2", "fc3"])


class Residual(nn.Module):
    """A block of two convolutions and a path around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        same = stride == 1 and channels == width
        self.shortcut = nn.Sequential() if same else nn.Sequential(nn.Conv2d(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2b(nn.Module):
    """The smaller ResNet of VNN-COMP's cifar10_resnet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.conv1(x))).flatten(1)
        return self.linear2(torch.relu(self.linear1(x)))  # type: ignore[no-any-return]


def resnet2b() -> nn.Module:
    return Scaled(ResNet2b(), [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])


def filled(network: nn.Module, values: Sequence[np.ndarray]) -> nn.Module:
    state = network.state_dict()
    network.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in zip(state, values, strict=True)}
    )
    return network


def rsl18a() -> nn.Module:
    """Matrices in files of NumPy, each for rows of inputs."""
    folder = SHARED / "networks" / "mipverify" / "RSL18a" / "linf0.1"
    weights = [np.load(folder / f"{name}.npy") for name in ("W1", "B1", "W2", "B2")]
    return filled(perceptron(784, 500, 10), [weights[0].T, weights[1], weights[2].T, weights[3]])


def mmr_universal() -> nn.Module:
    """Weights in a file of MATLAB, as TensorFlow has them: HWIO, flattened as HWC."""
    found = loadmat(SHARED / "networks" / "mmr_universal" / "mmr_univ_mnist_gammas_1.0_0.175_lambdas_3.0_12.0.mat")
    first = found["weights_fc1"].reshape(7, 7, 32, -1).transpose(2, 0, 1, 3).reshape(1568, -1)
    weights = [found["weights_conv1"].transpose(3, 2, 0, 1), found["weights_conv2"].transpose(3, 2, 0, 1), first.T]
    biases = [found[f"biases_{name}"].ravel() for name in ("conv1", "conv2", "fc1", "fc2")]
    pairs = zip([*weights, found["weights_fc2"].T], biases, strict=True)
    return filled(wong_kolter(), [part.astype(np.float32) for pair in pairs for part in pair])


PUBLISHED: dict[str, tuple[Callable[[], nn.Module] | None, str, str, int]] = {
    "eran 6x100": (eran_6_100, "abcrown/eran/mnist_6_100_nat.pth", "mnist", 960),
    "eran 9x100": (eran_9_100, "abcrown/eran/mnist_9_100_nat.pth", "mnist", 947),
    "toy": (toy, "abcrown/toy/mnist_2_20.pth", "mnist", 869),
    "eran conv small": (eran_small, "abcrown/eran/mnist_conv_small_nat.pth", "mnist", 980),
    "eran cifar": (eran_cifar, "abcrown/eran/cifar_conv_small_pgd.pth", "cifar10", 630),
    "sdp mnist": (wong_kolter, "abcrown/sdp/mnist_cnn_a_adv.model", "mnist", 956),
    "sdp cifar adv": (sdp_cifar, "abcrown/sdp/cifar_cnn_a_adv.model", "cifar10", 664),
    "resnet2b": (resnet2b, "abcrown/cifar10_resnet/resnet2b.pth", "cifar10", 703),
    "auto-LiRPA small": (lirpa_small, "auto_lirpa/mnist_cnn_small.pth", "mnist", 956),
    "auto-LiRPA mlp": (lirpa_mlp, "auto_lirpa/mnist_fc_3layer.pth", "mnist", 973),
    "rsl18a": (rsl18a, "", "mnist", 953),
    "mmr universal": (mmr_universal, "", "mnist", 967),
    "sdp cifar": (sdp_cifar, "abcrown/sdp/cifar_cnn_a_mix.model", "cifar10", 760),
    "oval base": (oval, "abcrown/oval/cifar_base.pth", "cifar10", 611),
    "wong and kolter": (wong_kolter, "wong_kolter/models/mnist.pth", "mnist", 982),
    "mipverify": (wong_kolter, "mipverify/WK17a/linf0.1/master_seed_1_epochs_100.pth", "mnist", 980),
    "vnncomp 256x2": (None, "vnncomp2022/mnist_fc/onnx/mnist-net_256x2.onnx.gz", "mnist", 978),
    "vnncomp 256x4": (None, "vnncomp2022/mnist_fc/onnx/mnist-net_256x4.onnx.gz", "mnist", 974),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_classifies_as_its_manifest_says(name: str, bundle: ModuleType) -> None:
    """`first 1000` of the manifest. Weights of other programs are read by their factories."""
    make, file, data, correct = PUBLISHED[name]
    path = Path(bundle.P("networks", file))
    if file and not path.is_file():
        pytest.skip(f"{file} is not at hand")
    if make is None:
        pytest.importorskip("onnxruntime")
    x, labels = bundle.dataset(f"{data}-test")
    shape = tuple(x.shape[1:])
    if make is None:
        classifier: Classifier = certbench.load(path, input_shape=shape)
    else:
        classifier = certbench.load(f"{__name__}:{make.__name__}", path if file else None, input_shape=shape)
    assert classifier.num_classes == 10 and math.prod(classifier.input_shape) == math.prod(shape)
    assert int((classifier(x[:1000]).argmax(1) == labels[:1000]).sum()) == correct
