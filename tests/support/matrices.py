"""Random matrices and their exact norms, for tests of norms."""

import itertools
import math

import torch
from torch import nn

from certbench.core.classifier import Regressor
from certbench.numerics.rounding import dual
from certbench.verifiers.lipschitz.propagation import propagated

P = (1.0, 2.0, math.inf)
GENERATOR = torch.Generator()


def gauss(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def exact_norm(matrix, s, r):
    """The operator norms that have a formula."""
    if s == 1:
        return float(torch.linalg.vector_norm(matrix, r, dim=0).max())
    if r == math.inf:
        return float(torch.linalg.vector_norm(matrix, dual(s), dim=1).max())
    return float(torch.linalg.matrix_norm(matrix, 2))


EXACT = [(s, r) for s, r in itertools.product(P, P) if s == 1 or r == math.inf or s == r == 2]


def layer_map(layer, size):
    """The linear map of a layer in eval mode, as it is bounded, and its matrix by differences of unit vectors."""
    layer = layer.double().eval().requires_grad_(False)
    eye = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, *size)
    out = (layer(eye) - layer(torch.zeros_like(eye))).flatten(1)
    propagation = propagated(Regressor(nn.Sequential(layer, nn.Flatten()).eval(), size, out.shape[1], "layer"), 2.0)
    assert propagation.norms == {}  # all of it is one map
    return propagation.outputs.map, out.T
