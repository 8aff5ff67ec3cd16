"""Randomized smoothing with additive noise, at the input or at a hidden layer (Cohen, Rosenfeld and Kolter, 2019).

Certified is the smoothed classifier g(x) = argmax_c P[f(x + noise) = c], not f. The counts of sampled classes are the
whole of the evidence: every radius is a function of counts, alpha, the noise and the dimension.

Noise at a hidden layer smooths what follows it: if that is certified within R in the q-norm of the layer's features,
and the features move by at most L times the p-norm of the input's change, g is certified within R / L in the p-norm.
What is random behind that layer is part of the function that is smoothed. Noise at several layers is therefore
certified by one of them, and radii are never added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench import options
from certbench.certificate import Certificate
from certbench.certification import input_seed
from certbench.certifier import Certifier
from certbench.classifier import Classifier, Regressor
from certbench.errors import ConfigError, UnsupportedError
from certbench.terms import ABSTAIN, Guarantee, Subject
from certbench.threat import ThreatModel
from certbench.verifiers import binomial
from certbench.verifiers.counting import ESTIMATION, PREDICTION, SELECTION, Counter
from certbench.verifiers.lipschitz import feature_constants
from certbench.verifiers.noise import Gaussian, Noise, Uniform, uniform_l1_in_box

Rule = Literal["two-class", "one-vs-rest"]


@dataclass(frozen=True, eq=False)
class SmoothingState:
    """What is counted, and how far a change of the input gets there.

    Attributes:
        counter: of what follows the noise.
        threat: the threat model.
        prefix: what comes before it.
        constants: Lipschitz constants of the prefix, from the threat model's norm to the norms of the features in which
            the noise certifies.
        dimension: of the features, where the noise is.
    """

    counter: Counter
    threat: ThreatModel
    prefix: nn.Module
    constants: Mapping[float, float]
    dimension: int


@dataclass(frozen=True)
class Smoothing(Certifier[SmoothingState]):
    """Randomized smoothing (Cohen et al., 2019; other noises: Yang et al., 2020), at the input or a hidden layer.

    With probability at least 1 - alpha per input, g(x') is the certified class for every x' within the radius. That
    is a statement about real arithmetic and ideal noise: a base classifier made to read the rounding of x + noise can
    make it false (Voráček and Hein, 2023).

    Attributes:
        noise: of the draws; its sigma is in units of the input, or of the layer's features.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of those.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` is Cohen's CERTIFY, which bounds the runner-up by 1 - p_A; `two-class` bounds both
            from the counts, each at alpha / 2, and abstains less. No union over classes is needed: the bound is
            monotone in the count, and the true runner-up's count is at most the largest.
        layer: the submodule behind which the noise is added, by the name that `named_modules` gives it; None: the
            input. Only where the module is a sequence.
        share: None, and every input has draws of its own, from the run's seed; or the seed of draws that all inputs
            share, which is faster. Each certificate holds as before, but they fail together: bounds of how many fail
            that assume independence are not valid.
    """

    noise: Noise = field(default_factory=Gaussian)
    n: int = 100_000
    n0: int = 100
    alpha: float = 0.001
    rule: Rule = "two-class"
    layer: str | None = None
    share: int | None = None

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})
    version = 2

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must lie between 0 and 1, not {self.alpha}", ("alpha",))
        for name in ("n", "n0"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", (name,))
        if self.rule not in ("two-class", "one-vs-rest"):
            raise ConfigError(f"rule must be two-class or one-vs-rest, not {self.rule!r}", ("rule",))
        if self.share is not None and self.share < 0:
            raise ConfigError(f"share is a seed, at least 0, not {self.share}", ("share",))
        if self.share is not None and not self.noise.additive:
            raise ConfigError("this noise is added in integers, to each input by itself; leave share out", ("share",))
        if self.layer is not None and not self.noise.additive:
            raise ConfigError("this noise is for inputs on a grid; features of a layer are not", ("layer",))

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> SmoothingState:
        """Cut the network where the noise goes, and bound what comes before.

        Raises:
            UnsupportedError: there is no such layer in a sequence, or what comes before it has no Lipschitz constant.
        """
        d = math.prod(classifier.input_shape)
        self.noise.scale(d)
        if self.layer is None:
            counter = Counter.of(classifier, self.noise, self.share)
            return SmoothingState(counter, threat, nn.Identity(), {threat.p: 1.0}, d)
        prefix, suffix = cut(classifier, self.layer)
        shape = tuple(prefix(torch.zeros(1, *classifier.input_shape).to(classifier.device, classifier.dtype)).shape[1:])
        d = math.prod(shape)
        self.noise.scale(d)
        flat = Regressor(nn.Sequential(prefix, nn.Flatten()).eval(), classifier.input_shape, d, classifier.name)
        exact = flat.double()
        constants = feature_constants(replace(exact, module=exact.module.cpu()), threat.p)
        rest = Classifier(suffix.eval(), shape, classifier.num_classes, classifier.name)
        return SmoothingState(Counter.of(rest, self.noise, self.share), threat, prefix, constants, d)

    @torch.no_grad()
    def certify(self, state: SmoothingState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Algorithm CERTIFY: select on n0 draws, estimate on n others, bound, and abstain if the bounds cross."""
        counter = state.counter
        points = self._features(state, x)
        selection = counter.count(points, self.n0, seeds, SELECTION)
        estimation = counter.count(points, self.n, seeds, ESTIMATION)
        top = selection.argmax(dim=1)
        predictions, radii, evidence = [], [], []
        for i, seed in enumerate(seeds):
            p_lower, p_upper = self.probabilities(int(top[i]), estimation[i].tolist(), self.n)
            radius = self.radius(p_lower, p_upper, state.constants, state.dimension)
            if self._in_the_unit_box(state.threat) and p_lower > p_upper:
                point = x[i].flatten().cpu().numpy()
                wider = uniform_l1_in_box(p_lower, p_upper, point, self.noise.scale(state.dimension))
                radius = max(radius, min(wider, float(state.dimension)))  # the box is no wider than that
            predictions.append(int(top[i]) if radius > 0 else ABSTAIN)
            radii.append(radius)
            evidence.append(
                self._evidence(state, selection[i].tolist(), estimation[i].tolist(), p_lower, p_upper, seed)
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def _in_the_unit_box(self, threat: ThreatModel) -> bool:
        """Whether uniform noise at the input has a larger L1 radius (Voráček and Hein, 2023)."""
        domain = threat.domain
        inside = domain is not None and domain[0] >= 0 and domain[1] <= 1
        return inside and threat.p == 1 and self.layer is None and type(self.noise) is Uniform

    def _features(self, state: SmoothingState, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Where the noise is added: one by one, since the last bits depend on how many inputs there are."""
        if self.layer is None or len(x) == 0:
            return x
        rows = x.to(state.counter.classifier.device, state.counter.classifier.dtype)
        return torch.cat([state.prefix(row[None]) for row in rows])

    def _evidence(
        self, state: SmoothingState, selection: list[int], estimation: list[int], low: float, high: float, seed: int
    ) -> dict[str, Any]:
        found = {
            "counts": estimation,
            "selection": selection,
            "n": self.n,
            "alpha": self.alpha,
            "rule": self.rule,
            "noise": options.describe(self)["noise"],
            "sigma": self.noise.sigma,
            "scale": self.noise.scale(state.dimension),
            "dimension": state.dimension,
            "p_lower": low,
            "p_upper": high,
            "seed": f"{seed if self.share is None else self.share:032x}",
        }
        if self.share is not None:
            found["shared"] = True
        if self.layer is not None:
            found["layer"] = self.layer
            found["constants"] = {f"{q:g}": bound for q, bound in state.constants.items()}
        return found

    def probabilities(self, top: int, estimation: Sequence[int], n: int) -> tuple[float, float]:
        """Bounds of the probability of class `top` from below and of every other class from above, given the counts.

        Draws whose logits were not finite voted for no class of the list, and count as one more rival.
        """
        own = estimation[top]
        rivals = max([count for label, count in enumerate(estimation) if label != top] + [n - sum(estimation)])
        if self.rule == "one-vs-rest":
            p_lower = binomial.lower(own, n, self.alpha)
            return p_lower, 1 - p_lower
        p_lower = binomial.lower(own, n, self.alpha / 2)
        return p_lower, min(binomial.upper(rivals, n, self.alpha / 2), 1 - p_lower)

    def radius(self, p_lower: float, p_upper: float, constants: Mapping[float, float], d: int) -> float:
        """The largest radius by a norm of the features, over the constant that leads there; 0 for "abstain"."""
        best = 0.0
        for q, constant in constants.items():
            there = self.noise.radius(p_lower, p_upper, q, d)
            best = max(best, there if constant == 1 else there / constant * (1 - 1e-15) if constant else math.inf)
        return best if p_lower > p_upper else 0.0

    def predict(self, classifier: Classifier, x: Float[Tensor, "n ..."], *, seed: int = 0) -> Int[Tensor, " n"]:
        """Algorithm PREDICT: g(x), or `ABSTAIN` unless the two top counts of n draws differ at level alpha.

        A class returned is wrong with probability at most alpha (Proposition 2 of Cohen et al.).
        """
        state = self.prepare(classifier, ThreatModel(2.0))
        points, seeds = x.to(classifier.device, torch.float64), [input_seed(seed, point) for point in x]
        features = self._features(state, points)
        predictions = []
        for sampled in state.counter.count(features, self.n, seeds, PREDICTION):
            first, second = sampled.topk(2).values.tolist()
            second = max(second, self.n - int(sampled.sum()))
            certain = first > second and binomial.even_chance(first, second) <= self.alpha
            predictions.append(int(sampled.argmax()) if certain else ABSTAIN)
        return torch.tensor(predictions, dtype=torch.int64)


def cut(classifier: Classifier, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A module in two: up to the end of a submodule, and from there.

    Raises:
        UnsupportedError: the submodule is no part of nested sequences that make up the module, or is the last.
    """
    hidden = classifier.hidden_code()
    if hidden is not None:
        raise UnsupportedError(f"{hidden}, which a cut would lose")
    parts = dict(_leaves("", classifier.module))
    names = list(parts)
    if layer not in names[:-1]:
        raise UnsupportedError(f"{layer!r} is no layer before the last of nested sequences; known: {', '.join(names)}")
    at = names.index(layer) + 1
    layers = list(parts.values())
    return nn.Sequential(*layers[:at]).eval(), nn.Sequential(*layers[at:]).eval()


def _leaves(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(name, module)]
    prefix = f"{name}." if name else ""
    return [leaf for key, part in module.named_children() for leaf in _leaves(prefix + key, part)]
