"""Networks cut in parts: sequences of modules, and graphs where one value is all that the rest depends on."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError
from certbench.networks.graph import Graph, bypass, pruned
from certbench.networks.module import GraphModule
from certbench.networks.normalise import Normalise
from certbench.networks.reading import read

NAMED = 30
"""Largest number of layers that a message lists."""


def split(classifier: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a classifier into its leading affine layers, the identity if none are known, and the rest."""
    layers = _layers(classifier.module) if classifier.hidden_code() is None else [classifier.module]
    count = 0
    while count < len(layers) and type(layers[count]) in _AFFINE and not _by_batch(layers[count]):
        count += 1
    return nn.Sequential(*layers[:count]), nn.Sequential(*layers[count:])


_SHAPES: tuple[Any, ...] = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)


_AFFINE = frozenset((Normalise, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, *_SHAPES))
"""Layers that are affine in eval mode."""


def _layers(module: nn.Module) -> list[nn.Module]:
    """List the parts of a sequence, and of the sequences in it."""
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for part in module for layer in _layers(part)]


def cut(classifier: Classifier, *layers: str) -> list[nn.Module]:
    """Cut a module after each of some layers; return the parts in order.

    If the layers are parts of nested sequences that make up the module, the parts are sequences of the module's own
    layers. Elsewhere they are graphs of what the module computes, in its own precision, of flat features.

    Args:
        classifier: the classifier.
        layers: names of layers in `named_modules`, in the order of the network.

    Raises:
        UnsupportedError: there is no such layer, or it is the last one, or it does not come after the one before. Or
            its output is not all that the rest depends on: a connection goes around it. Or the module's precision is
            lower than float32, so that its roundings move features further than any Lipschitz constant says.
    """
    short = {str(t.dtype) for t in classifier.tensors() if t.is_floating_point() and t.dtype.itemsize < 4}
    if short:
        raise UnsupportedError(
            f"{classifier.name} is in {min(short)}, whose roundings no Lipschitz constant covers; convert it to "
            "float32, or add noise at the input alone"
        )
    leaves = _leaves("", classifier.module)
    names = [name for name, _ in leaves]
    inside = dict(classifier.module.named_modules(remove_duplicate=False))
    for layer in layers:
        if layer not in names and layer not in inside:
            known = names if len(names) > 1 else [name for name in inside if name]
            listed = ", ".join([*known[:NAMED], *["..."] * (len(known) > NAMED)])
            raise UnsupportedError(f"{layer!r} is no layer of {classifier.name}; known: {listed}")
    if all(layer in names for layer in layers) and names != [""] and classifier.hidden_code() is None:
        return _sequences(classifier, layers)
    return _graphs(classifier, layers)


def _sequences(classifier: Classifier, layers: Sequence[str]) -> list[nn.Module]:
    """Cut nested sequences."""
    found = _leaves("", copy.deepcopy(classifier.module))  # so that later changes of the module do not change the parts
    names, leaves = [name for name, _ in found], [leaf for _, leaf in found]
    ends = [0]
    for layer in layers:
        if layer not in names[:-1]:
            raise UnsupportedError(f"{layer!r} is no layer before the last; known: {', '.join(names)}")
        ends.append(names.index(layer) + 1)
        if ends[-1] <= ends[-2]:
            raise UnsupportedError(f"{layer!r} does not come after {names[ends[-2] - 1]!r}; write layers in order")
    return [nn.Sequential(*leaves[i:j]).eval() for i, j in itertools.pairwise([*ends, len(leaves)])]


def _graphs(classifier: Classifier, layers: Sequence[str]) -> list[nn.Module]:
    """Cut the graph of a module."""
    graph = read(classifier)
    ends, last = [0], len(graph.nodes) - 1
    for i, layer in enumerate(layers):
        places = graph.layers.get(layer, ())
        if len(places) != 1:
            why = "computes nothing itself" if not places else f"gives {len(places)} values, or runs more than once"
            raise UnsupportedError(f"{layer!r} {why}; name another layer")
        if places[0] == last:
            raise UnsupportedError(f"{layer!r} gives the outputs; name a layer before the last")
        if places[0] <= ends[-1]:
            before = "the input" if i == 0 else repr(layers[i - 1])
            raise UnsupportedError(f"{layer!r} does not come after {before}; write layers in order")
        around = bypass(graph, places[0])
        if around is not None:
            raise UnsupportedError(
                f"a connection goes around {layer!r}, to {around.origin}; name a layer that all others behind depend on"
            )
        ends.append(places[0])
    parts = [Graph(pruned(graph.nodes, j, i), None, graph.computed) for i, j in itertools.pairwise([*ends, last])]
    return [GraphModule(part).to(classifier.device, classifier.dtype).eval() for part in parts]


def _leaves(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(name, module)]
    prefix = f"{name}." if name else ""
    parts = module._modules.items()  # `named_children` leaves out repeated modules
    return [leaf for key, part in parts if part is not None for leaf in _leaves(prefix + key, part)]


def _by_batch(layer: nn.Module) -> bool:
    """Say whether a normalisation has no statistics of its own and takes the batch's."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None
