"""Keys of stored answers, made of content alone."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from certbench.attacks.battery import VERSION as ATTACK_VERSION
from certbench.core.threat import ThreatModel
from certbench.files.json_text import plain


def content_key(**parts: Any) -> str:
    """Sha256 of the parts, whatever their order; infinities are kept apart from NaN, which is refused."""
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def attack_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, steps: int, version: int = ATTACK_VERSION
) -> str:
    """Under which a counterexample is stored: of a classifier and an input, in a norm, found by so many steps."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, domain=threat.domain, seed=seed, steps=steps,
        version=version,
    )  # fmt: skip


def row_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, spec: Mapping[str, Any], version: int | list[Any]
) -> str:
    """Under which an answer is stored: of a certifier with its options and version, on a classifier and an input."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, domain=threat.domain, seed=seed, certifier=spec,
        version=version,
    )  # fmt: skip


def hashes(inputs: torch.Tensor) -> list[str]:
    """What keys know of each input: its shape and its content."""
    return [hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest() for x in inputs]
