"""Graphs as modules: the function that is certified, where it is not the module's own."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.networks.graph import Affine, Graph, Node, joined


class _Step(nn.Module):
    """One node of a graph, so that hooks see its value."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Compute the value."""
        return self.node.value(*sources)


class GraphModule(nn.Module):
    """Computes the outputs of a graph from a batch of inputs in any shape; in float64, until it is told otherwise."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.nodes, self.computed = graph.nodes, graph.computed
        self.sources = [node.sources for node in graph.nodes[1:]]
        self.register_buffer("precision", torch.zeros((), dtype=torch.float64))
        self.steps = nn.ModuleList(_Step(node) for node in graph.nodes[1:])

    @property
    def graph(self) -> Graph:
        """The graph, in float64 whatever the precision is."""
        return Graph(self.nodes, None, self.computed)

    def _apply(self, fn: Any, recurse: bool = True) -> "GraphModule":
        """Change the precision, as `to`, `double` and `float` do."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own is not typed
        dtype = self.get_buffer("precision").dtype
        self.steps = nn.ModuleList(_Step(_cast(node, dtype)) for node in self.nodes[1:]).eval()
        return self

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n outputs"]:
        """Compute all values."""
        values = [x.flatten(1)]
        for step, sources in zip(self.steps, self.sources, strict=True):
            values.append(step(*(values[source] for source in sources)))
        return values[-1]


def _cast(node: Node, dtype: torch.dtype) -> Node:
    """Return a node in another precision."""
    if not isinstance(node, Affine) or dtype == torch.float64:
        return node
    part = None if node.map is None else node.map.to(dtype)
    return replace(node, map=part, bias=None if node.bias is None else node.bias.to(dtype))


def graph_of(module: nn.Module) -> Graph | None:
    """Return the graph that a module was made of, or a sequence of such modules; None if there is none."""
    if isinstance(module, GraphModule):
        return module.graph
    if type(module) is not nn.Sequential:
        return None
    parts = [part for part in module if type(part) is not nn.Flatten and not _is_empty(part)]
    graphs = [part.graph for part in parts if isinstance(part, GraphModule)]
    return joined(graphs) if graphs and len(graphs) == len(parts) else None


def _is_empty(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and len(module) == 0
