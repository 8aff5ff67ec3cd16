"""The run-time check of annotations in tests: shapes, and types where an int may stand for a float."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Check the functions and dataclasses of certbench wherever it is imported from now on."""
    spec = importlib.util.spec_from_file_location("jaxtyping.once", Path(__file__).with_name("jaxtyping_once.py"))
    assert spec is not None and spec.loader is not None
    once = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(once)
    jaxtyping.install_import_hook(["certbench"], f"{__name__}.check")
    jaxtyping.jaxtyped = _decorator(once.jaxtyped)


def _decorator(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *, typechecker: functools.partial(jaxtyped, typechecker=typechecker)
