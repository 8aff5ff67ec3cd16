"""The bookkeeping of executors that have workers: who does what and for how long, and who is blamed when one ends.

A job of each piece of work comes first, then what is expected to take longest (see `forecast.py`). There are never more
workers than jobs, and none at all if nothing is left to compute. A second worker helps with work that another has begun
only where what is left costs more than to prepare it again. A worker that ran a certifier of another package computes
nothing else afterwards.
"""

import math
import pickle
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from certbench.core.claims import Outcome
from certbench.core.resources import Resources
from certbench.errors import ConfigError
from certbench.files.json_text import clean
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment
from certbench.runs.executors.crew import Job, Progress, Worker
from certbench.runs.executors.forecast import Forecast
from certbench.runs.executors.inline import spent
from certbench.runs.work import Failure, Work

TICK = 0.05
"""Seconds between two looks at the limits, the memory and the wish to stop."""

LOADING = 60.0
"""Seconds to load a model and a certifier before limits of time count; there is no limit if the suite has none."""

STARTS = 3
"""Number of workers in a row that may end before they are ready. More of them would end, too."""

ROOM = 60.0
"""Seconds for which work waits for a machine that has what it needs."""

SHARE = 0.02
"""Share of what is left of a piece of work that it may cost to prepare it again, so that other work is begun first."""

LIKE = 2.0
"""Factor between two times that counts as a difference: an order of work needs no more."""


@runtime_checkable
class Hiring(Protocol):
    """Where workers come from, and how they are heard."""

    def most(self) -> int:
        """Return the largest number of workers, at this moment."""

    def needs(self, work: Work) -> Resources | None:
        """Return what a worker reserves for this work; None if nothing is ever reserved."""

    def lacks(self, needs: Resources | None) -> str | None:
        """Say what is missing if no machine could ever have such a worker; None if one could."""

    def pack(self, work: Work) -> Any:
        """Return work as it is sent."""

    def start(self, needs: Resources | None) -> Worker:
        """Start a worker.

        Raises:
            ConfigError: none can start.
        """

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Wait for a tick at most, and yield messages; None is the last one, of a worker that has ended.

        Workers may leave the crew between two messages.
        """

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None:
        """Take the first message of a worker.

        Raises:
            ConfigError: it does not fit to this process.
        """

    def watch(self, crew: Sequence[Worker]) -> None:
        """Kill workers that use too much, and give them a verdict."""

    def pardons(self, worker: Worker) -> bool:
        """Say whether a worker that ended before it was ready says nothing of others."""


class Foreman:
    """Gives work to workers, and holds them to its limits."""

    def __init__(self, hiring: Hiring) -> None:
        """Take the place where workers come from; nothing starts yet."""
        self.hiring = hiring
        self.crew: list[Worker] = []
        self.failed_starts = 0
        self.lacking: dict[Resources | None, float] = {}

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield answers as they come; see `Executor`."""
        self.all = [
            Progress(i, one, self.hiring.needs(one.work), deque(map(Job, one.jobs)))
            for i, one in enumerate(assignments)
        ]
        self.jobs = sum(len(one.jobs) for one in assignments)
        self.forecast = Forecast(self.all)
        self.seen = Counter(part for one in assignments for part in enumerate(one.like) if one.stored[0])
        try:
            while any(one.waiting or one.on for one in self.all):
                stop.holding(sum(len(one.job.places) for one in self.crew if one.job and one.phase == "computing"))
                if stop.asked:
                    for worker in [worker for worker in self.crew if worker.phase != "computing"]:
                        self._drop(worker)
                    if not self.crew:
                        stop.check()
                else:
                    yield from self._hand_out(stop)
                    yield from self._hire()
                stop.left(self.forecast.left(min(self.hiring.most(), sum(one.jobs for one in self.all))))
                for worker, message in self.hiring.hear(self.crew):
                    if worker not in self.crew:
                        continue  # killed meanwhile, as its work was given up
                    yield from self._died(worker) if message is None else self._told(worker, message)
                yield from self._watch()
                self.hiring.watch(self.crew)
                yield None
        finally:
            for worker in self.crew:
                worker.body.kill()
            for worker in self.crew:
                worker.body.end()
            self.crew = []

    def _hand_out(self, stop: Stop) -> Iterator[Answer]:
        """Give jobs to idle workers."""
        for worker in [worker for worker in self.crew if worker.phase == "idle"]:
            progress = self._choose(worker)
            if progress is None:
                continue
            before = worker.progress
            if before is not None and before is not progress and before.assignment.work.foreign:
                self._dismiss(worker)  # its certifier may have changed torch, or certbench
                continue
            if not progress.begun:
                stop.begins(progress.assignment.work.name)
                progress.begun = True
                self.seen.update(enumerate(progress.assignment.like))
            again = worker.progress is progress
            if not again:
                try:
                    packed = self.hiring.pack(progress.assignment.work)
                except Exception as error:
                    reason = clean(f"cannot be sent to another process: {error}")
                    yield from self._give_up(progress, Failure(Outcome.FAILED, reason, clean(traceback.format_exc())))
                    continue
            worker.job = progress.waiting.popleft()
            worker.counts = progress.prepared is None and not progress.on
            progress.on.add(worker)
            if again:
                self._compute(worker, progress)
                continue
            worker.progress = progress
            worker.enter("loading")
            worker.body.send("work", packed)

    def _hire(self) -> Iterator[Answer]:
        """Start workers for what is left, and let those go for which nothing is left: others may need their room."""
        for worker in [worker for worker in self.crew if worker.phase in ("starting", "idle")]:
            if not any(one.waiting or one.on for one in self.all if one.needs == worker.needs):
                self._dismiss(worker)
        most = min(self.hiring.most(), self.jobs)
        for needs in dict.fromkeys(one.needs for one in self.all if one.waiting):
            kind = [one for one in self.all if one.needs == needs]
            lacking = self.hiring.lacks(needs)
            if lacking is not None:
                since = self.lacking.setdefault(needs, time.monotonic())
                for progress in [one for one in kind if one.waiting and not one.on]:
                    if time.monotonic() - since > ROOM:
                        yield from self._give_up(progress, Failure(Outcome.FAILED, lacking))
                continue
            self.lacking.pop(needs, None)
            starting = sum(worker.phase == "starting" and worker.needs == needs for worker in self.crew)
            count = sum(worker.phase != "starting" or worker.needs == needs for worker in self.crew)  # others may wait
            open_work = sum(bool(one.waiting) and (not one.on or self.forecast.worth_helping(one)) for one in kind)
            for _ in range(min(most - count, open_work - starting)):
                self.crew.append(self.hiring.start(needs))

    def _choose(self, worker: Worker) -> Progress | None:
        """Return the work of which an idle worker takes the next job.

        First comes a job of each piece of work, so that its pace is known. A worker leaves its work for that only where
        it costs little to come back, and else stays at it. States that are prepared are not kept: they would count as
        memory of other work. Then what is left longest comes first, so that short work and shared jobs are at the end.
        Jobs are never divided for that: rows would depend on it.
        """
        own = worker.progress if worker.progress is not None and worker.progress.waiting else None
        if own is not None and (own.assignment.work.foreign or not self._soon_back(own)):
            return own
        idle = [one for one in self.all if one.waiting and not one.on and one.needs == worker.needs]
        fresh = [one for one in idle if not one.begun]
        if fresh:
            return min(fresh, key=lambda one: self._urgency(one, worker))
        if own is not None:
            return own
        if idle:
            return min(idle, key=lambda one: self._urgency(one, worker))
        kind = [one for one in self.all if one.waiting and one.needs == worker.needs]
        helped = [one for one in kind if self.forecast.worth_helping(one)]
        return max(helped, key=lambda one: self.forecast.remaining(one) or 0.0, default=None)

    def _soon_back(self, own: Progress) -> bool:
        """Say whether it costs little to leave work and to prepare it again."""
        left = self.forecast.remaining(own)
        return left is not None and self.forecast.setup(own) < SHARE * left

    def _urgency(self, progress: Progress, worker: Worker) -> tuple[float, ...]:
        """Return what is least for the work to do next.

        While there is a method, a model or a norm that nobody has begun, work comes first of which least is known. Then
        the longest does. Of work that takes about as long, a worker does what has the model that it has loaded.
        """
        seen = [self.seen[part] for part in enumerate(progress.assignment.like)]
        if not progress.begun and 0 in seen:
            return -math.inf, sum(seen), progress.number
        left = self.forecast.remaining(progress)
        before = worker.progress
        other = before is None or before.assignment.work.source is not progress.assignment.work.source
        length = math.inf if left is None else round(math.log(max(left, TICK), LIKE))
        return -length, float(other), progress.number

    def _compute(self, worker: Worker, progress: Progress) -> None:
        assert worker.job is not None
        worker.enter("computing")
        inputs = progress.assignment.rows(worker.job.places).numpy()  # a tensor's pickle takes ten times as long
        worker.body.send("job", pickle.dumps(inputs))

    def _told(self, worker: Worker, message: dict[str, Any]) -> Iterator[Answer]:
        if worker.phase == "starting":
            self.hiring.welcome(worker, message)
            self.failed_starts = 0
            worker.enter("idle")
            return
        progress, job = worker.progress, worker.job
        assert progress is not None and job is not None
        if "loaded" in message:
            progress.loaded = worker.elapsed
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
            progress.took(len(job.places), seconds)
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
        if worker.phase == "starting" and not self.hiring.pardons(worker):
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
        for progress in [one for one in self.all if one.begun and one.open]:
            limits, running = progress.assignment.limits, [w for w in progress.on if w.phase != "loading"]
            preparing = min(limits.seconds, limits.prepare_seconds)
            counted = [worker for worker in running if worker.phase == "computing" or worker.counts]
            loading = [worker.elapsed for worker in progress.on if worker.phase == "loading"]
            if progress.spent + sum(worker.elapsed for worker in counted) > limits.seconds:
                yield from self._give_up(progress, spent(limits.seconds, progress.left))
            elif any(w.phase == "preparing" and w.elapsed > preparing for w in running):
                reason = f"the limit of {preparing:g} s for the preparation was spent"
                yield from self._give_up(progress, Failure(Outcome.TIMED_OUT, reason))
            elif any(seconds > LOADING + preparing for seconds in loading):
                reason = "loading the model and the certifier took too long"
                yield from self._give_up(progress, Failure(Outcome.TIMED_OUT, reason))
            else:
                for worker in running:
                    job = worker.job
                    if worker.phase == "computing" and job and worker.elapsed > limits.input_seconds * len(job.places):
                        progress.spent += worker.elapsed
                        progress.took(len(job.places), worker.elapsed)
                        self._dismiss(worker)
                        reason = f"the limit of {limits.input_seconds:g} s per input was spent"
                        failure = Failure(Outcome.TIMED_OUT, reason)
                        yield Answer(progress.number, job.places, failure, progress.prepared or 0.0, job.halved)

    def _give_up(self, progress: Progress, failure: Failure, teller: Worker | None = None) -> Iterator[Answer]:
        """Answer for all that is left of a piece of work, and end the workers that are at it.

        The worker that told of the failure goes on with other work, unless it is spoilt.
        """
        places = progress.places()
        progress.end(failure.outcome)
        if progress.refused and progress.begun:
            self.seen.subtract(enumerate(progress.assignment.like))  # it told nothing of the time of others
        spoilt = failure.spoilt or failure.outcome is Outcome.OUT_OF_MEMORY or progress.assignment.work.foreign
        if teller is not None and not spoilt:
            self._free(teller)
            teller.progress = None
            teller.enter("idle")
        for worker in [*progress.on]:
            self._dismiss(worker)
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
        return worker.body.end()
