"""Normalisation of inputs, as a module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """`(x - mean) / std`, one number of each per channel; buffers, so that they are stored with the weights.

    Their batch axis of length 1 is for auto-LiRPA 0.3, whose linear bounds fail on constants without one.
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
        """Normalise a batch `(n, ...)`, or what a tracer hands on in its place."""
        return (x - self.mean) / self.std
