"""Denoisers: convolutional ones, and diffusion models in one step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from certbench.errors import ConfigError

TIMES = 1000
"""Times of a diffusion model."""


OFFSET = 0.008
"""Of the cosine schedule, so that the first times have some noise (Nichol and Dhariwal, 2021, section 3.2)."""


class Residual(nn.Module):
    """A denoiser `x + body(x)`: the body learns minus the noise."""

    def __init__(self, input_shape: tuple[int, ...], width: int) -> None:
        """Two hidden layers of `width` ReLUs."""
        super().__init__()
        size = math.prod(input_shape)
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, size),
            nn.Unflatten(1, input_shape),
        )

    def forward(self, x: Any) -> Any:
        """Inputs `(n, ...)` with less noise, not clipped; or what a tracer hands on in their place."""
        return x + self.body(x)


class Hourglass(nn.Module):
    """A denoiser of images: two convolutions of stride 2, one in the middle, and two transposed ones back."""

    def __init__(self, channels: int, width: int) -> None:
        """`width` channels at half the height and width, twice as many at a quarter."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, x: Any) -> Any:
        """Inputs `(n, channels, height, width)` with less noise, not clipped."""
        return self.body(x)


def signal(times: Tensor | int) -> Tensor:
    r"""$\bar\alpha_t$ of the cosine schedule, the share of the variance that is not noise; 1 at t = 0, 0 at T."""

    def cosine(t: Tensor) -> Tensor:
        return torch.cos((t / TIMES + OFFSET) / (1 + OFFSET) * (math.pi / 2)).square()

    return cosine(torch.as_tensor(times, dtype=torch.float64)) / cosine(torch.zeros((), dtype=torch.float64))


def time_of(sigma: float) -> int:
    r"""The first time with at least the noise of smoothing at `sigma` (Carlini et al., 2023, section 3.2).

    Raises:
        ConfigError: no time before the last has so much noise, or `sigma` is not positive.
    """
    left = signal(torch.arange(1, TIMES))
    noisy = ((1 - left) / left).sqrt() >= 2 * sigma
    if not sigma > 0 or not noisy.any():
        raise ConfigError(f"a diffusion model of {TIMES} times has no time with noise sigma = {sigma}", ("sigma",))
    return int(noisy.nonzero()[0, 0]) + 1


class NoisePredictor(nn.Module):
    """The noise in x_t, by two hidden layers of ReLUs to which sines and cosines of the time are added."""

    def __init__(self, input_shape: tuple[int, ...], width: int, waves: int = 16) -> None:
        """Hidden layers of `width`; `waves` sines and as many cosines."""
        super().__init__()
        size = math.prod(input_shape)
        self.waves = waves
        self.first, self.second, self.last = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, size)
        self.first_time, self.second_time = (nn.Linear(2 * waves, width, bias=False) for _ in range(2))

    def forward(self, x: Any, times: Int[Tensor, " m"]) -> Any:
        """Noise in each input of `(n, ...)`, at a time each, or one for all."""
        frequencies = torch.exp(torch.arange(self.waves, dtype=torch.float64) * (-math.log(10_000) / self.waves))
        angles = (times.cpu()[:, None] * frequencies).to(self.first.weight)
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        hidden = torch.relu(self.first(x.flatten(1)) + self.first_time(time))
        hidden = torch.relu(self.second(hidden) + self.second_time(time))
        return self.last(hidden).view_as(x)


class Diffusion(nn.Module):
    r"""Denoising by a diffusion model, in one step (Carlini et al., 2023, Algorithm 1) or several.

    Inputs are taken for $x + \sigma N$ and scaled to $x_t$ at the time whose noise is `noise`, at least `sigma`, above
    it by less than the distance of two times (0.4 % at sigma = 0.25). Nothing is drawn, so this is a function, as a
    base classifier must be. Several steps are those of DDIM (Song, Meng and Ermon, 2021) without noise. The paper's
    many steps draw noise in each, and end in sharp images of, at times, another class; 20 of those cost 6 points of
    the accuracy of `cnn-diffusion` under noise of 0.25, and 20 at 0.5, where 20 of these change it by less than one.

    Attributes:
        model: predicts noise.
        sigma: of the noise to come, in the units of the input.
        steps: evaluations of the model.
        noise: of the time chosen, in the same units.
        path: times from the one chosen down to 0.
    """

    def __init__(self, model: NoisePredictor, sigma: float, steps: int = 1) -> None:
        """Choose the times.

        Raises:
            ConfigError: no time has this noise, or there are not so many times below it.
        """
        super().__init__()
        time = time_of(sigma)
        if not 1 <= steps <= time:
            raise ConfigError(f"steps must lie between 1 and {time}, the time of the noise, not {steps}", ("steps",))
        self.model, self.sigma, self.steps = model, sigma, steps
        left = float(signal(time))
        self.noise = math.sqrt((1 - left) / left) / 2
        self.path = tuple(round(time * (steps - k) / steps) for k in range(steps + 1))

    def forward(self, x: Any) -> Any:
        """Denoised inputs `(n, ...)`, in [0, 1]."""
        point = math.sqrt(float(signal(self.path[0]))) * (2 * x - 1)
        for now, later in zip(self.path, self.path[1:], strict=False):
            left, after = float(signal(now)), float(signal(later))
            noise = self.model(point, torch.tensor([now]))
            clean = ((point - math.sqrt(1 - left) * noise) / math.sqrt(left)).clamp(-1, 1)
            noise = (point - math.sqrt(left) * clean) / math.sqrt(1 - left)  # of the clipped image
            point = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
        return (point + 1) / 2


@dataclass(frozen=True)
class Preprocessor(ABC):
    """How a pre-processor is made. Subclasses are frozen dataclasses; their fields are on a card.

    Attributes:
        classifier: the model of the zoo behind it, which stays as it is.
    """

    classifier: str

    @abstractmethod
    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """The pre-processor, its parameters drawn from torch's global generator."""


@dataclass(frozen=True)
class Denoiser(Preprocessor):
    """A network from noisy inputs to clean ones.

    Attributes:
        width: of its two hidden layers.
    """

    width: int = 128

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """The denoiser."""
        return Residual(input_shape, self.width)


@dataclass(frozen=True)
class ConvolutionalDenoiser(Preprocessor):
    """A network of convolutions from noisy images to clean ones.

    Attributes:
        width: its channels after the first convolution.
    """

    width: int = 16

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """The denoiser.

        Raises:
            ConfigError: inputs are not images whose height and width are multiples of 4.
        """
        if len(input_shape) != 3 or input_shape[1] % 4 or input_shape[2] % 4:
            raise ConfigError(f"height and width of images must be multiples of 4; inputs are {input_shape}")
        return Hourglass(input_shape[0], self.width)


@dataclass(frozen=True)
class DiffusionDenoiser(Preprocessor):
    """A diffusion model, from the time of some noise to the clean input.

    Attributes:
        sigma: standard deviation of that noise, in the units of the input.
        steps: from there.
        width: of the model's two hidden layers.
    """

    sigma: float = 0.25
    steps: int = 1
    width: int = 128

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """The diffusion model."""
        return Diffusion(NoisePredictor(input_shape, self.width), self.sigma, self.steps)
