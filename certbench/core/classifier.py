"""Base classifiers: the module under study, with what every certifier needs to know about it."""

import copy
import hashlib
import operator
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from certbench.core import fingerprint as prints
from certbench.core import heads
from certbench.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Classifier:
    """A module that maps a batch of inputs to logits, normalisation inside.

    The number of classes is that of the module's logits, whatever labels are at hand. A module of one logit (after
    training with `BCEWithLogitsLoss`, say) is a classifier of two classes: the second one where the logit exceeds the
    threshold.

    Attributes:
        module: `(n, *input_shape) -> (n, num_classes)`, in eval mode. Arguments that select an output or two classes
            give it a wrapper.
        input_shape: shape of one input, without the batch axis.
        num_classes: number of logits, at least 2; if 1 is given, it becomes 2.
        name: what tables call it.
        dropped: the last layer that was left out, as it changes no class in exact arithmetic: `sigmoid` in front of a
            threshold; else empty. Claims about the float program (`rounding_safe`) then are refused.
        output: argument only. Place (`0`) or name (`"logits"`) of the logits, if the module returns a tuple, a list, a
            mapping or an object.
        threshold: argument only, for one logit: 0, or 0.5 after a sigmoid, if it is not given.

    Raises:
        ConfigError: if the module is in training mode, or does not map as declared.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    name: str = "classifier"
    dropped: str = ""
    output: InitVar[int | str | None] = field(default=None, kw_only=True)
    threshold: InitVar[float | None] = field(default=None, kw_only=True)

    least: ClassVar[int] = 2
    """Smallest number of outputs that can be used as they are."""

    def __post_init__(self, output: int | str | None, threshold: float | None) -> None:
        """Check the declaration once, on a batch of two zeros."""
        object.__setattr__(self, "input_shape", _sizes(self.input_shape, self.name))
        classes: Any = self.num_classes
        if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 1:
            given = "labels" if isinstance(classes, list | tuple | np.ndarray | Tensor) else repr(classes)
            raise ConfigError(f"{self.name}: num_classes is the number of the module's logits, at least 1, not {given}")
        module = heads.ready(self.module, self.input_shape, output, self.name)
        if classes < self.least:
            module, dropped = heads.two_classes(module, self.input_shape, threshold, self.name)
            object.__setattr__(self, "dropped", dropped)
        elif threshold is not None:
            raise ConfigError(f"{self.name}: a threshold belongs to a classifier of one logit (num_classes=1)")
        object.__setattr__(self, "num_classes", max(int(classes), self.least))
        object.__setattr__(self, "module", module)
        zeros = torch.zeros(2, *self.input_shape, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            shape = tuple(heads.run(module, zeros, self.name).shape)
        if shape != (2, self.num_classes):
            cure = f"; write num_classes={shape[1]}" if len(shape) == 2 and shape[0] == 2 else ""
            wanted = f"(2, {self.num_classes})"
            raise ConfigError(f"{self.name} gives logits of shape {shape} for two inputs, not {wanted}{cure}")

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Compute logits, on the module's device and in its precision."""
        logits: Tensor = self.module(x.to(self.device, self.dtype, copy=True))  # a module may work in place
        return logits

    def logits_and_scale(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Return logits and, per input, the largest number that any submodule gives on the way to them.

        Numbers that cancel inside the network leave rounding errors behind, in proportion to their size. A last
        `nn.Linear` carries an error of size 1 to at most the largest row sum of its moduli; if that is below 1, numbers
        before it count for so much less. So the scale of the logits is no reason to certify nothing.
        """
        if any(
            isinstance(part, torch.jit.ScriptModule | fx.GraphModule) or getattr(part, "conceals", False)
            for part in self.module.modules()
        ):
            return self._logits_and_largest(x)
        largest: list[Tensor] = []
        last: dict[str, Any] = {}

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if type(module) is nn.Linear:
                last.update(module=module, output=output)
            if isinstance(output, Tensor) and len(output) == len(x) and output.dim() > 1:
                largest.append(output.detach().abs().flatten(1).amax(dim=1))

        hooks = [module.register_forward_hook(note) for module in self.module.modules()]
        try:
            logits = self(x)
        finally:
            for hook in hooks:
                hook.remove()
        inside, outside = torch.stack([*largest, logits.abs().amax(dim=1)]).amax(dim=0), logits.abs().amax(dim=1)
        if last.get("output") is not logits:
            return logits, inside
        linear: nn.Linear = last["module"]
        gain = float(linear.weight.detach().abs().sum(dim=1).amax())
        if not gain < 1:
            return logits, inside
        offset = 0.0 if linear.bias is None else float(linear.bias.detach().abs().amax())
        return logits, torch.maximum(inside * gain, outside).clamp(min=offset)

    def _logits_and_largest(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Return logits and, per input, the largest result of any operation: for code that shows no submodules.

        Inputs are run one by one, twice each as some code takes no batch of one: nothing depends on the others.
        """
        logits, largest = self(x), []
        for i in range(len(x)):
            with _Largest() as seen:
                self(x[[i, i]])
            largest.append(torch.maximum(seen.found.to(logits), logits[i].abs().amax()))
        return logits, torch.stack(largest) if largest else logits.new_zeros(0)

    def hidden_code(self) -> str | None:
        """Name the first submodule with hooks or a `forward` of its own, which its type does not show, if any."""
        for name, part in self.module.named_modules():
            if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
                return f"{name or self.name} ({type(part).__name__}) has hooks, or a forward of its own"
        return None

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU if there are none."""
        return next((tensor.device for tensor in self.tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters; float32 if there are none."""
        return next((tensor.dtype for tensor in self.tensors() if tensor.is_floating_point()), torch.float32)

    def double(self) -> "Classifier":
        """Return a copy in float64, with exactly the same parameters, in which bounds are computed."""
        with torch.no_grad():  # parameters of TorchScript modules have no `requires_grad_` of their module
            module = copy.deepcopy(self.module)
            for part in module.modules():
                if type(part) is nn.RMSNorm and part.eps is None:  # it is the input's precision that decides
                    part.eps = torch.finfo(self.dtype).eps
            module = module.double()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return replace(self, module=module)

    def fingerprint(self) -> str:
        """Return the sha256 of everything that decides the logits: code, settings, parameters.

        Neither the classifier's name nor the place, the formatting and the comments of its code count.

        Raises:
            ConfigError: a setting of a submodule cannot be read reliably. `fingerprint` lists what is not seen at all.
        """
        header = (prints.FORMAT, self.input_shape, self.num_classes, *(() if __debug__ else ("-O",)))
        digest = hashlib.sha256(repr(header).encode())
        try:
            for part in prints.of(self.module):
                digest.update(len(part).to_bytes(8, "little") + part)
        except RecursionError:
            raise ConfigError(f"{self.name} refers to itself, and cannot be read into a fingerprint") from None
        return digest.hexdigest()

    def tensors(self) -> Iterator[Tensor]:
        """Yield parameters, then buffers."""
        yield from self.module.parameters()
        yield from self.module.buffers()


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest modulus among the results of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = torch.zeros((), dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                self.found = torch.maximum(self.found, part.detach().abs().amax().to(self.found))
        return result


def _sizes(shape: Any, name: str) -> tuple[int, ...]:
    """Read the shape of an input; a number is the length of a vector."""
    sizes = (shape,) if isinstance(shape, int | np.integer) else shape
    try:
        found = tuple(operator.index(size) for size in sizes)
    except TypeError:
        found = (-1,)
    if isinstance(sizes, str) or any(size < 1 for size in found):
        raise ConfigError(f"{name}: input_shape is the shape of one input, for example (3, 32, 32), not {shape!r}")
    return found


@dataclass(frozen=True, eq=False)
class Regressor(Classifier):
    """A module whose outputs are numbers, not logits: `num_classes` says how many. It has output bounds, no radii."""

    name: str = "regressor"
    least: ClassVar[int] = 1
