"""The front door with attacks: certificates that are held against counterexamples before anybody believes them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from certbench.attacks.counterexamples import Counterexamples
from certbench.attacks.walk import Bounds
from certbench.core import ball, certification
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import AttackEvidence, ReasonEvidence
from certbench.core.inputs import Inputs, check_inputs
from certbench.core.options import Spec, build
from certbench.core.threat import ThreatModel
from certbench.errors import CertbenchError, ConfigError, ContradictionError

ROUNDING = 1e-9
"""Relative amount by which a radius may exceed a counterexample's distance: rounding of the distance."""

SHARES = (1.0, 0.3, 0.1, 0.03)
"""Shares of a claimed radius within which it is attacked. A descent in a ball that is much too large may overshoot."""


def certify(
    certifier: Certifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    *,
    attack: bool = False,
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
        attack: whether every certificate is held against the attacks that runs make; for base classifiers alone.
            Use it for a certifier of your own. Counterexamples outside the radii lower `upper`. That none was found
            inside proves nothing.
        state: the result of `prepare(certifier, classifier, threat)`, to compute it only once.
        batch_size: largest number of inputs given to the certifier at once; fewer where more are predicted not to fit
            into memory (`limits`). Radii do not depend on it, beyond float64 rounding.
        seed: base of every random draw. The draws for an input depend on it and on the input alone.
        throw: whether to raise errors; else failed inputs become rows with radius 0, their outcome and the reason.

    Returns:
        One entry per input, in order. With a domain, no radius exceeds the distance of the domain's farthest point;
        where more was proved, the evidence says that the whole domain is certified (`DomainEvidence`).

    Raises:
        ConfigError: inputs have another shape, lie outside the domain, or are not finite; the state is another
            threat model's; or certificates of a smoothed classifier are to be attacked.
        UnsupportedError: there is no certificate for this pair; the message says why.
        MissingBackendError: an optional package is needed.
        CertificationError: the computation failed, if `throw`. Exceptions of other kinds become a `CrashError` that
            names the certifier.
        ContradictionError: an attack found a counterexample inside a certified radius, if `throw`.
    """
    built = certifier if isinstance(certifier, Certifier) else build(certifier)
    if attack and built.subject is not Subject.BASE:
        name = type(built).__name__
        raise ConfigError(f"{name} certifies a smoothed classifier, which certbench audit attacks; leave attack out")
    found = certification.certify(
        built, classifier, x, threat, state=state, batch_size=batch_size, seed=seed, throw=throw
    )
    return held(found, classifier, x, threat, seed=seed, throw=throw) if attack else found


def held(
    certificate: Certificate,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    *,
    steps: int = 100,
    seed: int = 0,
    throw: bool = True,
) -> Certificate:
    """Hold certificates of a base classifier against attacks.

    Args:
        certificate: the certificates.
        classifier: the classifier that they are about.
        x: its inputs.
        threat: norm and domain.
        steps: number of steps of each attack.
        seed: seed of the attacks.
        throw: whether a contradiction is raised; else its row has radius 0, and the reason in the evidence.

    Returns:
        The certificates, with `upper` no farther than the closest counterexample found.

    Raises:
        ContradictionError: a counterexample lies inside a radius, or the class is not the classifier's, if `throw`.
    """
    from certbench.attacks.battery import INSIDE, attack, refute  # foolbox, which takes a second

    x, threat = check_inputs(classifier, x, threat)
    if len(x) == 0:
        return certificate
    nearest, failed = Counterexamples.none(x), {}
    reach = torch.minimum(certificate.radius, _widest(threat, x)) * (INSIDE if threat.p else 1.0)

    def near() -> Counterexamples:
        return attack(classifier, x, (threat,), _box(threat, x), steps=steps, seed=seed)[threat]

    def inside(share: float) -> Counterexamples:
        return refute(
            classifier,
            x,
            threat,
            reach * share,
            threat.ends(x),
            steps=steps,
            restarts=2,
            seed=seed,
            known={threat: nearest},
        )

    searches: dict[str, Callable[[], Counterexamples]] = {"battery": near}
    searches |= {f"descent, {share:g}": partial(inside, share) for share in SHARES}
    for name, search in searches.items():
        try:
            found = search()
        except CertbenchError:
            raise
        except Exception as error:  # a module without a gradient, say: the evidence tells of it
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        nearest = nearest.closer(found.attack, found.distance, found.point, found.distance.isfinite())
    label = classifier.double()(x).argmax(dim=1).cpu()
    radius, upper, prediction = certificate.radius.clone(), certificate.upper.clone(), certificate.prediction.clone()
    evidence, outcome, wrong = list(certificate.evidence), list(certificate.outcome), {}
    for i, distance in enumerate(nearest.distance.tolist()):
        claimed = radius[i].item()
        evidence[i] = AttackEvidence(attack=nearest.attack[i], failed=failed or None, more=evidence[i]).to_json()
        reason = ""
        if claimed > distance * (1 + ROUNDING) or (threat.p == 0 and 0 < distance <= claimed):
            reason = f"a radius of {claimed:.6g}, but {nearest.attack[i]} found a counterexample at {distance:.6g}"
        elif claimed > 0 and prediction[i] != label[i]:
            reason = f"class {int(prediction[i])} is certified, but the classifier's is {int(label[i])}"
        if reason:
            wrong[i], radius[i], prediction[i], outcome[i] = reason, 0.0, ABSTAIN, Outcome.FAILED
            evidence[i] = ReasonEvidence(reason=f"contradicted: {reason}", more=_without_reason(evidence[i])).to_json()
            upper[i] = distance
        else:
            upper[i] = max(claimed, min(upper[i].item(), distance))
    if wrong and throw:
        first, reason = next(iter(wrong.items()))
        raise ContradictionError(f"{len(wrong)} of {len(x)} radii are contradicted; first, of input {first}: {reason}")
    return replace(
        certificate, radius=radius, upper=upper, prediction=prediction, outcome=tuple(outcome), evidence=tuple(evidence)
    )


def _around(x: Tensor) -> tuple[float, float]:
    """Return a box around all inputs, three times as wide, for attacks that need one."""
    low, high = float(x.min()), float(x.max())
    room = (high - low) or max(abs(low), 1.0)
    return low - room, high + room


def _box(threat: ThreatModel, x: Tensor) -> Bounds:
    """Return the box that attacks stay in: the domain, where it has ends, else the box around all inputs."""
    around = _around(x)
    if threat.domain is None:
        return around
    low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in threat.ends(x.double()))
    if low.dim() == 0 and bool(low.isfinite() & high.isfinite()):
        return threat.ends(x)
    return torch.where(low.isinf(), around[0], low), torch.where(high.isinf(), around[1], high)


def _widest(threat: ThreatModel, x: Tensor) -> Tensor:
    """Return the radius of the largest ball that is attacked: it holds the domain, or a hundred sizes of the input."""
    flat = x.flatten(1).to("cpu", torch.float64)
    if threat.scale is not None:
        scale = flat.new_tensor(threat.scale)
        if threat.domain is None and threat.p != 0:
            return 100 * ball.size(flat[:, scale > 0] / scale[scale > 0])
    if threat.domain is not None or threat.p == 0:
        return ball.farthest(threat.within(0, 1) if threat.domain is None else threat, flat)
    return 100 * ball.size(flat)


def _without_reason(evidence: Any) -> dict[str, Any]:
    return {key: value for key, value in evidence.items() if key != "reason"}
