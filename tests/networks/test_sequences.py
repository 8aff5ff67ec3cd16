"""Cuts of networks: the parts make up the whole, and a value that a connection goes around is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import certbench
from certbench import L2, Classifier, UnsupportedError
from certbench.networks.module import GraphModule
from certbench.networks.sequences import cut
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support.users import Forward, ResNet


def residual() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ResNet(8, 4, (1, 1, 1, 1)).eval(), (3, 8, 8), 10)


def inputs(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("layers", [("stem",), ("norm", "layers.1"), ("layers.0", "layers.2"), ("layers",)])
def test_parts_of_a_residual_network_make_up_the_whole_in_its_own_precision(layers: tuple[str, ...]) -> None:
    classifier, x = residual(), inputs(3, 3, 8, 8)
    for made, tolerance in ((classifier, 1e-5), (classifier.double(), 1e-12)):
        z = x.to(made.dtype)
        for part in cut(made, *layers):
            z = part(z)
            assert isinstance(part, GraphModule) and z.dtype == made.dtype
        torch.testing.assert_close(z, made(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (("layers.1.first",), "goes around 'layers.1.first', to layers.1"),
        (("layers.1.skip",), "goes around 'layers.1.skip'"),
        (("last",), "gives the outputs"),
        (("layers.1", "layers.0"), "does not come after 'layers.1'"),
        (("layers.0.skip",), "computes nothing itself"),
        (("layer1",), "known: stem, norm, layers, layers.0"),
    ],
)
def test_layers_that_are_no_place_for_a_cut_are_refused_with_the_reason(layers: tuple[str, ...], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        cut(residual(), *layers)


def test_a_layer_that_runs_twice_is_refused() -> None:
    twice = Forward(lambda m, x: m[1](m[0](m[1](m[0](x)))), nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(UnsupportedError, match="runs more than once"):
        cut(Classifier(twice.eval(), (4,), 4), "layers.1")


def test_the_same_network_has_the_same_certificates_as_a_sequence_and_as_a_function() -> None:
    torch.manual_seed(2)
    first, second, last = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)
    sequence = nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), last).double().eval()
    function = Forward(lambda m, x: m[2](torch.tanh(m[1](functional.relu(m[0](x))))), first, second, last).eval()
    x = inputs(3, 6)
    for mine, theirs in (
        ({"layer": "0"}, {"layer": "layers.0"}),
        ({"layer": "0", "also": (("2", 0.3),)}, {"layer": "layers.0", "also": (("layers.1", 0.3),)}),
        ({"also": (("2", 0.3),)}, {"also": (("layers.1", 0.3),)}),
    ):
        found, other = (
            certbench.certify(Smoothing(Gaussian(0.3), n=500, **options), Classifier(module, (6,), 3), x, L2)  # type: ignore[arg-type]
            for module, options in ((sequence, mine), (function, theirs))
        )
        torch.testing.assert_close(found.radius, other.radius, rtol=1e-6, atol=0)
        assert [e["counts"] for e in found.evidence] == [e["counts"] for e in other.evidence]
