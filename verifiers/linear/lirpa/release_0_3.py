"""Shims with which auto-LiRPA 0.3 runs on a modern torch and numpy; releases that do not need them never get them.

PyPI's newest auto-LiRPA is 0.3 of 2022, made for torch < 1.13. Releases from its repository (0.5 and later) run as they
are. Each shim below restores one name that has been removed since, or corrects one signature, and nothing else.
"""

import importlib
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from certbench.errors import MissingBackendError

INSTALL = 'pip install "certbench[lirpa]" && pip install --no-deps auto-LiRPA==0.3'

DEPTH = 10_000
"""Largest depth of recursion after the import. The package asks for a million, at which deeply nested JSON ends the
process by a segmentation fault; at 10,000, and at 30,000, Python raises a RecursionError."""


def auto_lirpa() -> ModuleType:
    """Import the package `auto_LiRPA`, ready to use.

    Raises:
        MissingBackendError: it is not installed, or does not import; the message says how to install it.
    """
    if "auto_LiRPA" in sys.modules:
        return sys.modules["auto_LiRPA"]
    try:
        needed = _needs_shims(_release())
        if needed:
            _before_import()
        with warnings.catch_warnings(action="ignore"):  # it changes global filters, and torch deprecates its jit
            before = sys.getrecursionlimit()
            module = importlib.import_module("auto_LiRPA")
            sys.setrecursionlimit(max(before, DEPTH))
        if needed:
            _after_import(module)
    except ImportError as error:
        other = error.name if error.name and "auto_LiRPA" not in error.name else None
        mend = f"pip install --no-deps {other}" if other else INSTALL
        raise MissingBackendError(f"auto-LiRPA does not import ({error}); install it by: {mend}") from error
    return module


def _release() -> str:
    """Read from its source the version that would be imported: 0.3 does not import before it has its shims.

    Raises:
        ImportError: there is no such package, or its source states no version.
    """
    spec = importlib.util.find_spec("auto_LiRPA")
    if spec is None or spec.origin is None:
        raise ImportError("there is no package auto_LiRPA")
    found = re.search(r"""__version__ = ['"]([0-9.]+)""", Path(spec.origin).read_text(encoding="utf-8"))
    if found is None:
        raise ImportError(f"{spec.origin} does not say its version")
    return found[1]


def _needs_shims(release: str) -> bool:
    major, minor = (int(part) for part in release.split(".")[:2])
    return (major, minor) < (0, 5)


def _before_import() -> None:
    import numpy
    import torch

    if "numpy.lib.arraysetops" not in sys.modules:  # auto_LiRPA imports isin from there and does not use it
        arraysetops: Any = types.ModuleType("numpy.lib.arraysetops")
        arraysetops.isin = numpy.isin
        sys.modules["numpy.lib.arraysetops"] = arraysetops

    if not hasattr(torch, "_six"):  # register_parameter looks up string_classes
        six: Any = types.ModuleType("torch._six")
        six.string_classes, six.inf, six.container_abcs = str, float("inf"), importlib.import_module("collections.abc")
        sys.modules["torch._six"] = torch._six = six  # type: ignore[attr-defined]

    symbolic_helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    def set_opset(opset: int) -> None:
        GLOBALS.export_onnx_opset_version = opset

    if not hasattr(symbolic_helper, "_set_opset_version"):
        symbolic_helper._set_opset_version = set_opset
    GLOBALS.autograd_inlining = False  # its tracer hands over a graph that the exporter may not inline

    node: Any = torch._C.Node
    if not hasattr(node, "__getitem__"):  # attributes of a graph node, by name
        node.__getitem__ = lambda self, key: getattr(self, self.kindOf(key))(key)


def _after_import(module: ModuleType) -> None:
    bounded = module.BoundedModule
    members, train, evaluate = bounded._named_members, bounded.train, bounded.eval

    def _named_members(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        kwargs.pop("remove_duplicate", None)  # torch 2.0 added it
        return iter(members(self, *args, **kwargs))

    def _train(self: Any, mode: bool = True) -> Any:
        train(self, mode)
        return self

    def _eval(self: Any) -> Any:
        evaluate(self)
        return self

    bounded._named_members, bounded.train, bounded.eval = _named_members, _train, _eval
