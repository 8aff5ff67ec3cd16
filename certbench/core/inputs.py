"""Inputs: checked once, each with a seed of its own."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError

Inputs = Tensor | NDArray[Any] | Sequence[Any]
"""Inputs as people have them: a tensor, a NumPy array or nested lists, `(n, *input_shape)`."""


def input_seed(seed: int, x: Tensor) -> int:
    """Return 128 bits that depend on the base seed and on the input's content, on nothing else."""
    content = x.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}:{tuple(x.shape)}:".encode() + content).digest()
    return int.from_bytes(digest[:16], "little")


def as_tensor(values: Any, what: str = "inputs") -> Tensor:
    """Return numbers as a tensor: a tensor as it is, a copy of anything else that NumPy takes for an array.

    Raises:
        ConfigError: they are no numbers, or complex.
    """
    if not isinstance(values, Tensor):
        try:
            array = np.array(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{what} are no array of numbers ({error}); give a tensor or a NumPy array") from error
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"{what} are {array.dtype}, not numbers; give a tensor or a NumPy array of floats")
        values = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else array.dtype))
    if values.is_complex():
        raise ConfigError(f"{what} are complex; give real numbers")
    tensor: Tensor = values.detach()
    return tensor


def check_classifier(classifier: Any) -> None:
    """Refuse what is no classifier.

    Raises:
        ConfigError: it is none; the message says what to write.
    """
    if not isinstance(classifier, Classifier):
        given = type(classifier).__name__
        raise ConfigError(f"a {given} is no classifier; write Classifier(module, input_shape, num_classes)")


def check_inputs(classifier: Classifier, x: Any, threat: Any) -> tuple[Tensor, ThreatModel]:
    """Return inputs and threat model as certifiers take them, and refuse what no certifier can take.

    Args:
        classifier: the classifier.
        x: inputs, see `Inputs`.
        threat: a threat model, or a norm; see `ThreatModel.of`.

    Raises:
        ConfigError: no classifier; another shape, NaN or infinity, or outside the threat model's domain; no norm.
    """
    check_classifier(classifier)
    x, threat = as_tensor(x), ThreatModel.of(threat)
    if tuple(x.shape[1:]) != classifier.input_shape or x.dim() == 0:
        raise ConfigError(
            f"{classifier.name} takes inputs of shape {classifier.input_shape}, these have {tuple(x.shape[1:])}; "
            "the first axis is the batch"
        )
    if not bool(x.isfinite().all()):
        raise ConfigError("inputs hold NaN or infinity")
    size = math.prod(classifier.input_shape)
    if threat.coordinates not in (None, size):
        raise ConfigError(f"{classifier.name} takes {size} numbers, but scale or domain are for {threat.coordinates}")
    for shape in threat.shapes:
        if [n for n in shape if n != 1] != [n for n in classifier.input_shape if n != 1]:
            raise ConfigError(
                f"scale or domain have shape {shape}, inputs {classifier.input_shape}; "
                "bring their axes into the same order, or give them flat"
            )
    if threat.domain is not None and len(x):
        check_domain(x, threat)
    return x, threat


def check_domain(x: Tensor, threat: ThreatModel) -> None:
    """Refuse inputs outside the domain.

    Raises:
        ConfigError: an input lies outside.
    """
    low, high = threat.ends(x if x.is_floating_point() else x.double())
    if not isinstance(low, Tensor):
        if x.min() < low or x.max() > high:
            raise ConfigError(
                f"inputs lie between {float(x.min()):g} and {float(x.max()):g}, outside the domain {threat.domain}; "
                "rescale them, or leave the domain out"
            )
        return
    low, high = (torch.tensor(ends, dtype=torch.float64, device=x.device) for ends in threat.domain or ())
    outside = ((x.flatten(1).double() < low) | (x.flatten(1).double() > high)).any(dim=0).nonzero().flatten().tolist()
    if outside:
        i = outside[0]
        values = x.flatten(1)[:, i]
        raise ConfigError(
            f"coordinate {i} of the inputs lies between {float(values.min()):g} and {float(values.max()):g}, outside "
            f"its domain [{float(low[i]):g}, {float(high[i]):g}]; rescale them, or widen the domain"
        )


def cure_of_labels(labels: NDArray[Any], n: int) -> str:
    """Say how labels of another form become one integer per input: one-hot rows, a column, whole floats."""
    if labels.dtype.kind not in "fiub":
        return "one integer per input"
    if labels.ndim == 2 and labels.shape[1] > 1 and (labels.sum(axis=1) == 1).all() and set(labels.flat) <= {0, 1}:
        return "labels.argmax(axis=1): these are one-hot"
    if labels.shape == (n, 1):
        return "labels[:, 0].astype(int): these are a column"
    if labels.shape == (n,) and (labels == np.floor(labels)).all() and (labels >= 0).all():
        return "labels.astype(int)"
    return "one integer per input"
