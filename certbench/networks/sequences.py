"""Networks that are sequences of modules, cut in two."""

import copy
import itertools
from typing import Any

from torch import nn

from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError
from certbench.networks.normalise import Normalise


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


def cut(classifier: Classifier, *layers: str) -> list[nn.Sequential]:
    """Cut a module after each of some submodules; return the parts in order.

    Raises:
        UnsupportedError: a submodule is no part of nested sequences that make up the module, or it is the last one, or
            it does not come after the one before. Or the module's precision is lower than float32, so that its
            roundings move features further than any Lipschitz constant says.
    """
    short = {str(t.dtype) for t in classifier.tensors() if t.is_floating_point() and t.dtype.itemsize < 4}
    if short:
        raise UnsupportedError(
            f"{classifier.name} is in {min(short)}, whose roundings no Lipschitz constant covers; convert it to "
            "float32, or add noise at the input alone"
        )
    hidden = classifier.hidden_code()
    if hidden is not None:
        raise UnsupportedError(f"{hidden}, which a cut would lose")
    found = _leaves("", copy.deepcopy(classifier.module))  # so that later changes of the module do not change the parts
    names, leaves = [name for name, _ in found], [leaf for _, leaf in found]
    ends = [0]
    for layer in layers:
        if layer not in names[:-1]:
            known = ", ".join(names)
            raise UnsupportedError(f"{layer!r} is no layer before the last of nested sequences; known: {known}")
        ends.append(names.index(layer) + 1)
        if ends[-1] <= ends[-2]:
            raise UnsupportedError(f"{layer!r} does not come after {names[ends[-2] - 1]!r}; write layers in order")
    return [nn.Sequential(*leaves[i:j]).eval() for i, j in itertools.pairwise([*ends, len(leaves)])]


def _leaves(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(name, module)]
    prefix = f"{name}." if name else ""
    parts = module._modules.items()  # `named_children` leaves out repeated modules
    return [leaf for key, part in parts if part is not None for leaf in _leaves(prefix + key, part)]


def _by_batch(layer: nn.Module) -> bool:
    """Say whether a normalisation has no statistics of its own and takes the batch's."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None
