"""The bytes that determine what a module computes: its code, settings and tensors, and what its code uses around it.

Functions and classes are read with everything that they have caught, and with the globals that they name: numbers,
text, containers, tensors, other functions, classes, modules of torch, objects. Of a Python module, the attributes that
the code names are read. The standard library, torch, NumPy and SciPy count by their names. Of other installed packages'
globals only functions, numbers, text and tensors are read. Code is read as its syntax tree: formatting, comments,
docstrings and the file in which it lies do not count. Imports inside a running function are not seen, nor is what a
function finds by text (`getattr(x, name)`, files, the environment), what was put into a package that counts by its name
(`torch.Tensor.mine = ...`), and state that an object leaves out when it is pickled.
"""

import contextlib
import dis
import functools
import inspect
import io
import pickle
import sys
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certbench.core.program import Program
from certbench.core.syntax import shape, tree
from certbench.errors import ConfigError

GIVEN = frozenset((*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy"))
"""Packages whose code counts by its name. A file of the user's with such a name does not."""

FORMAT = 2
"""Version of the fingerprint. It is raised where an older one may have been the same for two different classifiers."""

CHECKS = frozenset(("jaxtyping", "beartype"))
"""Packages whose decorators check annotations, and change nothing."""

PLUMBING = frozenset(vars(nn.Module())) - {"training"}
HOOKS = {"_forward_hooks": "_forward_hooks_with_kwargs", "_forward_pre_hooks": "_forward_pre_hooks_with_kwargs"}
"""Hooks of a module, and which of them take keywords. Both are kept under numbers that differ between processes."""

SILENT = frozenset((
    "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__type_params__", "__abstractmethods__", "_abc_impl",
))  # fmt: skip
"""Attributes of a class that decide nothing, or that its syntax tree has."""


def of(module: nn.Module) -> Iterator[bytes]:
    """Yield all of a module's content.

    Raises:
        ConfigError: a part of it cannot be read reliably.
    """
    return _module(module, None)


def _module(module: nn.Module, reader: "_Reader | None") -> Iterator[bytes]:
    known: dict[tuple[int, bool], bytes] = {}  # what several submodules share is read once

    def read(value: Any, path: str, code: bool = False) -> bytes:
        """Read any object, or the code of a class alone."""
        if reader is not None or not isinstance(value, type | types.FunctionType):
            return (reader or _Reader(path)).content(value)
        if (id(value), code) not in known:
            fresh: Any = _Reader(path)
            known[id(value), code] = fresh.code(value) if code else fresh.content(value)
        return known[id(value), code]

    compiled: list[str] = []  # prefixes of what a digest speaks for
    for path, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, torch.jit.ScriptModule):
            if f"{path}.".startswith((*compiled,)):
                yield path.encode() + repr(getattr(part, "training", None)).encode()
                continue
            raise ConfigError(
                f"{path or 'the module'} is compiled by torch.jit, and its code cannot be read; save it by "
                "torch.jit.save, and give the file as the model"
            )
        if type(part) is Program:
            compiled.append(f"{path}.compiled.".lstrip("."))
        yield path.encode() + repr([key for key, value in part._parameters.items() if value is None]).encode()
        kinds = type(part).__mro__
        for kind in kinds:
            yield b":" + _name(kind)
            if not _named(kind):
                yield read(kind, path, code=True) if reader is None else reader.code(kind)
        state = {key: value for key, value in vars(part).items() if key not in PLUMBING}
        for key, flags in HOOKS.items():
            if vars(part).get(key):
                state[key] = [(hook, number in vars(part).get(flags, ())) for number, hook in vars(part)[key].items()]
        for kind in kinds:
            members = [key for key, value in vars(kind).items() if isinstance(value, types.MemberDescriptorType)]
            state |= {key: getattr(part, key) for key in members if not _named(kind) and hasattr(part, key)}
        for key, value in sorted(state.items()):
            yield key.encode() + read(value, f"{path}.{key}".lstrip("."))
    tensors: list[tuple[str, Tensor]] = [*module.named_parameters(remove_duplicate=False)]
    tensors += module.named_buffers(remove_duplicate=False)
    for path, tensor in tensors:
        yield path.encode() + (reader or _Reader(path)).tensor(tensor)


class _Reader:
    """A reader of objects.

    An object that it meets again, perhaps inside itself, counts by the number that it got the first time.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.met: dict[int, tuple[int, object]] = {}
        self.inside: list[type] = []

    def content(self, value: Any) -> bytes:
        """Read any object."""
        kind = type(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, nn.Module):
            return self.again(value) or b"".join(_module(value, self))
        if isinstance(value, _DESCRIPTORS):
            return self.descriptor(value)
        if isinstance(value, _ROUTINES) or (inspect.isroutine(value) and hasattr(value, "__qualname__")):
            return self.again(value) or self.function(value)
        if inspect.isclass(value):
            names = b":".join(map(_name, value.__mro__))
            kinds = [kind for kind in value.__mro__ if _readable(kind)]
            if not kinds or value in self.inside[-1:]:
                return names
            return names + (self.again(value) or b"".join(self.code(kind) for kind in kinds))
        if isinstance(value, types.ModuleType) and _given(value.__name__):
            return value.__name__.encode()
        if isinstance(value, set | frozenset):
            return kind.__name__.encode() + self.extra(value) + _joined(sorted(map(self.content, value)))
        if kind in (dict, OrderedDict, types.MappingProxyType):
            return b"mapping" + _joined([self.content(part) for pair in value.items() for part in pair])
        if kind in (list, tuple, torch.Size):
            return kind.__name__.encode() + _joined([self.content(element) for element in value])
        return self.object(value)

    def tensor(self, value: Tensor) -> bytes:
        """Read the numbers of a tensor, and what Python has hung on it.

        Raises:
            ConfigError: it is sparse or quantised.
        """
        if value.layout != torch.strided or value.is_quantized:
            raise ConfigError(f"{self.where}, a sparse or quantised tensor, cannot be read into a fingerprint")
        array = value.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        numbers = array.reshape(-1).view(torch.uint8).numpy().tobytes()
        return repr((array.dtype, tuple(array.shape))).encode() + self.extra(value) + numbers

    def extra(self, value: Any) -> bytes:
        """Read what an instance of a built-in class, or of a subclass, has besides its elements."""
        found = b"" if _named(type(value)) else self.content(type(value))
        state = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_dynamo_")}
        return found + (self.content(state) if state else b"")  # what begins so is a note of torch.compile to itself

    def descriptor(self, value: Any) -> bytes:
        """Read the functions behind a property or the like."""
        if isinstance(value, property):
            parts = [value.fget, value.fset, value.fdel]
        else:
            parts = [value.func if isinstance(value, functools.cached_property) else value.__func__]
        exact = type(value) in (property, functools.cached_property, classmethod, staticmethod)
        return type(value).__name__.encode() + self.content(parts) + (b"" if exact else self.extra(value))

    def again(self, value: object) -> bytes | None:
        """Return the number of an object that was met before; give others a number."""
        if id(value) in self.met:
            return b"again %d" % self.met[id(value)][0]
        self.met[id(value)] = len(self.met), value
        return None

    def object(self, value: Any) -> bytes:
        """Read the state, by pickle, and the code of its class."""
        file = io.BytesIO()
        try:
            _Pickler(file, self, value).dump(value)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.where}, a {type(value).__name__}, cannot be read into a fingerprint ({error}); "
                "keep settings of a module as numbers, text, tuples or tensors"
            ) from error
        return file.getvalue() + (b"" if _named(type(value)) else self.content(type(value)))

    def function(self, value: Any) -> bytes:
        """Read code, and everything that it has caught, is bound to, or uses around it."""
        value = _unchecked(value)
        found = [value.__qualname__.encode()]
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            found.append(self.content(owner))
        value = getattr(value, "__func__", value)
        if not inspect.isfunction(value):
            module = getattr(value, "__module__", None) or getattr(owner, "__name__", None)
            return b"".join([*found, str(module).encode(), self.content([[], None, None, *_wrapped(value)])])
        value = _unchecked(value)
        cells = [[cell.cell_contents] if _filled(cell) else [] for cell in value.__closure__ or ()]
        found.append(tree(value.__code__) or self.compiled(value.__code__))
        found.append(self.content([cells, value.__defaults__, value.__kwdefaults__]))
        if set(vars(value)) - {"__wrapped__"}:
            found.append(self.content({key: part for key, part in vars(value).items() if key != "__wrapped__"}))
        return b"".join(found) + (b"" if _given(_module_of(value)) else self.around(value))

    def compiled(self, code: types.CodeType) -> bytes:
        """Read what a function does from its bytecode, if its source does not tell; depends on Python's release."""
        inner = [self.compiled(part) if isinstance(part, types.CodeType) else self.content(part)
                 for part in code.co_consts]  # fmt: skip
        return repr(shape(code)).encode() + b"".join(inner)

    def around(self, function: Any) -> bytes:
        """Read the globals that a function uses, and what those use."""
        names, own = _names(function.__code__), _own(_module_of(function))
        loaded, alone = _loaded(function.__code__)
        found = []
        for name in sorted(loaded & function.__globals__.keys()):
            value = function.__globals__[name]
            if own:
                if name in alone and isinstance(value, types.ModuleType) and _own(value.__name__):
                    raise ConfigError(
                        f"{self.where}: {function.__qualname__} hands on the module {name}, and cannot be read into a "
                        "fingerprint; name the attributes that it uses"
                    )
                found.append(self.used(name, value, names))
            elif inspect.isfunction(value) or isinstance(value, bool | int | float | str | tuple | Tensor):
                with contextlib.suppress(ConfigError):
                    found.append(self.used(name, value, names))
        return b"".join(found)

    def used(self, name: str, value: Any, names: set[str], outer: tuple[types.ModuleType, ...] = ()) -> bytes:
        """Read a global; of a module, read the attributes that are named."""
        if not isinstance(value, types.ModuleType):
            return f"{name}=".encode() + (_full_name(value) if _named(value) else self.content(value))
        if value in outer:
            return b""
        if not _own(value.__name__):
            return f"{name}={value.__name__};".encode()
        parts = [(key, vars(value)[key]) for key in sorted((names | {"__getattr__"}) & vars(value).keys())]
        return b"".join(self.used(f"{name}.{key}", part, names, (*outer, value)) for key, part in parts)

    def code(self, kind: type) -> bytes:
        """Read a class's syntax and attributes, with everything that its methods use, and its metaclass."""
        found = [tree(kind), b"" if _named(type(kind)) else self.content(type(kind))]
        self.inside.append(kind)
        for name, value in vars(kind).items():
            if name not in SILENT and not isinstance(value, _SLOTS):
                found.append(name.encode() + b"=" + self.content(value))
        self.inside.pop()
        return b"".join(found)


class _Pickler(pickle.Pickler):
    """A pickler of state that also reads functions, classes and modules; pickle knows these by their names alone."""

    def __init__(self, file: io.BytesIO, reader: _Reader, top: object) -> None:
        super().__init__(file, protocol=4)
        self.reader = reader
        self.top = top

    def persistent_id(self, value: Any) -> bytes | None:
        if value is self.top or not isinstance(value, _READ):
            return None
        return None if _named(value) else self.reader.content(value)


_ROUTINES = types.FunctionType | types.MethodType
_SLOTS = types.MemberDescriptorType | types.GetSetDescriptorType
_DESCRIPTORS = (property, functools.cached_property, classmethod, staticmethod)
_READ: tuple[type[Any], ...] = (
    *(Tensor, nn.Module, type, set, frozenset, types.MappingProxyType, types.FunctionType, types.MethodType),
    *_DESCRIPTORS,
)
"""Classes whose objects are read wherever they stand inside another object."""


def _wrapped(value: Any) -> list[Any]:
    """Return the function inside a wrapper, a cache for example."""
    return [value.__wrapped__] if hasattr(value, "__wrapped__") else []


def _named(value: Any) -> bool:
    """Say whether a value is a function or a class that counts by its name.

    It has to be what is found under that name: `functools.wraps` and `exec` give names to what is something else.
    """
    module = getattr(value, "__module__", None)
    if not (inspect.isroutine(value) or inspect.isclass(value)) or not _given(module):
        return False
    found: Any = sys.modules.get(str(module))
    for part in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is value


def _readable(kind: type) -> bool:
    """Say whether a class is read: it does not count by its name, and is of no other installed package."""
    return not _named(kind) and (_given(kind.__module__) or _own(kind.__module__))


def _full_name(value: Any) -> bytes:
    return f"{value.__module__}.{value.__qualname__}".encode()


def _given(module: Any) -> bool:
    """Say whether a module is part of a package in `GIVEN`, and lies where that package does."""
    if not isinstance(module, str) or module.partition(".")[0] not in GIVEN:
        return False
    return _lies_there(getattr(sys.modules.get(module), "__file__", None), module.partition(".")[0])


@functools.lru_cache(maxsize=4096)
def _lies_there(file: str | None, root: str) -> bool:
    if file is None:  # built into Python, or made by the package as it runs
        return True
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    own = getattr(sys.modules.get(root), "__file__", None)
    if root not in sys.stdlib_module_names:
        places = [str(Path(own).parent)] if own and Path(own).parent.name == root else []
    inside = any(Path(file).resolve().is_relative_to(Path(place).resolve()) for place in places)
    return inside and (
        root not in sys.stdlib_module_names or not {"site-packages", "dist-packages"} & set(Path(file).parts)
    )


def _own(module: str | None) -> bool:
    """Say whether a module is no installed package, so that everything that its code uses must be readable."""
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    if _given(module) or (module or "").partition(".")[0] == "certbench":
        return not _given(module)
    return "site-packages" not in file and "dist-packages" not in file


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _loaded(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the globals that code reads, inner code included, and those that it reads for more than an attribute."""
    found, alone = set[str](), set[str]()
    steps = list(dis.get_instructions(code))
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(step.argval)
            if after is None or after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                alone.add(step.argval)
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            inner, inner_alone = _loaded(part)
            found, alone = found | inner, alone | inner_alone
    return found, alone


def _names(code: types.CodeType) -> set[str]:
    """Return the names that code looks up, and those that code inside it does."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*inner)


def _unchecked(function: Any) -> Any:
    """Return a function without decorators that check its annotations."""
    while hasattr(function, "__wrapped__") and _package(function) in CHECKS:
        function = function.__wrapped__
    return function


def _module_of(function: Any) -> str:
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _package(function: Any) -> str:
    return _module_of(function).partition(".")[0]


def _name(kind: type) -> bytes:
    """Return a class's name, with its module's if that is a package whose code counts by its name."""
    return _full_name(kind) if _named(kind) else kind.__qualname__.encode()


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
