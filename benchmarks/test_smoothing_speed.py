"""Noisy forward passes per second, in units of bare ones: `python -m pytest benchmarks/test_smoothing_speed.py`.

The contenders take turns in one process: the network on a fixed batch (no noise, no counting), our engine with separate
noise for each input and with shared noise, a plain loop as in Cohen et al. (2019), and IBM ART's `certify` if it is
installed. pytest-benchmark times the engine with shared noise; before each of its rounds the others have a round. Their
results go to `extra_info`: samples per second (best rounds), also in units of the bare rate, and the mean certified
radius by Cohen's rule. One thread is timed by processor time, two by wall time.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certbench import Classifier
from certbench.verifiers.smoothing.counting import ESTIMATION, ROWS, Counter
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.smoothing import Smoothing

SIGMA, ALPHA, INPUTS, DRAWS, ROUNDS = 0.25, 0.001, 64, 1000, 5
SHARED = "ours, shared noise"

Work = Callable[[], tuple[int, float | None]]
"""Function that does the work, and returns the number of forward passes of single inputs and the mean radius."""


def small(channels: int, side: int) -> nn.Module:
    """Build Wong and Kolter's small network."""
    convolutions = [nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    last = [nn.Linear(32 * (side // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *last)


def mlp(inputs: int, width: int) -> nn.Module:
    """Build a network with two hidden layers."""
    first = [nn.Flatten(), nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "784-256-256-10": (lambda: mlp(784, 256), (1, 28, 28)),
    "3072-512-256-10": (lambda: mlp(3072, 512), (3, 32, 32)),
    "small conv, 1 x 28 x 28": (lambda: small(1, 28), (1, 28, 28)),
    "small conv, 3 x 32 x 32": (lambda: small(3, 32), (3, 32, 32)),
}
"""Networks with random parameters, and their input shapes."""


def mean_radius(counts: Tensor, draws: int, shape: tuple[int, ...]) -> float:
    """Compute the mean radius for the class with most counts.

    The other contenders select a class first, which costs them 100 draws or nothing.
    """
    rule, d = Smoothing(Gaussian(SIGMA), n=draws, alpha=ALPHA, rule="one-vs-rest"), shape[0] * shape[1] * shape[2]
    bounds = [rule.probabilities(int(row.argmax()), row.tolist(), draws) for row in counts]
    return sum(rule.noise.radius(lower, upper, 2.0, d) for lower, upper in bounds) / len(bounds)


def bare(classifier: Classifier, x: Tensor) -> Work:
    """Run the network on one batch, again and again."""
    batch = x.repeat(-(-ROWS // len(x)), 1, 1, 1)[:ROWS].float()

    @torch.no_grad()
    def work() -> tuple[int, None]:
        times = len(x) * DRAWS // ROWS
        for _ in range(times):
            classifier.module(batch)
        return times * ROWS, None

    return work


def ours(classifier: Classifier, x: Tensor, share: int | None) -> Work:
    """Run our engine, without stored counts."""
    counter = Counter(classifier, Gaussian(SIGMA), share, None)

    def work() -> tuple[int, float]:
        counts = counter.count(x, DRAWS, list(range(len(x))), ESTIMATION)
        return int(counts.sum()), mean_radius(counts, DRAWS, classifier.input_shape)

    return work


def cohen(classifier: Classifier, x: Tensor) -> Work:
    """Run Cohen's loop: one input at a time, batches of torch's noise, counts in Python."""

    @torch.no_grad()
    def work() -> tuple[int, float]:
        counts = torch.zeros(len(x), classifier.num_classes, dtype=torch.int64)
        for i, point in enumerate(x.float()):
            found = [0] * classifier.num_classes
            for _ in range(DRAWS // ROWS):
                batch = point.repeat(ROWS, 1, 1, 1)
                noise = torch.randn_like(batch) * SIGMA
                for label in classifier.module(batch + noise).argmax(1).tolist():
                    found[label] += 1
            counts[i] = torch.tensor(found)
        return int(counts.sum()), mean_radius(counts, DRAWS, classifier.input_shape)

    return work


def art(classifier: Classifier, x: Tensor) -> Work | None:
    """Run IBM ART's `certify`; return None if it cannot be imported."""
    try:
        from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
    except ImportError:
        return None
    smoother = PyTorchRandomizedSmoothing(
        classifier.module, nn.CrossEntropyLoss(), classifier.input_shape, classifier.num_classes, sample_size=100,
        scale=SIGMA, alpha=ALPHA, device_type="cpu",
    )  # fmt: skip
    images = x.float().numpy()

    def work() -> tuple[int, float]:
        _, radii = smoother.certify(images, n=DRAWS, batch_size=ROWS)
        return len(x) * (DRAWS + 100), float(radii.mean())

    return work


CLOCKS: dict[int, Callable[[], float]] = {1: time.process_time, 2: time.perf_counter}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "threads", [pytest.param(k, marks=pytest.mark.benchmark(timer=clock)) for k, clock in CLOCKS.items()]
)
def test_smoothing_speed(benchmark: Any, name: str, threads: int) -> None:
    """Run one race. The type `Any` is there because pytest-benchmark's fixture has no types."""
    clock, (make, shape) = CLOCKS[threads], NETWORKS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            classifier = Classifier(make().eval(), shape, 10)
            x = torch.rand(INPUTS, *shape, dtype=torch.float64)
        contenders = {
            "bare": bare(classifier, x),
            "ours, own noise": ours(classifier, x, None),
            "Cohen's loop": cohen(classifier, x),
            "IBM ART": art(classifier, x[:4]),
        }
        others = {label: work for label, work in contenders.items() if work is not None}
        best: dict[str, float] = dict.fromkeys(others, 0.0)
        radii: dict[str, float | None] = {}

        def round_of_the_others() -> None:
            for label, work in others.items():
                start = clock()
                done, radii[label] = work()
                best[label] = max(best[label], done / (clock() - start))

        work = ours(classifier, x, 0)
        done, radii[SHARED] = benchmark.pedantic(work, setup=round_of_the_others, rounds=ROUNDS, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    best[SHARED] = done / benchmark.stats.stats.min
    ratios = {label: rate / best["bare"] for label, rate in best.items()}
    benchmark.extra_info.update(samples_per_second=best, over_bare=ratios, mean_radius=radii)
    print(f"\n{name}, {threads} thread(s): samples per second; in units of the bare rate; mean certified radius")
    for label, rate in best.items():
        radius = radii[label]
        print(f"  {label:20}{rate:12,.0f}{ratios[label]:8.2f}" + ("" if radius is None else f"{radius:9.4f}"))
