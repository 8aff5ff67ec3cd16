import torch

from certbench.networks.normalise import Normalise


def test_normalisation_is_per_channel_and_stored() -> None:
    layer, x = Normalise([0.25, 0.5], [2.0, 4.0]), torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.25) / 2, (x[:, 1] - 0.5) / 4], dim=1)
    assert torch.equal(layer(x), expected)
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())
