"""Noisy forward passes per second, in units of bare ones: `python -m benchmarks.smoothing`.

In turns, in one process: the network on a fixed batch (no noise, no counting), our engine with noise of each input's
own and with shared noise, a plain loop as in Cohen et al. (2019), and IBM ART's `certify` where it is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certbench import Classifier
from certbench.verifiers.counting import ESTIMATION, ROWS, Counter
from certbench.verifiers.noise import Gaussian

SIGMA, INPUTS = 0.25, 64

Work = Callable[[], int]
"""Does it, and says how many forward passes of single inputs it was."""


def networks() -> dict[str, Classifier]:
    """An MLP and two convolutional networks, with parameters as they are drawn."""

    def small(channels: int, side: int) -> nn.Module:
        features = 32 * (side // 4) ** 2
        convolutions = [nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10))

    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "784-256-256-10": Classifier(mlp.eval(), (1, 28, 28), 10),
            "3072-512-256-10": Classifier(wide.eval(), (3, 32, 32), 10),
            "small conv, 1 x 28 x 28": Classifier(small(1, 28).eval(), (1, 28, 28), 10),
            "small conv, 3 x 32 x 32": Classifier(small(3, 32).eval(), (3, 32, 32), 10),
        }


def bare(classifier: Classifier, x: Tensor, draws: int) -> Work:
    """The network on one batch, again and again."""
    batch = x.repeat(-(-ROWS // len(x)), 1, 1, 1)[:ROWS].float()

    @torch.no_grad()
    def work() -> int:
        for _ in range(len(x) * draws // ROWS):
            classifier.module(batch)
        return len(x) * (draws // ROWS) * ROWS

    return work


def ours(classifier: Classifier, x: Tensor, draws: int, share: int | None) -> Work:
    """Our engine, remembering nothing."""
    counter = Counter(classifier, Gaussian(SIGMA), share, None)

    def work() -> int:
        return int(counter.count(x, draws, list(range(len(x))), ESTIMATION).sum())

    return work


def cohen(classifier: Classifier, x: Tensor, draws: int) -> Work:
    """One input at a time, a batch of torch's noise, a count in Python."""

    @torch.no_grad()
    def work() -> int:
        total = 0
        for point in x.float():
            counts = [0] * classifier.num_classes
            for _ in range(draws // ROWS):
                batch = point.repeat(ROWS, 1, 1, 1)
                noise = torch.randn_like(batch) * SIGMA
                for label in classifier.module(batch + noise).argmax(1).tolist():
                    counts[label] += 1
            total += sum(counts)
        return total

    return work


def art(classifier: Classifier, x: Tensor, draws: int) -> Work | None:
    """IBM ART's certify, if it can be imported."""
    try:
        from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
    except ImportError:
        return None
    smoother = PyTorchRandomizedSmoothing(
        classifier.module, nn.CrossEntropyLoss(), classifier.input_shape, classifier.num_classes, sample_size=100,
        scale=SIGMA, alpha=0.001, device_type="cpu",
    )  # fmt: skip
    images = x.float().numpy()

    def work() -> int:
        smoother.certify(images, n=draws, batch_size=ROWS)
        return len(x) * (draws + 100)

    return work


def main() -> None:
    """Every network, every contender, with one and with two threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing", description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="per input and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, classifier in networks().items():
            x = torch.rand(INPUTS, *classifier.input_shape, dtype=torch.float64)
            contenders: dict[str, Work | None] = {
                "bare forward passes": bare(classifier, x, options.draws),
                "ours, shared noise": ours(classifier, x, options.draws, 0),
                "ours, own noise": ours(classifier, x, options.draws, None),
                "Cohen's loop": cohen(classifier, x, options.draws),
                "IBM ART": art(classifier, x[:2], options.draws),
            }
            rates: dict[str, list[float]] = {label: [] for label, work in contenders.items() if work}
            for turn in range(options.rounds + 1):
                for label, work in contenders.items():
                    if work is None:
                        continue
                    start = time.process_time() if threads == 1 else time.perf_counter()
                    done = work()
                    spent = (time.process_time() if threads == 1 else time.perf_counter()) - start
                    if turn:
                        rates[label].append(done / spent)
            print(f"\n{name}, {threads} thread(s): samples per second, best round (median); in units of the bare rate")
            best = max(rates["bare forward passes"])
            for label, found in rates.items():
                median = statistics.median(found)
                print(f"  {label:22}{max(found):12,.0f} ({median:10,.0f}){max(found) / best:8.2f}", flush=True)


if __name__ == "__main__":
    main()
