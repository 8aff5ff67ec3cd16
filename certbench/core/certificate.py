"""Certificates: facts that were proved about n inputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.claims import ABSTAIN, Outcome
from certbench.core.evidence import Evidence, ReasonEvidence
from certbench.errors import NumericalError


@dataclass(frozen=True, eq=False)
class Certificate:
    """Facts that were proved about n inputs: a struct of arrays, on the CPU, floats in float64.

    Attributes:
        prediction: the class certified, or `ABSTAIN`.
        radius: every point closer than this (in the threat model's norm, inside its domain) has the
            same prediction. In units of the input, or of the threat model's scales; >= 0, and 0 says that
            nothing was proved.
        upper: distance of the closest counterexample known, inf if none is; never below `radius`.
        seconds: time spent on this input, preparation not included.
        outcome: how each computation ended. The radius is valid whatever it says.
        evidence: what a reader needs to re-check each claim (counts and alpha, layer bounds,
            bracket), or `{"reason": ...}` where the outcome is not an answer. JSON-able; the classes of
            `certbench.core.evidence` write and read it.

    Labels are no part of it: whether a prediction is right is for the metrics to say.
    """

    prediction: Int[Tensor, " n"]
    radius: Float[Tensor, " n"]
    upper: Float[Tensor, " n"]
    seconds: Float[Tensor, " n"]
    outcome: tuple[Outcome, ...]
    evidence: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        """Refuse a certificate that contradicts itself, whoever made it.

        Raises:
            NumericalError: NaN or negative radius, radius above upper, abstained with a radius.
        """
        n = len(self.prediction)
        if not all(len(column) == n for column in (self.radius, self.upper, self.seconds, self.outcome, self.evidence)):
            raise NumericalError("a certificate's columns must have one entry per input")
        if not bool((self.radius >= 0).all()):
            raise NumericalError("a certified radius must be a number >= 0 (NaN never certifies)")
        if not bool((self.radius <= self.upper).all()):
            raise NumericalError("a certified radius lies above the distance of a known counterexample, or that is NaN")
        if bool(((self.prediction == ABSTAIN) & (self.radius > 0)).any()):
            raise NumericalError("an abstaining certificate cannot carry a radius")

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.prediction)

    @staticmethod
    def of(
        prediction: Int[Tensor, " n"],
        radius: Float[Tensor, " n"],
        *,
        evidence: Sequence[Mapping[str, Any] | Evidence] | None = None,
        outcome: Sequence[Outcome] | None = None,
        upper: Float[Tensor, " n"] | None = None,
    ) -> "Certificate":
        """Make a certificate from the columns that a method computes; the front door fills in the time."""
        n = len(prediction)
        found = [{} for _ in range(n)] if evidence is None else evidence
        if outcome is None:
            outcome = [Outcome.ABSTAINED if c == ABSTAIN else Outcome.COMPLETED for c in prediction.tolist()]
        return Certificate(
            prediction=prediction.to("cpu", torch.int64),
            radius=radius.to("cpu", torch.float64),
            upper=torch.full((n,), math.inf, dtype=torch.float64) if upper is None else upper.to("cpu", torch.float64),
            seconds=torch.zeros(n, dtype=torch.float64),
            outcome=tuple(outcome),
            evidence=tuple(one.to_json() if isinstance(one, Evidence) else one for one in found),
        )

    @staticmethod
    def nothing(n: int, outcome: Outcome, reason: str) -> "Certificate":
        """Say that nothing was proved about n inputs, and why."""
        return Certificate.of(
            torch.full((n,), ABSTAIN),
            torch.zeros(n, dtype=torch.float64),
            outcome=[outcome] * n,
            evidence=[ReasonEvidence(reason=reason)] * n,
        )

    @staticmethod
    def concatenate(parts: "Sequence[Certificate]") -> "Certificate":
        """Join the certificates of parts, in order."""
        return Certificate(
            prediction=torch.cat([part.prediction for part in parts]),
            radius=torch.cat([part.radius for part in parts]),
            upper=torch.cat([part.upper for part in parts]),
            seconds=torch.cat([part.seconds for part in parts]),
            outcome=tuple(o for part in parts for o in part.outcome),
            evidence=tuple(e for part in parts for e in part.evidence),
        )
