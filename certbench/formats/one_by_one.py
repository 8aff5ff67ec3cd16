"""Modules that take one input at a time."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.errors import ConfigError


class OneByOne(nn.Module):
    """Runs the inputs of a batch one by one."""

    conceals = True
    """Whether hooks do not see each input's own numbers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.training = module, False  # exported programs refuse to be told so

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Compute the outputs."""
        rows = x if len(x) else x.new_zeros(1, *x.shape[1:])
        return torch.cat([self.module(row[None]) for row in rows])[: len(x)]


@torch.no_grad()
def for_batches(module: nn.Module, input_shape: tuple[int, ...], name: str) -> nn.Module:
    """Return a module for batches of any size: the same one, or one that runs inputs one by one.

    Raises:
        ConfigError: the module's outputs for an input depend on the others in its batch, or it takes no single input.
    """
    like = next((part for part in module.parameters() if part.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, *input_shape, generator=generator, dtype=torch.float64).to(like)
    try:
        singles = [module(x[i : i + 1]) for i in range(3)]
    except Exception as error:  # the code is the user's own
        said = str(error).partition("\n")[0]
        raise ConfigError(f"{name} does not take a batch of one input of shape {input_shape}: {said}") from error
    if not isinstance(singles[0], Tensor):
        return module  # one of several outputs is chosen later, by a name
    blind = x.clone()
    blind[1] = torch.nan  # it reaches all that this input has a part in, wherever numbers are small or large
    try:
        batches = {n: module(x[:n]) for n in (2, 3)}
        others = module(blind)[::2]
    except Exception:  # it was exported for one input, say
        return OneByOne(module)
    scale = float(torch.cat(singles).abs().max())
    for n, found in batches.items():
        if found.shape[:1] != (n,) or not torch.allclose(found, torch.cat(singles[:n]), rtol=1e-4, atol=1e-4 * scale):
            raise ConfigError(f"{name}: the outputs for an input depend on the others in a batch of {n}")
    if not torch.allclose(others, torch.cat(singles[::2]), rtol=1e-4, atol=1e-4 * scale):
        raise ConfigError(f"{name}: the outputs for an input depend on the others in a batch of 3")
    return module
