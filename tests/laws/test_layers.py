"""Margins of every kind of layer lie below what sampling and descent find, in all norms, on small and large balls.

A bound that is too high is refuted by any point, so nothing hangs on how far the descent gets.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.core.options import build
from tests.support.users import Forward

RADII = (1e-3, 0.05, 0.5, 3.0)
"""Radii of the balls. Over the largest, exponentials overflow."""

LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    repr(layer()): (shape, layer)
    for shape, layers in {
        (3, 8): (
            lambda: nn.Conv1d(3, 4, 3, 2, 1),
            lambda: nn.Conv1d(3, 4, 3, 1, 1, padding_mode="circular"),
            lambda: nn.ConvTranspose1d(3, 4, 3, 2, 1, 1),
            lambda: nn.AvgPool1d(2),
            lambda: nn.MaxPool1d(3, 2, 1),
            lambda: nn.AdaptiveMaxPool1d(3),
            lambda: nn.InstanceNorm1d(3, affine=True),
            lambda: nn.Upsample(scale_factor=2, mode="linear"),
            lambda: nn.ReflectionPad1d(2),
            lambda: nn.ConstantPad1d(1, 0.5),
            lambda: nn.GroupNorm(3, 3),
            lambda: nn.LayerNorm(8),
            lambda: nn.RMSNorm(8, eps=1e-5),
            lambda: nn.Softmax(-1),
            lambda: nn.LogSoftmax(-1),
            lambda: nn.GLU(-1),
            lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, activation="gelu"),
        ),
        (2, 6, 6): (
            lambda: nn.Conv2d(2, 3, 3, 1, 1, padding_mode="reflect"),
            lambda: nn.Conv2d(2, 4, 3, padding="same", dilation=2, groups=2),
            lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2, dilation=2),
            lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
            lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            lambda: nn.AdaptiveAvgPool2d((3, 4)),
            lambda: nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True),
            lambda: nn.PixelUnshuffle(2),
            lambda: nn.UpsamplingBilinear2d(scale_factor=2),
            lambda: nn.LocalResponseNorm(2),
            lambda: nn.Unfold(3),
            lambda: nn.BatchNorm2d(2),
            lambda: nn.PReLU(2),
        ),
        (2, 4, 4, 4): (
            lambda: nn.Conv3d(2, 3, 2, 1, 1),
            lambda: nn.ConvTranspose3d(2, 3, 2, 2),
            lambda: nn.AvgPool3d(2),
            lambda: nn.MaxPool3d(2),
        ),
        (6,): tuple(
            (lambda kind=kind: kind())
            for kind in (
                *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
                *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus),
                *(nn.Softsign, nn.Softshrink),
            )
        ),
    }.items()
    for layer in layers
}


def outer(z: Tensor) -> Tensor:
    return (z[:, :, None] * z[:, None, :]).sum(2)


def squared(z: Tensor) -> Tensor:
    return (z.view(-1, 2, 3) @ z.view(-1, 3, 2)).flatten(1).repeat(1, 2)[:, :6]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "larger": lambda z: torch.maximum(z, z.flip(1)),
    "exp": torch.exp,
    "log": lambda z: torch.log(z * z + 1),
    "cube": lambda z: z**3,
    "sine over square": lambda z: z.sin() / (z * z + 1),
    "variance": lambda z: z - z.var(1, keepdim=True),
    "length": lambda z: z / (1 + z.norm(dim=1, keepdim=True)),
    "normalised": lambda z: functional.normalize(z, dim=1),
    "log-sum-exp": lambda z: z - z.logsumexp(1, keepdim=True),
    "product of all": lambda z: z + z.prod(1, keepdim=True),
    "outer product": outer,
    "product of matrices": squared,
    "clamped by tensors": lambda z: z.clamp(torch.zeros(6).to(z), torch.ones(6).to(z)),
}


def made(name: str) -> Classifier:
    """Make a classifier around a layer, with affine maps on both of its sides."""
    torch.manual_seed(2)
    if name in FUNCTIONS:
        run = FUNCTIONS[name]
        module: nn.Module = Forward(lambda m, x: m[1](run(m[0](x))), nn.Linear(6, 6), nn.Linear(6, 3))
        return Classifier(module.eval(), (6,), 3, name)
    shape, layer = LAYERS[name]
    before = nn.Linear(shape[-1], shape[-1])
    body = nn.Sequential(before, layer(), nn.Flatten()).eval()
    width = body(torch.zeros(1, *shape)).shape[1]
    return Classifier(nn.Sequential(*body, nn.Tanh(), nn.Linear(width, 3)).eval(), shape, 3, name)


def lowest(classifier: Classifier, x: Tensor, rows: Tensor, threat: ThreatModel, eps: float) -> Tensor:
    """Return the least margins found in a ball around one input, by sampling and descent from there."""

    def inside(step: Tensor) -> Tensor:
        if threat.p == math.inf:
            return step.clamp(-eps, eps)
        length = torch.linalg.vector_norm(step, threat.p, dim=1, keepdim=True).clamp(min=1e-30)
        return step * (eps / length).clamp(max=1)

    start = torch.randn(60, x.numel(), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    found = []
    for row in rows:
        step, best = inside(start.sign() * eps if threat.p == math.inf else start * eps), math.inf
        for i in range(10):
            step.requires_grad_()
            margins = classifier.module((x.flatten() + step).view(-1, *x.shape)) @ row
            best = min(best, float(margins.detach().nan_to_num(math.inf).min()))
            (gradient,) = torch.autograd.grad(margins.sum(), step)
            gradient = gradient.nan_to_num(0.0)
            length = gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
            direction = gradient.sign() if threat.p == math.inf else gradient / length
            step = inside(step.detach() - eps * 0.25 * 0.9**i * direction)
        found.append(best)
    return torch.tensor(found, dtype=x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf, L2, L1], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, *FUNCTIONS])
def test_no_point_of_a_ball_lies_below_a_margins_bound(name: str, threat: ThreatModel) -> None:
    classifier = made(name)
    x = torch.randn(2, *classifier.input_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for spec in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        certifier = build(spec)
        state = certifier.prepare(classifier, threat)
        rows = margin_rows(state.classifier(x).argmax(dim=1), 3).to(x)
        for eps in RADII:
            bounds = certifier.lower(state, x, rows, x.new_full((2,), eps)).lower
            assert not bounds.isnan().any()
            for i in range(2):
                least = lowest(state.classifier, x[i], rows[i], threat, eps)
                assert (bounds[i] <= least + 1e-9 * least.abs().clamp(min=1)).all(), (spec, eps)
