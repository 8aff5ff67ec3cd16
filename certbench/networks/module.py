"""Graphs as modules: the function that is certified, where it is not the module's own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.networks.graph import Graph, Node


class _Step(nn.Module):
    """One node of a graph, so that hooks see its value."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Compute the value."""
        return self.node.value(*sources)


class GraphModule(nn.Module):
    """Computes the outputs of a graph, in float64, from a batch of inputs in any shape."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_Step(node) for node in graph.nodes[1:])
        self.sources = [node.sources for node in graph.nodes[1:]]
        self.register_buffer("precision", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n outputs"]:
        """Compute all values."""
        values = [x.flatten(1)]
        for step, sources in zip(self.steps, self.sources, strict=True):
            values.append(step(*(values[source] for source in sources)))
        return values[-1]
