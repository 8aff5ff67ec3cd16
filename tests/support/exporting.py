"""Small networks, and the certificates of their inputs as files."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from certbench import Classifier, ThreatModel, build, certify, describe
from certbench.core.claims import Outcome
from certbench.core.options import Spec, label
from certbench.export.exporter import Exporter
from certbench.results.rows import Row

THREATS = [ThreatModel(p, box) for p in (1.0, 2.0, math.inf) for box in (None, (0.0, 1.0))]


class Residual(nn.Module):
    """A sum that skips a ReLU, a subtraction, and a ReLU whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(h) - 0.5 * h) + h)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (5,)),
    "cnn": (cnn, (2, 5, 6)),
    "residual": (Residual, (5,)),
    "linear": (flat, (5,)),
    "tiny": (tiny, (3,)),
}


def network(kind: str, seed: int = 0) -> Classifier:
    make, shape = NETWORKS[kind]
    torch.manual_seed(seed)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data *= 3  # else some are constant in the whole domain
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean, part.running_var = torch.randn(4), torch.rand(4) + 0.5
    return Classifier(module.eval(), shape, 3, kind)


def exported(
    folder: Path, name: Spec, classifier: Classifier, threat: ThreatModel, x: Tensor
) -> Iterator[tuple[Path, float, float]]:
    """The files of the inputs with a radius: path, radius claimed there, radius of the certifier."""
    certifier, exporter = build(name), Exporter(classifier, folder)
    state = certifier.prepare(classifier, threat)
    found = certify(certifier, classifier, x, threat, state=state)
    for i in range(len(x)):
        if found.radius[i] > 0:
            row = Row(
                *(classifier.name, label(certifier), certifier.guarantee, certifier.subject, threat.p, i, 0),
                *(int(found.prediction[i]), float(found.radius[i]), Outcome.COMPLETED),
                domain=threat.domain,
                spec=describe(certifier),
            )
            path, radius = exporter.write(certifier, state, row, x[i])
            yield path, radius, row.radius


def inputs(classifier: Classifier, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *classifier.input_shape, generator=generator, dtype=torch.float64)
