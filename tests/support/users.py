"""Architectures that people bring, each with the shape of one input and the number of outputs; weights are random.

Images have `side` pixels along each axis, 32 as the data sets have them or fewer to save time.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

Make = Callable[[], nn.Module]
Row = tuple[Make, tuple[int, ...], int]


class Block(nn.Module):
    """A residual block with batch normalisation; the sum is made in place."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.skip = nn.Sequential()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        z = self.second(functional.relu(self.first(x)))
        z += self.skip(x)
        return functional.relu(z)


class ResNet(nn.Module):
    """A residual network for small images, pooled by a function or by a module."""

    def __init__(self, side: int, width: int, blocks: Sequence[int], pool: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        layers, channels = [], width
        for stage, count in enumerate(blocks):
            for i in range(count):
                layers.append(Block(channels, width * 2**stage, 2 if stage and i == 0 else 1))
                channels = width * 2**stage
        self.layers, self.side, self.pool = nn.Sequential(*layers), side // 2 ** (len(blocks) - 1), pool
        self.last = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers(functional.relu(self.norm(self.stem(x))))
        z = functional.avg_pool2d(z, self.side) if self.pool is None else self.pool(z)
        return self.last(z.view(z.size(0), -1))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A vision transformer, written by hand: patches, a class token, positions, attention, and GELU."""

    def __init__(self, side: int, width: int = 48, heads: int = 3, depth: int = 2, patch: int = 8) -> None:
        super().__init__()
        patch = min(patch, side // 2)
        self.patch, tokens = nn.Conv2d(3, width, patch, patch), (side // patch) ** 2
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(width),
                    nn.Linear(width, 3 * width),
                    nn.Linear(width, width),
                    nn.LayerNorm(width),
                    nn.Linear(width, 2 * width),
                    nn.Linear(2 * width, width),
                ]
            )
            for _ in range(depth)
        )
        self.norm, self.last, self.heads = nn.LayerNorm(width), nn.Linear(width, 10), heads

    def forward(self, x: Tensor) -> Tensor:
        z = self.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(z.shape[0], -1, -1), z], 1) + self.places
        for before, join, mix, behind, up, down in self.blocks:  # type: ignore[misc]
            n, tokens, width = z.shape
            parts = join(before(z)).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            query, key, value = parts
            weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
            z = z + mix((weights @ value).transpose(1, 2).reshape(n, tokens, width))
            z = z + down(functional.gelu(up(behind(z))))
        return self.last(self.norm(z)[:, 0])  # type: ignore[no-any-return]


class Forward(nn.Module):
    """A module from a function of its layers."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """Two hidden layers on images of 8 x 8."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)
    )


def vgg(side: int, width: float, pool: Callable[[int, int], nn.Module]) -> nn.Module:
    """The convolutions of VGG-11 with batch normalisation; it halves the image while that is possible."""
    layers: list[nn.Module] = []
    channels = 3
    for part in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if part == 0 and side > 1:
            layers.append(pool(2, 2))
            side //= 2
        elif part:
            layers += [nn.Conv2d(channels, int(part * width), 3, padding=1), nn.BatchNorm2d(int(part * width))]
            layers.append(nn.ReLU(inplace=True))
            channels = int(part * width)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 10))


def convolutions(side: int, pool: Callable[[], nn.Module]) -> nn.Module:
    """Two convolutions with pooling, and two dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), pool(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), pool()),
        *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def functions(side: int, flatten: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> nn.Module:
    """Two convolutions in the functional style."""

    def run(m: nn.ModuleList, x: Tensor) -> Tensor:
        return last(m[2](flatten(functional.relu(m[1](functional.relu(m[0](x)))))))

    return Forward(run, nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 16, 4, 2, 1), nn.Linear(16 * (side // 4) ** 2, 10))


def joined(m: nn.ModuleList, x: Tensor) -> Tensor:
    a = functional.relu(m[0](x))
    return m[2](torch.cat([a, functional.relu(m[1](a))], 1).flatten(1))  # type: ignore[no-any-return]


def halves(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = functional.relu(m[0](x.flatten(1)))
    return m[1](h[:, :32] + h[:, 32:])  # type: ignore[no-any-return]


def exported() -> nn.Module:
    """An exported program's module; the size of the batch is free."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(mlp(nn.ReLU).eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    return program.module()


def architectures(side: int = 32) -> dict[str, Row]:
    """Return all of them, by name."""
    image, digits = (3, side, side), (1, 8, 8)
    view, flat, same = (lambda z: z.view(z.size(0), -1)), (lambda z: z.flatten(1)), (lambda z: z)
    half, quarter = side // 2, side // 4
    rows: dict[str, Row] = {
        "convolutions": (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(32 * quarter**2, 100), nn.ReLU(), nn.Linear(100, 10)),
            ),
            image,
            10,
        ),
        "functions and view": (lambda: functions(side, view, same), image, 10),
        "functions and flatten": (lambda: functions(side, flat, same), image, 10),
        "softmax last": (lambda: functions(side, view, lambda z: functional.softmax(z, dim=1)), image, 10),
        "log-softmax last": (lambda: functions(side, view, lambda z: functional.log_softmax(z, dim=1)), image, 10),
        "concatenation": (
            lambda: Forward(joined, nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(16 * half**2, 10)),
            image,
            10,
        ),
        "mean over the image": (
            lambda: Forward(
                lambda m, x: m[2](functional.relu(m[1](functional.relu(m[0](x)))).mean((2, 3))),
                *(nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Linear(32, 10)),
            ),
            image,
            10,
        ),
        "adaptive pooling": (
            lambda: nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
            ),
            image,
            10,
        ),
        "residual, pooled by a function": (lambda: ResNet(side, 8, (1, 1, 1, 1)), image, 10),
        "residual, pooled by a module": (lambda: ResNet(side, 8, (1, 1, 1, 1), nn.AvgPool2d(side // 8)), image, 10),
        "ResNet-18": (lambda: ResNet(side, 64, (2, 2, 2, 2)), image, 10),
        "VGG-11": (lambda: vgg(side, 1.0, nn.MaxPool2d), image, 10),
        "narrow VGG-11, average pooling": (lambda: vgg(side, 0.125, nn.AvgPool2d), image, 10),
        "vision transformer": (lambda: Transformer(side), image, 10),
        "max pooling": (lambda: convolutions(side, lambda: nn.MaxPool2d(2)), image, 10),
        "transposed convolution": (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU()),
                *(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * quarter**2, 10)),
            ),
            image,
            10,
        ),
        "time series": (
            lambda: nn.Sequential(
                *(nn.Conv1d(2, 16, 7, 2, 3), nn.ReLU(), nn.Conv1d(16, 16, 5, 2, 2), nn.ReLU(), nn.Flatten()),
                nn.Linear(16 * side, 4),
            ),
            (2, 4 * side),
            4,
        ),
        "group normalisation": (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 16, 4, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten()),
                nn.Linear(16 * half**2, 10),
            ),
            image,
            10,
        ),
        "layer normalisation": (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10)),
            digits,
            10,
        ),
        "same padding": (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()),
                nn.Linear(8 * quarter**2, 10),
            ),
            image,
            10,
        ),
        "ReLU": (lambda: mlp(nn.ReLU), digits, 10),
        "slices": (lambda: Forward(halves, nn.Linear(64, 64), nn.Linear(32, 10)), digits, 10),
        "clamped input": (lambda: Forward(lambda m, x: m[0](torch.clamp(x, 0, 1)), mlp(nn.ReLU)), digits, 10),
        "dropout": (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
            digits,
            10,
        ),
        "one logit": (lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1)), (30,), 1),
        "two classes": (lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)), (30,), 2),
        "weight norm": (
            lambda: nn.Sequential(
                nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10)
            ),
            digits,
            10,
        ),
        "spectral norm": (
            lambda: nn.Sequential(
                nn.Flatten(), parametrizations.spectral_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10)
            ),
            digits,
            10,
        ),
        "compiled": (lambda: torch.compile(mlp(nn.ReLU)), digits, 10),  # type: ignore[dict-item,return-value]
        "scripted": (lambda: torch.jit.script(mlp(nn.ReLU)), digits, 10),
        "exported": (exported, digits, 10),
        "float16": (lambda: mlp(nn.ReLU).half(), digits, 10),
        "bfloat16": (lambda: mlp(nn.ReLU).bfloat16(), digits, 10),
        "float64": (lambda: mlp(nn.ReLU).double(), digits, 10),
        "LSTM": (
            lambda: Forward(lambda m, x: m[1](m[0](x)[0][:, -1]), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)),
            (12, 8),
            4,
        ),
    }
    kinds = (nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Softplus, nn.Hardtanh, nn.ReLU6)
    for kind in kinds:
        rows[kind.__name__] = ((lambda kind=kind: mlp(kind)), digits, 10)
    return rows
