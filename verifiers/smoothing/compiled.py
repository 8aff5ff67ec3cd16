"""Classifiers compiled by torch.compile, each one by itself."""

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certbench.errors import UnsupportedError


def apart(function: Any) -> Any:
    """Return the function with code of its own.

    torch compiles one code for a few functions only, and runs further ones uncompiled.
    """
    code = function.__code__.replace(co_name=f"counted_{next(_NUMBERS)}")
    return types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def compile_module(function: Any) -> Callable[..., Tensor]:
    """Compile a function by `torch.compile`, all of it or nothing.

    Raises:
        UnsupportedError: it cannot be compiled here; raised by the first call.
    """
    run: Callable[..., Any] = torch.compile(apart(lambda *rows: function(*rows)), dynamic=False, fullgraph=True)

    def call(*arguments: Tensor) -> Tensor:
        try:
            found = run(*arguments)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UnsupportedError(
                f"torch.compile cannot compile the classifier; it needs a C++ compiler, and Triton on a GPU: {lines[0]}"
            ) from error
        assert isinstance(found, Tensor)
        return found

    return call


_NUMBERS = itertools.count()
