"""Plain architectures: each is an `nn.Sequential` of layers that every backend can read, normalisation first.

To add one, write a function like those below and put it into `ARCHITECTURES`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from certbench.networks.normalise import Normalise


def linear(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise) -> nn.Sequential:
    """Build a logistic regression: its exact radii have a closed form."""
    return nn.Sequential(normalise, nn.Flatten(), nn.Linear(_size(input_shape), num_classes))


def mlp(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise) -> nn.Sequential:
    """Build two hidden layers of 100 ReLUs."""
    return _two_hidden(input_shape, num_classes, normalise, 100)


def mlp_small(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise) -> nn.Sequential:
    """Build two hidden layers of 50 ReLUs, small enough for exact solvers on every input."""
    return _two_hidden(input_shape, num_classes, normalise, 50)


def _two_hidden(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise, width: int) -> nn.Sequential:
    return nn.Sequential(
        normalise,
        nn.Flatten(),
        nn.Linear(_size(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


def cnn(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise) -> nn.Sequential:
    """Build two convolutions of stride 2 and a hidden layer of 100; 484 ReLUs on 8x8 images.

    Args:
        input_shape: `(channels, height, width)`, height and width at least 4.
        num_classes: number of logits.
        normalise: first layer.
    """
    return _two_convolutions(input_shape, num_classes, normalise, 16, 32, 100)


def cnn_small(input_shape: tuple[int, ...], num_classes: int, normalise: Normalise) -> nn.Sequential:
    """Build two convolutions of stride 2, a hidden layer of 32: 2384 ReLUs on 28x28 images, half the channels of `cnn`.

    Args:
        input_shape: `(channels, height, width)`, height and width at least 4.
        num_classes: number of logits.
        normalise: first layer.
    """
    return _two_convolutions(input_shape, num_classes, normalise, 8, 16, 32)


def _two_convolutions(
    input_shape: tuple[int, ...], num_classes: int, normalise: Normalise, first: int, second: int, hidden: int
) -> nn.Sequential:
    channels, height, width = input_shape
    return nn.Sequential(
        normalise,
        nn.Conv2d(channels, first, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


Architecture = Callable[[tuple[int, ...], int, Normalise], nn.Sequential]

ARCHITECTURES: Mapping[str, Architecture] = {
    "linear": linear,
    "mlp": mlp,
    "mlp-small": mlp_small,
    "cnn": cnn,
    "cnn-small": cnn_small,
}
"""Functions by the names on cards."""


def _size(input_shape: tuple[int, ...]) -> int:
    return torch.Size(input_shape).numel()
