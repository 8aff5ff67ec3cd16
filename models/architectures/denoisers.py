"""Denoisers: fully connected and convolutional ones, and diffusion models."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from certbench.errors import ConfigError

TIMES = 1000
"""Number of times of a diffusion model."""


OFFSET = 0.008
"""Offset of the cosine schedule. It gives the first times some noise (Nichol and Dhariwal, 2021, section 3.2)."""


class Residual(nn.Module):
    """A denoiser `x + body(x)`; the body learns the negative noise."""

    def __init__(self, input_shape: tuple[int, ...], width: int) -> None:
        """Make a body of two hidden layers of `width` ReLUs."""
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
        """Denoise inputs `(n, ...)`, without clipping, or a tracer's proxy for them."""
        return x + self.body(x)


class Hourglass(nn.Module):
    """A denoiser of images: two convolutions of stride 2, one in the middle, and two transposed ones back."""

    def __init__(self, channels: int, width: int) -> None:
        """Make a body with `width` channels at half the height and width, and twice as many at a quarter."""
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
        """Denoise images `(n, channels, height, width)`, without clipping."""
        return self.body(x)


def signal(times: Tensor | int) -> Tensor:
    r"""Compute $\bar\alpha_t$ of the cosine schedule, the share of variance that is not noise; 1 at t = 0, 0 at T."""

    def cosine(t: Tensor) -> Tensor:
        return torch.cos((t / TIMES + OFFSET) / (1 + OFFSET) * (math.pi / 2)).square()

    return cosine(torch.as_tensor(times, dtype=torch.float64)) / cosine(torch.zeros((), dtype=torch.float64))


def time_of(sigma: float) -> int:
    r"""Return the first time with at least the noise of smoothing at `sigma` (Carlini et al., 2023, section 3.2).

    Raises:
        ConfigError: no time before the last has so much noise, or `sigma` is not positive.
    """
    left = signal(torch.arange(1, TIMES))
    noisy = ((1 - left) / left).sqrt() >= 2 * sigma
    if not sigma > 0 or not noisy.any():
        raise ConfigError(f"a diffusion model of {TIMES} times has no time with noise sigma = {sigma}", ("sigma",))
    return int(noisy.nonzero()[0, 0]) + 1


class NoisePredictor(nn.Module):
    """A predictor of the noise in x_t: two hidden layers of ReLUs, to which sines and cosines of the time are added."""

    def __init__(self, input_shape: tuple[int, ...], width: int, waves: int = 16) -> None:
        """Make hidden layers of `width`, with `waves` sines and as many cosines."""
        super().__init__()
        size = math.prod(input_shape)
        self.waves = waves
        self.first, self.second, self.last = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, size)
        self.first_time, self.second_time = (nn.Linear(2 * waves, width, bias=False) for _ in range(2))

    def forward(self, x: Any, times: Int[Tensor, " m"]) -> Any:
        """Predict the noise in inputs `(n, ...)`, with one time per input or one for all."""
        frequencies = torch.exp(torch.arange(self.waves, dtype=torch.float64) * (-math.log(10_000) / self.waves))
        angles = (times.cpu()[:, None] * frequencies).to(self.first.weight)
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        hidden = torch.relu(self.first(x.flatten(1)) + self.first_time(time))
        hidden = torch.relu(self.second(hidden) + self.second_time(time))
        return self.last(hidden).view_as(x)


class Diffusion(nn.Module):
    r"""Denoising by a diffusion model, in one step (Carlini et al., 2023, Algorithm 1) or several.

    Inputs are taken for $x + \sigma N$ and scaled to $x_t$ at the first time whose noise is at least `sigma`. Its
    excess is less than the distance of two times (0.4 % at sigma = 0.25). Nothing is drawn, so this is a function, as a
    base classifier must be. Several steps are those of DDIM (Song, Meng and Ermon, 2021) without noise. The paper's
    many steps draw noise in each, and end in sharp images, at times of another class. 20 steps of the paper cost 6
    points of the accuracy of `cnn-diffusion` under noise of 0.25, and 20 points at 0.5; 20 of these steps change it by
    less than one point.

    Attributes:
        model: the predictor of noise.
        sigma: standard deviation of the noise in the inputs, in the units of the input.
        steps: number of evaluations of the model.
        noise: noise of the chosen time, in the same units.
        path: times from the chosen one down to 0.
    """

    def __init__(self, model: NoisePredictor, sigma: float, steps: int = 1) -> None:
        """Choose the times.

        Raises:
            ConfigError: no time has this noise, or there are fewer than `steps` times below it.
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
        """Denoise inputs `(n, ...)`; the result lies in [0, 1]."""
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
    """The recipe of a pre-processor. Subclasses are frozen dataclasses; their fields are on a card.

    Attributes:
        classifier: name of the zoo's model behind it, which is not trained again.
    """

    classifier: str

    @abstractmethod
    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Build the pre-processor, with parameters drawn from torch's global generator."""


@dataclass(frozen=True)
class Denoiser(Preprocessor):
    """A network from noisy inputs to clean ones.

    Attributes:
        width: width of its two hidden layers.
    """

    width: int = 128

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Build the denoiser."""
        return Residual(input_shape, self.width)


@dataclass(frozen=True)
class ConvolutionalDenoiser(Preprocessor):
    """A network of convolutions from noisy images to clean ones.

    Attributes:
        width: number of channels after the first convolution.
    """

    width: int = 16

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Build the denoiser.

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
        steps: number of steps to the clean input.
        width: width of the model's two hidden layers.
    """

    sigma: float = 0.25
    steps: int = 1
    width: int = 128

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Build the diffusion model."""
        return Diffusion(NoisePredictor(input_shape, self.width), self.sigma, self.steps)
