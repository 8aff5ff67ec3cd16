"""Inputs: checked once, each with a seed of its own."""

import hashlib

import torch
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError


def input_seed(seed: int, x: Tensor) -> int:
    """Return 128 bits that depend on the base seed and on the input's content, on nothing else."""
    content = x.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}:{tuple(x.shape)}:".encode() + content).digest()
    return int.from_bytes(digest[:16], "little")


def check_inputs(classifier: Classifier, x: Tensor, threat: ThreatModel) -> None:
    """Refuse inputs that no certifier can take.

    Raises:
        ConfigError: another shape, NaN or infinity, or outside the threat model's domain.
    """
    if tuple(x.shape[1:]) != classifier.input_shape:
        raise ConfigError(
            f"{classifier.name} takes inputs of shape {classifier.input_shape}, these have {tuple(x.shape[1:])}; "
            "the first axis is the batch"
        )
    if not bool(x.isfinite().all()):
        raise ConfigError("inputs hold NaN or infinity")
    if threat.domain is not None and len(x) and (x.min() < threat.domain[0] or x.max() > threat.domain[1]):
        raise ConfigError(
            f"inputs lie between {float(x.min()):g} and {float(x.max()):g}, outside the domain {threat.domain}; "
            "rescale them, or leave the domain out"
        )
