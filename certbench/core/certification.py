"""The front door: it does checks, chunks, seeds, timing and failures, so that backends hold mathematics only."""

import time
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Outcome
from certbench.core.classifier import Classifier, Regressor
from certbench.core.evidence import BracketEvidence, DomainEvidence
from certbench.core.inputs import check_inputs, input_seed
from certbench.core.memory import out_of_memory
from certbench.core.options import Spec, build
from certbench.core.threat import ThreatModel
from certbench.errors import CertificationError, ConfigError, UnsupportedError


def certify(
    certifier: Certifier[Any] | Spec,
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threat: ThreatModel,
    *,
    state: Any = None,
    batch_size: int = 64,
    seed: int = 0,
    throw: bool = True,
) -> Certificate:
    """Certify the classifier's own prediction at each input.

    Args:
        certifier: a certifier, its name, or a mapping with its name and options.
        classifier: the classifier that is certified (or, for smoothing, smoothed and then certified).
        x: `(n, *input_shape)`, inside the threat model's domain if it has one.
        threat: the norm, and the domain if there is one.
        state: the result of `certifier.prepare(classifier, threat)`, to compute it only once.
        batch_size: number of inputs given to the certifier at once. Radii do not depend on it, beyond float64 rounding.
        seed: base of every random draw. The draws for an input depend on it and on the input alone.
        throw: whether to raise errors; else failed inputs become rows with radius 0, their outcome and the reason.

    Returns:
        One entry per input, in order. With a domain, no radius exceeds the distance of the domain's farthest point;
        where more was proved, the evidence says that the whole domain is certified (`DomainEvidence`).

    Raises:
        ConfigError: inputs have another shape, lie outside the domain, or are not finite; or the state is another
            threat model's.
        UnsupportedError: there is no certificate for this pair; the message says why.
        MissingBackendError: an optional package is needed.
        CertificationError: the computation failed, if `throw`.
    """
    if not isinstance(certifier, Certifier):
        certifier = build(certifier)
    check_inputs(classifier, x, threat)
    if isinstance(classifier, Regressor):
        raise ConfigError(f"{classifier.name} has no classes; ask for output_bounds or output_radius")
    reason = certifier.unsupported(classifier, threat)
    if reason is not None:
        raise UnsupportedError(reason)
    if getattr(state, "threat", threat) != threat:
        raise ConfigError(f"the state was prepared for {state.threat}, not for {threat}; prepare it anew")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    if len(x) == 0:
        return Certificate.nothing(0, Outcome.COMPLETED, "")
    if state is None:
        try:
            state = certifier.prepare(classifier, threat)
        except CertificationError as error:
            if throw:
                raise
            return Certificate.nothing(len(x), Outcome.FAILED, f"{type(error).__name__}: {error}")
    x = x.to(classifier.device, torch.float64)
    parts = [_batch(certifier, state, part, threat, seed, throw) for part in torch.split(x, batch_size)]
    return Certificate.concatenate(parts)


def _batch(
    certifier: Certifier[Any], state: Any, x: Tensor, threat: ThreatModel, seed: int, throw: bool
) -> Certificate:
    """Certify one batch, and time it."""
    start = time.perf_counter()
    try:
        certificate = certifier.certify(state, x, [input_seed(seed, row) for row in x])
    except (CertificationError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            if len(x) > 1:
                half = (len(x) + 1) // 2
                return Certificate.concatenate(
                    [_batch(certifier, state, part, threat, seed, throw) for part in (x[:half], x[half:])]
                )
            failed = Certificate.nothing(1, Outcome.OUT_OF_MEMORY, f"out of memory at batch size 1: {error}")
        elif isinstance(error, CertificationError):
            failed = Certificate.nothing(len(x), Outcome.FAILED, f"{type(error).__name__}: {error}")
        else:
            raise
        if throw:
            raise
        certificate = failed
    each = (time.perf_counter() - start) / len(x)
    return replace(_within(threat, x, certificate), seconds=torch.full((len(x),), each, dtype=torch.float64))


WHOLE = 1e-12
"""Share by which a radius must exceed the distance of the domain's farthest point before the whole domain counts as
certified: more than that distance is off by rounding."""


def _within(threat: ThreatModel, x: Float[Tensor, "n ..."], certificate: Certificate) -> Certificate:
    """Cut radii at the farthest point of the domain, whoever proved them; beyond it there is nothing to certify."""
    if threat.domain is None:
        return certificate
    farthest = ball.farthest(threat, x.flatten(1)).to(certificate.radius)
    evidence, outcome = list(certificate.evidence), list(certificate.outcome)
    for i in (certificate.radius > farthest).nonzero().flatten().tolist():
        far = float(farthest[i])
        bracket = BracketEvidence.read(evidence[i])
        if bracket is not None:
            evidence[i] = replace(bracket, bracket=(far, bracket.bracket[1])).to_json()
        if certificate.radius[i] > far * (1 + WHOLE):
            evidence[i] = DomainEvidence(farthest=far, more=evidence[i]).to_json()
            outcome[i] = Outcome.COMPLETED if outcome[i] is Outcome.LIMITED else outcome[i]
    radius = torch.minimum(certificate.radius, farthest)
    return replace(certificate, radius=radius, outcome=tuple(outcome), evidence=tuple(evidence))
