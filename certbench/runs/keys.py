"""Keys of stored answers, computed from content alone."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from certbench.attacks.battery import VERSION as ATTACK_VERSION
from certbench.core.threat import ThreatModel, written
from certbench.files.json_text import plain


def content_key(**parts: Any) -> str:
    """Compute the sha256 of the parts, in any order; infinities are allowed, NaN is refused."""
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def attack_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, steps: int, version: int = ATTACK_VERSION
) -> str:
    """Compute the key of a stored counterexample, for a classifier, an input, a norm and a number of steps."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, seed=seed, steps=steps, version=version,
        domain=written(threat.domain, threat.scale),
    )  # fmt: skip


def row_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, spec: Mapping[str, Any], version: int | list[Any]
) -> str:
    """Compute the key of a stored answer, for a certifier with its options and version, a classifier and an input."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, seed=seed, certifier=spec, version=version,
        domain=written(threat.domain, threat.scale),
    )  # fmt: skip


def hashes(inputs: torch.Tensor) -> list[str]:
    """Hash each input's shape and content, for keys."""
    return [hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest() for x in inputs]
