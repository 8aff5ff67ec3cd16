"""The interface of every certifier, and the shared half of those that bound margins."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.certificate import Certificate
from certbench.classifier import Classifier
from certbench.search import RadiusSearch
from certbench.terms import Guarantee, Subject
from certbench.threat import ThreatModel

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


class MarginCertifier(Certifier[BoundState]):
    """A certifier that can bound all margins over the ball of a given radius; the search is shared."""

    search: RadiusSearch

    @abstractmethod
    def margin(
        self, state: BoundState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"], eps: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """A lower bound of min_j f_label - f_j over the ball of radius `eps[i]` around `x[i]`, in float64."""

    @final
    def certify(self, state: BoundState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """The largest radius that the search finds whose margin bound is positive.

        Every radius returned was itself bounded, so nothing rests on monotonicity in eps. A margin must
        exceed `SLACK` times the largest number inside the network, which stands for the float64 rounding of the bound.
        """
        del seeds
        logits, scale = state.classifier.logits_and_scale(x)
        label = logits.argmax(dim=1)
        slack = SLACK * scale

        def bound(index: Int[Tensor, " m"], eps: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
            margin = self.margin(state, x[index], label[index], eps) - slack[index]
            return torch.where(margin.isfinite(), margin, -torch.inf)  # NaN and infinity never certify

        found = self.search.run(bound, clean_margin(logits, label) - slack)
        evidence = [
            {"bracket": [low, high], "evaluations": count}
            for low, high, count in zip(
                found.certified.tolist(), found.refuted.tolist(), found.evaluations.tolist(), strict=True
            )
        ]
        return Certificate.of(label, found.certified, evidence=evidence)


SLACK = 1e-9
"""Rounding allowance of a margin bound, relative to the largest output of any submodule. A heuristic: margin bounds of
the zoo and of two MNIST networks moved by at most 6e-14 of the largest logit with batch size and threads. It is no
enclosure: a network that is made for it can still hide larger numbers, inside one submodule, say."""


def clean_margin(logits: Float[Tensor, "n classes"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Logit of the label minus the largest other logit."""
    own = logits.gather(1, label[:, None]).squeeze(1)
    return own - logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
