"""The interface of every certifier, and the shared half of those that bound margins."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench.core import ball
from certbench.core.certificate import Certificate
from certbench.core.claims import Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.search import Evaluation, Found, RadiusSearch, Start
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError

State = TypeVar("State")


class Certifier(ABC, Generic[State]):
    """A method with its options.

    Subclasses are frozen dataclasses. Their fields are the options: what a suite file may set, what
    `describe` stores, what the table prints. The norm is an argument, never an option.
    """

    guarantee: ClassVar[Guarantee]
    subject: ClassVar[Subject] = Subject.BASE
    norms: ClassVar[frozenset[float]]
    version: ClassVar[int] = 1
    """Raised when the mathematics changes, so that stored answers of the old one are not reused."""

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        """Why there is no certificate for this pair, or None; `prepare` may still refuse a layer."""
        del classifier
        if threat.p in self.norms:
            return None
        offered = ", ".join(f"L{p:g}" for p in sorted(self.norms))
        return f"{threat.name} is not offered, only {offered}"

    @abstractmethod
    def prepare(self, classifier: Classifier, threat: ThreatModel) -> State:
        """Work that is done once per classifier and threat model, and timed apart.

        Raises:
            UnsupportedError: a layer has no bound here; the message names it.
            MissingBackendError: an optional package is needed.
        """

    @abstractmethod
    def certify(self, state: State, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Certify a batch; row i depends on `x[i]` and `seeds[i]` alone, never on its neighbours.

        Raises:
            CertificationError: the computation failed for this batch.
        """


@dataclass(frozen=True, eq=False)
class MarginState:
    """What every margin certifier prepares: the classifier in float64 and the threat model."""

    classifier: Classifier
    threat: ThreatModel


BoundState = TypeVar("BoundState", bound=MarginState)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower bounds of k linear functions of the outputs over a ball around each of n inputs, in float64.

    Attributes:
        lower: the bounds.
        coefficients: of a linear function of the flat input that lies below on the whole ball, None where the method
            has none.
        centre: the value of such a function, or of a cone, at the input itself; None where there is neither.
        slope: of a cone that lies below on the whole ball, centre - slope * distance from the input; None likewise.
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
        """From the linear function alone: its minimum over the ball."""
        return Bounds(centre - ball.fall(coefficients, threat, x, eps), coefficients, centre)

    @staticmethod
    def steep(centre: Float[Tensor, "n k"], slope: Float[Tensor, "n k"], eps: Float[Tensor, " n"]) -> "Bounds":
        """From a cone alone; its slope is raised by `SLACK`, for the rounding errors of its computation."""
        slope = slope * (1 + SLACK)
        return Bounds(centre - slope * eps[:, None], None, centre, slope)

    def less(self, error: Float[Tensor, "n k"]) -> "Bounds":
        """The same, lowered."""
        centre = None if self.centre is None else self.centre - error
        return Bounds(self.lower - error, self.coefficients, centre, self.slope)

    def crossing(
        self, threat: ThreatModel, x: Float[Tensor, "n d"], floor: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Up to which radius all the linear functions, or cones, exceed `floor`; NaN where there are none."""
        if self.centre is not None and self.slope is not None:
            return ((self.centre - floor) / self.slope).amin(dim=1)
        if self.coefficients is None or self.centre is None:
            return torch.full_like(floor[:, 0], torch.nan)
        return ball.crossing(self.coefficients, self.centre - floor, threat, x).amin(dim=1)


class MarginCertifier(Certifier[BoundState]):
    """A certifier that can bound linear functions of the logits over a ball of a given radius; the search is shared."""

    search: RadiusSearch

    @abstractmethod
    def lower(
        self, state: BoundState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Lower bounds of `rows[i]` times the logits over the ball of radius `eps[i]` around `x[i]`."""

    def intermediate(self) -> str | None:
        """By which method the bounds of the hidden layers came about, where there are some; certificates state it."""
        return None

    def arithmetic(self, state: BoundState) -> str:
        """Of which network a certificate speaks: "real", in exact arithmetic, or of a float program, by precision."""
        del state
        return "real"

    def single(self, state: BoundState) -> BoundState:
        """The same state in float32: to measure what rounding does to bounds, never to claim one."""
        return cast("BoundState", _in_single(state))

    def evidence(self, state: BoundState, label: Int[Tensor, " n"]) -> list[dict[str, Any]]:
        """What a reader needs, beside what the search found, to re-check the claim for each input."""
        del state
        return [{} if self.intermediate() is None else {"bounds": self.intermediate()} for _ in range(len(label))]

    def witness(
        self, state: BoundState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> Any:
        """What proves the margins of one input at a radius: a `Relaxation`, or evidence for `certbench.checker`.

        Raises:
            UnsupportedError: there is nothing that the checker could verify; the message says why.
        """
        raise UnsupportedError(f"{type(self).__name__} has no evidence that certbench check could verify")

    def start(self, state: BoundState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """What the search may know beforehand; here, the tangents of the margins."""
        return Start(torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device), tangent(state, x, label))

    @final
    def margins(
        self, state: BoundState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Lower bounds of f_label - f_j for every other class j, in the order of the classes."""
        return self.lower(state, x, margin_rows(label, state.classifier.num_classes).to(x), eps)

    @final
    def certify(self, state: BoundState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """The largest radius that the search finds proved: all margins positive, by more than `SLACK` allows for."""
        del seeds
        logits, scale = state.classifier.logits_and_scale(x)
        label = logits.argmax(dim=1)
        rows = margin_rows(label, state.classifier.num_classes).to(x)
        found = self.reach(state, x, rows, torch.zeros_like(rows[..., 0]), SLACK * scale, self.start(state, x, label))
        arithmetic = self.arithmetic(state)
        evidence = [
            {"bracket": [low, high], "evaluations": count, "arithmetic": arithmetic, **more}
            for low, high, count, more in zip(
                found.certified.tolist(),
                found.refuted.tolist(),
                found.evaluations.tolist(),
                self.evidence(state, label),
                strict=True,
            )
        ]
        return Certificate.of(label, found.certified, evidence=evidence)

    @final
    def reach(
        self,
        state: BoundState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        floor: Float[Tensor, "n k"],
        slack: Float[Tensor, " n"],
        start: Start,
    ) -> Found:
        """The largest radius that the search finds at which `rows` times the outputs exceed `floor` by `slack`.

        A radius counts where the bounds over its ball, or a linear function below the outputs over a larger ball,
        exceed the floor there, so nothing rests on monotonicity in eps.
        """
        floor = floor + slack[:, None].clamp(min=FLOOR)

        def bound(index: Int[Tensor, " m"], eps: Float[Tensor, " m"]) -> Evaluation:
            bounds = self.lower(state, x[index], rows[index], eps)
            room = (bounds.lower - floor[index]).amin(dim=1)
            crossing = bounds.crossing(state.threat, x[index].flatten(1), floor[index])
            return Evaluation(torch.where(room.isfinite(), room, -torch.inf), crossing)  # NaN never certifies

        outputs = (rows @ state.classifier(x)[..., None]).squeeze(-1)
        found = self.search.run(bound, (outputs - floor).amin(dim=1), start)
        return replace(found, certified=found.certified.clamp(max=LIMIT))


def _in_single(value: Any) -> Any:
    """A copy whose floating point tensors and modules are in float32, as far as data classes and containers go."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).float()
    if hasattr(value, "to"):
        return value.to(torch.float32)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: _in_single(getattr(value, part.name)) for part in fields(value)})
    if isinstance(value, Mapping):
        return {key: _in_single(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_in_single(part) for part in value)
    return value


def margin_rows(label: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n others classes"]:
    """The rows e_label - e_j of every other class j, in order."""
    identity = torch.eye(classes, dtype=torch.float64, device=label.device)
    rows = identity[label][:, None] - identity
    return rows[torch.arange(classes, device=label.device) != label[:, None]].view(len(label), classes - 1, classes)


def tangent(state: MarginState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The radius at which the first tangent of a margin reaches zero: a guess, as good as the network is smooth."""
    rows = margin_rows(label, state.classifier.num_classes).to(x)
    points = x.repeat_interleave(rows.shape[1], dim=0).requires_grad_()
    with torch.enable_grad():
        margins = (state.classifier.module(points) * rows.flatten(0, 1)).sum(dim=1)
        if not margins.requires_grad:
            return torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
        (gradient,) = torch.autograd.grad(margins.sum(), points)
    slopes, heights = gradient.view(len(x), rows.shape[1], -1), margins.detach().view(len(x), -1)
    return ball.crossing(slopes, heights, state.threat, x.flatten(1)).amin(dim=1)


LIMIT = 1e40
"""No radius above it is ever claimed, so that what underflows in a slope is not felt."""

FLOOR = 1e-100
"""Margins have to exceed it, whatever the scale: squares underflow below 1e-154, other products too."""

SLACK = 1e-9
"""Rounding allowance of a margin bound, relative to the largest output of any submodule. A heuristic: margin bounds of
the zoo and of two MNIST networks moved by at most 6e-14 of the largest logit with batch size and threads. It is no
enclosure: a network that is made for it can still hide larger numbers, inside one submodule, say."""


def clean_margin(logits: Float[Tensor, "n classes"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Logit of the label minus the largest other logit."""
    own = logits.gather(1, label[:, None]).squeeze(1)
    return own - logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
