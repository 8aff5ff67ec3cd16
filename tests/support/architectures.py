"""Untrained networks of the zoo's architectures."""

import torch
from torch import nn

from certbench.models.architectures import plain
from certbench.networks.normalise import Normalise


def network(name: str, input_shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> nn.Sequential:
    """An untrained network in float64."""
    channels = input_shape[0]
    mean, std = [0.1 * (k + 3) for k in range(channels)], [0.5 / (k + 1) for k in range(channels)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        normalise = Normalise(mean, std, len(input_shape))
        return plain.ARCHITECTURES[name](input_shape, 10, normalise).double().eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
