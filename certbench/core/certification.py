"""The front door: it does checks, chunks, seeds, timing and failures, so that backends hold mathematics only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from certbench.core.evidence import BracketEvidence, DomainEvidence, HalvedEvidence, HeadEvidence, TracebackEvidence
from certbench.core.inputs import Inputs, check_inputs, input_seed
from certbench.core.memory import out_of_memory
from certbench.core.options import Spec, build
from certbench.core.reduction import ReducedState
from certbench.core.threat import ThreatModel
from certbench.errors import CertbenchError, CertificationError, ConfigError, CrashError, UnsupportedError


def certify(
    certifier: Certifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
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
        x: `(n, *input_shape)`, a tensor or a NumPy array, inside the threat model's domain if it has one.
        threat: the norm, and the domain if there is one; `"L2"`, `"inf"` or `2` name a norm without a domain.
        state: the result of `prepare(certifier, classifier, threat)`, to compute it only once.
        batch_size: largest number of inputs given to the certifier at once; fewer where more are predicted not to fit
            into memory (`limits`). Radii do not depend on it, beyond float64 rounding.
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
        CertificationError: the computation failed, if `throw`. Exceptions of other kinds become a `CrashError` that
            names the certifier.
    """
    if not isinstance(certifier, Certifier):
        certifier = build(certifier)
    x, threat = check_inputs(classifier, x, threat)
    if isinstance(classifier, Regressor):
        raise ConfigError(f"{classifier.name} has no classes; ask for output_bounds or output_radius")
    refuse(certifier, classifier, threat)
    if state is not None:
        check_state(state, certifier, threat)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number, at least 1, not {batch_size!r}")
    if len(x) == 0:
        return Certificate.nothing(0, Outcome.COMPLETED, "")
    if state is None:
        try:
            state = _prepare(certifier, classifier, threat)
        except CertificationError as error:
            if throw:
                raise
            return _failed(len(x), error)
    x = x.to(classifier.device, torch.float64)
    batch_size = fitting_batch(certifier, state, batch_size)
    parts = [_batch(certifier, state, part, classifier, threat, seed, throw) for part in torch.split(x, batch_size)]
    return Certificate.concatenate(parts)


def prepare(certifier: Certifier[Any] | Spec, classifier: Classifier, threat: ThreatModel | str | float) -> Any:
    """Do the work that a certifier does once per classifier and threat model; the result is the `state` of `certify`.

    Where some coordinates do not move (`ThreatModel.scale`), this work depends on the input, and is done with each.

    Args:
        certifier: a certifier, its name, or a mapping with its name and options.
        classifier: the classifier.
        threat: the threat model, or a norm.

    Raises:
        UnsupportedError: there is no certificate for this pair; the message says why.
        MissingBackendError: an optional package is needed.
        CertificationError: the computation failed.
    """
    built = certifier if isinstance(certifier, Certifier) else build(certifier)
    none = torch.zeros(0, *classifier.input_shape, dtype=torch.float64)
    _, threat = check_inputs(classifier, none, threat)
    refuse(built, classifier, threat)
    return _prepare(built, classifier, threat)


def _prepare(certifier: Certifier[Any], classifier: Classifier, threat: ThreatModel) -> Any:
    with blamed(certifier):
        if threat.scale is not None:
            return ReducedState.prepare(certifier, classifier, threat)
        return certifier.prepare(classifier, threat)


def check_state(state: Any, certifier: Certifier[Any], threat: ThreatModel) -> None:
    """Refuse a state that was prepared for another threat model, or without its scales.

    Raises:
        ConfigError: it was.
    """
    if getattr(state, "threat", threat) != threat:
        raise ConfigError(f"the state was prepared for {state.threat}, not for {threat}; prepare it anew")
    if (threat.scale is not None) != isinstance(state, ReducedState):
        raise ConfigError("the state knows no scales; prepare it with certbench.prepare(certifier, classifier, threat)")
    if isinstance(state, ReducedState) and state.certifier != certifier:
        raise ConfigError(f"the state was prepared by {state.certifier}, not by {certifier}; prepare it anew")


def fitting_batch(certifier: Certifier[Any], state: Any, most: int) -> int:
    """Return the number of inputs that may be given to a certifier at once, at most `most`."""
    states = list(state.known.values()) if isinstance(state, ReducedState) else [state]
    with blamed(certifier):
        costs = [certifier.cost(one) for one in states]
    return min((cost.batch(most) for cost in costs if cost is not None), default=most)


def _batch(
    certifier: Certifier[Any],
    state: Any,
    x: Tensor,
    classifier: Classifier,
    threat: ThreatModel,
    seed: int,
    throw: bool,
) -> Certificate:
    """Certify one batch, and time it."""
    start = time.perf_counter()
    try:
        with blamed(certifier):
            seeds = [input_seed(seed, row) for row in x]
            scaled = isinstance(state, ReducedState)
            certificate = state.certify(x, seeds) if scaled else certifier.certify(state, x, seeds)
            _same_length(certificate, x)
    except (CertificationError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            if len(x) > 1:
                half = (len(x) + 1) // 2
                parts = [
                    _batch(certifier, state, part, classifier, threat, seed, throw) for part in (x[:half], x[half:])
                ]
                return _halved(Certificate.concatenate(parts), half)
            failed = Certificate.nothing(1, Outcome.OUT_OF_MEMORY, f"out of memory at batch size 1: {error}")
        elif isinstance(error, CertificationError):
            failed = _failed(len(x), error)
        else:
            raise
        if throw:
            raise
        certificate = failed
    each = (time.perf_counter() - start) / len(x)
    certificate = _within(threat, x, certificate)
    if classifier.dropped:
        evidence = (HeadEvidence(dropped=classifier.dropped, more=one).to_json() for one in certificate.evidence)
        certificate = replace(certificate, evidence=tuple(evidence))
    return replace(certificate, seconds=torch.full((len(x),), each, dtype=torch.float64))


def refuse(certifier: Certifier[Any], classifier: Classifier, threat: ThreatModel) -> None:
    """Refuse a pair that has no certificate.

    Raises:
        UnsupportedError: there is none; the message says why.
    """
    plain = replace(threat, scale=None)
    with blamed(certifier):
        reason = certifier.unsupported(classifier, plain)
    if reason is None and certifier.rounding_safe and threat.scale is not None and not threat.mask:
        reason = "rounding_safe is about the float program, which takes no scales; leave it out, or write a mask"
    if reason is None and certifier.rounding_safe and classifier.dropped:
        reason = f"rounding_safe is about the float program, of which the last {classifier.dropped} was left out"
    if reason is not None:
        raise UnsupportedError(reason)


@contextmanager
def blamed(certifier: Certifier[Any]) -> Iterator[None]:
    """Name the certifier in an exception that is none of ours; those, and running out of memory, pass.

    Raises:
        CrashError: there was one.
    """
    try:
        yield
    except CertbenchError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        name = type(certifier).__name__
        raise CrashError(f"{name} raised {type(error).__name__}: {str(error) or 'no message'} (a bug in it)") from error


def _failed(n: int, error: CertificationError) -> Certificate:
    """Make rows of a failure; those of a bug have the traceback."""
    nothing = Certificate.nothing(n, Outcome.FAILED, f"{type(error).__name__}: {error}")
    if not isinstance(error, CrashError):
        return nothing
    trace = TracebackEvidence(reason=f"{type(error).__name__}: {error}", traceback=error.trace).to_json()
    return replace(nothing, evidence=(trace,) * n)


def _halved(certificate: Certificate, size: int) -> Certificate:
    """Record in each answer that memory had run out with a larger batch."""
    evidence = tuple(
        HalvedEvidence(batch_after_out_of_memory=size).to_json() | dict(one)  # of several sizes, the last one
        if outcome.answered
        else one
        for one, outcome in zip(certificate.evidence, certificate.outcome, strict=True)
    )
    return replace(certificate, evidence=evidence)


def _same_length(certificate: Any, x: Tensor) -> None:
    """Refuse an answer that is no certificate of these inputs."""
    if not isinstance(certificate, Certificate):
        raise TypeError(f"certify returned a {type(certificate).__name__}, not a Certificate")
    if len(certificate) != len(x):
        raise ValueError(f"certify returned {len(certificate)} rows for {len(x)} inputs")


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
