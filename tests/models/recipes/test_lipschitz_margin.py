import pytest
import torch

from certbench.models.recipes.lipschitz_margin import LipschitzMargin, lipschitz_constant
from tests.support.architectures import draw, network


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_lipschitz_margins_hold_along_the_steepest_direction(name: str) -> None:
    module, x, y, eps = network(name), draw(10, 1, 8, 8), torch.arange(10), 0.3
    margins = LipschitzMargin(eps).margins(module, x, y, eps)
    assert (margins[y, y] == 0).all()
    for other in range(10):
        moving = x.clone().requires_grad_()
        logits = module(moving)
        (gradient,) = torch.autograd.grad((logits[y, y] - logits[:, other]).sum(), moving)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        logits = module(x - eps * gradient / norm)
        reached = logits[y, y] - logits[:, other]
        assert (reached >= margins[:, other] - 1e-9).all()
        if name == "linear":
            assert torch.allclose(reached, margins[:, other])


def test_lipschitz_constants_are_the_products_of_spectral_norms() -> None:
    module = network("mlp")
    expected = module[2].weight.svd().S[0] * module[4].weight.svd().S[0] * module[6].weight.svd().S[0]
    assert torch.isclose(lipschitz_constant(module), expected / module[0].std.min())
