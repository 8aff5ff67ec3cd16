"""Normalisation of inputs, as a module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Computes `(x - mean) / std`, with one mean and one std per channel.

    Both are buffers, so they are stored with the weights. They have a batch axis of length 1, because the linear bounds
    of auto-LiRPA 0.3 fail on constants without one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dimensions: int = 3) -> None:
        """Store `mean` and `std` for inputs with that many axes, channels first, the batch axis not counted."""
        super().__init__()
        shape = (1, -1, *[1] * (dimensions - 1))
        self.register_buffer("mean", torch.tensor(mean).reshape(shape))
        self.register_buffer("std", torch.tensor(std).reshape(shape))

    def forward(self, x: Any) -> Any:
        """Normalise a batch `(n, ...)`, or a tracer's proxy for one."""
        return (x - self.mean) / self.std
