"""Answers other than a radius: margins and outputs over a given ball, and the largest ball for given outputs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.certification import blamed, refuse
from certbench.core.certifier import MarginCertifier
from certbench.core.classifier import Classifier, Regressor
from certbench.core.inputs import Inputs, as_tensor, check_inputs
from certbench.core.margins import LIMIT, SLACK, MarginState
from certbench.core.options import Spec, build
from certbench.core.search import Start
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError


def margins(
    certifier: MarginCertifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    eps: float | Inputs,
    *,
    state: Any = None,
    batch_size: int = 64,
) -> Float[Tensor, "n classes"]:
    """Bound each margin f_c - f_j from below over the ball, c being the classifier's own prediction.

    f are the logits. Where the module ends with a softmax, or another function that keeps the order of the classes,
    they are the numbers before it. Class j cannot be reached inside the ball where its entry is positive. The entry of
    c itself is infinity, so that a row is certified where `(margins > 0).all(dim=1)`, and its least entry is the least
    margin.

    Args:
        certifier: one that bounds margins, its name, or a mapping with its name and options.
        classifier: the classifier.
        x: `(n, *input_shape)`, a tensor or a NumPy array, inside the domain.
        threat: the norm, and the domain where one is meant; see `certify`.
        eps: radius of the ball, one for all or one per input.
        state: result of `certifier.prepare(classifier, threat)`, to pay for it once.
        batch_size: number of inputs at once.

    Raises:
        ConfigError: bad inputs or radii, or a certifier that bounds no margins.
        UnsupportedError: no bound for this pair, with the reason.
        CertificationError: the computation failed.
    """
    certifier, state, threat, x, radius = _prepared(certifier, classifier, x, threat, eps, state)
    parts = [torch.zeros(0, classifier.num_classes, dtype=torch.float64)]
    for inputs, r in zip(torch.split(x, batch_size), torch.split(radius, batch_size), strict=True):
        logits, scale = state.classifier.logits_and_scale(inputs)
        label = logits.argmax(dim=1)
        with blamed(certifier):
            lower = certifier.margins(state, inputs, label, r).lower - SLACK * scale[:, None]
        own = torch.nn.functional.one_hot(label, classifier.num_classes).bool()
        parts.append(torch.full_like(logits, torch.inf).masked_scatter(~own, _known(lower)).cpu())
    return torch.cat(parts)


def output_bounds(
    certifier: MarginCertifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    eps: float | Inputs,
    *,
    state: Any = None,
    batch_size: int = 64,
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs"]]:
    """Bound every output over the ball from both sides, of a `Regressor` or of a classifier's module.

    The outputs are those of `classifier(x)`: after a softmax, if the module ends with one. Arguments and errors as for
    `margins`.
    """
    classifier = _regressor(classifier)
    certifier, state, threat, x, radius = _prepared(certifier, classifier, x, threat, eps, state)
    outputs = classifier.num_classes
    lows, highs = [torch.zeros(0, outputs, dtype=torch.float64)], [torch.zeros(0, outputs, dtype=torch.float64)]
    for inputs, r in zip(torch.split(x, batch_size), torch.split(radius, batch_size), strict=True):
        _, scale = state.classifier.logits_and_scale(inputs)
        with blamed(certifier):
            lower = _known(certifier.lower(state, inputs, _both(inputs, outputs), r).lower - SLACK * scale[:, None])
        lows.append(lower[:, :outputs].cpu())
        highs.append(-lower[:, outputs:].cpu())
    return torch.cat(lows), torch.cat(highs)


def output_radius(
    certifier: MarginCertifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    low: Inputs,
    high: Inputs,
    *,
    state: Any = None,
    batch_size: int = 64,
) -> Float[Tensor, " n"]:
    """Return the largest radius found within which every output stays between `low` and `high`; 0 if none is proved.

    With a domain, it is at most the distance of the domain's farthest point.

    Both are (n, outputs); bounds that do not matter may be infinite. Outputs are those of `output_bounds`; other
    arguments and errors as for `margins`.
    """
    classifier = _regressor(classifier)
    certifier, state, threat, x, _ = _prepared(certifier, classifier, x, threat, 1.0, state)
    low, high = (as_tensor(ends, "bounds of outputs").to(x) for ends in (low, high))
    outputs = classifier.num_classes
    if low.shape != (len(x), outputs) or high.shape != (len(x), outputs) or bool((low.isnan() | high.isnan()).any()):
        raise ConfigError(f"low and high must be of shape {(len(x), outputs)}, without NaN")
    far = torch.finfo(torch.float64).max / 4
    floor = torch.cat([low, -high], dim=1).to(x).clamp(min=-far, max=far)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for inputs, floors in zip(torch.split(x, batch_size), torch.split(floor, batch_size), strict=True):
        _, scale = state.classifier.logits_and_scale(inputs)
        rows, unknown = _both(inputs, outputs), torch.full_like(scale, torch.nan)
        with blamed(certifier):
            found = certifier.reach(state, inputs, rows, floors, SLACK * scale, Start(unknown, unknown))
        parts.append(torch.minimum(found.certified, ball.farthest(threat, inputs.flatten(1))).cpu())
    return torch.cat(parts)


def _prepared(
    certifier: MarginCertifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    eps: float | Inputs,
    state: Any,
) -> tuple[MarginCertifier[Any], MarginState, ThreatModel, Tensor, Tensor]:
    built = certifier if isinstance(certifier, MarginCertifier) else build(certifier)
    if not isinstance(built, MarginCertifier):
        raise ConfigError(f"{type(built).__name__} does not bound margins over a given ball; choose crown, say")
    x, threat = check_inputs(classifier, x, threat)
    radius = as_tensor(eps, "radii").to(classifier.device, torch.float64)
    radius = radius.expand(len(x)) if radius.dim() == 0 else radius
    if radius.shape != (len(x),) or not bool(((radius > 0) & (radius <= LIMIT)).all()):
        raise ConfigError(f"eps must be positive and at most {LIMIT:g}, one number or {len(x)} of them")
    refuse(built, classifier, threat)
    if getattr(state, "threat", threat) != threat:
        raise ConfigError(f"the state was prepared for {state.threat}, not for {threat}; prepare it anew")
    if state is not None and isinstance(classifier, Regressor) and len(x):
        ours, theirs = (one(x[:1]).double() for one in (classifier.double(), state.classifier))
        if not torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9):
            raise ConfigError("the state was prepared for logits, without the module's last function; leave state out")
    with blamed(built):
        state = built.prepare(classifier, threat) if state is None else state
    return built, state, threat, x.to(classifier.device, torch.float64), radius


def _regressor(classifier: Classifier) -> Regressor:
    """Return the module with its outputs as they are; a classifier's logits may lack its last function."""
    if isinstance(classifier, Regressor):
        return classifier
    return Regressor(classifier.module, classifier.input_shape, classifier.num_classes, classifier.name)


def _both(x: Tensor, outputs: int) -> Float[Tensor, "n rows outputs"]:
    """Return the rows for every output, and for minus every output."""
    identity = torch.eye(outputs, dtype=x.dtype, device=x.device)
    return torch.cat([identity, -identity]).expand(len(x), -1, -1)


def _known(lower: Tensor) -> Tensor:
    """Replace bounds that are NaN by no bound."""
    return torch.where(lower.isnan(), -torch.inf, lower)
