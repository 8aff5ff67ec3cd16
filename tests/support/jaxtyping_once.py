"""Checks of annotations that are made once for all calls that look alike.

A check takes as long as a computation of a small network. An annotation speaks of types, dtypes, shapes and words.
A call looks like another if all these are equal, in its arguments and in its result. Whoever looks for code that only
checks annotations knows it by `jaxtyping` in the name of its file and of its module, see `tests.support.shapes`.
"""

import functools
import inspect
import threading
import types
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch.nn.parameter import is_lazy

_jaxtyped = jaxtyping.jaxtyped


class _Result(threading.local):
    """A result that is to be checked, in a tuple; () if the function has to run first."""

    value: tuple[Any, ...] = ()


def jaxtyped(function: Any, *, typechecker: Any) -> Any:
    """Decorate as `jaxtyping.jaxtyped` does; the check of a function is left out where it has passed before."""
    if inspect.isclass(function) or isinstance(function, (classmethod, staticmethod, property)):
        return _jaxtyped(function, typechecker=typechecker)
    result, passed = _Result(), dict[Any, set[Any]]()

    def run(*args: Any, **kwargs: Any) -> Any:
        if result.value:
            (value,), result.value = result.value, ()
            return value
        return function(*args, **kwargs)

    # annotations that are strings are looked up among the globals of the function
    run = types.FunctionType(run.__code__, function.__globals__, closure=run.__closure__)
    checked = _jaxtyped(functools.wraps(function)(run), typechecker=typechecker)

    @functools.wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        call = (look(args), look(kwargs)) if kwargs else look(args)
        try:
            results = passed.get(call)
        except TypeError:  # sizes that are symbols have no hash
            return checked(*args, **kwargs)
        if results is not None:
            value = function(*args, **kwargs)
            if look(value) in results:
                return value
            result.value = (value,)
        value = checked(*args, **kwargs)
        passed.setdefault(call, set()).add(look(value))
        return value

    return once


_plain: set[type] = set()
"""Types of which an annotation says no more than the type."""


def look(value: Any) -> Any:
    """Return all that an annotation can say of a value."""
    kind = type(value)
    if kind in _plain:
        return kind
    if isinstance(value, (torch.Tensor, np.ndarray)) and not is_lazy(value):
        return kind, value.dtype, value.shape
    if isinstance(value, (str, bool)):
        return kind, value
    if isinstance(value, (tuple, list)):
        return kind, *map(look, value)
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(look, value))
    if isinstance(value, dict):
        return kind, *((look(key), look(entry)) for key, entry in value.items())
    if isinstance(value, type):
        return kind, value
    _plain.add(kind)
    return kind
