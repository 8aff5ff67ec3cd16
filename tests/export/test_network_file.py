import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from certbench import Classifier
from certbench.checker import network
from certbench.errors import UnsupportedError
from certbench.export import network_file
from certbench.networks.reading import logits_of


class Pieces(nn.Module):
    """Sums, slices, a difference, a maximum, a concatenation, and a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(9, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        joint = torch.cat([h[:, :3] - h[:, 3:], torch.maximum(h[:, :3], x[:, :3]), 2 * x[:, 5:]], dim=1)
        return self.b(joint + 0.5)


NETWORKS = {
    "mlp": (nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), (8,)),
    "softmax at the end": (nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1)), (8,)),
    "linear": (nn.Sequential(nn.Identity(), nn.Linear(8, 3)), (8,)),
    "ReLU at the end": (nn.Sequential(nn.Linear(8, 3), nn.ReLU()), (8,)),
    "pieces": (Pieces(), (8,)),
    "piecewise linear functions": (
        nn.Sequential(
            nn.Linear(8, 5), nn.Hardtanh(-0.3, 0.4), nn.LeakyReLU(0.2), nn.PReLU(5), nn.Hardsigmoid(), nn.Linear(5, 3)
        ),
        (8,),
    ),
    "images": (
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(nn.ConvTranspose2d(4, 2, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()),
            nn.Linear(12, 3),
        ),
        (2, 6, 6),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_computes_what_the_classifier_does(name, tmp_path):
    torch.manual_seed(0)
    module, shape = NETWORKS[name]
    classifier = Classifier(module.eval(), shape, 3, name)
    content = network_file.write(classifier)
    (tmp_path / "network.json").write_bytes(content)
    read = network.read(tmp_path / "network.json", hashlib.sha256(content).hexdigest())
    exact = logits_of(classifier)
    for size in (0.1, 1.0, 10.0):
        x = size * torch.randn(5, *shape, dtype=torch.float64)
        for row in x:
            expected = exact(row[None])[0].numpy()
            assert np.abs(read.evaluate(row.flatten().numpy()) - expected).max() <= 1e-9 * np.abs(expected).max()


class Multiplies(nn.Module):
    def forward(self, x):
        return x * x.flip(1)


@pytest.mark.parametrize("layer, match", [(nn.GELU(), r"1 \(GELU\)"), (Multiplies(), r"1 \(Multiplies\).*multiplied")])
def test_what_is_no_relu_network_is_refused_by_name(layer, match):
    classifier = Classifier(nn.Sequential(nn.Linear(8, 4), layer, nn.Linear(4, 3)).eval(), (8,), 3)
    with pytest.raises(UnsupportedError, match=match):
        network_file.write(classifier)
