"""The networks of the laws, their inputs, and answers for them that need no certifier."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.attacks.battery import attack
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel

SHAPE, CLASSES = (1, 4, 4), 4
"""Shape of one input of every network of the laws, and the number of its classes."""

FAR = 1e4
"""Largest distance at which a counterexample of a linear classifier is looked for."""

RAISE = 8.0
"""Bias that keeps the ReLUs of `raised` on, as far as that from the unit box in the max norm."""

HALVINGS = 200
"""Number of halvings that find the closest counterexample of a linear classifier in a box; floats allow no more."""


class ResidualNetwork(nn.Module):
    """A network with a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        """Map inputs `(n, 1, 4, 4)`, or what stands for them in a trace, to logits `(n, 4)`."""
        z = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(z + self.inner(z)))


class LogGamma(nn.Module):
    """A layer that no method knows."""

    def forward(self, x: Any) -> Any:
        """Return log Gamma(|x| + 1), entry by entry."""
        return torch.special.gammaln(x.abs() + 1)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 6, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
    ),
    "residual": ResidualNetwork,
    "unknown": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), LogGamma(), nn.Linear(8, 4)),
}
"""Networks of the laws, by kind; only a method without bounds can accept the layer in `unknown`."""


def network(kind: str, *, seed: int = 1, name: str | None = None) -> Classifier:
    """Return a new network with random weights, the same for the same arguments.

    Args:
        kind: a key of `ARCHITECTURES`.
        seed: seed of the weights.
        name: name of the classifier; None: its kind.

    Returns:
        A classifier of inputs of shape `(1, 4, 4)` into 4 classes, in float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ARCHITECTURES[kind]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return Classifier(module.eval(), SHAPE, CLASSES, name or kind)


def inputs(n: int, seed: int = 0) -> Float[Tensor, "n 1 4 4"]:
    """Return n inputs, uniform in the unit box, in float64."""
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(classifier: Classifier, x: Float[Tensor, "n 1 4 4"], threat: ThreatModel) -> Float[Tensor, " n"]:
    """Return the exact radius of a linear classifier: min_j (f_c - f_j)(x) / ||w_c - w_j||_q.

    Args:
        classifier: `network("linear")`, or one with the same layers.
        x: inputs.
        threat: the norm; its domain is ignored.
    """
    gap, slopes = _linear(classifier, x)
    length: Tensor = torch.linalg.vector_norm(slopes, ord=threat.q, dim=-1)
    return (gap / length).nan_to_num(math.inf).amin(dim=1)


def raised() -> Classifier:
    """Return the linear network behind a hidden layer whose ReLUs are on near the unit box: it is linear there."""
    linear = next(part for part in network("linear").module.modules() if isinstance(part, nn.Linear))
    first, last = nn.Linear(16, 16), nn.Linear(16, CLASSES)
    with torch.no_grad():
        first.weight.copy_(torch.eye(16))
        first.bias.fill_(RAISE)
        last.weight.copy_(linear.weight)
        last.bias.copy_(linear.bias - RAISE * linear.weight.sum(dim=1))
    return Classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval(), SHAPE, CLASSES, "raised")


def raised_distance(classifier: Classifier, x: Float[Tensor, "n 1 4 4"], threat: ThreatModel) -> Float[Tensor, " n"]:
    """Return the exact radius of `raised()`; infinity where it is not below `RAISE`, as its ReLUs may be off there.

    Args:
        classifier: `raised()`.
        x: inputs in the unit box.
        threat: the norm; its domain is ignored.
    """
    exact = classifier.double()
    *_, last = (part for part in exact.module.modules() if isinstance(part, nn.Linear))
    logits = exact(x)
    top = logits.argmax(dim=1)
    length = torch.linalg.vector_norm(last.weight[top][:, None] - last.weight, ord=threat.q, dim=-1)
    found = ((logits.gather(1, top[:, None]) - logits) / length).nan_to_num(math.inf).amin(dim=1)
    return torch.where(found < RAISE, found, math.inf)


def nearest(classifier: Classifier, x: Float[Tensor, "n 1 4 4"], threat: ThreatModel) -> Float[Tensor, " n"]:
    """Return the distance of the closest counterexample of a linear classifier inside the domain; inf if there is none.

    Let a be the difference of the weights, times the scales. The closest point at which class j is equal to the own
    class moves along -sign(a_i) (Linf) or -a_i (L2), until a coordinate reaches the border of the domain. In L1 it
    moves the coordinates with the largest |a_i| to the border, one after the other. Its distance is found by halving.

    Args:
        classifier: `network("linear")`, or one with the same layers.
        x: inputs, inside the domain.
        threat: norm, domain and scales.
    """
    gap, slopes = _linear(classifier, x)
    low, high = (-FAR, FAR) if threat.domain is None else threat.ends(x.flatten(1))
    room = torch.where(slopes > 0, x.flatten(1)[:, None] - low, high - x.flatten(1)[:, None])
    scale = x.new_ones(room.shape[-1]) if threat.scale is None else x.new_tensor(threat.scale)
    size, room = slopes.abs() * scale, torch.where(scale > 0, (room / scale).clamp(max=FAR), 0.0)
    if threat.p == 1.0:
        order = size.argsort(dim=-1, descending=True)
        size, room = size.gather(-1, order), room.gather(-1, order)
    rate = {1.0: torch.ones_like(size), 2.0: size, math.inf: torch.ones_like(size)}[threat.p]
    before = (room.cumsum(-1) - room) if threat.p == 1.0 else torch.zeros_like(room)

    def move(t: Tensor) -> Tensor:
        return torch.minimum((rate * t[..., None] - before).clamp(min=0), room)

    far = torch.full_like(gap, FAR)
    reached = (size * move(far)).sum(-1) >= gap
    near = torch.zeros_like(gap)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        over = (size * move(middle)).sum(-1) >= gap
        near, far = torch.where(over, near, middle), torch.where(over, middle, far)
    distance: Tensor = torch.linalg.vector_norm(move(far), ord=threat.p, dim=-1)
    own = slopes.abs().amax(dim=-1) == 0
    least: Tensor = torch.where(reached & ~own, distance, math.inf).amin(dim=1)
    return least


def _linear(classifier: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return margins over every class, the own one included, and their gradients."""
    linear = next(module for module in classifier.double().module.modules() if isinstance(module, nn.Linear))
    logits = linear(x.flatten(1))
    top = logits.argmax(dim=1)
    return logits.gather(1, top[:, None]) - logits, linear.weight[top][:, None] - linear.weight


@functools.cache
def closest(kind: str, threat: ThreatModel) -> Float[Tensor, " 8"]:
    """Return the distances of counterexamples that attacks find for `inputs(8)`; computed once per process."""
    box = (-2.0, 3.0) if threat.domain is None else threat.ends(inputs(8))
    return attack(network(kind), inputs(8), (threat,), box, steps=30)[threat].distance


def sample_ball(
    x: Float[Tensor, "n ..."], radius: Float[Tensor, " n"], threat: ThreatModel, n: int
) -> Float[Tensor, "n k ..."]:
    """Return points just inside the ball around each input, many near its corners, moved into the domain.

    Args:
        x: inputs.
        radius: radius of the ball around each input.
        threat: norm and domain.
        n: number of points per input.
    """
    generator = torch.Generator().manual_seed(0)
    d = x[0].numel()
    step = torch.randn(len(x), n, d, generator=generator, dtype=torch.float64)
    sparse = torch.rand(len(x), n, d, generator=generator) < torch.rand(1, n, 1, generator=generator)
    step = step * sparse if threat.p != math.inf else step.sign()
    step = step / torch.linalg.vector_norm(step, ord=threat.p, dim=-1, keepdim=True).clamp(min=1e-12)
    points: Tensor = x[:, None] + (step * (1 - 1e-9) * radius[:, None, None]).view(len(x), n, *x.shape[1:])
    found: Tensor = threat.clamp(points)
    return found


def half_space() -> Classifier:
    """Return a classifier of two classes: 1 if the first coordinate exceeds 0.5."""
    linear = nn.Linear(16, 2)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[1, 0] = 1.0
        linear.bias.copy_(torch.tensor([0.5, 0.0]))
    return Classifier(nn.Sequential(nn.Flatten(), linear).eval(), SHAPE, 2, "half-space")
