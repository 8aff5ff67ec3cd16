"""ReLU towers side by side: networks whose hidden layers read the input, or any towers before them."""

from typing import cast

import torch
from torch import Tensor, nn

from certbench import Classifier

Reads = tuple[int, ...]
"""Sources of a tower: 0 is the input, i > 0 the tower i."""

SHAPES: list[tuple[tuple[Reads, ...], Reads]] = [
    (((0,), (0,)), (1, 2)),
    (((0,), (1,), (0,)), (2, 3)),
    (((0,), (0,), (1, 2)), (3,)),
    (((0,), (0,), (0, 1)), (2, 3)),
    (((0,), (1,), (0,)), (0, 2, 3)),
    (((0,), (0,), (0,)), (1, 2, 3)),
    (((0,), (0, 1), (0,), (2, 3)), (1, 4)),
]
"""Sources of each tower, and of the logits. In every one a tower that is not the first reads the input alone."""


class Towers(nn.Module):
    """ReLUs of sums of affine maps of the sources."""

    def __init__(self, reads: tuple[Reads, ...], last: Reads, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.reads = (*reads, last)

        def maps(sources: Reads, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(inputs if source == 0 else width, outputs) for source in sources)

        self.parts = nn.ModuleList([*(maps(sources, width) for sources in reads), maps(last, classes)])

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for sources, part in zip(self.reads, self.parts, strict=True):
            first, *others = [
                affine(values[source]) for source, affine in zip(sources, cast(nn.ModuleList, part), strict=True)
            ]
            total: Tensor = sum(others, start=first)
            values.append(torch.relu(total))
        return total


def towers(shape: tuple[tuple[Reads, ...], Reads], seed: int, width: int = 4) -> Classifier:
    """A random network of that shape, of three inputs and three classes, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Towers(*shape, 3, width, 3).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter *= 1.5
    return Classifier(module.eval().requires_grad_(False), (3,), 3, f"towers {shape}")
