"""Networks that are sequences of modules, cut in two."""

import copy
import itertools
from typing import Any

from torch import nn

from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError
from certbench.networks.normalise import Normalise


def split(classifier: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """A classifier as an affine function, then the rest: the identity and all of it, where its layers do not tell."""
    layers = _layers(classifier.module) if classifier.hidden_code() is None else [classifier.module]
    count = 0
    while count < len(layers) and type(layers[count]) in _AFFINE and not _by_batch(layers[count]):
        count += 1
    return nn.Sequential(*layers[:count]), nn.Sequential(*layers[count:])


_SHAPES: tuple[Any, ...] = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)


_AFFINE = frozenset((Normalise, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, *_SHAPES))
"""Affine in eval mode."""


def _layers(module: nn.Module) -> list[nn.Module]:
    """The parts of a sequence, and of the sequences in it."""
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for part in module for layer in _layers(part)]


def cut(classifier: Classifier, *layers: str) -> list[nn.Sequential]:
    """A module in parts: up to the end of a submodule, from there to the end of the next, and from the last on.

    Raises:
        UnsupportedError: a submodule is no part of nested sequences that make up the module, is the last, or does not
            come after the one before; or the module's precision is shorter than float32, so that its roundings move
            features further than any Lipschitz constant says.
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
    found = _leaves("", copy.deepcopy(classifier.module))  # so that what is found out of a part stays true of it
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
    parts = module._modules.items()  # `named_children` leaves out what came before
    return [leaf for key, part in parts if part is not None for leaf in _leaves(prefix + key, part)]


def _by_batch(layer: nn.Module) -> bool:
    """Whether a normalisation has no statistics of its own and takes the batch's."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None
