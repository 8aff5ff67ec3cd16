"""The float audit: the same bounds in float64 and float32, alone and in a batch, with one thread and with two.

Bounds are computed in floating point, so that they change with precision, batch size and threads. If a margin at the
claimed radius is no larger than such changes, the certificate depends on rounding. If float32 proves a margin that
float64 does not prove, a verifier in float32 would have certified it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.classifier import Classifier
from certbench.core.inputs import check_inputs
from certbench.core.margins import margin_rows
from certbench.core.reduction import ReducedState, pieces
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError


@dataclass(frozen=True)
class FloatAudit:
    """The effect of rounding on one certifier's bounds of margins, for one classifier in one norm.

    Sizes are relative to the largest number that a submodule of the network computes for the input.

    Attributes:
        inputs: number of inputs with a finite positive radius.
        bounds: number of compared margins, one per input and rival class.
        batch: largest change of a float64 bound between batch size 1 and all inputs at once.
        threads: largest change of a float64 bound between one thread and two.
        single: largest change of a bound between float64 and float32.
        exceed: number of float32 bounds that exceed their float64 values.
        claims: number of inputs for which float32 proves a radius, just beyond the claimed one, that float64 does not.
        living: number of inputs whose least margin at the claimed radius is no larger than its changes by batch and
            threads.
        room: the least margin at a claimed radius.
        arithmetic: the network that is certified: "real", or the float program, named by its precision.
    """

    inputs: int
    bounds: int
    batch: float
    threads: float
    single: float
    exceed: int
    claims: int
    living: int
    room: float
    arithmetic: str


STEPS, FARTHEST = 14, 1.01
"""Number of steps, and largest radius relative to the claimed one, of the search for the end of what float64 proves."""


@torch.no_grad()
def float_audit(
    certifier: Certifier[Any],
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threat: ThreatModel,
    radius: Float[Tensor, " n"],
    *,
    state: Any = None,
) -> FloatAudit:
    """Bound margins at certified radii again: in float64 and float32, alone and in a batch, with one and two threads.

    Args:
        certifier: a certifier that bounds margins.
        classifier: the certified classifier.
        x: inputs, `(n, *input_shape)`.
        threat: norm and domain.
        radius: certified radii; inputs with radius 0 or infinity are left out.
        state: result of `certifier.prepare`, to pay for it once.

    Raises:
        ConfigError: the certifier bounds no margins, or no radius is left.
        UnsupportedError: the certifier has no bounds for this classifier.
    """
    if not isinstance(certifier, MarginCertifier):
        raise ConfigError(f"{type(certifier).__name__} bounds no margins; there is nothing to compare")
    x, threat = check_inputs(classifier, x, threat)
    if threat.scale is not None:
        parts = pieces(classifier, x.to(classifier.device, torch.float64), threat)
        states = state if isinstance(state, ReducedState) else ReducedState(certifier, classifier, threat)
        audits = [
            float_audit(certifier, one.classifier, one.z, one.threat, radius[one.rows], state=states.of(one))
            for one in parts
            if bool(((radius[one.rows] > 0) & radius[one.rows].isfinite()).any())
        ]
        if not audits:
            raise ConfigError("no radius is positive and finite; there is nothing to look at")
        return _joined(audits)
    wanted = (radius > 0) & radius.isfinite()
    if not bool(wanted.any()):
        raise ConfigError("no radius is positive and finite; there is nothing to look at")
    x, eps = x[wanted].to(classifier.device, torch.float64), radius[wanted].to(classifier.device, torch.float64)
    if state is None:
        state = certifier.prepare(classifier, threat)
    logits, scale = classifier.double().logits_and_scale(x)
    rows = margin_rows(logits.argmax(dim=1), classifier.num_classes).to(x)

    def together(at: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
        return certifier.lower(state, x, rows, at).lower

    with threads(1):
        usual = together(eps)
        alone = torch.cat(
            [certifier.lower(state, x[i : i + 1], rows[i : i + 1], eps[i : i + 1]).lower for i in range(len(x))]
        )
        small = certifier.single(state)

        def single(at: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
            return certifier.lower(small, x.float(), rows.float(), at.float()).lower.double()

        rough = single(eps)
        beyond = _edge(together, eps)
        tempted = (single(beyond).amin(dim=1) > 0) & (together(beyond).amin(dim=1) <= 0)
    with threads(2):
        threaded = together(eps)
    moved = torch.maximum(_off(usual, alone, scale), _off(usual, threaded, scale))
    room = usual.amin(dim=1) / scale
    return FloatAudit(
        inputs=len(x),
        bounds=usual.numel(),
        batch=float(_off(usual, alone, scale).max()),
        threads=float(_off(usual, threaded, scale).max()),
        single=float(_off(usual, rough, scale).max()),
        exceed=int((rough > usual).sum()),
        claims=int(tempted.sum()),
        living=int((~(room > moved)).sum()),
        room=float(room.min()),
        arithmetic=certifier.arithmetic(state),
    )


def _joined(parts: Sequence[FloatAudit]) -> FloatAudit:
    """Return the audit of all inputs from those of some each."""
    first, *others = parts
    for other in others:
        first = FloatAudit(
            inputs=first.inputs + other.inputs,
            bounds=first.bounds + other.bounds,
            batch=max(first.batch, other.batch),
            threads=max(first.threads, other.threads),
            single=max(first.single, other.single),
            exceed=first.exceed + other.exceed,
            claims=first.claims + other.claims,
            living=first.living + other.living,
            room=min(first.room, other.room),
            arithmetic=first.arithmetic,
        )
    return first


def _off(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"], scale: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the largest difference per input; NaN and infinity differ by infinity, unless both are the same."""
    difference = torch.where(a == b, 0.0, (a - b).abs()).amax(dim=1) / scale
    return difference.nan_to_num(nan=torch.inf)


def _edge(bound: Callable[[Tensor], Tensor], eps: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return a radius just beyond the one at which the least float64 margin reaches zero, at most `FARTHEST` * eps."""
    low, high = eps, eps * FARTHEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        proved = bound(middle).amin(dim=1) > 0
        low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
    return high


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
