"""Matrix products and convolutions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator


def gemm(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    """Return alpha a b + beta c, with a and b transposed where the file says so."""
    a = a.t() if transA else a
    if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1 and c.numel() == b.shape[0 if transB else 1])):
        return functional.linear(a, b if transB else b.t(), c)
    found = a @ (b.t() if transB else b)
    found = found if alpha == 1 else alpha * found
    return found if c is None else found + (c if beta == 1 else beta * c)


def einsum(*parts: Any, equation: str) -> Any:
    """Sum products over the indices of an equation."""
    return torch.einsum(equation, *parts)


def padded_for(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Any,
    auto_pad: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is padded before and after each axis of an image.

    Raises:
        UnsupportedError: the way of padding is not known here.
    """
    axes = len(sizes)
    if auto_pad in ("NOTSET", ""):
        pads = tuple(pads or (0,) * (2 * axes))
        return pads[:axes], pads[axes:]
    if auto_pad == "VALID":
        return (0,) * axes, (0,) * axes
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {auto_pad!r} is not known here")
    whole = [
        max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    ]
    small, large = tuple(n // 2 for n in whole), tuple(n - n // 2 for n in whole)
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def around(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return paddings in the order of torch's `pad`: the last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    pads: Any = None,
    strides: Any = None,
) -> Any:
    """Convolve along one to three axes."""
    axes = x.dim() - 2
    stride, dilation = tuple(strides or (1,) * axes), tuple(dilations or (1,) * axes)
    before, after = padded_for(x.shape[2:], weight.shape[2:], stride, dilation, pads, auto_pad)
    if before != after:
        x, before = functional.pad(x, around(before, after)), (0,) * axes
    function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    return function(x, weight, bias, stride, before, dilation, group)


def conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    output_padding: Any = None,
    output_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Any:
    """Apply a transposed convolution along one to three axes."""
    axes = x.dim() - 2
    stride, dilation = tuple(strides or (1,) * axes), tuple(dilations or (1,) * axes)
    more = tuple(output_padding or (0,) * axes)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + o
        for n, s, k, d, o in zip(x.shape[2:], stride, weight.shape[2:], dilation, more, strict=True)
    ]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = (
            tuple(output_shape)[-axes:]
            if output_shape is not None
            else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        )
        over = [max(n - o, 0) for n, o in zip(full, out, strict=True)]
        small, large = tuple(n // 2 for n in over), tuple(n - n // 2 for n in over)
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        if any(n < o for n, o in zip(full, out, strict=True)):
            raise UnsupportedError("an output_shape above that of the whole product is not known here")
    else:
        before, after = padded_for(x.shape[2:], weight.shape[2:], stride, dilation, pads, auto_pad)
    function: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    if before == after:
        return function(x, weight, bias, stride, before, more, group, dilation)
    found = function(x, weight, bias, stride, 0, more, group, dilation)
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        found = found.narrow(2 + axis, first, found.shape[2 + axis] - first - last)
    return found


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices."""
    return torch.matmul(a, b)


TABLE: dict[tuple[str, str], Operator] = {
    ("", "MatMul"): Operator(torch.matmul),
    ("", "Gemm"): Operator(gemm, ignored=("broadcast",)),
    ("", "Einsum"): Operator(einsum),
    ("", "Conv"): Operator(conv, ignored=("kernel_shape",)),
    ("", "ConvTranspose"): Operator(conv_transpose, ignored=("kernel_shape",)),
}
"""Operators of this file, by their domain and name."""
