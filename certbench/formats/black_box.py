"""Query access: a classifier around any function from a batch of inputs to labels, or to scores.

Smoothing can certify it, because it only asks queries. Methods that need layers or gradients refuse it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certbench.core.classifier import Classifier
from certbench.errors import CertificationError, ConfigError, NumericalError, UnsupportedError

Function = Callable[[NDArray[np.float32]], Any]

_KNOWN: dict[tuple[str, tuple[int, ...], int], Function] = {}
"""Functions of this process by the parts of their fingerprints, so that no two share one; kept until it ends."""


def labels(
    function: Function,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    version: str,
    name: str = "black box",
    batch: int | None = None,
) -> Classifier:
    """Make a classifier that asks a function for labels, or for scores.

    Args:
        function: takes float32 inputs `(n, *input_shape)` and gives n whole numbers, the labels, or `(n, num_classes)`
            numbers, the scores, whose largest is the class. Equal inputs must get equal answers. Scores that are not
            finite are no answer, and count against every certificate.
        input_shape: shape of one input.
        num_classes: number of classes; labels lie in `range(num_classes)`.
        version: name of the function and its state. It stands for them in the fingerprint, by which counts and rows
            are stored, because code behind a callable cannot be read reliably. Change it whenever answers may change:
            results of two functions with the same version, shape and number of classes are taken for each other's.
        name: name in tables.
        batch: maximum number of inputs per call; None: no limit.

    Returns:
        A classifier whose logits are 1 for the label and 0 for the others, or the scores as they are.

    Raises:
        ConfigError: there is no version, or it names another function in this process, or the batch is below 1.
        CertificationError: the function fails on two inputs of zeros, or returns something else. A later call raises
            it, too.
    """
    if not version:
        raise ConfigError("a black box needs a version, text that changes whenever its answers may", ("version",))
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}", ("batch",))
    key = (version, tuple(input_shape), num_classes)
    if _KNOWN.get(key, function) != function:
        raise ConfigError(f"version {version!r} names another function already; give each its own", ("version",))
    query = _Query(version, function, name, batch)
    classifier = Classifier(BlackBox(query, num_classes).eval(), input_shape, num_classes, name)
    _KNOWN[key] = function
    return classifier


@dataclass(frozen=True, eq=False)
class _Query:
    """A function with a version; fingerprints read the version alone."""

    version: str
    function: Function = field(repr=False)
    name: str = "black box"
    batch: int | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"version": self.version}

    def __setstate__(self, state: dict[str, str]) -> None:
        raise ConfigError(f"black box {state['version']!r} cannot be pickled; make it again from its function")

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Query":
        return self

    def __call__(self, x: NDArray[np.float32]) -> Any:
        try:
            return self.function(x)
        except (CertificationError, MemoryError):
            raise
        except Exception as error:
            raise CertificationError(
                f"{self.name} failed on a batch of shape {x.shape}: {type(error).__name__}: {error}"
            ) from error


class BlackBox(nn.Module):
    """The module that asks the function. It has no layers that could be read."""

    opaque = "is a black box: it answers queries, and shows no layers"
    """Reason why a reader of networks refuses it."""

    def __init__(self, query: _Query, num_classes: int) -> None:
        super().__init__()
        self.query = query
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return one-hot labels, or scores.

        Raises:
            UnsupportedError: the module is traced, or a gradient is wanted.
            CertificationError: the function failed.
        """
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or (torch.is_grad_enabled() and x.requires_grad):
            raise UnsupportedError(f"{self.query.name} {self.opaque}")
        if len(x) == 0:
            return torch.zeros(0, self.num_classes, device=x.device)
        array = x.detach().to("cpu", torch.float32).contiguous().numpy()
        size = self.query.batch or len(array)
        parts = [self._answer(array[start : start + size]) for start in range(0, len(array), size)]
        return torch.cat(parts).to(x.device)

    def _answer(self, array: NDArray[np.float32]) -> Tensor:
        answer = np.asarray(self.query(array))
        n, classes = len(array), self.num_classes
        if answer.shape == (n, classes) and answer.dtype.kind in "fiu":
            return torch.from_numpy(answer.astype(np.float64))
        if answer.shape != (n,) or answer.dtype.kind not in "iu":
            raise NumericalError(
                f"{self.query.name} answered {n} inputs with {answer.dtype} of shape {answer.shape}; "
                f"return {n} whole numbers, or scores of shape ({n}, {classes})"
            )
        if bool((answer < 0).any()) or bool((answer >= classes).any()):
            raise NumericalError(
                f"{self.query.name} gave labels from {answer.min()} to {answer.max()}, not within 0 to {classes - 1}"
            )
        return nn.functional.one_hot(torch.from_numpy(answer.astype(np.int64)), classes).to(torch.float64)
