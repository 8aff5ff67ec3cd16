"""How many answers the process of a run takes per second, and how many workers it keeps busy: the driver at scale.

    python -m benchmarks.scale [--workers 1000] [--rows 30000] [--seconds 0.25,0.5,1,2]

The plan, the foreman, the desk and the store are those of a run; the workers are simulated. They answer a job at once,
or after some seconds of the clock, always with the same row, that of a real certificate, as the JSON text that comes
from a real worker. So all that is measured is what one process does for all workers: dividing, pickling inputs,
hearing, keeping times, storing. What a cluster needs to carry messages comes on top: `python -m benchmarks.executors`
has the processor time of the driver with real actors.
"""

import argparse
import heapq
import importlib.util
import itertools
import json
import math
import os
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from certbench.core.claims import Outcome
from certbench.core.resources import Resources
from certbench.results.store import Store, StoredAnswer
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.foreman import TICK, Foreman
from certbench.runs.executors.worker import resident
from certbench.runs.load import load
from certbench.runs.plan import pairs_of
from certbench.runs.stages import Desk, Stage, certificates, perform, source_of
from certbench.runs.suite import Suite
from certbench.runs.suite import load as suite_of
from certbench.runs.work import Failure, Session, Work

SUITE: dict[str, Any] = {
    "name": "scale", "data": "digits", "inputs": 500, "models": ["linear", "mlp-plain", "mlp-ibp", "cnn-plain"],
    "norms": [1, 2, "inf"], "batch": 1, "certifiers": ["lipschitz", "crown", "ibp", "fast-lin", "wong-kolter"],
    "attacks": {"steps": 0},
}  # fmt: skip


class Quiet:
    """Watches nothing."""

    def data(self, text: str) -> None:
        """Take no note."""

    def begin(self, total: int, done: int) -> None:
        """Take no note."""

    def now(self, text: str) -> None:
        """Take no note."""

    def left(self, seconds: float | None) -> None:
        """Take no note."""

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """Take no note."""

    def note(self, text: str) -> None:
        """Tell of a failure: there should be none."""
        print(text)


@dataclass(eq=False)
class Simulated:
    """A worker that computes nothing.

    Attributes:
        crowd: where it came from.
        worker: what the foreman knows of it.
    """

    crowd: "Crowd"
    worker: Worker | None = None

    def send(self, kind: str, content: Any) -> None:
        """Answer, now or later."""
        if kind == "work":
            self.crowd.say(self, 0.0, '{"loaded": true}')
            self.crowd.say(self, 0.0, '{"prepared": 0.0, "failure": null}')
        else:
            self.crowd.say(self, self.crowd.seconds, self.crowd.answer)

    def kill(self) -> None:
        """End."""
        self.worker = None

    def end(self) -> str:
        """End, and say how."""
        self.kill()
        return "at the end"


@dataclass(eq=False)
class Crowd:
    """Where simulated workers come from.

    Attributes:
        workers: their number.
        seconds: time that each job takes.
        answer: the answer to a job, as text.
        due: times, in their order, with who says what then.
    """

    workers: int
    seconds: float
    answer: str
    due: list[tuple[float, int, Simulated, str]] = field(default_factory=list)
    count: Iterator[int] = field(default_factory=itertools.count)

    def say(self, who: Simulated, after: float, text: str) -> None:
        """Let a worker say something after some seconds."""
        heapq.heappush(self.due, (time.perf_counter() + after, next(self.count), who, text))

    def most(self) -> int:
        """Return the number of workers."""
        return self.workers

    def needs(self, work: Work) -> Resources | None:
        """Reserve nothing."""

    def lacks(self, needs: Resources | None) -> str | None:
        """Lack nothing."""

    def pack(self, work: Work) -> Any:
        """Return the pickle of work."""
        return pickle.dumps(work)

    def start(self, needs: Resources | None) -> Worker:
        """Start a worker that is ready."""
        body = Simulated(self)
        body.worker = Worker(body, needs)
        self.say(body, 0.0, '{"ready": true}')
        return body.worker

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Yield what was said until now, or wait a moment."""
        now = time.perf_counter()
        if not self.due or self.due[0][0] > now:
            time.sleep(min(TICK, self.due[0][0] - now) if self.due else TICK)
            now = time.perf_counter()
        while self.due and self.due[0][0] <= now:
            _, _, body, text = heapq.heappop(self.due)
            if body.worker is not None:
                yield body.worker, json.loads(text)

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None:
        """Welcome everybody."""

    def watch(self, crew: Sequence[Worker]) -> None:
        """Watch nothing."""

    def pardons(self, worker: Worker) -> bool:
        """Pardon nobody."""
        return False


class Measured:
    """An executor of simulated workers, which notes when answers came."""

    def __init__(self, crowd: Crowd) -> None:
        """Take the workers."""
        self.foreman = Foreman(crowd)
        self.times: list[float] = []

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield the foreman's answers."""
        for answer in self.foreman.answers(assignments, stop):
            if answer is not None:
                self.times += [time.perf_counter()] * len(answer.places)
            yield answer

    def rate(self) -> float:
        """Return the answers per second between the second and the fourth fifth of them."""
        first, last = len(self.times) // 5, len(self.times) * 4 // 5
        return (last - first) / (self.times[last] - self.times[first])


class Counted(Store):
    """A store that notes how long its transactions took."""

    times: list[float]

    def put(self, results: Any) -> None:
        """Write results."""
        start = time.perf_counter()
        super().put(results)
        self.times.append(time.perf_counter() - start)


def one_answer(stage: Stage) -> str:
    """Return the answer to a job of one input, as a worker would write it."""
    session = Session(stage.assignment.work, stage.assignment.work.source.open())
    failure = session.prepare()
    results = session.compute(stage.assignment.rows(stage.assignment.jobs[0]))
    if failure is not None or isinstance(results, Failure):
        raise RuntimeError(str(failure or results))
    return json.dumps({"failure": None, "results": results})


def measure(suite: Suite, rows: int, workers: int, seconds: float) -> float:
    """Run with simulated workers; print what it took, and return the answers per second."""
    dataset, models = load(suite)
    inputs, labels = dataset.inputs[: suite.settings.inputs].double(), dataset.labels[: suite.settings.inputs]
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        pairs = list(pairs_of(suite, models, inputs, labels))[: max(1, rows // len(inputs))]
        store = Counted(Path(place) / "results.db")
        store.times = []
        store.plan([planned for pair in pairs for planned in pair.planned])
        planning, count = time.perf_counter() - begin, sum(len(pair.planned) for pair in pairs)
        desk, mine = Desk(store, Quiet(), Path(place)), frozenset(range(len(inputs)))
        sources = {model: source_of(suite, model, model.fingerprint()) for model in models}
        stages = []
        for pair in pairs:
            stages += certificates(suite, desk, sources[pair.classifier], pair, inputs, set(), mine)
        executor = Measured(Crowd(workers, seconds, one_answer(stages[0])))
        before, start, cpu = resident(os.getpid()), time.perf_counter(), time.process_time()
        perform(stages, desk, executor, Stop())
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        stored, size = len(store.outcomes()), store.path.stat().st_size
        store.close()
    if stored != count:
        raise RuntimeError(f"{stored} of {count} rows were stored")
    rate = executor.rate()
    if seconds == 0:
        many, grown = len(store.times), (resident(os.getpid()) - before) / 1e6
        print(f"{count} rows of {len(pairs)} pairs were planned in {planning:.1f} s")
        print(
            f"{workers} workers that answer at once: {rate:.0f} answers/s, {1e6 * cpu / count:.0f} us of processor each"
        )
        print(f"{many} transactions in {wall:.1f} s, {sum(store.times) / many:.3f} s and {count / many:.0f} rows each")
        print(f"{size / count:.0f} bytes per row; memory grew by {grown:.0f} MB", flush=True)
    else:
        print(
            f"{workers} workers, {seconds:g} s per job: {rate:.0f} answers/s of {workers / seconds:.0f}, so "
            f"{100 * rate * seconds / workers:.0f} % busy; the driver used {100 * cpu / wall:.0f} % of a core",
            flush=True,
        )
    return rate


def commits(number: int = 200) -> None:
    """Print how many transactions of one row the disk takes."""
    row = StoredAnswer("", 3, 0.5, math.inf, 0.1, 0.1, Outcome.COMPLETED, "", {"bracket": [0.5, 0.6]}, 0.1)
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "results.db")
        start = time.perf_counter()
        for i in range(number):
            store.put([replace(row, key=str(i))])
        print(f"{number / (time.perf_counter() - start):.0f} transactions of one row per second", flush=True)
        store.close()


def waits(workers: int, number: int = 50) -> None:
    """Print what it costs to ask Ray which of so many workers have answered; one actor stands for all of them."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actor = ray.remote(_Slow).remote()
        pending = [actor.wait.remote() for _ in range(workers)]
        start = time.process_time()
        for _ in range(number):
            ray.wait(pending, num_returns=1, timeout=0)
        spent = (time.process_time() - start) / number
        print(
            f"Ray says in {1e3 * spent:.1f} ms of processor time which of {workers} workers have answered", flush=True
        )
    finally:
        ray.shutdown()


class _Slow:
    def wait(self) -> None:
        time.sleep(3600)


def main() -> None:
    """Measure the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=30_000, help="number of rows of each measurement, at most")
    parser.add_argument("--seconds", default="0.25,0.5,1,2", help="seconds that a job takes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "scale.yaml"
        path.write_text(json.dumps(SUITE), encoding="utf-8")
        suite = suite_of(str(path))
    most = measure(suite, given.rows, given.workers, 0.0)
    commits()
    print(f"So {given.workers} workers are kept busy by jobs of {given.workers / most:.2f} s or more.")
    for seconds in map(float, given.seconds.split(",")):
        measure(suite, given.rows, given.workers, seconds)
    if importlib.util.find_spec("ray") is not None:
        waits(given.workers)


if __name__ == "__main__":
    main()
