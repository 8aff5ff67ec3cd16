"""Denoisers and diffusion models before a classifier that stays as it is, and smoothing of both together."""

import math

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L2
from certbench.errors import ConfigError
from certbench.models import zoo
from certbench.models.architectures.denoisers import (
    TIMES,
    ConvolutionalDenoiser,
    Diffusion,
    NoisePredictor,
    signal,
    time_of,
)
from certbench.models.data.base import Dataset
from tests.support.denoisers import MODELS, made, seen

SMOOTHING = {"name": "smoothing", "noise": {"name": "gaussian", "sigma": 0.25}, "n": 300}


every_model = pytest.mark.parametrize("name", MODELS)


def noise_like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def accuracy(module: nn.Module, test: Dataset, sigma: float) -> float:
    return float((module(test.inputs + sigma * noise_like(test.inputs)).argmax(1) == test.labels).double().mean())


class Exact(NoisePredictor):
    """The noise that is in x_t if the clean input is the same everywhere."""

    def __init__(self, clean: float) -> None:
        super().__init__((1, 2, 2), 3)
        self.clean = 2 * clean - 1

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        left = signal(times).view(-1, 1, 1, 1)
        return (x - left.sqrt() * self.clean) / (1 - left).sqrt()


# Time and noise


def test_the_schedule_falls_from_all_signal_to_none() -> None:
    left = signal(torch.arange(TIMES + 1))
    assert left[0] == 1 and (left.diff() < 0).all() and 0 <= left[-1] < 1e-12
    t = 400
    expected = math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(signal(t)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.001, 0.05, 0.12, 0.25, 0.5, 1.0, 5.0, 100.0])
def test_the_time_is_the_first_with_enough_noise(sigma: float) -> None:
    left = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(TIMES)]
    ratios = [math.sqrt((left[0] - part) / part) for part in left]
    assert time_of(sigma) == next(t for t in range(1, TIMES) if ratios[t] >= 2 * sigma)


def test_the_time_has_hardly_more_noise_than_there_will_be() -> None:
    for sigma in (0.12, 0.25, 0.5, 1.0):
        assert sigma <= Diffusion(NoisePredictor((4,), 3), sigma).noise < 1.01 * sigma


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e4, math.nan])
def test_noise_of_no_time_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="no time with noise sigma"):
        time_of(sigma)


@pytest.mark.parametrize("steps", [0, 1000])
def test_steps_without_times_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps must lie between 1 and 29"):
        Diffusion(NoisePredictor((4,), 3), 0.25, steps)


# Modules


def test_one_step_is_the_prediction_of_carlini(digits: Dataset) -> None:
    module = zoo.load("cnn-diffusion").double().module
    assert isinstance(module, nn.Sequential)
    x, t = digits.inputs[:5].double(), time_of(0.25)
    left = float(signal(t))
    noisy = math.sqrt(left) * (2 * (x + 0.25 * noise_like(x)) - 1)
    predicted = (noisy - math.sqrt(1 - left) * module[0].model(noisy, torch.tensor([t]))) / math.sqrt(left)
    expected = (predicted.clamp(-1, 1) + 1) / 2
    assert torch.allclose(module[0](x + 0.25 * noise_like(x)), expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_whoever_knows_the_noise_gets_the_clean_input_back(steps: int) -> None:
    x = torch.full((6, 1, 2, 2), 0.3, dtype=torch.float64)
    denoiser = Diffusion(Exact(0.3), 0.25, steps)
    assert torch.allclose(denoiser(x + 0.25 * noise_like(x)), x, atol=1e-9)
    assert len(denoiser.path) == steps + 1 and denoiser.path[0] == time_of(0.25) and denoiser.path[-1] == 0


def test_each_input_has_a_time_of_its_own_in_training() -> None:
    model, x, times = NoisePredictor((1, 2, 2), 5), torch.rand(4, 1, 2, 2), torch.tensor([1, 40, 500, 999])
    alone = torch.cat([model(x[k : k + 1], times[k : k + 1]) for k in range(4)])
    assert torch.allclose(model(x, times), alone, atol=1e-6)
    assert not torch.allclose(model(x, times[:1]), model(x, times[1:2]))


@pytest.mark.machine
@every_model
def test_denoised_images_are_a_function_of_the_input_and_nearer_to_it(name: str) -> None:
    module, test, sigma = zoo.load(name).module, seen(name), made(name)[1]
    assert isinstance(module, nn.Sequential)
    noisy = test.inputs + sigma * noise_like(test.inputs)
    random = torch.get_rng_state()
    first, again = module[0](noisy), module[0](noisy)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first, again) and first.shape == noisy.shape
    error = (first - test.inputs).square().mean().sqrt()
    if "stability" not in name:  # which looks at labels alone
        assert error < 0.6 * sigma


@pytest.mark.parametrize("shape", [(784,), (1, 28, 30), (3, 30, 28), (1, 1, 8, 8)])
def test_convolutional_denoisers_refuse_what_they_cannot_halve_twice(shape: tuple[int, ...]) -> None:
    denoiser = ConvolutionalDenoiser("cnn-plain", width=2)
    assert denoiser.build((3, 4, 12))(torch.rand(2, 3, 4, 12)).shape == (2, 3, 4, 12)
    with pytest.raises(ConfigError, match="multiples of 4; inputs are"):
        denoiser.build(shape)


# The zoo


@every_model
def test_the_classifier_behind_is_the_one_of_the_zoo_bit_by_bit(name: str) -> None:
    preprocessor, module = made(name)[0], zoo.load(name).module
    assert isinstance(module, nn.Sequential)
    behind = zoo.load(preprocessor.classifier).module
    for own, shipped in zip(module[1:].state_dict().values(), behind.state_dict().values(), strict=True):
        assert torch.equal(own, shipped)
    assert sum(parameter.numel() for parameter in module[0].parameters()) < 100_000


@pytest.mark.machine
@every_model
def test_denoising_helps_under_noise_and_hardly_hurts_without(name: str) -> None:
    (preprocessor, sigma), test, module = made(name), seen(name), zoo.load(name).module
    plain = zoo.load(preprocessor.classifier).module
    assert accuracy(module, test, sigma) > accuracy(plain, test, sigma) + 0.01
    lost = 0.01 if sigma <= 0.25 else 0.02
    assert accuracy(module, test, 0.0) > accuracy(plain, test, 0.0) - lost


def ancestral(denoiser: Diffusion, x: Tensor, generator: torch.Generator) -> Tensor:
    """The sampler that a diffusion model is made for: each step draws (Ho, Jain and Abbeel, 2020, equation 7)."""
    point = math.sqrt(float(signal(denoiser.path[0]))) * (2 * x - 1)
    for now, later in zip(denoiser.path, denoiser.path[1:], strict=False):
        left, after = float(signal(now)), float(signal(later))
        noise = denoiser.model(point, torch.tensor([now]))
        clean = ((point - math.sqrt(1 - left) * noise) / math.sqrt(left)).clamp(-1, 1)
        kept, fresh = left / after, 1 - left / after
        mean = (math.sqrt(after) * fresh * clean + math.sqrt(kept) * (1 - after) * point) / (1 - left)
        point = mean + math.sqrt(fresh * (1 - after) / (1 - left)) * torch.randn(x.shape, generator=generator)
    return (point + 1) / 2


@pytest.mark.machine
@pytest.mark.parametrize(("sigma", "lost"), [(0.25, 0.03), (0.5, 0.12)])
def test_many_steps_that_draw_hallucinate_and_those_that_do_not_draw_hardly(
    sigma: float, lost: float, digits: Dataset
) -> None:
    module = zoo.load("cnn-diffusion").module
    assert isinstance(module, nn.Sequential) and isinstance(module[0], Diffusion)
    one, many = (Diffusion(module[0].model, sigma, steps) for steps in (1, 20))
    noisy, generator = digits.inputs + sigma * noise_like(digits.inputs), torch.Generator().manual_seed(1)
    images = (one(noisy), many(noisy), ancestral(many, noisy, generator))
    once, without, drawn = (float((module[1:](x).argmax(dim=1) == digits.labels).double().mean()) for x in images)
    assert drawn < once - lost and abs(without - once) < 0.02
    assert torch.allclose(ancestral(one, noisy, generator), images[0], atol=1e-5)


@pytest.mark.machine
@every_model
def test_smoothing_certifies_the_whole_and_more_of_it_than_of_the_classifier_alone(
    name: str,
) -> None:
    (preprocessor, sigma), test = made(name), seen(name)
    x, y = test.inputs[:10], test.labels[:10]
    smoothing = {**SMOOTHING, "noise": {"name": "gaussian", "sigma": sigma}}
    found = [certbench.certify(smoothing, zoo.load(model), x, L2) for model in (preprocessor.classifier, name)]
    plain, denoised = (float((c.radius * (c.prediction == y)).mean()) for c in found)
    assert denoised > 1.05 * plain
    assert (found[1].prediction != ABSTAIN).any()
    again = certbench.certify(smoothing, zoo.load(name), x[3:5], L2)
    assert torch.equal(again.radius, found[1].radius[3:5])


def test_draws_may_be_shared(digits: Dataset) -> None:
    certificate = certbench.certify({**SMOOTHING, "share": 0}, zoo.load("cnn-denoised"), digits.inputs[:4], L2)
    assert (certificate.radius > 0).any()
