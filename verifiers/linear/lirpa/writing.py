"""Networks written as modules that every release of auto-LiRPA knows: matrices, convolutions, sums and functions.

The graph of our own reader is the source. So a layer is bounded through auto-LiRPA if it is read here, whatever module
or function of torch it was.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution
from certbench.networks.layers import Layer, Network
from certbench.networks.maps import Chain, Dense, Map, Scale
from certbench.networks.maps import Sum as SumOfMaps
from certbench.networks.piecewise_linear import IDENTITY, RELU
from certbench.networks.s_shaped import Sigmoid, Tanh
from certbench.verifiers.bounds.relaxations import Function
from certbench.verifiers.linear.lirpa.functions import Other

LARGEST = 2**23
"""Largest number of entries of a map that is written as a matrix because auto-LiRPA 0.3 has no such map: 64 MB."""


class Written(nn.Module):
    """Computes a network, for auto-LiRPA to trace. Values keep the shape of images between convolutions."""

    def __init__(self, network: Network) -> None:
        """Write the layers.

        Raises:
            UnsupportedError: a map is neither a convolution of images nor small enough for a matrix.
        """
        super().__init__()
        last = network.layers[-1]
        self.joined = sorted(last.maps) if len(last.maps) > 1 and _entries(last) <= LARGEST else None
        layers = network.hidden if self.joined else network.layers
        self.layers = nn.ModuleList(_Sum(layer) for layer in layers)
        self.after = nn.ModuleList(_function(network.activation(i)) for i in range(len(network.hidden)))
        if self.joined:  # so that intervals of a difference of logits are those of one matrix
            self.last = _linear(torch.cat([last.maps[source].matrix() for source in self.joined], dim=1), last.bias)
        self.requires_grad_(False)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n outputs"]:
        """Compute the outputs."""
        values = [x]
        for layer, function in zip(self.layers, self.after, strict=False):
            values.append(function(layer(values)))
        if self.joined:
            return self.last(torch.cat([_flat(values[source]) for source in self.joined], dim=1))  # type: ignore[no-any-return]
        return _flat(self.layers[-1](values))


class _Sum(nn.Module):
    """One affine layer: the maps of its sources, added up. The bias is part of the first map."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.sources = list(layer.maps)
        biases = [layer.bias] + [torch.zeros_like(layer.bias)] * (len(layer.maps) - 1)
        self.parts = nn.ModuleList(_map(part, bias) for part, bias in zip(layer.maps.values(), biases, strict=True))

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        return _added([part(values[source]) for part, source in zip(self.parts, self.sources, strict=True)])


class _Parallel(nn.Module):
    """A sum of maps of one value."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return _added([part(x) for part in self.parts])


class _Matrix(nn.Module):
    """A matrix, and a bias."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> None:
        super().__init__()
        self.linear = _linear(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(_flat(x))  # type: ignore[no-any-return]


class _Scaled(nn.Module):
    """One factor and one bias per entry."""

    def __init__(self, factors: Float[Tensor, " size"], bias: Float[Tensor, " size"]) -> None:
        super().__init__()
        # auto-LiRPA 0.3 wants constants with a batch axis.
        self.factors = None if bool((factors == 1).all()) else nn.Parameter(factors[None].clone())
        self.bias = nn.Parameter(bias[None].clone()) if bool(bias.any()) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.factors is not None:
            x = _flat(x) * self.factors
        return x if self.bias is None else _flat(x) + self.bias


class _Convolved(nn.Module):
    """A convolution of images, and a bias."""

    def __init__(self, part: Convolution, bias: Float[Tensor, " outputs"]) -> None:
        super().__init__()
        self.before = part.before
        images = bias.view(part.after).flatten(1)
        self.conv = nn.Conv2d(
            part.before[0],
            part.after[0],
            part.kernel.shape[2:],  # type: ignore[arg-type]
            part.stride,  # type: ignore[arg-type]
            part.padding,  # type: ignore[arg-type]
            part.dilation,  # type: ignore[arg-type]
            part.groups,
            dtype=bias.dtype,
            device=bias.device,
        )
        self.conv.weight.data, self.conv.bias.data = part.kernel.clone(), images[:, 0].clone()  # type: ignore[union-attr]
        rest = bias.view(part.after) - images[:, :1, None]
        self.rest = nn.Parameter(rest[None].clone()) if bool(rest.any()) else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if tuple(x.shape[1:]) == self.before else x.reshape(-1, *self.before)
        found = self.conv(x)
        return found if self.rest is None else found + self.rest  # type: ignore[no-any-return]


def _linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """Make a linear layer; it always has a bias, without which auto-LiRPA 0.3 takes it for a product of matrices."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device)
    linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
    return linear


def _map(part: Map, bias: Float[Tensor, " outputs"]) -> nn.Module:
    """Write a map and a bias as a module."""
    if isinstance(part, Dense):
        return _Matrix(part.weight, bias)
    if isinstance(part, Scale):
        return _Scaled(part.diagonal.flatten(), bias)
    if isinstance(part, Convolution) and part.axes == 2 and part.symmetric:
        return _Convolved(part, bias)
    if isinstance(part, SumOfMaps):
        zero = torch.zeros_like(bias)
        return _Parallel([_map(one, zero if i else bias) for i, one in enumerate(part.maps)])
    if part.inputs * part.outputs <= LARGEST:
        return _Matrix(part.matrix(), bias)
    if isinstance(part, Chain):
        *first, last = part.maps
        return nn.Sequential(*(_map(one, bias.new_zeros(one.outputs)) for one in first), _map(last, bias))
    raise UnsupportedError(
        f"auto-LiRPA 0.3 knows matrices and convolutions of images; a {type(part).__name__.lower()} map of "
        f"{part.inputs} values to {part.outputs} is too large to be written as a matrix. The own engine bounds it"
    )


def _function(function: Function) -> nn.Module:
    """Write an activation: by torch's own name where every release bounds it well, else as `Other`."""
    if function == RELU:
        return nn.ReLU()
    if function == IDENTITY:
        return nn.Identity()
    known: dict[Any, type[nn.Module]] = {Tanh: nn.Tanh, Sigmoid: nn.Sigmoid}
    return known[type(function)]() if type(function) in known else Other(function)


def _entries(layer: Layer) -> int:
    """Return the number of entries of a layer that is written as one matrix."""
    return layer.outputs * sum(part.inputs for part in layer.maps.values())


def _flat(x: Tensor) -> Tensor:
    """Return a value as a vector; an image becomes one."""
    return x.flatten(1) if x.dim() > 2 else x


def _added(parts: list[Tensor]) -> Tensor:
    """Add values up; where their shapes differ, as vectors."""
    if len({part.shape for part in parts}) > 1:
        parts = [_flat(part) for part in parts]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
