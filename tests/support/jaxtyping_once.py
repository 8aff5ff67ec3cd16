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
        try:
            call = (look(args), look(kwargs)) if kwargs else look(args)
            results = passed.get(call)
        except (_LargeError, TypeError):  # sizes that are symbols have no hash
            return checked(*args, **kwargs)
        if results is not None:
            value = function(*args, **kwargs)
            if _look_or_none(value) in results:
                return value
            result.value = (value,)
        try:
            value = checked(*args, **kwargs)
        finally:
            result.value = ()  # left behind where the arguments fail; the next call would return it
        seen = _look_or_none(value)
        if seen is not None:
            passed.setdefault(call, set()).add(seen)
        return value

    return once


_plain: set[type] = set()
"""Types of which an annotation says no more than the type."""


class _LargeError(Exception):
    """A value has too many parts to look at them all."""


MOST = 40
"""Largest number of entries of a container that is looked at."""

DEEPEST = 4
"""Largest depth of containers in one another that is looked at: parts that stand in many places count each time."""


def _look_or_none(value: Any) -> Any:
    try:
        return look(value)
    except _LargeError:
        return None


def look(value: Any, depth: int = 0) -> Any:
    """Return all that an annotation can say of a value.

    Raises:
        _LargeError: it has too many parts.
    """
    kind = type(value)
    if kind in _plain:
        return kind
    if isinstance(value, (torch.Tensor, np.ndarray)) and not is_lazy(value):
        return kind, value.dtype, value.shape
    if isinstance(value, (str, bool)):
        return kind, value
    if isinstance(value, (tuple, list, set, frozenset, dict)):
        if len(value) > MOST or depth == DEEPEST:
            raise _LargeError
        if isinstance(value, dict):
            return kind, *((look(key), look(entry, depth + 1)) for key, entry in value.items())
        parts = [look(entry, depth + 1) for entry in value]
        return (kind, *parts) if isinstance(value, (tuple, list)) else (kind, frozenset(parts))
    if isinstance(value, type):
        return kind, value
    _plain.add(kind)
    return kind
