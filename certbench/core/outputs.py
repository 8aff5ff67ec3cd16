"""Answers other than a radius: margins and outputs over a given ball, and the largest ball for given outputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.certification import blamed, check_state, fitting_batch, prepare, refuse
from certbench.core.certifier import MarginCertifier
from certbench.core.classifier import Classifier, Regressor
from certbench.core.inputs import Inputs, as_tensor, check_inputs
from certbench.core.margins import LIMIT, SLACK, MarginState
from certbench.core.options import Spec, build
from certbench.core.reduction import ReducedState, pieces
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
        state: result of `prepare(certifier, classifier, threat)`, to pay for it once.
        batch_size: largest number of inputs at once; see `certify`.

    Raises:
        ConfigError: bad inputs or radii, or a certifier that bounds no margins.
        UnsupportedError: no bound for this pair, with the reason.
        CertificationError: the computation failed.
    """
    certifier, state, threat, x, radius = _prepared(certifier, classifier, x, threat, eps, state)
    found = torch.full((len(x), classifier.num_classes), torch.inf, dtype=torch.float64)
    for part in _parts(certifier, state, classifier, threat, x, radius, batch_size):
        logits, scale = part.state.classifier.logits_and_scale(part.x)
        label = logits.argmax(dim=1) if threat.scale is None else classifier.double()(x[part.rows]).argmax(dim=1)
        with blamed(certifier):
            lower = certifier.margins(part.state, part.x, label, part.radius).lower - SLACK * scale[:, None]
        own = torch.nn.functional.one_hot(label, classifier.num_classes).bool()
        found[part.rows] = torch.full_like(logits, torch.inf).masked_scatter(~own, _known(lower)).cpu()
    return found


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
    found = torch.zeros(len(x), 2 * outputs, dtype=torch.float64)
    for part in _parts(certifier, state, classifier, threat, x, radius, batch_size):
        _, scale = part.state.classifier.logits_and_scale(part.x)
        with blamed(certifier):
            lower = certifier.lower(part.state, part.x, _both(part.x, outputs), part.radius).lower
        found[part.rows] = _known(lower - SLACK * scale[:, None]).cpu()
    return found[:, :outputs], -found[:, outputs:]


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
    certifier, state, threat, x, radius = _prepared(certifier, classifier, x, threat, 1.0, state)
    low, high = (as_tensor(ends, "bounds of outputs").to(x) for ends in (low, high))
    outputs = classifier.num_classes
    if low.shape != (len(x), outputs) or high.shape != (len(x), outputs) or bool((low.isnan() | high.isnan()).any()):
        raise ConfigError(f"low and high must be of shape {(len(x), outputs)}, without NaN")
    far = torch.finfo(torch.float64).max / 4
    floor = torch.cat([low, -high], dim=1).to(x).clamp(min=-far, max=far)
    largest = torch.zeros(len(x), dtype=torch.float64)
    for part in _parts(certifier, state, classifier, threat, x, radius, batch_size):
        _, scale = part.state.classifier.logits_and_scale(part.x)
        rows, unknown = _both(part.x, outputs), torch.full_like(scale, torch.nan)
        start = Start(unknown, unknown)
        with blamed(certifier):
            found = certifier.reach(part.state, part.x, rows, floor[part.rows], SLACK * scale, start)
        proved = (found.certified - part.rounding).clamp(min=0) * (1 - part.off)
        largest[part.rows] = torch.minimum(proved, ball.farthest(threat, x[part.rows].flatten(1))).cpu()
    return largest


def _prepared(
    certifier: MarginCertifier[Any] | Spec,
    classifier: Classifier,
    x: Inputs,
    threat: ThreatModel | str | float,
    eps: float | Inputs,
    state: Any,
) -> tuple[MarginCertifier[Any], Any, ThreatModel, Tensor, Tensor]:
    built = certifier if isinstance(certifier, MarginCertifier) else build(certifier)
    if not isinstance(built, MarginCertifier):
        raise ConfigError(f"{type(built).__name__} does not bound margins over a given ball; choose crown, say")
    x, threat = check_inputs(classifier, x, threat)
    radius = as_tensor(eps, "radii").to(classifier.device, torch.float64)
    radius = radius.expand(len(x)) if radius.dim() == 0 else radius
    if radius.shape != (len(x),) or not bool(((radius > 0) & (radius <= LIMIT)).all()):
        raise ConfigError(f"eps must be positive and at most {LIMIT:g}, one number or {len(x)} of them")
    refuse(built, classifier, threat)
    if state is not None:
        check_state(state, built, threat)
    if state is not None and isinstance(classifier, Regressor) and len(x):
        ours, theirs = (one(x[:1]).double() for one in (classifier.double(), state.classifier))
        other = isinstance(state, ReducedState) and not isinstance(state.classifier, Regressor)
        if other or not torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9):
            raise ConfigError("the state was prepared for logits, without the module's last function; leave state out")
    with blamed(built):
        state = prepare(built, classifier, threat) if state is None else state
    return built, state, threat, x.to(classifier.device, torch.float64), radius


@dataclass(frozen=True, eq=False)
class _Part:
    """A batch of inputs of one problem without scales.

    Attributes:
        rows: places of the inputs.
        state: the certifier's state.
        x: the inputs.
        radius: radii of the balls that hold those that were asked for.
        rounding: distance that the inputs may be off.
    """

    rows: list[int]
    state: MarginState
    x: Float[Tensor, "m ..."]
    radius: Float[Tensor, " m"]
    rounding: Float[Tensor, " m"]

    @property
    def off(self) -> float:
        """Share by which a difference of a radius and a rounding may be off; 0 if nothing is subtracted."""
        return 2.0**-52 if bool(self.rounding.any()) else 0.0


def _parts(
    certifier: MarginCertifier[Any],
    state: Any,
    classifier: Classifier,
    threat: ThreatModel,
    x: Float[Tensor, "n ..."],
    radius: Float[Tensor, " n"],
    batch_size: int,
) -> Iterator[_Part]:
    """Split inputs into batches, with scales taken out."""
    for piece in pieces(classifier, x, threat):
        with blamed(certifier):
            own = state.of(piece) if isinstance(state, ReducedState) else state
        most = fitting_batch(certifier, own, batch_size)
        for at in range(0, len(piece.rows), most):
            some = slice(at, at + most)
            rows, lost = piece.rows[some], piece.rounding[some]
            wide = torch.where(lost > 0, (radius[rows] + lost) * (1 + 2.0**-52), radius[rows])
            yield _Part(rows, own, piece.z[some], wide, lost)


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
