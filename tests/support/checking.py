"""What the tests of the checker share: claims and evidence of margin certifiers, and what becomes of them."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certbench.checker import network
from certbench.checker.reading import Claim, Refused, Unreadable
from certbench.core.certifier import MarginCertifier
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.export import network_file


def read(classifier: Classifier, folder: Path) -> network.Network:
    """The network file of a classifier, as the checker reads it."""
    data = network_file.write(classifier)
    path = folder / "network.json"
    path.write_bytes(data)
    return network.read(path, hashlib.sha256(data).hexdigest())


def made(
    certifier: MarginCertifier[Any], classifier: Classifier, threat: ThreatModel, x: Tensor
) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """What a certifier claims of each input, and its evidence."""
    state = certifier.prepare(classifier, threat)
    found = certifier.certify(state, x.double(), list(range(len(x))))
    for i in range(len(x)):
        radius = found.radius[i : i + 1]
        if float(radius) > 0:
            evidence = certifier.witness(state, x[i : i + 1].double(), found.prediction[i : i + 1], radius)
            flat = x[i].double().flatten().numpy()
            prediction = int(found.prediction[i])
            yield Claim(flat, threat.p, threat.domain, prediction, float(radius), "base", "sound"), evidence


def refused(rule: Any, claim: Claim, evidence: Any, read: network.Network | None) -> str:
    """Why evidence is refused; "" if it is not."""
    with np.errstate(all="ignore"):
        try:
            return rule.check(claim, evidence, read) or ""
        except (Refused, Unreadable) as error:
            return str(error)


def changed(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested lists and objects with one part replaced."""
    if not where:
        return new
    copied = list(value) if isinstance(value, list) else dict(value)
    copied[where[0]] = changed(value[where[0]], where[1:], new)
    return copied


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where all parts of nested lists and objects are, themselves included; of long lists, the first two."""
    yield where
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*where, name))
    elif isinstance(value, list):
        for i in range(min(2, len(value))):
            yield from leaves(value[i], (*where, i))


ODD: list[Any] = [
    None,
    True,
    "",
    "x",
    -1,
    0,
    1e308,
    2**60,
    math.nan,
    math.inf,
    [],
    [[]],
    {},
    {"shape": [1], "float64": ""},
]
"""What an adversary may write anywhere."""


def perceptron(*sizes: int, seed: int = 1) -> Classifier:
    """A perceptron."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = [nn.Flatten()]
        for i, o in itertools.pairwise(sizes):
            parts += [nn.Linear(i, o), nn.ReLU()]
        module = nn.Sequential(*parts[:-1]).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return Classifier(module, (sizes[0],), sizes[-1], "perceptron")


def convolution() -> Classifier:
    """Two convolutions and a linear layer, with a normalisation in front."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
    module[0].running_var.fill_(0.3)  # type: ignore[union-attr, operator]
    return Classifier(module.eval(), (1, 4, 4), 3, "convolution")


def inputs(classifier: Classifier, n: int, seed: int = 0) -> Tensor:
    """Uniform in the unit box."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *classifier.input_shape, generator=generator, dtype=torch.float64)
