"""Randomized smoothing with additive noise, at the input or at a hidden layer (Cohen, Rosenfeld and Kolter, 2019).

The certified function is the smoothed classifier g(x) = argmax_c P[f(x + noise) = c], not f. The counts of sampled
classes are the whole evidence: every radius is a function of counts, alpha, the noise and the dimension.

Noise at a hidden layer smooths the part behind it. If that part is certified within R in the q-norm of the layer's
features, and the features move by at most L times the p-norm of the input's change, g is certified within R / L in the
p-norm. Noise at several layers is certified by any one of them, and radii are never added: see `hidden_layers`.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core import options
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier, Regressor
from certbench.core.evidence import LayersEvidence, NoiseEvidence
from certbench.core.inputs import input_seed
from certbench.core.memory import Cost
from certbench.core.ranges import Alpha, Seed, Sigma
from certbench.core.smoothed import Likelihood, SmoothedClassifier
from certbench.core.threat import ThreatModel, holds
from certbench.errors import ConfigError
from certbench.networks.module import GraphModule
from certbench.networks.sequences import cut
from certbench.verifiers.lipschitz.propagation import feature_constants, on_cpu
from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.counting import ESTIMATION, PREDICTION, SELECTION, Counter, Shareable
from certbench.verifiers.smoothing.hidden_layers import Interleaved, Noises, Place
from certbench.verifiers.smoothing.noise.families import Gaussian, Noise, Uniform, uniform_l1_in_box
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.votes import Draws, Rule, bounds


@dataclass(frozen=True, eq=False)
class SmoothingState:
    """The counter, and how far a change of the input moves the noisy features.

    Attributes:
        counter: counter of the votes of the part behind the first noise.
        threat: the threat model.
        prefix: the part before the first noise.
        places: places of noise, in the order of the network.
    """

    counter: Counter
    threat: ThreatModel
    prefix: nn.Module
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Smoothing(Certifier[SmoothingState]):
    """Randomized smoothing (Cohen et al., 2019; other noises: Yang et al., 2020), at the input or a hidden layer.

    With probability at least 1 - alpha per input, g(x') is the certified class for every x' within the radius. This
    is a statement about real arithmetic and ideal noise: a base classifier made to read the rounding of x + noise can
    make it false (Voráček and Hein, 2023).

    Attributes:
        noise: noise of the draws; its sigma is in units of the input, or of the layer's features.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` is Cohen's CERTIFY, which bounds the runner-up by 1 - p_A; `two-class` bounds both
            from the counts, each at alpha / 2, and abstains less. No union over classes is needed: the bound is
            monotone in the count, and the true runner-up's count is at most the largest.
        layer: the submodule behind which the noise is added, by its name in `named_modules`; None: the input. All that
            follows must depend on its output alone: no connection may go around it.
        also: later layers, in the order of the network, each with a sigma. Noise of the same family is added behind
            each of them. The radius is the largest that one of the noises proves, see `hidden_layers`.
        share: seed of draws that all inputs share, which is faster; None: every input has draws of its own, from the
            run's seed. With shared draws each certificate holds as before, but they fail together: bounds of how many
            fail that assume independence are not valid.
        precision: None for the classifier's own; `bfloat16` makes the part behind the noise another classifier: its
            parameters, activations and input plus noise are rounded to 8 bits. For the first affine layers of shared
            noise only the sum is rounded. The noise itself is float32. Clean accuracy is the original classifier's.
        compile: whether `torch.compile` runs the part behind the noise: another classifier again, in its last bits.
    """

    noise: Noise = field(default_factory=Gaussian)
    n: Draws = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    rule: Rule = "two-class"
    layer: str | None = None
    also: tuple[tuple[str, Sigma], ...] = ()
    share: Seed | None = None
    precision: Literal["bfloat16"] | None = None
    compile: bool = False

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})
    version = 3

    def check_together(self) -> None:
        """Refuse options that the noise cannot support."""
        if self.share is not None and not self.noise.additive:
            raise ConfigError("this noise is added in integers, to each input by itself; leave share out", ("share",))
        for name, used in (("layer", self.layer is not None), ("also", self.also)):
            if used and not self.noise.additive:
                raise ConfigError("this noise is for inputs on a grid; features of a layer are not", (name,))
        if self.precision is not None and self.also:
            raise ConfigError("bfloat16 would round the noise of the later layers; leave it out", ("precision",))

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> SmoothingState:
        """Cut the network where noise is added, and bound the part before.

        Raises:
            UnsupportedError: there is no such layer, a connection goes around it, or the part before it has no
                Lipschitz constant.
        """
        counter, parts, shapes = self._cut(classifier)
        if classifier.device.type != "cpu":
            parts = self._parts(on_cpu(classifier))
        places = []
        for i, (layer, noise) in enumerate(self._noises()):
            d, constants = math.prod(shapes[i]), {threat.p: 1.0}
            if layer is not None:
                before = nn.Sequential(*parts[: i + 1], nn.Flatten()).eval()
                exact = Regressor(before, classifier.input_shape, d, classifier.name).double()
                constants = feature_constants(exact, threat.p)
            places.append(Place(layer, noise, constants, d))
        return self.fitting(SmoothingState(counter, threat, parts[0], tuple(places)))

    def cost(self, state: SmoothingState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    def _noises(self) -> list[tuple[str | None, Noise]]:
        """List the layers that have noise, in order, each with its noise."""
        return [(self.layer, self.noise), *((name, replace(self.noise, sigma=sigma)) for name, sigma in self.also)]

    def _parts(self, classifier: Classifier) -> list[nn.Module]:
        """Return the parts between noises, from the input to the outputs."""
        layers = [layer for layer, _ in self._noises() if layer is not None]
        if not layers:
            return [nn.Sequential(), nn.Sequential(classifier.module)]
        parts = cut(classifier, *layers)
        return parts if self.layer is not None else [nn.Sequential(), *parts]

    def _cut(self, classifier: Classifier) -> tuple[Counter, list[nn.Module], list[tuple[int, ...]]]:
        """Return a counter of the part behind the first noise, the parts between noises, and the shapes there."""
        places, parts = self._noises(), self._parts(classifier)
        key = self._key(classifier, parts)
        shapes, z = [], torch.zeros(1, *classifier.input_shape).to(classifier.device, classifier.dtype)
        for part, (_, noise) in zip(parts, places, strict=False):
            z = part(z)
            shapes.append(tuple(z.shape[1:]))
            noise.scale(z.numel())
        if not self.also:
            rest = classifier if self.layer is None else replace(classifier, module=parts[1], input_shape=shapes[0])
            if self.precision is not None:
                rest = replace(rest, module=copy.deepcopy(rest.module).to(torch.bfloat16))
            return Counter.of(rest, self.noise, self.share, compiled=self.compile, key=key), parts, shapes
        sizes = [math.prod(shape) for shape in shapes]
        joint = Noises(tuple((noise, size) for (_, noise), size in zip(places, sizes, strict=True)))
        module = Interleaved(parts[1:], shapes).eval()
        rest = replace(classifier, module=module, input_shape=(sum(sizes),))
        return Counter.of(rest, joint, self.share, compiled=self.compile, key=key), parts, shapes

    def _key(self, classifier: Classifier, parts: Sequence[nn.Module]) -> str | None:
        """Return a key of what votes, if it is a graph: such copies never change, and their content is slow to read."""
        if not isinstance(parts[-1], GraphModule):
            return None
        layers = [layer for layer, _ in self._noises()]
        with contextlib.suppress(ConfigError):
            return f"{classifier.fingerprint()} {classifier.dtype} {classifier.device} {layers} {self.precision}"
        return None

    @torch.no_grad()
    def certify(self, state: SmoothingState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Run CERTIFY: select on n0 draws, estimate on n others, bound, and abstain if the bounds cross."""
        counter = state.counter
        points = self._features(counter, state.prefix, x)
        selection = counter.count(points, self.n0, seeds, SELECTION)
        estimation = counter.count(points, self.n, seeds, ESTIMATION)
        top = selection.argmax(dim=1)
        predictions, radii, evidence = [], [], []
        for i, seed in enumerate(seeds):
            p_lower, p_upper = self.probabilities(int(top[i]), estimation[i].tolist(), self.n)
            by_place = [place.radius(p_lower, p_upper) for place in state.places]
            radius, first = max(by_place), state.places[0]
            if self._in_the_unit_box(state.threat) and p_lower > p_upper:
                point = x[i].flatten().cpu().numpy()
                wider = uniform_l1_in_box(p_lower, p_upper, point, self.noise.scale(first.dimension))
                radius = max(radius, min(wider, float(first.dimension)))  # the box is no wider than that
            predictions.append(int(top[i]) if radius > 0 else ABSTAIN)
            radii.append(radius)
            layers = self._layers(state, by_place).to_json() | state.counter.description().to_json()
            evidence.append(
                NoiseEvidence(
                    counts=tuple(estimation[i].tolist()),
                    selection=tuple(selection[i].tolist()),
                    n=self.n,
                    alpha=self.alpha,
                    rule=self.rule,
                    noise=options.describe(self)["noise"],
                    sigma=self.noise.sigma,
                    scale=self.noise.scale(first.dimension),
                    dimension=first.dimension,
                    p_lower=p_lower,
                    p_upper=p_upper,
                    seed=f"{seed if self.share is None else self.share:032x}",
                    shared=None if self.share is None else True,
                    more=layers,
                )
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def _in_the_unit_box(self, threat: ThreatModel) -> bool:
        """Say whether uniform noise at the input has a larger L1 radius (Voráček and Hein, 2023)."""
        inside = holds((0.0, 1.0), threat.domain)
        return inside and threat.p == 1 and self.layer is None and type(self.noise) is Uniform

    def _features(self, counter: Counter, prefix: nn.Module, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return the features to which noise is added, one input at a time: the last bits depend on the batch size."""
        if (self.layer is None and not self.also) or len(x) == 0:
            return x
        tensors = itertools.chain(prefix.parameters(), prefix.buffers())
        dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), counter.precision)
        rows = x.to(counter.classifier.device, dtype, copy=True)  # a prefix may work in place
        features = torch.cat([prefix(row[None]) for row in rows])
        if not self.also:
            return features
        flat = features.flatten(1)
        return functional.pad(flat, (0, math.prod(counter.classifier.input_shape) - flat.shape[1]))

    def _layers(self, state: SmoothingState, radii: Sequence[float]) -> LayersEvidence:
        """Return the hidden layers that have noise, and the radius that each noise proves."""
        first, *others = (place.evidence() for place in state.places)
        return LayersEvidence(
            layer=self.layer,
            constants=None if self.layer is None else first.constants,
            also=tuple(others) if self.also else None,
            radii=tuple(radii) if self.also else None,
        )

    def probabilities(self, top: int, estimation: Sequence[int], n: int) -> tuple[float, float]:
        """Bound the probability of class `top` from below and of every other class from above, given the counts."""
        return bounds(top, estimation, n, self.alpha, self.rule)

    def smoothed(self, classifier: Classifier, threat: ThreatModel) -> "Noisy":
        """Return the classifier under this noise, which PREDICT samples."""
        state = self.prepare(classifier, threat)
        return Noisy(state.counter.classifier, self.alpha, self.share is not None, self, classifier, state)

    def predict(self, classifier: Classifier, x: Float[Tensor, "n ..."], *, seed: int = 0) -> Int[Tensor, " n"]:
        """Run PREDICT: g(x), or `ABSTAIN` unless the two top counts of n draws differ at level alpha.

        A class returned is wrong with probability at most alpha (Proposition 2 of Cohen et al.).
        """
        counter, parts, _ = self._cut(classifier)
        points, seeds = x.to(classifier.device, torch.float64), [input_seed(seed, point) for point in x]
        features = self._features(counter, parts[0], points)
        predictions = []
        for sampled in counter.count(features, self.n, seeds, PREDICTION):
            first, second = sampled.topk(2).values.tolist()
            second = max(second, self.n - int(sampled.sum()))
            certain = first > second and binomial.even_chance(first, second) <= self.alpha
            predictions.append(int(sampled.argmax()) if certain else ABSTAIN)
        return torch.tensor(predictions, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Noisy(SmoothedClassifier):
    """A classifier under noise, as an audit attacks it.

    Attributes:
        base: the part behind the noise.
        alpha: alpha of the certifier.
        shared: whether all inputs share their draws.
        certifier: the certifier, which has the noise.
        classifier: the whole classifier, without noise.
        state: state of the certifier.
    """

    base: Classifier
    alpha: float
    shared: bool
    certifier: Smoothing
    classifier: Classifier
    state: SmoothingState

    def predict(self, x: Float[Tensor, "n ..."], *, level: float, draws: int, seed: int) -> Int[Tensor, " n"]:
        """Run PREDICT, with each point's own draws."""
        predictor = replace(self.certifier, n=draws, alpha=level, share=None)
        return predictor.predict(self.classifier, x, seed=seed)

    def likelihood(self, n: int, draws: int, seed: int) -> Likelihood:
        """Return the mean softmax over fixed draws (Salman et al., 2019); noise behind a layer is added there."""
        base, mechanism = self.base, self.state.counter.noise
        dimension = math.prod(base.input_shape)
        assert isinstance(mechanism, Shareable)
        stream = np.random.Generator(np.random.SFC64(seed))
        noise = torch.from_numpy(mechanism.sample(stream, draws * n, dimension)).to(base.device, base.dtype)
        noise = noise.view(draws, n, dimension)

        def found(x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            features = self.state.prefix(x).flatten(1)
            features = functional.pad(features, (0, dimension - features.shape[1]))  # what later layers have added
            noisy = (features + noise).flatten(0, 1).view(-1, *base.input_shape)
            logits = base.module(noisy).view(draws, n, -1)
            own = logits.log_softmax(dim=2)[:, torch.arange(n), label]
            likelihood: Tensor = own.logsumexp(dim=0)
            return likelihood

        return found

    def moved(self, x: Float[Tensor, "n ..."], change: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return x + change; for integer noise, the input's point on the grid, moved towards x + change."""
        if not isinstance(self.certifier.noise, IntegerGaussian):
            return x + change
        grid = self.certifier.noise.grid
        return ((x * grid).round() + (change * grid).trunc()) / grid
