"""Linear maps written as operations of a network file, which `certbench.checker` multiplies out."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from certbench.checker.reading import written
from certbench.networks.image_maps import Convolution
from certbench.networks.maps import Chain, Dense, Map, Scale

Parts = list[tuple[str, dict[str, Any]]]
"""Operations one after the other, each with its parameters."""


def affine(part: Map, bias: Tensor | None) -> Parts:
    """Return the operations of a map and a bias, whose numbers they keep exactly.

    The members of a chain become operations one after the other. What is no matrix, no scaling and no convolution of
    images with zero padding is written as a sparse matrix.

    Args:
        part: the map.
        bias: one number per output, or None.
    """
    match part:
        case Dense():
            return [("dense", {"weight": _array(part.weight), "bias": _array(bias)})]
        case Scale():
            return [("scale", {"weight": _array(part.diagonal.flatten()), "bias": _array(bias)})]
        case Chain():
            *first, last = part.maps
            return [operation for some in first for operation in affine(some, None)] + affine(last, bias)
        case Convolution() if part.axes == 2 and part.symmetric and not part.circular:
            return _convolution(part, bias)
    matrix = part.sparse().tocoo()
    content = {"outputs": part.outputs, "rows": written(matrix.row), "columns": written(matrix.col)}
    return [("sparse", {**content, "values": written(matrix.data), "bias": _array(bias)})]


def _convolution(part: Convolution, bias: Tensor | None) -> Parts:
    """Write a convolution of images; groups and dilation become zeros in the kernel."""
    outputs, inner, *window = part.kernel.shape
    spread = [d * (k - 1) + 1 for d, k in zip(part.dilation, window, strict=True)]
    kernel = np.zeros((outputs, part.before[0], *spread))
    weight = part.kernel.detach().double().cpu().numpy()
    for group in range(part.groups):
        rows = slice(group * outputs // part.groups, (group + 1) * outputs // part.groups)
        columns = slice(group * inner, (group + 1) * inner)
        kernel[rows, columns, :: part.dilation[0], :: part.dilation[1]] = weight[rows]
    found: dict[str, Any] = {"shape": list(part.before), "stride": list(part.stride), "padding": list(part.padding)}
    found |= {"kernel": written(kernel), "bias": None}
    if bias is None:
        return [("conv2d", found)]
    channels = bias.reshape(outputs, -1)
    if bool((channels == channels[:, :1]).all()):
        return [("conv2d", {**found, "bias": _array(channels[:, 0])})]
    return [("conv2d", found), *affine(Scale(torch.ones_like(bias)), bias)]


def _array(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else written(tensor.detach().double().cpu().numpy())
