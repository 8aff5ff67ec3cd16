"""Training recipes: plain, under noise, under attack, by interval bounds, and by a Lipschitz margin.

A recipe says how long to train and towards which objective; an objective is one loss. To add one: write a frozen
dataclass with a `loss` like those below, its first docstring line saying in words what it does (cards repeat it),
and name it in a line of `zoo.TABLE`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.threat import L2, Linf, ThreatModel
from certbench.errors import ConfigError
from certbench.models.architectures.plain import Normalise
from certbench.models.data.digits import Dataset


@dataclass(frozen=True, eq=False)
class Step:
    """One batch on its way through training.

    Attributes:
        x: inputs in [0, 1].
        y: labels.
        progress: share of all steps already taken, for schedules.
        generator: source of every random draw.
    """

    x: Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    progress: float
    generator: torch.Generator

    def grown(self, warmup: float, ramp: float) -> float:
        """A schedule: 0 for a share `warmup` of the steps, then growing linearly to 1 during a share `ramp`."""
        return min(max((self.progress - warmup) / ramp, 0.0), 1.0)


class Objective(ABC):
    """What a recipe minimises. Subclasses are frozen dataclasses; their fields are the settings on a card."""

    @abstractmethod
    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""


class CertifiedObjective(Objective):
    """An objective that trains for a certificate of its own, so that a card can say how often it holds."""

    @abstractmethod
    def claim(self) -> tuple[ThreatModel, float]:
        """Threat model and radius of the certificate."""

    @abstractmethod
    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Lower bounds, over the ball of radius eps, of logit y minus each logit; 0 at y itself."""

    def certified(self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether the certificate proves label y."""
        margins = self.margins(module, x, y, self.claim()[1])
        return ((margins > 0) | functional.one_hot(y, margins.shape[1]).bool()).all(dim=1)


@dataclass(frozen=True)
class Recipe:
    """AdamW on shuffled batches, the learning rate falling to zero along a cosine.

    Attributes:
        objective: what is minimised.
        epochs: passes over the training split.
        batch_size: inputs per step; what is left over at the end of an epoch is dropped.
        learning_rate: at the first step.
        weight_decay: decoupled from the gradient (Loshchilov and Hutter, 2019).
    """

    objective: Objective
    epochs: int
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross entropy on the inputs as they are."""

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return functional.cross_entropy(module(step.x), step.y)


@dataclass(frozen=True)
class GaussianNoise(Objective):
    """Cross entropy under fresh Gaussian noise, not clipped, as smoothing will add (Cohen et al., 2019, section 3.3).

    Attributes:
        sigma: standard deviation of the noise, in the units of the input.
    """

    sigma: float

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        noise = torch.randn(step.x.shape, generator=step.generator)
        return functional.cross_entropy(module(step.x + self.sigma * noise), step.y)


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross entropy where projected gradient ascent ends, in an L2 or Linf ball (Madry et al., 2018, section 2).

    Attributes:
        p: norm of the ball, 2 or inf.
        eps: radius of the ball, which is clipped to [0, 1].
        steps: of the ascent, each of length 2.5 eps / steps, after a random start.
    """

    p: float
    eps: float
    steps: int = 10

    def __post_init__(self) -> None:
        """Refuse norms in which the ascent has no step."""
        if self.p not in (2.0, math.inf):
            raise ConfigError(f"no adversarial training in norm {self.p!r}; write 2 or inf", ("p",))

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return functional.cross_entropy(module(self.ascend(module, step)), step.y)

    def ascend(self, module: nn.Sequential, step: Step) -> Float[Tensor, "n ..."]:
        """The points of a batch at which the ascent ends; parameters get no gradient on the way."""
        noise = torch.rand(step.x.shape, generator=step.generator, dtype=step.x.dtype)
        points = self._within(step.x, step.x + self.eps * (2 * noise - 1))
        for _ in range(self.steps):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(module(points), step.y), points)
            direction = gradient.sign() if self.p == math.inf else gradient / _norms(gradient)
            points = self._within(step.x, points.detach() + 2.5 * self.eps / self.steps * direction)
        return points

    def _within(self, x: Float[Tensor, "n ..."], points: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        change = points - x
        if self.p == math.inf:
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / _norms(change)).clamp(max=1)
        return (x + change).clamp(0, 1)


@dataclass(frozen=True)
class IntervalBounds(CertifiedObjective):
    """Cross entropy mixed with that of worst-case logits by interval bounds, in Linf (Gowal et al., 2018, section 3).

    Attributes:
        eps: radius of the ball, which is clipped to [0, 1].
        warmup: share of the steps before the ball starts to grow.
        ramp: share of the steps during which it grows, and the worst case gains weight, both linearly.
        worst: weight of the worst case after that.
    """

    eps: float
    warmup: float = 0.1
    ramp: float = 0.5
    worst: float = 0.5

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        grown = step.grown(self.warmup, self.ramp)
        usual = functional.cross_entropy(module(step.x), step.y)
        worst = functional.cross_entropy(-self.margins(module, step.x, step.y, self.eps * grown), step.y)
        return torch.lerp(usual, worst, self.worst * grown)

    def claim(self) -> tuple[ThreatModel, float]:
        """Threat model and radius of the certificate."""
        return Linf.within(0, 1), self.eps

    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Interval bounds up to the last layer, which is merged with the differences of logits."""
        lower, upper = interval_bounds(list(module)[:-1], (x - eps).clamp(min=0), (x + eps).clamp(max=1))
        weight, bias = _differences(module, y)
        center, spread = (lower + upper) / 2, (upper - lower) / 2
        return torch.einsum("nji,ni->nj", weight, center) + bias - torch.einsum("nji,ni->nj", weight.abs(), spread)


@dataclass(frozen=True)
class LipschitzMargin(CertifiedObjective):
    r"""Cross entropy of logits after each wrong one is raised by all that it can gain in an L2 ball.

    Lipschitz-margin training (Tsuzuku, Sato and Sugiyama, 2018), with a constant per pair of classes (Leino, Wang and
    Fredrikson, 2021): logit j may gain $\epsilon K_{yj}$ on logit y, where $K_{yj}$ is the norm of the difference of
    their two last rows, times the exact spectral norms of the layers below.

    Attributes:
        eps: radius of the ball.
        warmup: share of the steps before the ball starts to grow.
        ramp: share of the steps during which it grows, linearly.
    """

    eps: float
    warmup: float = 0.1
    ramp: float = 0.5

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        grown = step.grown(self.warmup, self.ramp)
        return functional.cross_entropy(-self.margins(module, step.x, step.y, self.eps * grown), step.y)

    def claim(self) -> tuple[ThreatModel, float]:
        """Threat model and radius of the certificate."""
        return L2, self.eps

    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Margins at x, less what the ball can take away."""
        logits: Tensor = module(x)
        gain = _differences(module, y)[0].norm(dim=2) * lipschitz_constant(list(module)[:-1])
        margins: Tensor = logits.gather(1, y[:, None]) - logits - eps * gain
        return margins


def interval_bounds(
    layers: Iterable[nn.Module], lower: Float[Tensor, "n ..."], upper: Float[Tensor, "n ..."]
) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
    """Bounds of every output over a box of inputs, layer by layer (Gowal et al., 2018, section 3.1).

    Raises:
        ConfigError: a layer is of none of the kinds that `architectures` uses.
    """
    for layer in layers:
        center, spread = (lower + upper) / 2, (upper - lower) / 2
        match layer:
            case nn.ReLU() | nn.Flatten():
                lower, upper = layer(lower), layer(upper)
                continue
            case Normalise():
                center, spread = layer(center), spread / layer.std.abs()
            case nn.Linear():
                center, spread = layer(center), functional.linear(spread, layer.weight.abs())
            case nn.Conv2d(padding_mode="zeros"):
                center, spread = (
                    layer(center),
                    functional.conv2d(
                        spread, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
                    ),
                )
            case _:
                raise ConfigError(f"no interval bounds for {layer}")
        lower, upper = center - spread, center + spread
    return lower, upper


def lipschitz_constant(layers: Iterable[nn.Module]) -> Float[Tensor, ""]:
    """Product of the layers' exact L2 Lipschitz constants.

    Raises:
        ConfigError: a layer is neither dense, nor a ReLU, nor a reshaping.
    """
    constant = torch.ones(())
    for layer in layers:
        match layer:
            case nn.ReLU() | nn.Flatten():
                pass
            case Normalise():
                constant = constant / layer.std.abs().min()
            case nn.Linear():
                constant = constant * torch.linalg.matrix_norm(layer.weight, 2)
            case _:
                raise ConfigError(f"no Lipschitz constant for {layer}")
    return constant


def train(build: Callable[[], nn.Sequential], recipe: Recipe, data: Dataset, seed: int) -> nn.Sequential:
    """A network trained from scratch, on one core of the CPU; global settings and random state are left as they were.

    Networks of this size train faster on one core than on several, and the order of sums does not depend on how many
    there are. Steps are taken in float64 and the result is rounded to float32: so machines with other instructions
    come to the same accuracies, where in float32 two of them ended up to 0.6 points apart.

    Args:
        build: makes the network, drawing its parameters from torch's global generator.
        recipe: how to train it.
        data: training split.
        seed: decides every random draw. On one machine it decides every bit of the result.

    Returns:
        The network in eval mode, its parameters fixed.

    Raises:
        ConfigError: there are fewer inputs than a batch holds, or the objective does not know a layer.
    """
    if len(data) < recipe.batch_size:
        raise ConfigError(f"{data.name} has {len(data)} inputs, less than a batch of {recipe.batch_size}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
            module = build().double()
        _optimise(module, recipe, data, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)
    return module.float().eval().requires_grad_(False)


def _optimise(module: nn.Sequential, recipe: Recipe, data: Dataset, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    inputs, batches = data.inputs.double(), len(data) // recipe.batch_size
    steps = recipe.epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data), generator=generator)
        for number, batch in enumerate(order[: batches * recipe.batch_size].view(-1, recipe.batch_size)):
            progress = (epoch * batches + number) / steps
            step = Step(inputs[batch], data.labels[batch], progress, generator)
            optimizer.zero_grad()
            recipe.objective.loss(module, step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _norms(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """L2 norms of the rows, never 0, with axes of length 1 to divide by."""
    norms: Tensor = x.flatten(1).norm(dim=1).clamp(min=1e-12)
    return norms.view(-1, *[1] * (x.dim() - 1))


def _differences(
    module: nn.Sequential, y: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n classes width"], Float[Tensor, "n classes"]]:
    """Weight and bias of logit y minus each logit, as functions of the last layer's input."""
    last = module[-1]
    if not isinstance(last, nn.Linear):
        raise ConfigError(f"the last layer must be linear, not {last}")
    return last.weight[y, None] - last.weight, last.bias[y, None] - last.bias
