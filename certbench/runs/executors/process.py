"""An executor with processes of its own: one core each, replaced after a crash, killed at a limit.

Processes are kept here, and not by a library, for three reasons: a worker keeps the state of a certifier while jobs of
its work come; preparation and jobs have limits of their own; and limits are of a piece of work, not of a job.

On Linux, a server imports torch once, and forks each worker from itself within milliseconds. Elsewhere workers start
afresh. There are never more workers than jobs, nor more than cores, and none at all if nothing is left to compute. A
second worker helps with work that another has begun only where what is left costs more than to prepare it again. A
worker that ran a certifier of another package computes nothing else afterwards.
"""

import json
import math
import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import certbench
from certbench.core.claims import Outcome
from certbench.core.memory import CPU, free, written
from certbench.errors import ConfigError
from certbench.runs import server
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, Settings
from certbench.runs.executors import worker as workers
from certbench.runs.executors.crew import Job, Progress, Worker
from certbench.runs.executors.inline import spent
from certbench.runs.work import Failure

TICK = 0.05
"""Seconds between two looks at the limits, the memory and the wish to stop."""

LOADING = 60.0
"""Seconds to load a model and a certifier before limits of time count; there is no limit if the suite has none."""

SCARCE = 200e6
"""Number of free bytes of the machine below which the largest worker is stopped, before the system stops anything."""

SLACK = 1.05
"""Share of the limit of memory at which a worker is killed. An exception at the limit, where it can be, comes first."""

STARTS = 3
"""Number of workers in a row that may end before they are ready. More of them would end, too."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin(*arguments: Any) -> None:
    """Be a worker; all that it would else import first is imported before it says that it is ready."""
    from certbench.runs.executors.preloaded import main

    main(*arguments)


class Processes:
    """Computes jobs in processes."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing starts yet."""
        self.settings = settings
        self.crew: list[Worker] = []
        self.failed_starts = 0

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield answers as they come."""
        self.all = [Progress(i, one, deque(map(Job, one.jobs))) for i, one in enumerate(assignments)]
        self.most = min(self.settings.workers or cores(), sum(len(one.jobs) for one in assignments))
        self.context = server.context()
        self.memory = min((one.limits.memory or math.inf for one in assignments), default=math.inf)
        try:
            while any(one.waiting or one.on for one in self.all):
                stop.holding(sum(len(one.job.places) for one in self.crew if one.job and one.phase == "computing"))
                if stop.asked:
                    for worker in [worker for worker in self.crew if worker.phase != "computing"]:
                        self._drop(worker)
                    if not self.crew:
                        stop.check()
                else:
                    self._hand_out(stop)
                yield from self._hear()
                yield from self._watch()
                yield None
        finally:
            for worker in self.crew:
                worker.kill()
            for worker in self.crew:
                worker.end()
            self.crew = []

    def _hand_out(self, stop: Stop) -> None:
        """Give jobs to idle workers, and start workers for what is left."""
        for worker in [worker for worker in self.crew if worker.phase == "idle"]:
            progress = self._choose(worker.progress)
            if progress is None:
                continue
            before = worker.progress
            if before is not None and before is not progress and before.assignment.work.foreign:
                self._dismiss(worker)  # its certifier may have changed torch, or certbench
                continue
            if not progress.begun:
                stop.begins(progress.assignment.work.name)
                progress.begun = True
            worker.job, again = progress.waiting.popleft(), worker.progress is progress
            worker.counts = not progress.on
            progress.on.add(worker)
            if again:
                self._compute(worker, progress)
                continue
            worker.progress = progress
            worker.enter("loading")
            try:
                content = pickle.dumps(progress.assignment.work)
            except Exception as error:
                content = pickle.dumps(ConfigError(f"cannot be sent to another process: {error}"))
            worker.send("work", content)
        starting = sum(worker.phase == "starting" for worker in self.crew)
        open_work = sum(bool(one.waiting) and (not one.on or one.worth_helping()) for one in self.all)
        while len(self.crew) < self.most and starting < open_work:
            self._start()
            starting += 1

    def _choose(self, own: Progress | None) -> Progress | None:
        """Return the work of which an idle worker takes the next job: its own, else new work, else the longest."""
        if own is not None and own.waiting:
            return own
        fresh = next((one for one in self.all if one.waiting and not one.on), None)
        if fresh is not None:
            return fresh
        begun = [one for one in self.all if one.waiting and one.worth_helping()]
        return max(begun, key=Progress.remaining, default=None)

    def _start(self) -> None:
        ours, theirs = self.context.Pipe()
        arguments = theirs, self.settings.threads, self.memory, os.getcwd()
        process = self.context.Process(target=begin, args=arguments, daemon=True)
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise ConfigError(f"workers do not start: {error!r}; use the executor inline") from error
        theirs.close()
        self.crew.append(Worker(process, ours))

    def _compute(self, worker: Worker, progress: Progress) -> None:
        assert worker.job is not None
        worker.enter("computing")
        worker.send("job", pickle.dumps(progress.assignment.rows(worker.job.places)))

    def _hear(self) -> Iterator[Answer]:
        """Wait a moment for messages, and take them."""
        ready = wait([worker.connection for worker in self.crew], TICK) if self.crew else []
        for worker in [worker for worker in self.crew if worker.connection in ready]:
            if worker not in self.crew:
                continue  # killed meanwhile, as its work was given up
            try:
                message = json.loads(worker.connection.recv_bytes())
                if not isinstance(message, dict):
                    raise ValueError(message)
            except (EOFError, OSError, ValueError):
                yield from self._died(worker)
            else:
                yield from self._told(worker, message)

    def _told(self, worker: Worker, message: dict[str, Any]) -> Iterator[Answer]:
        if worker.phase == "starting":
            if message["ready"] != certbench.__file__:
                raise ConfigError(
                    f"workers import {message['ready']}, but this process has {certbench.__file__}; "
                    "set PYTHONPATH, or use the executor inline"
                )
            self.failed_starts = 0
            worker.base = workers.resident(worker.process.pid)
            worker.enter("idle")
            return
        progress, job = worker.progress, worker.job
        assert progress is not None and job is not None
        if "loaded" in message:
            worker.enter("preparing")
            return
        seconds, told = worker.elapsed, message["failure"]
        failure = None if told is None else Failure(**{**told, "outcome": Outcome(told["outcome"])})
        if worker.phase == "preparing":
            if progress.prepared is None:
                progress.prepared = message["prepared"]
            progress.spent += seconds * worker.counts
            if failure is None:
                self._compute(worker, progress)
            else:
                yield from self._give_up(progress, failure, worker)
            return
        progress.spent += seconds
        if failure is None:
            self._free(worker)
            worker.enter("idle")
            progress.answered = progress.answered[0] + 1, progress.answered[1] + seconds
            yield Answer(progress.number, job.places, message["results"], progress.prepared or 0.0, job.halved)
        elif failure.outcome is Outcome.OUT_OF_MEMORY:
            self._dismiss(worker)  # what it still holds is unknown
            yield from self._less(progress, job, failure)
        else:
            yield from self._give_up(progress, failure, worker)

    def _less(self, progress: Progress, job: Job, failure: Failure) -> Iterator[Answer]:
        """Try a job again at half the batch, once."""
        if len(job.places) == 1 or job.halved:
            progress.waiting.appendleft(job)
            yield from self._give_up(progress, failure)
            return
        half = (len(job.places) + 1) // 2
        parts = job.places[half:], job.places[:half]
        progress.waiting.extendleft(replace(job, places=part, halved=half) for part in parts)

    def _died(self, worker: Worker) -> Iterator[Answer]:
        """Take note that a worker has ended; its job is tried once more, as it may have been killed by chance."""
        progress, job, verdict = worker.progress, worker.job, worker.verdict
        preparing = worker.phase in ("loading", "preparing")
        if worker.phase == "starting":
            self.failed_starts += 1
        how = self._dismiss(worker)
        if self.failed_starts >= STARTS:
            raise ConfigError(
                f"workers do not start: the last one ended {how}; a script that runs suites needs "
                'if __name__ == "__main__": around its code; or use the executor inline'
            )
        if progress is None or job is None:
            return
        if verdict is not None:  # out of memory
            yield from self._less(progress, job, verdict)
            return
        deaths = progress.deaths if preparing else job.deaths
        again = job if preparing else replace(job, deaths=job.deaths + 1)
        progress.deaths += preparing
        progress.waiting.appendleft(again)
        if deaths:
            step = "the preparation" if preparing else f"a job of {len(job.places)} inputs"
            yield from self._give_up(progress, Failure(Outcome.FAILED, f"{step} ended its process {how}, twice"))

    def _watch(self) -> Iterator[Answer]:
        """Hold work to its limits."""
        for progress in [one for one in self.all if one.on]:
            limits, running = progress.assignment.limits, [w for w in progress.on if w.phase != "loading"]
            counted = [worker for worker in running if worker.phase == "computing" or worker.counts]
            loading = [worker.elapsed for worker in progress.on if worker.phase == "loading"]
            if progress.spent + sum(worker.elapsed for worker in counted) > limits.seconds:
                yield from self._give_up(progress, spent(limits.seconds, self._left(progress)))
            elif any(w.phase == "preparing" and w.elapsed > limits.prepare_seconds for w in running):
                reason = f"the limit of {limits.prepare_seconds:g} s for the preparation was spent"
                yield from self._give_up(progress, Failure(Outcome.TIMED_OUT, reason))
            elif any(seconds > LOADING + min(limits.seconds, limits.prepare_seconds) for seconds in loading):
                reason = "loading the model and the certifier took too long"
                yield from self._give_up(progress, Failure(Outcome.TIMED_OUT, reason))
            else:
                for worker in running:
                    job = worker.job
                    if worker.phase == "computing" and job and worker.elapsed > limits.input_seconds * len(job.places):
                        progress.spent += worker.elapsed
                        self._dismiss(worker)
                        reason = f"the limit of {limits.input_seconds:g} s per input was spent"
                        failure = Failure(Outcome.TIMED_OUT, reason)
                        yield Answer(progress.number, job.places, failure, progress.prepared or 0.0, job.halved)
        used = {worker: workers.resident(worker.process.pid) for worker in self.crew if worker.job is not None}
        for worker, size in used.items():
            if size > worker.base + self.memory * SLACK:
                self._out_of_memory(worker, f"more than the limit of {written(self.memory)}")
        if used and free(CPU) < SCARCE:
            largest = max(used, key=lambda worker: used[worker])
            self._out_of_memory(largest, f"{written(used[largest])}, when the machine had no more")

    def _out_of_memory(self, worker: Worker, used: str) -> None:
        """Kill a worker; that it ended is heard at the next look."""
        if worker.verdict is None:
            worker.verdict = Failure(Outcome.OUT_OF_MEMORY, f"out of memory: the process used {used}")
            worker.kill()

    def _left(self, progress: Progress) -> int:
        jobs = [*progress.waiting, *(worker.job for worker in progress.on if worker.job)]
        return sum(len(job.places) for job in jobs)

    def _give_up(self, progress: Progress, failure: Failure, teller: Worker | None = None) -> Iterator[Answer]:
        """Answer for all that is left of a piece of work, and end the workers that are at it.

        The worker that told of the failure goes on with other work, unless it is spoilt.
        """
        jobs = [*(worker.job for worker in progress.on if worker.job), *progress.waiting]
        spoilt = failure.spoilt or failure.outcome is Outcome.OUT_OF_MEMORY or progress.assignment.work.foreign
        if teller is not None and not spoilt:
            self._free(teller)
            teller.progress = None
            teller.enter("idle")
        for worker in [*progress.on]:
            self._dismiss(worker)
        progress.waiting.clear()
        places = tuple(sorted(place for job in jobs for place in job.places))
        yield Answer(progress.number, places, failure, progress.prepared or 0.0)

    def _drop(self, worker: Worker) -> None:
        """End a worker that has computed nothing yet; its job waits again."""
        if worker.progress is not None and worker.job is not None:
            worker.progress.waiting.appendleft(worker.job)
        self._dismiss(worker)

    def _free(self, worker: Worker) -> None:
        if worker.progress is not None:
            worker.progress.on.discard(worker)
        worker.job = None

    def _dismiss(self, worker: Worker) -> str:
        """End a worker, and say how it ended."""
        self._free(worker)
        if worker in self.crew:
            self.crew.remove(worker)
        return worker.end()
