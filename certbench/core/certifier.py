"""The interface of every certifier, and the part that those which bound margins share."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench.core.certificate import Certificate
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import BoundsEvidence, HeadEvidence, MarginEvidence
from certbench.core.margins import (
    FLOOR,
    LIMIT,
    NO_BALL,
    NO_MARGIN,
    SLACK,
    Bounds,
    MarginState,
    clean_margin,
    margin_rows,
    tangent,
)
from certbench.core.memory import Cost
from certbench.core.ranges import Options
from certbench.core.resources import Resources
from certbench.core.search import Evaluation, Found, RadiusSearch, Start
from certbench.core.smoothed import SmoothedClassifier
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError

State = TypeVar("State")


class Certifier(Options, ABC, Generic[State]):
    """A method with its options.

    Subclasses are frozen dataclasses. Their fields are the options: a suite file may set them, `describe` stores them,
    the table prints them. The norm is an argument, never an option. Ranges stand in the annotations, see `ranges`. The
    method `check_together` checks options that depend on one another.
    """

    guarantee: ClassVar[Guarantee]
    subject: ClassVar[Subject] = Subject.BASE
    norms: ClassVar[frozenset[float]]
    version: ClassVar[int] = 1
    """Version of the mathematics. Raise it when the mathematics changes, so that old stored answers are not reused."""
    one_by_one: ClassVar[bool] = False
    """Whether a batch costs what its inputs cost alone. Runs then compute each alone, and lose less when stopped."""
    rounding_safe: bool = False
    """Whether the claim is about the float program, its rounding errors counted; an option of certifiers that can."""

    @property
    def members(self) -> tuple["Certifier[Any]", ...]:
        """The certifiers whose radii may become this certifier's; the audit bounds a claim by them."""
        return ()

    @property
    def repeatable(self) -> bool:
        """Whether the same question gets the same radius each time, up to rounding.

        The audit calls a radius unsound if such a certifier does not prove it again. False where a solver, an optimiser
        or a limit of time decides how far it gets.
        """
        return all(member.repeatable for member in self.members)

    @property
    def resources(self) -> Resources:
        """What a process that computes it reserves on a cluster: by default a core, or what its members need.

        A certifier that needs more says `resources = Resources(gpus=1)`.
        """
        return Resources.largest(member.resources for member in self.members)

    def dominates(self, other: "Certifier[Any]") -> str | None:
        """Name the theorem by which this certifier proves at least the radius of `other`; None if there is none.

        Both are asked about the same classifier, threat model and input. The audit reports rows that break the theorem.
        It must hold with these options and this search, up to `attainable`.
        """
        del other
        return None

    def attainable(self, radius: float, evidence: Mapping[str, Any]) -> float:
        """Return the largest radius that the method may prove if `radius` is its answer; see `dominates`.

        Args:
            radius: radius of the answer.
            evidence: evidence of the answer.
        """
        del evidence
        return radius

    def smoothed(self, classifier: Classifier, threat: ThreatModel) -> SmoothedClassifier | None:
        """Return the smoothed classifier that is certified, for an audit to sample and attack; None if it cannot.

        Raises:
            UnsupportedError: as `prepare`.
        """
        del classifier, threat
        return None

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        """Return the reason why there is no certificate for this pair, or None; `prepare` may still refuse a layer."""
        del classifier
        if threat.p in self.norms:
            return None
        offered = ", ".join(f"L{p:g}" for p in sorted(self.norms))
        return f"{threat.name} is not offered, only {offered}"

    def cost(self, state: State) -> Cost | None:
        """Predict what `certify` needs, from sizes; None: little enough. Batches are made no larger than what fits."""
        del state
        return None

    @final
    def fitting(self, state: State) -> State:
        """Return the state; `prepare` ends with this.

        Raises:
            UnsupportedError: one input is predicted to need more memory or time than the limits allow.
        """
        cost = self.cost(state)
        if cost is not None:
            cost.check(type(self).__name__)
        return state

    @abstractmethod
    def prepare(self, classifier: Classifier, threat: ThreatModel) -> State:
        """Do the work that is done once per classifier and threat model, and timed apart.

        Raises:
            UnsupportedError: a layer has no bound here, and the message names it; or `fitting` refuses the size.
            MissingBackendError: an optional package is needed.
        """

    @abstractmethod
    def certify(self, state: State, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Certify a batch; row i depends on `x[i]` and `seeds[i]` alone, never on its neighbours.

        Raises:
            CertificationError: the computation failed for this batch.
        """


BoundState = TypeVar("BoundState", bound=MarginState)


class MarginCertifier(Certifier[BoundState]):
    """A certifier that can bound linear functions of the logits over a ball of a given radius; the search is shared."""

    search: RadiusSearch

    @abstractmethod
    def lower(
        self, state: BoundState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Return lower bounds of `rows[i]` times the logits over the ball of radius `eps[i]` around `x[i]`."""

    def attainable(self, radius: float, evidence: Mapping[str, Any]) -> float:
        """Return the largest radius that the search may leave if bounds only fall; inf if it does not say."""
        found = MarginEvidence.read(evidence)
        return math.inf if found is None else self.search.attainable(radius, found.evaluations)

    def intermediate(self) -> str | None:
        """Name the method that bounds the hidden layers; None if there are no such bounds. Certificates state it."""
        return None

    def arithmetic(self, state: BoundState) -> str:
        """Name the network that a certificate is about: "real", in exact arithmetic, or a float program's precision."""
        del state
        return "real"

    def single(self, state: BoundState) -> BoundState:
        """Return the state in float32: it measures the effect of rounding on bounds, and never claims one."""
        return cast("BoundState", _in_single(state))

    def evidence(self, state: BoundState, label: Int[Tensor, " n"]) -> list[dict[str, Any]]:
        """Return the evidence that a reader needs, beside the search's, to re-check the claim for each input."""
        del state
        method = self.intermediate()
        return [{} if method is None else BoundsEvidence(bounds=method).to_json() for _ in range(len(label))]

    def witness(
        self, state: BoundState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> Any:
        """Return a proof of one input's margins at a radius: a `RelaxationProof`, or evidence for `certbench.checker`.

        Raises:
            UnsupportedError: there is nothing that the checker can verify; the message says why.
        """
        raise UnsupportedError(f"{type(self).__name__} has no evidence that certbench check can verify")

    def start(self, state: BoundState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """Return guesses for the search; here, the tangents of the margins."""
        return Start(torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device), tangent(state, x, label))

    @final
    def margins(
        self, state: BoundState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Return lower bounds of f_label - f_j for every other class j, in the order of the classes."""
        return self.lower(state, x, margin_rows(label, state.classifier.num_classes).to(x), eps)

    @final
    def certify(self, state: BoundState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Certify the largest radius that the search proves: all margins positive, by more than `SLACK` allows for."""
        del seeds
        logits, scale = state.classifier.logits_and_scale(x)
        label = logits.argmax(dim=1)
        rows = margin_rows(label, state.classifier.num_classes).to(x)
        slack = SLACK * scale
        found = self.reach(state, x, rows, torch.zeros_like(rows[..., 0]), slack, self.start(state, x, label))
        arithmetic = self.arithmetic(state)
        level = ~(clean_margin(logits, label) > slack.clamp(min=FLOOR))
        limited = found.certified >= found.limit
        rest = self.evidence(state, label)
        if state.head is not None:
            rest = [HeadEvidence(dropped=state.head, more=more).to_json() for more in rest]
        evidence = [
            MarginEvidence(
                bracket=(low, high),
                evaluations=count,
                arithmetic=arithmetic,
                reason=NO_MARGIN.reason if flat else NO_BALL.reason if low == 0.0 else None,
                more=more,
            )
            for low, high, count, flat, more in zip(
                found.certified.tolist(),
                found.refuted.tolist(),
                found.evaluations.tolist(),
                level.tolist(),
                rest,
                strict=True,
            )
        ]
        outcome = [Outcome.LIMITED if ended else Outcome.COMPLETED for ended in limited.tolist()]
        return Certificate.of(label, found.certified, evidence=evidence, outcome=outcome)

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
        """Search for the largest radius at which `rows` times the outputs exceed `floor` by `slack`.

        The search has the sizes of the inputs and the farthest points of the domain, whatever `start` says of them.

        A radius counts if the bounds over its ball, or a linear function below the outputs over a larger ball, exceed
        the floor there. So nothing rests on monotonicity in eps.
        """
        floor = floor + slack[:, None].clamp(min=FLOOR)

        def bound(index: Int[Tensor, " m"], eps: Float[Tensor, " m"]) -> Evaluation:
            bounds = self.lower(state, x[index], rows[index], eps)
            room = (bounds.lower - floor[index]).amin(dim=1)
            crossing = bounds.crossing(state.threat, x[index].flatten(1), floor[index])
            return Evaluation(torch.where(room.isfinite(), room, -torch.inf), crossing)  # NaN never certifies

        start = Start.at(state.threat, x.flatten(1), start.guess, start.tangent)
        outputs = (rows @ state.classifier(x)[..., None]).squeeze(-1)
        found = self.search.run(bound, (outputs - floor).amin(dim=1), start)
        return replace(found, certified=found.certified.clamp(max=LIMIT))


def _in_single(value: Any) -> Any:
    """Return a copy with floating point tensors and modules in float32, inside data classes and containers, too."""
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
