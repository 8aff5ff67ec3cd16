import pytest
import torch
from torch import nn

from certbench.core.classifier import Regressor
from certbench.networks.graph import Larger, Largest, Normalised, Softmax, Steep, pruned
from certbench.networks.reading import read


class Compares(nn.Module):
    def forward(self, x):
        return torch.maximum(x, x.flip(1)) + torch.minimum(x, x.roll(1, 1))


class Attends(nn.Module):
    def forward(self, x):
        return x.view(-1, 2, 3, 2).softmax(2).log_softmax(1).flatten(1)


BLOCKS = {
    "max pooling": (nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.MaxPool2d(2, 1, 1), nn.Flatten()), Largest),
    "amax": (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.AdaptiveMaxPool1d(2), nn.Flatten()), Largest),
    "maximum": (Compares(), Larger),
    "softmax": (Attends(), Softmax),
    "layer norm": (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.LayerNorm(4, eps=0.1), nn.Flatten()), Normalised),
    "group norm": (nn.Sequential(nn.GroupNorm(3, 12)), Normalised),
    "instance norm": (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3), nn.Flatten()), Normalised),
    "tanhshrink": (nn.Tanhshrink(), Steep),
}


def computed(block, values):
    """What a block says that its node computes."""
    value = values[block.sources[0]]
    match block:
        case Larger():
            return torch.maximum(value, values[block.sources[1]])
        case Largest():
            return value[:, block.windows].amax(dim=1)
        case Softmax():
            rows = value.view(len(value), -1, block.row)
            return (rows.log_softmax(2) if block.log else rows.softmax(2)).flatten(1)
        case Normalised():
            rows = value.view(len(value), -1, block.row)
            return (rows / (rows.square().mean(2, keepdim=True) + block.eps).sqrt()).flatten(1)
    raise AssertionError


@pytest.mark.parametrize("name", BLOCKS)
def test_nodes_compute_what_their_blocks_say(name):
    module, kind = BLOCKS[name]
    outputs = module(torch.zeros(2, 12)).shape[1]
    graph = read(Regressor(module.double().eval(), (12,), outputs))
    x = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, moved = graph.values(x), graph.values(x + 1e-3)
    found = [(at, node.block) for at, node in enumerate(graph.nodes) if isinstance(node.block, kind)]
    assert found
    for at, block in found:
        if isinstance(block, Steep):
            slope = (moved[at] - values[at]) / (moved[block.sources[0]] - values[block.sources[0]])
            assert bool((slope >= block.least - 1e-9).all() and (slope <= block.most + 1e-9).all())
        else:
            assert torch.allclose(values[at], computed(block, values), rtol=1e-9, atol=1e-12)


def test_a_pruned_graph_moves_the_sources_of_its_blocks():
    graph = read(Regressor(nn.Sequential(Compares()).double().eval(), (12,), 12))
    last = next(at for at, node in enumerate(graph.nodes) if node.block is not None)
    shifted = (graph.nodes[0], *graph.nodes)  # a node that nobody needs
    moved = [graph.nodes[0], graph.nodes[0]]
    for node in graph.nodes[1:]:
        block = node.block
        up = tuple(s + 1 if s else 0 for s in node.sources)
        if block is not None:
            block = type(block)(tuple(s + 1 if s else 0 for s in block.sources))
        moved.append(type(node)(**{**vars(node), "sources": up, "block": block}))
    assert len(shifted) == len(moved)
    again = pruned(moved, last + 1)
    assert again[-1].block is not None and graph.nodes[last].block is not None
    assert again[-1].block.sources == graph.nodes[last].block.sources
