"""Base classifiers: the module under study, with what every certifier needs to know about it."""

import copy
import hashlib
import inspect
import pickle
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Classifier:
    """A module that maps a batch of inputs to logits, normalisation inside.

    Attributes:
        module: `(n, *input_shape) -> (n, num_classes)`, in eval mode.
        input_shape: shape of one input, without the batch axis.
        num_classes: number of logits, at least 2.
        name: what tables call it.

    Raises:
        ConfigError: if the module is in training mode, or does not map as declared.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    name: str = "classifier"

    least: ClassVar[int] = 2
    """The fewest outputs that make sense."""

    def __post_init__(self) -> None:
        """Check the declaration once, on a batch of two zeros."""
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if any(module.training for module in self.module.modules()):
            raise ConfigError(f"{self.name} is in training mode; call module.eval() before you wrap it")
        if self.num_classes < self.least:
            raise ConfigError(f"{self.name}: a classifier has at least 2 classes, not {self.num_classes}")
        try:
            shape = tuple(self(torch.zeros(2, *self.input_shape)).shape)
        except RuntimeError as error:
            raise ConfigError(
                f"{self.name} does not take a batch of shape (2, *{self.input_shape}): {error}"
            ) from error
        if shape != (2, self.num_classes):
            raise ConfigError(f"{self.name} gives logits of shape {shape} for two inputs, not (2, {self.num_classes})")

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Logits, computed on the module's device and in its precision."""
        logits = self.module(x.to(self.device, self.dtype, copy=True))  # a module may work in place
        assert isinstance(logits, Tensor)
        return logits

    def logits_and_scale(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Logits, and the largest number that any submodule gives on the way to them, per input.

        What cancels inside the network leaves its rounding behind, in proportion to what cancelled.
        """
        largest: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and len(output) == len(x) and output.dim() > 1:
                largest.append(output.detach().abs().flatten(1).amax(dim=1))

        hooks = [module.register_forward_hook(note) for module in self.module.modules()]
        try:
            logits = self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, torch.stack([*largest, logits.abs().amax(dim=1)]).amax(dim=0)

    def hidden_code(self) -> str | None:
        """The first submodule with hooks or a `forward` of its own, which a look at its type does not show."""
        for name, part in self.module.named_modules():
            if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
                return f"{name or self.name} ({type(part).__name__}) has hooks, or a forward of its own"
        return None

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU if there are none."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters; float32 if there are none."""
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.float32)

    def double(self) -> "Classifier":
        """A copy in float64: the network in which bounds are computed, with exactly the same parameters."""
        return replace(self, module=copy.deepcopy(self.module).double().requires_grad_(False))

    def fingerprint(self) -> str:
        """Sha256 over everything that decides the logits: code, settings, parameters. Never over the name.

        Raises:
            ConfigError: if a setting of a submodule cannot be read reliably.
        """
        digest = hashlib.sha256(repr((self.input_shape, self.num_classes)).encode())
        for path, module in self.module.named_modules(remove_duplicate=False):
            digest.update(f"{path}:{type(module).__module__}.{type(module).__qualname__}".encode())
            for kind in type(module).__mro__:
                if not kind.__module__.startswith(("torch.", "builtins")):
                    digest.update(_code(kind, path))
            for key, value in sorted(vars(module).items()):
                if key not in _PLUMBING or (key in ("_forward_hooks", "_forward_pre_hooks") and value):
                    digest.update(key.encode() + _content(value, f"{path}.{key}"))
        tensors: list[tuple[str, Tensor]] = [*self.module.named_parameters(remove_duplicate=False)]
        tensors += self.module.named_buffers(remove_duplicate=False)
        for path, tensor in tensors:
            digest.update(path.encode() + _content(tensor, path))
        return digest.hexdigest()

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()


@dataclass(frozen=True, eq=False)
class Regressor(Classifier):
    """A module whose outputs are numbers, not logits: `num_classes` says how many. It has output bounds, no radii."""

    name: str = "regressor"
    least: ClassVar[int] = 1


_PLUMBING = frozenset(vars(nn.Module())) - {"training"}


def _source(thing: Any) -> bytes:
    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):  # typed in at a prompt
        return b""


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _code(kind: type, where: str) -> bytes:
    """A class's source and attributes, and what its methods have caught or use of what stands around it."""
    source = _source(kind)
    found = [source]
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of properties and the like
        if inspect.isfunction(function):
            found += [_content(function, where), _around(function, where)]
            found += [] if source else [_compiled(function.__code__, where)]
        elif not name.startswith("__") and isinstance(value, bool | int | float | str | tuple | list | dict | Tensor):
            found.append(name.encode() + _content(value, where))
    return b"".join(found)


def _compiled(code: types.CodeType, where: str) -> bytes:
    """What a function does, where its source cannot be read; it depends on the release of Python."""
    consts = code.co_consts
    inner = [_compiled(part, where) if isinstance(part, types.CodeType) else _content(part, where) for part in consts]
    return code.co_code + repr(code.co_names).encode() + b"".join(inner)


def _around(function: Any, where: str, seen: frozenset[str] = frozenset()) -> bytes:
    """The numbers, texts, tensors and functions of its module that a function uses, and what those use."""
    found = []
    for name in sorted(set(function.__code__.co_names) & function.__globals__.keys() - seen):
        value = function.__globals__[name]
        if inspect.isfunction(value) and not value.__module__.startswith("torch"):
            found += [name.encode(), _source(value) or _compiled(value.__code__, where)]
            found.append(_around(value, where, seen | {name}))
        elif isinstance(value, bool | int | float | str | tuple | Tensor):
            found.append(name.encode() + _content(value, where))
    return b"".join(found)


def _content(value: Any, where: str) -> bytes:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        return repr((array.dtype, tuple(array.shape))).encode() + array.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, nn.Module):  # registered ones are read elsewhere, too; those in a plain list only here
        state = [(path, part) for path, part in [*value.named_parameters(), *value.named_buffers()]]
        inner = [f"{path}:{type(part).__module__}.{type(part).__qualname__}" for path, part in value.named_modules()]
        return repr(inner).encode() + b"".join(path.encode() + _content(part, where) for path, part in state)
    if inspect.isroutine(value):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _filled(cell)]
        settled = [cells, getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)]
        return getattr(value, "__qualname__", repr(value)).encode() + _source(value) + _content(settled, where)
    if inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}".encode()
    if isinstance(value, Mapping):
        value = [*value.items()]
    if isinstance(value, set | frozenset):
        return b"set" + b"".join(sorted(_content(element, where) for element in value))
    if isinstance(value, list | tuple):
        parts = [_content(element, where) for element in value]
        return type(value).__name__.encode() + b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    try:
        return pickle.dumps(value, protocol=4)
    except Exception as error:
        raise ConfigError(
            f"{where}, a {type(value).__name__}, cannot be read into a fingerprint ({error}); "
            "keep settings of a module as numbers, text, tuples or tensors"
        ) from error
