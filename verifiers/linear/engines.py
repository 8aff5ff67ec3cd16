"""Certifiers that run on our own engine or through auto-LiRPA: the option that says which, and what follows from it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.evidence import EngineEvidence
from certbench.core.margins import Bounds
from certbench.core.memory import Cost
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, MissingBackendError, UnsupportedError
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.lirpa.graph import Lirpa, LirpaState

Engine = Literal["auto", "own", "auto-lirpa"]
"""What computes the bounds. `auto`: our own engine where it can, auto-LiRPA where that can."""


@dataclass(frozen=True)
class Engined(MarginCertifier[NetworkState]):
    """A method that both engines have.

    Attributes:
        engine: what computes the bounds; see `Engine`.
    """

    engine: Engine = "auto"

    relus: ClassVar[bool] = False
    """Whether the network must be a ReLU network."""
    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def check_together(self) -> None:
        """Refuse to count rounding errors that auto-LiRPA makes."""
        if self.rounding_safe and self.engine == "auto-lirpa":
            raise ConfigError("rounding errors are counted for our own engine; write `engine: own`", ("engine",))

    def lirpa(self) -> Lirpa:
        """Return the method, as auto-LiRPA runs it."""
        raise NotImplementedError

    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Return lower bounds of `rows` times the outputs by our own engine."""
        raise NotImplementedError

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network, by the first engine that can.

        Raises:
            UnsupportedError: none can; the message says why, our own engine's reason first. Or our own engine needs
                more memory or time than the limits allow, and auto-LiRPA needs more of both.
            MissingBackendError: `engine` is auto-LiRPA, which is not installed.
        """
        if self.engine == "auto-lirpa":
            return self.lirpa().prepare(classifier, threat)
        try:
            state = NetworkState.of(classifier, threat, relus=self.relus)
        except UnsupportedError as error:
            if self.engine == "own" or self.rounding_safe:
                raise
            reason = str(error)
        else:
            return self.fitting(state)
        try:
            return self.lirpa().prepare(classifier, threat)
        except (UnsupportedError, MissingBackendError) as error:
            if str(error) == reason:
                raise
            raise UnsupportedError(f"{reason}. Through auto-LiRPA: {error}") from error

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict what our own engine needs."""
        raise NotImplementedError

    def cost(self, state: NetworkState) -> Cost:
        """Predict what the engine that read the network needs."""
        return self.lirpa().cost(state) if isinstance(state, LirpaState) else self.own_cost(state)

    def single(self, state: NetworkState) -> NetworkState:
        """Return the state in float32, from the same engine."""
        return self.lirpa().single(state) if isinstance(state, LirpaState) else super().single(state)

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Bound `rows` times the outputs by the engine that read the network."""
        if isinstance(state, LirpaState):
            return self.lirpa().lower(state, x, rows, eps)
        return self.own(state, x, rows, eps)

    def evidence(self, state: NetworkState, label: Int[Tensor, " n"]) -> list[dict[str, Any]]:
        """Name the engine, beside the method of the hidden layers."""
        engine = "auto-lirpa" if isinstance(state, LirpaState) else "own"
        return [EngineEvidence(engine=engine, more=more).to_json() for more in super().evidence(state, label)]
