"""Base classifiers: the module under study, with what every certifier needs to know about it."""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.core import fingerprint as prints
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
    """Smallest number of outputs that makes sense."""

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
        """Compute logits, on the module's device and in its precision."""
        logits = self.module(x.to(self.device, self.dtype, copy=True))  # a module may work in place
        assert isinstance(logits, Tensor)
        return logits

    def logits_and_scale(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Return logits and, per input, the largest number that any submodule gives on the way to them.

        Numbers that cancel inside the network leave rounding errors behind, in proportion to their size. A last
        `nn.Linear` carries an error of size 1 to at most the largest row sum of its moduli; if that is below 1, numbers
        before it count for so much less. So the scale of the logits is no reason to certify nothing.
        """
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
        return replace(self, module=copy.deepcopy(self.module).double().requires_grad_(False))

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


@dataclass(frozen=True, eq=False)
class Regressor(Classifier):
    """A module whose outputs are numbers, not logits: `num_classes` says how many. It has output bounds, no radii."""

    name: str = "regressor"
    least: ClassVar[int] = 1
