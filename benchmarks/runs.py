"""What the harness costs, and how much faster two workers are than one, on a suite.

    python -m benchmarks.runs [cost] [workers] [--suite default] [--inputs 100] [--rounds 3]

`cost` runs a suite in this process (executor `inline`), and a bare loop over the same calls: `prepare`, and `certify`
of the same batches; the attacks. Both load the models first. They take turns (A, B, B, A, ...), and so share what the
machine does meanwhile; one round of each comes before, for imports. Processor time is compared: other programs slow it
down less. All that the harness adds is in it: keys, copies of models, comparisons of models before and after, second
forward passes, the store. On a busy machine rounds differ by more than that; so the time outside of these calls and of
loading is told, too, as a share of the time inside of them, in the same rounds of the harness.

`workers` runs the suite with one worker process and with two, in turns. Start-up is told apart: the time until the
first piece of work begins, in which data and models are loaded, rows are planned, and the server of workers imports
torch. Use a machine with two idle cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from certbench.attacks.battery import attack
from certbench.core.certification import certify, prepare
from certbench.errors import UnsupportedError
from certbench.runs import run, server, work
from certbench.runs.load import load
from certbench.runs.selection import Selection
from certbench.runs.stages import ATTACK_BATCH
from certbench.runs.suite import Suite
from certbench.runs.suite import load as suite_of
from certbench.runs.threats import with_threats


class Clock:
    """A watcher that notes when the first piece of work began."""

    def __init__(self) -> None:
        """Start."""
        self.start, self.begun = time.perf_counter(), 0.0

    def data(self, text: str) -> None:
        """Take no note."""

    def begin(self, total: int, done: int) -> None:
        """Take no note."""

    def now(self, text: str) -> None:
        """Take note of the time."""
        self.begun = self.begun or time.perf_counter()

    def left(self, seconds: float | None) -> None:
        """Take no note."""

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """Take no note."""

    def note(self, text: str) -> None:
        """Tell of a failure."""
        print(text)


def harness(suite: Suite, executor: str = "inline", workers: int = 1) -> Clock:
    """Run the suite."""
    with tempfile.TemporaryDirectory() as place:
        clock = Clock()
        run.run(suite, Path(place) / "run", clock, executor=executor, workers=workers)
        return clock


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    """Take the processor time inside of the calls that a bare loop has, too."""
    with ExitStack() as stack:
        for module, name in ((work, "prepare"), (work, "certify"), (work, "attack"), (run, "load")):
            stack.enter_context(patch.object(module, name, _timed(getattr(module, name), spent)))
        yield


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            spent.append(time.process_time() - start)

    return timed


def bare(suite: Suite) -> None:
    """Call what the run calls, in its order, and keep nothing."""
    settings = suite.settings
    dataset, models = load(suite)
    suite = with_threats(suite, dataset)
    inputs = dataset.inputs[: settings.inputs].double()
    box = (float(inputs.min()), float(inputs.max()))
    if suite.threats[0].domain is not None:
        box = suite.threats[0].ends(inputs)
    if settings.attacks.steps:
        for model in models:
            for x in inputs.split(ATTACK_BATCH):
                attack(model, x, suite.threats, box, steps=settings.attacks.steps, seed=settings.seed)
    for model in models:
        for threat in suite.threats:
            for certifier in suite.certifiers:
                try:
                    state = prepare(certifier, model, threat)
                except UnsupportedError:
                    continue
                for x in inputs.split(1 if certifier.one_by_one else settings.batch):
                    certify(certifier, model, x, threat, state=state, batch_size=settings.batch, seed=settings.seed,
                            throw=False)  # fmt: skip


def cost(suite: Suite, rounds: int) -> None:
    """Compare the harness with the bare loop."""
    seconds: dict[str, list[float]] = {"harness": [], "bare": []}
    turns: list[tuple[str, Callable[[Suite], object]]] = [("harness", harness), ("bare", bare)]
    outside = []
    for number in range(rounds + 1):
        for name, call in turns if number % 2 else turns[::-1]:
            spent: list[float] = []
            start, wall = time.process_time(), time.perf_counter()
            with timed(spent):
                call(suite)
            cpu, wall = time.process_time() - start, time.perf_counter() - wall
            if number:
                seconds[name].append(cpu)
            if number and name == "harness":
                outside.append(cpu / sum(spent) - 1)
            print(
                f"{name:8} {cpu:7.2f} s of processor time, {wall:7.2f} s{'' if number else ' (not counted)'}",
                flush=True,
            )
    ratios = [one / other - 1 for one, other in zip(seconds["harness"], seconds["bare"], strict=True)]
    best = min(seconds["harness"]) / min(seconds["bare"]) - 1
    middle = statistics.median(ratios)
    print(f"the harness costs {100 * middle:.1f} % (median of {rounds}), {100 * best:.1f} % (best rounds)")
    print(f"outside of the calls of the bare loop it spends {100 * statistics.median(outside):.1f} % (median)")


def speed_up(suite: Suite, rounds: int) -> None:
    """Compare two workers with one."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    server.start()
    for number in range(rounds):
        for workers in (1, 2) if number % 2 else (2, 1):
            clock = harness(suite, "process", workers)
            end = time.perf_counter()
            seconds[workers].append(end - clock.begun)
            print(
                f"{workers} workers: start-up {clock.begun - clock.start:.1f} s, then {end - clock.begun:.1f} s",
                flush=True,
            )
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    best = min(seconds[1]) / min(seconds[2])
    print(
        f"two workers are {statistics.median(ratios):.2f} times as fast (median of {rounds}), {best:.2f} (best rounds)"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["cost", "workers"], default=["cost", "workers"])
    parser.add_argument("--suite", default="default")
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    suite = suite_of(given.suite, Selection(inputs=given.inputs))
    if "cost" in given.what:
        cost(suite, given.rounds)
    if "workers" in given.what:
        speed_up(suite, given.rounds)


if __name__ == "__main__":
    main()
