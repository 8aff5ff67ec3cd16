"""Tiny networks whose answers an enumeration knows."""

import functools
import itertools
import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from certbench import L1, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.networks.layers import Network

THREATS = [Linf, L1, Linf.within(0, 1), L1.within(0, 1)]


class Skip(nn.Module):
    """The input enters again after the first ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)) + x)))


def tiny(seed: int = 0, kind: str = "mlp") -> Classifier:
    """A network whose activation patterns can be enumerated."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        module = Skip() if kind == "skip" else nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return Classifier(module.eval(), (3,), 3, kind)


def points(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.lru_cache
def pieces(network: Network) -> list[tuple[np.ndarray, ...]]:
    """Return, for each activation pattern, the half-spaces G x <= g in which it holds, and the logits A x + b there."""
    found = []
    for pattern in itertools.product([0.0, 1.0], repeat=sum(layer.outputs for layer in network.hidden)):
        sources, half_spaces, offsets, left = [(np.eye(network.inputs), np.zeros(network.inputs))], [], [], pattern
        for layer in network.layers:
            maps = [(part.matrix().numpy(), *sources[source]) for source, part in layer.maps.items()]
            a, b = sum(w @ a for w, a, _ in maps), layer.bias.numpy() + sum(w @ b for w, _, b in maps)
            on, left = np.array(left[: len(b)]), left[len(b) :]
            if len(on):
                half_spaces.append((1 - 2 * on)[:, None] * a)
                offsets.append((2 * on - 1) * b)
                sources.append((on[:, None] * a, on * b))
        found.append((np.concatenate(half_spaces), np.concatenate(offsets), a, b))
    return found


def gaps(threat: ThreatModel, x: np.ndarray, g: np.ndarray, h: np.ndarray) -> float:
    """How far x is at least from the polytope g x <= h."""
    return float(((g @ x - h) / np.linalg.norm(g, ord=threat.q, axis=1).clip(1e-12)).max())


def sign_rows(d: int, p: float) -> np.ndarray:
    """Rows s with max s . delta = ||delta||_p."""
    if p == math.inf:
        return np.concatenate([np.eye(d), -np.eye(d)])
    return np.array(list(itertools.product([-1.0, 1.0], repeat=d)))


def exact_distance(network: Network, threat: ThreatModel, x: Tensor, rows: Tensor) -> float:
    """The distance of the nearest point at which one of the rows times the logits is not positive, by enumeration."""
    centre, signs, best = x.numpy(), sign_rows(len(x), threat.p), math.inf
    cells = [
        (np.concatenate([g, row[None] @ a]), np.concatenate([h, -row[None] @ b]))
        for row in rows.numpy()
        for g, h, a, b in pieces(network)
    ]
    for g, h in sorted(cells, key=lambda cell: gaps(threat, centre, *cell)):
        if gaps(threat, centre, g, h) >= best:
            break
        radius = np.concatenate([np.zeros(len(g)), -np.ones(len(signs))])[:, None]
        found = linprog(
            np.eye(len(x) + 1)[-1],
            np.hstack([np.concatenate([g, signs]), radius]),
            np.concatenate([h, signs @ centre]),
            bounds=[threat.domain or (None, None)] * len(x) + [(0, None)],
        )
        if found.status == 0:
            best = min(best, found.fun)
    return best


def rows_at(classifier: Classifier, x: Tensor) -> Tensor:
    return margin_rows(classifier(x).argmax(dim=1), classifier.num_classes)
