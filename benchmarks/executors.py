"""Throughput of executors, and the memory of the process of the run, on tasks that do nothing for a millisecond.

    python -m benchmarks.executors [--tasks 10000] [--workers 2] [--only inline,process,ray]

Each task is a job of one input: the harness copies the input, computes, compares the classifier with what it was, and
brings the answer to the one process that stores. Memory is measured after a tenth of the tasks, and after all. The
processor time of that process (all its threads) per task says how many tasks per second it takes at most.
"""

import argparse
import os
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.resources import Resources
from certbench.runs import executors
from certbench.runs.events import Stop
from certbench.runs.executors.worker import resident
from certbench.runs.load import load_again
from certbench.runs.suite import ModelSpec
from certbench.runs.work import ModelSource

SECONDS = 1e-3
"""Seconds that each task takes."""


@dataclass(frozen=True)
class Waiting:
    """Work that waits."""

    name: str
    source: ModelSource
    foreign: ClassVar[bool] = False
    resources: ClassVar[Resources] = Resources()

    def prepare(self, classifier: Classifier) -> Any:
        """Prepare nothing."""

    def compute(self, classifier: Classifier, state: Any, x: Tensor) -> list[Any]:
        """Be busy for a while."""
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            pass
        return [0.0] * len(x)


def measure(name: str, tasks: int, workers: int) -> None:
    """Let an executor compute, and print what it took."""
    from benchmarks.executors import Waiting  # by this name it is found in other processes

    spec = ModelSpec(name="linear")
    model = load_again(spec, (1, 8, 8))
    source = ModelSource(spec, model.input_shape, model.fingerprint(), model)
    inputs, half = torch.rand(tasks, *model.input_shape, dtype=torch.float64), tasks // 2
    parts = [tuple((i,) for i in part) for part in (range(half), range(half, tasks))]
    work = [executors.Assignment(Waiting(f"half {i}", source), inputs, part) for i, part in enumerate(parts)]
    start, first, count, early, cpu = time.perf_counter(), 0.0, 0, 0, 0.0
    for answer in executors.find(name, executors.Settings(workers)).answers(work, Stop()):
        if answer is None:
            continue
        if not isinstance(answer.results, list):
            raise RuntimeError(answer.results.reason)
        if not first:
            first, cpu = time.perf_counter(), time.process_time()
        count += len(answer.places)
        if count == tasks // 10:
            early = resident(os.getpid())
    end, cpu = time.perf_counter(), (time.process_time() - cpu) / max(count - 1, 1)
    memory = f"memory {early / 1e6:.1f} MB after a tenth, {resident(os.getpid()) / 1e6:.1f} MB after all"
    rate = f"{(count - 1) / (end - first):.0f} tasks/s, {first - start:.1f} s until the first answer"
    print(f"{name:8} {count} tasks: {rate}; {1e6 * cpu:.0f} us of processor in this process each; {memory}", flush=True)


def main() -> None:
    """Measure all executors, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default=",".join(executors.TABLE))
    given = parser.parse_args()
    for name in given.only.split(","):
        measure(name, given.tasks, given.workers)


if __name__ == "__main__":
    main()
