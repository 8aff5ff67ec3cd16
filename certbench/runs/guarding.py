"""What a job must leave as it found it: the classifier, and the settings of torch that all code in a process shares."""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from certbench.core.classifier import Classifier

GLOBAL_HOOKS = tuple(sorted(name for name in vars(nn.modules.module) if name.endswith("_hooks")))
"""Names of torch's tables of hooks that are called for every module."""

CONTAINERS = ("_parameters", "_buffers", "_modules")
"""Attributes of a module whose content is read tensor by tensor."""


def settle(threads: int) -> None:
    """Let torch, and the libraries of linear algebra that are loaded, use so many threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


@dataclass(frozen=True)
class Snapshot:
    """What a classifier and torch's settings are at a moment.

    Attributes:
        fingerprint: code, settings, hooks of forward passes, parameters and buffers of the classifier.
        flags: training flag, number of hooks, and `requires_grad` of the parameters, of each submodule.
        dtype: the default data type.
        threads: number of torch's threads.
        gradients: whether gradients are recorded.
        hooks: number of hooks that are called for every module.
        quick: hash of the classifier's state, and of which functions its classes have; None if it cannot be pickled.
    """

    fingerprint: str
    flags: tuple[tuple[bool, int, tuple[bool, ...]], ...]
    dtype: torch.dtype
    threads: int
    gradients: bool
    hooks: int
    quick: bytes | None

    @classmethod
    def of(cls, classifier: Classifier, before: "Snapshot | None" = None, fingerprint: str | None = None) -> "Snapshot":
        """Take a snapshot.

        A fingerprint takes long to compute. If the quick hash is that of `before`, so is the fingerprint.

        Args:
            classifier: the classifier.
            before: an earlier snapshot.
            fingerprint: the classifier's fingerprint, if it is known.

        Raises:
            ConfigError: a setting of a submodule can no longer be read.
        """
        quick = _quick(classifier)
        if before is not None and quick == before.quick:
            fingerprint = before.fingerprint
        if quick is None:  # what is read later is compared with what is read now
            fingerprint = None
        return cls(
            fingerprint or classifier.fingerprint(),
            tuple(_flags(part) for part in classifier.module.modules()),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            sum(len(getattr(nn.modules.module, name)) for name in GLOBAL_HOOKS),
            quick,
        )

    def changed(self, later: "Snapshot") -> str | None:
        """Say in words what is not as it was; None if all is."""
        words = {
            "dtype": "torch's default data type", "threads": "the number of torch's threads",
            "gradients": "whether torch records gradients", "hooks": "hooks of all modules",
            "flags": "training flags, hooks or requires_grad of the classifier",
            "fingerprint": "the classifier's parameters, buffers, hooks or settings",
        }  # fmt: skip
        found = [text for name, text in words.items() if getattr(self, name) != getattr(later, name)]
        return " and ".join(found) or None


def _quick(classifier: Classifier) -> bytes | None:
    digest = hashlib.sha256()
    try:
        for path, part in classifier.module.named_modules(remove_duplicate=False):
            state = {
                key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")
            }
            members = [(id(kind), [*kind.__dict__], [*map(id, kind.__dict__.values())]) for kind in type(part).__mro__]
            digest.update(pickle.dumps((path, members, state)))
        for tensor in classifier.tensors():
            digest.update(repr((tensor.shape, tensor.dtype)).encode() + _bytes(tensor))
    except Exception:  # what cannot be pickled is read by the fingerprint
        return None
    return digest.digest()


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _flags(module: nn.Module) -> tuple[bool, int, tuple[bool, ...]]:
    hooks = sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks") and value)
    grads = tuple(parameter.requires_grad for parameter in module.parameters(recurse=False))
    return module.training, hooks, grads


@contextmanager
def restored() -> Iterator[None]:
    """Set torch's settings back at the end, for jobs that run in the process of the run itself."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
