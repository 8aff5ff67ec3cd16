"""Modules rewritten as auto-LiRPA expects them: small affine layers become dense ones."""

from collections.abc import Iterator

import torch
from torch import nn

DENSE_LIMIT = 2**20
"""Largest number of entries of the matrix of affine layers that are written as one dense layer. A judgement: on the 8x8
maps of the digits an evaluation of CROWN took 13 ms per image with convolutions and 5 ms with dense layers; on MNIST
the matrices are too large."""


_DENSE = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Identity)


_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus)


@torch.no_grad()
def dense_layers(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Write every run of small affine layers as one dense layer, if the module is a plain sequence.

    The function is the same up to float64 rounding. Layers of other kinds may come first (a normalisation, say), after
    them only affine layers and elementwise activations. Any other module is returned as it is.
    """
    layers = list(_flat(module))
    start = next((i for i in range(len(layers), 0, -1) if type(layers[i - 1]) not in _DENSE + _ELEMENTWISE), 0)
    if not any(isinstance(layer, nn.Conv2d) for layer in layers[start:]):
        return module
    parameter = next(module.parameters())
    point = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    for layer in layers[:start]:
        point = layer(point)
    dense: list[nn.Module] = [*layers[:start], nn.Flatten()]
    run: list[nn.Module] = []
    tail: list[nn.Module | None] = [*layers[start:], None]
    for step in tail:
        if step is not None and type(step) in _DENSE:
            run.append(step)
            continue
        if run:
            affine = nn.Sequential(*run)
            zero = torch.zeros_like(point)
            point, run = affine(zero), []
            if zero.numel() * point.numel() > DENSE_LIMIT:
                return module
            eye = torch.eye(zero.numel(), dtype=zero.dtype, device=zero.device).view(-1, *zero.shape[1:])
            linear = nn.Linear(zero.numel(), point.numel(), dtype=zero.dtype, device=zero.device)
            linear.weight.copy_((affine(eye) - point).flatten(1).T)
            linear.bias.copy_(point.flatten())
            dense.append(linear.requires_grad_(False))
        if step is not None:
            dense.append(step)
    return nn.Sequential(*dense).eval()


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """Return the layers of nested sequences, in order."""
    if type(module) is nn.Sequential:
        for layer in module:
            yield from _flat(layer)
    else:
        yield module


def as_expected(module: nn.Module) -> nn.Module:
    """Rewrite a module in the terms that auto-LiRPA 0.3 knows; the function stays the same.

    auto-LiRPA 0.3 switches a network with dropout to training mode, where dropout is not the identity. It takes a
    linear layer without bias for a product of matrices. And it wants constants of shape (C, 1, 1), as in a
    normalisation, with a batch axis. If the last rewriting changes what a module computes, the rehearsal of the graph
    finds it.
    """
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d):
        return nn.Identity()
    if isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_features), requires_grad=False)
    if not type(module).__module__.startswith("torch."):
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dim() == 3 and buffer.shape[1:] == (1, 1):
                setattr(module, name, buffer[None])
    for name, child in [*module._modules.items()]:  # `named_children` leaves out what came before
        if child is not None:
            setattr(module, name, as_expected(child))
    return module
