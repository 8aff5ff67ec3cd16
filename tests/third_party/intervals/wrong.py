"""Certifiers that are wrong on purpose, one in each way that a law of the contract suite claims to find."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from certbench import (
    Bounds,
    Certificate,
    Certifier,
    Classifier,
    Guarantee,
    RadiusSearch,
    Secant,
    Subject,
    ThreatModel,
    UnsupportedError,
)
from intervals.right import Intervals, Perceptron


@dataclass(frozen=True)
class WrongSign(Intervals):
    """The margin over the last class grows with the ball."""

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        sign = torch.ones_like(eps)
        lower = super().lower(state, x, rows, eps).lower
        rising = super().lower(state, x, rows[:, -1:], -sign * eps).lower
        return Bounds(torch.cat([lower[:, :-1], rising], dim=1))


@dataclass(frozen=True)
class Primal(Intervals):
    """The smallest margin among some points of the ball: the value of a program that was not solved to its end."""

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        steps = torch.randn(50, x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        steps = steps / torch.linalg.vector_norm(steps, ord=state.threat.p, dim=1, keepdim=True)
        points = x.flatten(1)[:, None] + eps[:, None, None] * steps
        logits = state.classifier(points.view(-1, *x.shape[1:])).view(len(x), 50, -1)
        return Bounds((logits @ rows.mT).amin(dim=1))


@dataclass(frozen=True)
class OwnDomain(Intervals):
    """Whatever the domain is, inputs are taken to lie in the unit box."""

    def fall(self, state: Perceptron, rows: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        whole = super().fall(state, rows, x, eps)
        if state.threat.domain is None:
            return whole
        x = x.flatten(1)
        down, up = torch.minimum(eps[:, None], x)[:, None], torch.minimum(eps[:, None], 1 - x)[:, None]
        return torch.minimum(whole, (rows.abs() * torch.where(rows > 0, down, up)).sum(-1))


@dataclass(frozen=True)
class MeanOfBatch(Intervals):
    """All inputs of a batch are bounded over balls of one size."""

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        return super().lower(state, x, rows, eps.mean().expand(len(eps)))


PREPARED: dict[tuple[str, ThreatModel], Perceptron] = {}


@dataclass(frozen=True)
class Stale(Intervals):
    """What was prepared once is remembered by the classifier's name."""

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Perceptron:
        return PREPARED.setdefault((classifier.name, threat), super().prepare(classifier, threat))


@dataclass(frozen=True)
class InPlace(Intervals):
    """The caller's own module becomes one of float64."""

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Perceptron:
        classifier.module.double()
        return super().prepare(classifier, threat)


@dataclass(frozen=True)
class AbsoluteSlack(Intervals):
    """An allowance for rounding that does not grow with the logits."""

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        return super().lower(state, x, rows, eps).less(torch.full_like(rows[..., 0], 0.01))


@dataclass(frozen=True)
class SkipsLayers(Intervals):
    """A layer without parameters is taken to be a ReLU."""

    def read(self, module: nn.Module) -> list[nn.Linear]:
        if isinstance(module, nn.Sequential):
            module = nn.Sequential(*(part if list(part.parameters()) else nn.ReLU() for part in module[1:]))
        return super().read(module)


@dataclass(frozen=True)
class SmallBall(Intervals):
    """Where there is a hidden layer, a ball is bounded that is a fifth too small."""

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        return super().lower(state, x, rows, eps if len(state.layers) == 1 else 0.8 * eps)


@dataclass(frozen=True)
class AnyNorm(Intervals):
    """Every norm is accepted, and bounded as if it were L2."""

    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        return None

    def fall(self, state: Perceptron, rows: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, dim=-1) * eps[:, None]


@dataclass(frozen=True)
class OwnNorms(Intervals):
    """What is refused is written down twice, and not by `norms`."""

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        return None if threat.p >= 1 else "L0 is not offered"


@dataclass(frozen=True)
class Refuses(Intervals):
    """Its row lists networks with hidden layers, which it refuses."""

    def read(self, module: nn.Module) -> list[nn.Linear]:
        layers = super().read(module)
        if len(layers) > 1:
            raise UnsupportedError("only linear classifiers are read")
        return layers


@dataclass(frozen=True)
class Around(Certifier[Perceptron]):
    """A right certificate, bent afterwards."""

    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = Intervals.norms

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Perceptron:
        return Intervals().prepare(classifier, threat)

    def certify(self, state: Perceptron, x: Tensor, seeds: Sequence[int]) -> Certificate:
        return self.bend(Intervals(self.search).certify(state, x, seeds), state, x)

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        """The certificate, made wrong."""
        raise NotImplementedError


@dataclass(frozen=True)
class FalseCounterexample(Around):
    """It claims a counterexample just outside a ball that is only half as large as it could be."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        return Certificate.of(found.prediction, found.radius / 2, upper=found.radius / 2 * 1.01 + 1e-6)


@dataclass(frozen=True)
class Tangent(Around):
    """The radius at which the tangents of the margins reach zero: exact where the network is linear."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        with torch.enable_grad():
            points = x.clone().requires_grad_()
            logits = state.classifier.module(points)
            slopes = torch.stack(
                [torch.autograd.grad(logits[:, j].sum(), points, retain_graph=True)[0] for j in range(logits.shape[1])]
            )
        logits, slopes = logits.detach(), slopes.flatten(2).transpose(0, 1)
        top = logits.argmax(dim=1)
        length = torch.linalg.vector_norm(slopes[range(len(x)), top][:, None] - slopes, ord=state.threat.q, dim=-1)
        gap = (logits.gather(1, top[:, None]) - logits) / length
        return Certificate.of(top, gap.nan_to_num(math.inf).amin(dim=1) * (1 - 1e-9))


@dataclass(frozen=True)
class SharedBudget(Around):
    """Inputs of a batch share an allowance, so that radii are smaller the more there are. That is sound, but wrong."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        return replace(found, radius=found.radius / len(x))


@dataclass(frozen=True)
class Unseeded(Around):
    """Random numbers that nobody seeded."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        return replace(found, radius=found.radius * torch.rand(len(x), dtype=torch.float64))


@dataclass(frozen=True)
class OtherClass(Around):
    """The class that is certified is not the one that the classifier predicts."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        return replace(found, prediction=(found.prediction + 1) % state.classifier.num_classes)


@dataclass(frozen=True)
class NanCertifies(Around):
    """What is no number counts as a large margin."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        broken = ~state.classifier(x).isfinite().all(dim=1)
        return replace(found, radius=torch.where(broken, 1.0, found.radius))


@dataclass(frozen=True)
class TiesCertify(Around):
    """A margin of zero counts as positive."""

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        top = state.classifier(x).topk(2).values
        return replace(found, radius=torch.where(top[:, 0] == top[:, 1], 0.1, found.radius))


@dataclass(frozen=True)
class Doubles(Around):
    """An option that is not kept as it was given."""

    steps: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", 2 * self.steps)

    def bend(self, found: Certificate, state: Perceptron, x: Tensor) -> Certificate:
        return found


@dataclass(frozen=True)
class NoConfidence(Certifier[Any]):
    """Gaussian smoothing (Cohen et al., 2019) by the share of the draws, where a confidence bound of it is needed."""

    sigma: float = 0.25
    n: int = 200

    guarantee: ClassVar[Guarantee] = Guarantee.PROBABILISTIC
    subject: ClassVar[Subject] = Subject.SMOOTHED
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Classifier:
        return classifier.double()

    def certify(self, state: Classifier, x: Tensor, seeds: Sequence[int]) -> Certificate:
        votes = torch.stack([self.votes(state, row, seed) for row, seed in zip(x, seeds, strict=True)])
        share, top = votes.max(dim=1)
        radius = self.sigma * torch.special.ndtri((share / self.n).clamp(max=1 - 1 / self.n)).clamp(min=0)
        return Certificate.of(top, radius, evidence=[{"counts": row.tolist()} for row in votes])

    def votes(self, classifier: Classifier, row: Tensor, seed: int) -> Tensor:
        """How many draws are of each class."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        noise = self.sigma * torch.randn(self.n, *row.shape, generator=generator, dtype=torch.float64)
        classes = classifier(row + noise).argmax(dim=1)
        return torch.bincount(classes, minlength=classifier.num_classes).double()


@dataclass(frozen=True)
class SameDraws(NoConfidence):
    """The seed is ignored: whoever repeats the draws with another seed repeats the accident."""

    def votes(self, classifier: Classifier, row: Tensor, seed: int) -> Tensor:
        return super().votes(classifier, row, 0)
