"""Pooling, normalisations, softmax, resizing, and layers that do nothing when a network is used."""

import math
from typing import Any

import torch
from torch.nn import functional

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator
from certbench.formats.onnx.operators.matrices import around, padded_for


def identity(x: Any, *unused: Any) -> Any:
    """Return the input."""
    del unused
    return x


def dropout(x: Any, ratio: Any = None, training: Any = None, *, results: int = 1, is_test: int = 1) -> Any:
    """Return the input; refuse to drop anything."""
    del ratio, results
    if not is_test or (training is not None and bool(training)):
        raise UnsupportedError("is in training mode; export the network in eval mode")
    return x


def batch_norm(
    x: Any,
    scale: Any,
    shift: Any,
    mean: Any,
    variance: Any,
    *,
    results: int,
    epsilon: float = 1e-5,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 1,
) -> Any:
    """Normalise channels by stored means and variances."""
    if training_mode or results > 1 or not is_test:
        raise UnsupportedError("is in training mode; export the network in eval mode")
    if not spatial:
        raise UnsupportedError("has spatial=0, which is not known here")
    return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)


def instance_norm(x: Any, scale: Any, shift: Any, *, epsilon: float = 1e-5) -> Any:
    """Normalise each channel of each input by its own mean and variance."""
    return torch.group_norm(x, x.shape[1], scale, shift, epsilon)


def group_norm(
    x: Any, scale: Any, shift: Any, *, opset: int, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    """Normalise groups of channels; before version 21, scale and shift have one number per group."""
    del stash_type
    if opset < 21:
        scale, shift = (part.repeat_interleave(x.shape[1] // num_groups) for part in (scale, shift))
    return torch.group_norm(x, num_groups, scale, shift, epsilon)


def layer_norm(
    x: Any, scale: Any, shift: Any = None, *, results: int, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    """Normalise over the axes from `axis` on."""
    del stash_type
    if results > 1:
        raise UnsupportedError("returns means, too, which is not known here")
    shape = x.shape[axis:]
    if scale.shape == shape and (shift is None or shift.shape == shape):
        return functional.layer_norm(x, shape, scale, shift, epsilon)
    found = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return found if shift is None else found + shift


def rms_norm(x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Any:
    """Divide by the root of the mean square over the axes from `axis` on."""
    del stash_type
    return functional.rms_norm(x, x.shape[axis:], None, epsilon) * scale


def local_response(x: Any, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Any:
    """Divide by the sums of squares of neighbouring channels."""
    return functional.local_response_norm(x, size, alpha, beta, bias)


def max_pool(
    x: Any,
    *,
    results: int,
    kernel_shape: Any,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Any = None,
    pads: Any = None,
    storage_order: int = 0,
    strides: Any = None,
) -> Any:
    """Take the maximum over windows."""
    del storage_order
    if results > 1:
        raise UnsupportedError("returns places of maxima, which is not known here")
    axes = len(kernel_shape)
    stride, dilation = tuple(strides or (1,) * axes), tuple(dilations or (1,) * axes)
    before, after = padded_for(x.shape[2:], kernel_shape, stride, dilation, pads, auto_pad)
    starts = [(n + first - 1) // s + 1 for n, first, s in zip(x.shape[2:], before, stride, strict=True)]
    if before != after or any(2 * n > k for n, k in zip(before, kernel_shape, strict=True)):
        # The pixel at the edge is in every window that reaches beyond it, if there are no gaps: it changes no maximum.
        gaps = max(dilation) > 1
        wide, kind = around(before, after), "constant" if gaps else "replicate"
        x, before = functional.pad(x, wide, mode=kind, value=-math.inf if gaps else None), (0,) * axes
    function: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
    found = function(x, tuple(kernel_shape), stride, before, dilation, bool(ceil_mode))
    for axis, most in enumerate(starts):  # no window begins behind the image
        found = found.narrow(2 + axis, 0, most) if found.shape[2 + axis] > most else found
    return found


def average_pool(
    x: Any,
    *,
    kernel_shape: Any,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Any:
    """Take the mean over windows; what is padded counts only if the file says so."""
    axes = len(kernel_shape)
    if any(n != 1 for n in dilations or ()):
        raise UnsupportedError("has dilated windows, which are not known here")
    stride = tuple(strides or (1,) * axes)
    before, after = padded_for(x.shape[2:], kernel_shape, stride, (1,) * axes, pads, auto_pad)
    kernel, function = (
        tuple(kernel_shape),
        (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1],
    )
    if before == after and all(2 * n <= k for n, k in zip(before, kernel, strict=True)):
        return function(x, kernel, stride, before, bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise UnsupportedError("rounds up the number of windows of an image that is padded unevenly, not known here")
    wide = around(before, after)
    found = function(functional.pad(x, wide), kernel, stride)
    if count_include_pad:
        return found
    inside = functional.pad(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device), wide)
    return found / function(inside, kernel, stride)


def global_average(x: Any) -> Any:
    """Take the mean over all pixels."""
    return x.mean([*range(2, x.dim())], keepdim=True)


def global_maximum(x: Any) -> Any:
    """Take the maximum over all pixels."""
    return x.amax([*range(2, x.dim())], keepdim=True)


def softmax(x: Any, *, opset: int, axis: int | None = None) -> Any:
    """Apply a softmax: along one axis, or before version 13 over all axes from one on."""
    if opset >= 13:
        return torch.softmax(x, -1 if axis is None else axis)
    axis = (1 if axis is None else axis) % max(x.dim(), 1)
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


def log_softmax(x: Any, *, opset: int, axis: int | None = None) -> Any:
    """Apply the logarithm of a softmax, along the axes of `softmax`."""
    if opset >= 13:
        return torch.log_softmax(x, -1 if axis is None else axis)
    axis = (1 if axis is None else axis) % max(x.dim(), 1)
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


def upsample(x: Any, scales_given: Any = None, *, mode: str = "nearest", scales: Any = None) -> Any:
    """Make an image larger, as files before version 10 say it."""
    return resize(x, None, scales if scales_given is None else scales_given, None, mode=mode, opset=10)


def resize(
    x: Any,
    region: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    opset: int,
    mode: str = "nearest",
    coordinate_transformation_mode: str | None = None,
    nearest_mode: str = "round_prefer_floor",
    antialias: int = 0,
    axes: Any = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Any:
    """Make an image larger or smaller, by one of the ways that torch has, too."""
    if opset < 11:
        scales = region if scales is None else scales  # the second operand, then
        coordinate_transformation_mode, nearest_mode = "asymmetric", "floor"
    where = coordinate_transformation_mode or "half_pixel"
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise UnsupportedError("resizes with antialias, exclude_outside or a policy, which is not known here")
    pixels = x.dim() - 2
    places = [*range(x.dim())] if axes is None else [axis % x.dim() for axis in axes]
    sized = sizes is not None and len(sizes) > 0
    given = dict(zip(places, sizes if sized else scales, strict=True))
    if any(given.get(axis, 1) != (x.shape[axis] if sized and axis in given else 1) for axis in (0, 1)):
        raise UnsupportedError("resizes batch or channels, which is not known here")
    wanted = [given.get(axis, x.shape[axis] if sized else 1) for axis in range(2, x.dim())]
    target: dict[str, Any] = {"size": wanted} if sized else {"scale_factor": [float(n) for n in wanted]}
    if mode == "nearest":
        whole = all(
            float(w).is_integer() if not sized else w % n == 0 for w, n in zip(wanted, x.shape[2:], strict=True)
        )
        floor = where == "asymmetric" and nearest_mode == "floor"
        if not floor and not (whole and where in ("half_pixel", "pytorch_half_pixel") and "prefer" in nearest_mode):
            raise UnsupportedError(f"resizes to the nearest pixel by {where} and {nearest_mode}, not known here")
        return functional.interpolate(x, mode="nearest" if floor else "nearest-exact", **target)
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners") or cubic_coeff_a != -0.75:
        raise UnsupportedError(f"resizes by {where}, which is not known here")
    kinds = {"linear": ("linear", "bilinear", "trilinear")[pixels - 1], "cubic": "bicubic"}
    if mode not in kinds or (mode == "cubic" and pixels != 2):
        raise UnsupportedError(f"resizes by {mode!r}, which is not known here")
    return functional.interpolate(x, mode=kinds[mode], align_corners=where == "align_corners", **target)


TABLE: dict[tuple[str, str], Operator] = {
    ("", "Identity"): Operator(identity),
    ("", "Dropout"): Operator(dropout, static=(2,), ignored=("ratio", "seed", "consumed_inputs")),
    ("", "BatchNormalization"): Operator(batch_norm, ignored=("momentum", "consumed_inputs")),
    ("", "InstanceNormalization"): Operator(instance_norm, ignored=("consumed_inputs",)),
    ("", "GroupNormalization"): Operator(group_norm),
    ("", "LayerNormalization"): Operator(layer_norm),
    ("", "RMSNormalization"): Operator(rms_norm),
    ("", "LRN"): Operator(local_response),
    ("", "MaxPool"): Operator(max_pool),
    ("", "AveragePool"): Operator(average_pool),
    ("", "GlobalAveragePool"): Operator(global_average),
    ("", "GlobalMaxPool"): Operator(global_maximum),
    ("", "Softmax"): Operator(softmax),
    ("", "LogSoftmax"): Operator(log_softmax),
    ("", "Upsample"): Operator(upsample, static=(1,)),
    ("", "Resize"): Operator(resize, static=(1, 2, 3), ignored=("extrapolation_value",)),
}
"""Operators of this file, by their domain and name."""
