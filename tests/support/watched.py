"""A classifier that counts what it is asked."""

import torch
from torch import Tensor, nn

SEEDS = [11, 12, 13, 14]


class Watched(nn.Module):
    """Notes how many rows it was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.rows.add_(len(x))  # type: ignore[operator]
        return self.inner(x)  # type: ignore[no-any-return]
