"""The float audit sees what moves with precision, batch size and threads, and certificates that rest on it."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import certbench
from certbench import Linf, ThreatModel, UnsupportedError
from certbench.auditing.rounding import float_audit
from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, MarginState
from certbench.core.options import build
from certbench.core.search import RadiusSearch, Secant
from certbench.errors import ConfigError
from certbench.testing import inputs, network

pytestmark = pytest.mark.machine


@dataclass(frozen=True)
class Hanging(MarginCertifier[MarginState]):
    """The clean margins, falling with eps, and what the batch size does to a sum in a bad order."""

    noise: float = 0.0
    search: RadiusSearch = field(default_factory=Secant)
    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({torch.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> MarginState:
        return MarginState(classifier.double(), threat)

    def lower(
        self,
        state: MarginState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        clean = (rows @ state.classifier(x)[..., None]).squeeze(-1)
        return Bounds(clean - 10 * eps[:, None] + self.noise * len(x))


def certified(name: str) -> Float[Tensor, " n"]:
    return certbench.certify(name, network("mlp"), inputs(8), Linf).radius


def test_float32_exceeds_float64_and_float64_hardly_moves() -> None:
    audit = float_audit(build("crown"), network("mlp"), inputs(8), Linf, certified("crown"))
    assert audit.bounds == 3 * audit.inputs > 0
    assert 0 < audit.exceed < audit.bounds
    assert 1e-9 < audit.single < 1e-5
    assert audit.batch < 1e-14 and audit.threads < 1e-14
    assert audit.living == 0 and audit.room > 0
    assert audit.arithmetic == "real"


def test_the_float_program_is_named_where_it_is_meant() -> None:
    safe = build({"name": "crown", "rounding_safe": True})
    radius = certbench.certify(safe, network("mlp"), inputs(4), Linf).radius
    assert float_audit(safe, network("mlp"), inputs(4), Linf, radius).arithmetic == "torch.float32"


def test_certificates_that_live_on_rounding_are_counted() -> None:
    classifier, x = network("mlp"), inputs(4)
    for noise, living in ((0.0, 0), (1e-3, 4)):
        logits = classifier.double()(x).topk(2).values
        radius = (logits[:, 0] - logits[:, 1]) / 10 - 1e-5 + noise / 10 * 4  # proved by the batch of four, just so
        audit = float_audit(Hanging(noise), classifier, x, Linf, radius)
        assert audit.living == living
        assert (audit.batch > 1e-6) == (noise > 0)


def test_a_temptation_of_float32_is_counted() -> None:
    """Far more inputs than steps of the bisection can tell apart: float32 rounds some margin up."""
    classifier, x = network("mlp"), inputs(64)
    logits = classifier.double()(x).topk(2).values
    audit = float_audit(Hanging(), classifier, x, Linf, (logits[:, 0] - logits[:, 1]) / 10 * (1 - 1e-6))
    assert audit.claims > 0


def test_nothing_to_look_at_is_said() -> None:
    with pytest.raises(ConfigError, match="no radius"):
        float_audit(build("crown"), network("mlp"), inputs(2), Linf, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="no margins"):
        float_audit(build("smoothing"), network("mlp"), inputs(2), Linf, torch.ones(2, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="float64 alone"):
        float_audit(build("masked-product"), network("mlp"), inputs(8), Linf, certified("masked-product"))


@pytest.mark.usefixtures("lirpa")
def test_auto_lirpas_graph_is_made_anew_in_float32() -> None:
    certifier = build({"name": "ibp", "engine": "auto-lirpa"})
    audit = float_audit(certifier, network("mlp"), inputs(8), Linf, certified("ibp"))
    assert audit.exceed > 0 and 1e-9 < audit.single < 1e-4
