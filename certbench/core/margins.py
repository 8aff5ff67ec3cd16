"""Margins: differences of logits, their lower bounds, and the radii that linear bounds prove."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core import ball
from certbench.core.classifier import Classifier
from certbench.core.evidence import ReasonEvidence
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError


@dataclass(frozen=True, eq=False)
class MarginState:
    """The preparation of every margin certifier: the classifier in float64 and the threat model."""

    classifier: Classifier
    threat: ThreatModel

    def __post_init__(self) -> None:
        """Refuse scales, which the front door takes out.

        Raises:
            ConfigError: there are some.
        """
        if self.threat.scale is not None:
            raise ConfigError("a certifier knows no scales; write certbench.prepare(certifier, ...)", ("scale",))

    @property
    def head(self) -> str | None:
        """The module's last function, if it was left out because it keeps the order of the classes."""
        return None


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower bounds of k linear functions of the outputs over a ball around each of n inputs, in float64.

    Attributes:
        lower: the bounds.
        coefficients: coefficients of a linear function of the flat input that lies below on the whole ball; None if
            the method has none.
        centre: value of such a function, or of a cone, at the input itself; None if there is neither.
        slope: slope of a cone that lies below on the whole ball, centre - slope * distance from the input; None if
            there is none.
    """

    lower: Float[Tensor, "n k"]
    coefficients: Float[Tensor, "n k d"] | None = None
    centre: Float[Tensor, "n k"] | None = None
    slope: Float[Tensor, "n k"] | None = None

    @staticmethod
    def linear(
        coefficients: Float[Tensor, "n k d"],
        centre: Float[Tensor, "n k"],
        threat: ThreatModel,
        x: Float[Tensor, "n d"],
        eps: Float[Tensor, " n"],
    ) -> "Bounds":
        """Make bounds from the linear function alone: its minimum over the ball."""
        return Bounds(centre - ball.fall(coefficients, threat, x, eps), coefficients, centre)

    @staticmethod
    def steep(centre: Float[Tensor, "n k"], slope: Float[Tensor, "n k"], eps: Float[Tensor, " n"]) -> "Bounds":
        """Make bounds from a cone alone; its slope is raised by `SLACK`, for the rounding errors of its computation."""
        slope = slope * (1 + SLACK)
        return Bounds(centre - slope * eps[:, None], None, centre, slope)

    def less(self, error: Float[Tensor, "n k"]) -> "Bounds":
        """Lower the bounds by an error."""
        centre = None if self.centre is None else self.centre - error
        return Bounds(self.lower - error, self.coefficients, centre, self.slope)

    def at_least(self, lower: Float[Tensor, "n k"]) -> "Bounds":
        """Raise the bounds to other lower bounds over the same balls; a bound that is NaN stays so."""
        return Bounds(torch.maximum(self.lower, lower), self.coefficients, self.centre, self.slope)

    def crossing(
        self, threat: ThreatModel, x: Float[Tensor, "n d"], floor: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Return the radius up to which all linear functions, or cones, exceed `floor`; NaN where there are none."""
        if self.centre is not None and self.slope is not None:
            return ((self.centre - floor) / self.slope).amin(dim=1)
        if self.coefficients is None or self.centre is None:
            return torch.full_like(floor[:, 0], torch.nan)
        return ball.crossing(self.coefficients, self.centre - floor, threat, x).amin(dim=1)


def margin_rows(label: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n others classes"]:
    """Return the rows e_label - e_j of every other class j, in order."""
    identity = torch.eye(classes, dtype=torch.float64, device=label.device)
    rows = identity[label][:, None] - identity
    return rows[torch.arange(classes, device=label.device) != label[:, None]].view(len(label), classes - 1, classes)


def tangent(state: MarginState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the radius at which the first tangent of a margin reaches zero: a guess, good if the network is smooth."""
    rows = margin_rows(label, state.classifier.num_classes).to(x)
    points = x.repeat_interleave(rows.shape[1], dim=0).requires_grad_()
    with torch.enable_grad():
        margins = (state.classifier.module(points) * rows.flatten(0, 1)).sum(dim=1)
        if not margins.requires_grad:
            return torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
        (gradient,) = torch.autograd.grad(margins.sum(), points)
    slopes, heights = gradient.reshape(len(x), rows.shape[1], -1), margins.detach().view(len(x), -1)
    return ball.crossing(slopes, heights, state.threat, x.flatten(1)).amin(dim=1)


LIMIT = 1e40
"""Largest radius that is ever claimed; it keeps underflow in a slope from mattering."""


FLOOR = 1e-100
"""Value that a margin has to exceed, whatever the scale: squares underflow below 1e-154, other products too."""


SLACK = 1e-9
"""Rounding allowance of a margin bound, relative to the largest output of any submodule. A heuristic: margin bounds of
the zoo and of two MNIST networks moved by at most 6e-14 of the largest logit with batch size and threads. It is no
enclosure: a network that is made for it can still hide larger numbers, inside one submodule, say."""


NO_MARGIN = ReasonEvidence(reason="the margin at the input itself is zero, within rounding")
"""Evidence of a radius of 0, where `clean_margin` is within `SLACK` and leaves nothing to certify."""


NO_BALL = ReasonEvidence(
    reason="no radius that was tried is proved: a margin's bound was not positive even at the smallest of them"
)
"""Evidence of a radius of 0 after a search; how small the smallest radius was, the bracket says. A search that is free
to choose ends at tiny ones, where intervals of deep networks are wider than margins by their rounding errors alone."""


def clean_margin(logits: Float[Tensor, "n classes"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the logit of the label minus the largest other logit."""
    own = logits.gather(1, label[:, None]).squeeze(1)
    return own - logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
