"""Functions of each entry, sums, products, comparisons, and changes of type."""

import functools
import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator
from certbench.formats.onnx.operators.types import TYPES


def add(a: Any, b: Any) -> Any:
    """Add."""
    return a + b


def subtract(a: Any, b: Any) -> Any:
    """Subtract."""
    return a - b


def multiply(a: Any, b: Any) -> Any:
    """Multiply."""
    return a * b


def divide(a: Any, b: Any) -> Any:
    """Divide; whole numbers are rounded towards 0."""
    if any(part.is_floating_point() for part in (a, b) if isinstance(part, Tensor)):
        return a / b
    return torch.div(torch.as_tensor(a), torch.as_tensor(b), rounding_mode="trunc")


def power(a: Any, b: Any) -> Any:
    """Raise to a power; the result has the type of the first operand."""
    found = torch.pow(a, b)
    return found.to(a.dtype) if isinstance(a, Tensor) else found


def modulo(a: Any, b: Any, fmod: int = 0) -> Any:
    """Return the remainder, with the sign of the divisor, or of the dividend for fmod."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def largest(*parts: Any) -> Any:
    """Return the largest of some tensors, entry by entry."""
    return functools.reduce(torch.maximum, parts)


def smallest(*parts: Any) -> Any:
    """Return the smallest of some tensors, entry by entry."""
    return functools.reduce(torch.minimum, parts)


def total(*parts: Any) -> Any:
    """Sum some tensors."""
    return functools.reduce(operator.add, parts)


def average(*parts: Any) -> Any:
    """Return the mean of some tensors."""
    return total(*parts) / len(parts)


def clip(x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """Clip; the bounds are attributes before version 11, and operands from then on."""
    low, high = (min if low is None else low), (max if high is None else high)
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def leaky_relu(x: Any, alpha: float = 0.01) -> Any:
    """Apply LeakyReLU."""
    return functional.leaky_relu(x, alpha)


def prelu(x: Any, slope: Any) -> Any:
    """Apply a ReLU with a slope for negative numbers, which is broadcast to the input."""
    if (
        x.dim() > 1
        and slope.numel() in (1, x.shape[1])
        and slope.numel() == math.prod(slope.shape[:1])
        and (slope.numel() == 1 or slope.dim() == x.dim() - 1)
    ):
        return functional.prelu(x, slope.reshape(-1))
    return functional.relu(x) - slope * functional.relu(-x)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """Apply ELU."""
    return functional.elu(x, alpha)


def selu(x: Any, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Any:
    """Apply SELU, with the constants of the file."""
    return gamma * functional.elu(x, alpha)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """Apply CELU."""
    return functional.celu(x, alpha)


def hard_sigmoid(x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """Apply a piecewise linear sigmoid."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def gelu(x: Any, approximate: str = "none") -> Any:
    """Apply GELU."""
    return functional.gelu(x, approximate=approximate)


def swish(x: Any, alpha: float = 1.0) -> Any:
    """Apply x sigmoid(alpha x)."""
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def thresholded_relu(x: Any, alpha: float = 1.0) -> Any:
    """Return what is above a threshold, and 0 for the rest."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Any, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """Move large numbers towards 0 by a bias, and set small ones to 0."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def cast(x: Any, to: int) -> Any:
    """Change the type of numbers; one real type counts for another where the input's precision is meant."""
    if to not in TYPES:
        raise UnsupportedError(f"the type of numbers with the code {to} is not known here")
    if TYPES[to].is_floating_point and x.is_floating_point():
        if TYPES[to] in (torch.float16, torch.bfloat16):
            raise UnsupportedError("rounds to half precision; convert the network to float32")
        return x
    return x.to(TYPES[to])


def cast_constant(x: Any, to: int) -> Any:
    """Change the type of constants as the file does, with its rounding."""
    if to not in TYPES:
        raise UnsupportedError(f"the type of numbers with the code {to} is not known here")
    return x.to(TYPES[to])


def cast_like(x: Any, like: Any) -> Any:
    """Change the type of numbers to that of another tensor."""
    if like.dtype in (torch.float16, torch.bfloat16):
        raise UnsupportedError("rounds to half precision; convert the network to float32")
    return x.to(like.dtype)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Choose."""
    return torch.where(condition, a, b)


PLAIN: dict[str, Any] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Sin": torch.sin,
    "Cos": torch.cos, "Tan": torch.tan, "Erf": torch.erf, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Not": torch.logical_not,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "HardSwish": functional.hardswish,
    "Mish": functional.mish, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "IsNaN": torch.isnan,
}  # fmt: skip
"""Operators without attributes that are functions of torch."""

TABLE: dict[tuple[str, str], Operator] = {
    **{("", name): Operator(function, ignored=("consumed_inputs",)) for name, function in PLAIN.items()},
    ("", "Add"): Operator(add, numbers=True, ignored=("consumed_inputs",)),
    ("", "Sub"): Operator(subtract, numbers=True, ignored=("consumed_inputs",)),
    ("", "Mul"): Operator(multiply, numbers=True, ignored=("consumed_inputs",)),
    ("", "Div"): Operator(divide, numbers=True, ignored=("consumed_inputs",)),
    ("", "Pow"): Operator(power, numbers=True),
    ("", "Mod"): Operator(modulo),
    ("", "Max"): Operator(largest, ignored=("consumed_inputs",)),
    ("", "Min"): Operator(smallest, ignored=("consumed_inputs",)),
    ("", "Sum"): Operator(total, ignored=("consumed_inputs",)),
    ("", "Mean"): Operator(average, ignored=("consumed_inputs",)),
    ("", "Clip"): Operator(clip, numbers=True, ignored=("consumed_inputs",)),
    ("", "LeakyRelu"): Operator(leaky_relu, ignored=("consumed_inputs",)),
    ("", "PRelu"): Operator(prelu, ignored=("consumed_inputs",)),
    ("", "Elu"): Operator(elu, ignored=("consumed_inputs",)),
    ("", "Selu"): Operator(selu, ignored=("consumed_inputs",)),
    ("", "Celu"): Operator(celu),
    ("", "HardSigmoid"): Operator(hard_sigmoid, ignored=("consumed_inputs",)),
    ("", "Gelu"): Operator(gelu),
    ("com.microsoft", "Gelu"): Operator(gelu),
    ("", "Swish"): Operator(swish),
    ("com.microsoft", "QuickGelu"): Operator(swish),
    ("", "ThresholdedRelu"): Operator(thresholded_relu),
    ("", "Shrink"): Operator(shrink),
    ("", "Cast"): Operator(cast, exact=cast_constant, ignored=("saturate", "round_mode")),
    ("", "CastLike"): Operator(cast_like, ignored=("saturate", "round_mode")),
    ("", "Where"): Operator(where),
}
"""Operators of this file, by their domain and name."""
