"""What work is expected to take: each piece by its own pace, and before it has one, by that of work which is like it.

Times of a method, of a model and of a norm multiply, roughly: their logarithms are fitted by least squares. Predictions
from sizes are not asked. They were 3 to 30 times too low where solvers or the handling of small batches take the time,
and the process of the run would have to read each network for them.
"""

import heapq
import math
import time
from collections.abc import Sequence

import numpy as np

from certbench.runs.executors.crew import Progress

AGAIN = 1.0
"""Seconds after which paces are fitted anew, and the time left is computed anew."""

DOUBT = 0.1
"""Weight of a factor of 1 for each method, model and norm, in measurements. It decides where few are there."""

PARTS = 4
"""Largest number of parts for each worker that jobs of a piece of work are counted as: more change little."""

WIDEST = 4.0
"""Largest variance of a logarithm that raises an expected time: few measurements tell little of it."""

LEAST = 1e-6
"""Least number of seconds whose logarithm is taken."""


class Forecast:
    """Expected seconds of all work of a run."""

    def __init__(self, work: Sequence[Progress]) -> None:
        """Take the work; what is known is read from it each time."""
        self.work = work
        self.fitted = -math.inf
        self.paces: list[float | None] = []
        self.setups: list[float | None] = []
        self.told: tuple[float, float | None] = -math.inf, None

    def pace(self, progress: Progress) -> float | None:
        """Return seconds for an input, within the limit for each; None if nothing is known of any work."""
        if progress.known is None:
            self._fit()
        found = progress.known if progress.known is not None else self.paces[progress.number]
        running = max((one.elapsed / len(one.job.places) for one in progress.on if one.computes and one.job), default=0)
        if progress.known is None and running:
            found = max(found or 0.0, running)
        return found if found is None else min(found, progress.assignment.limits.input_seconds)

    def setup(self, progress: Progress) -> float:
        """Return seconds to load and prepare; 0 if nothing is known of any work."""
        if progress.setup is not None:
            return progress.setup
        self._fit()
        return min(self.setups[progress.number] or 0.0, progress.assignment.limits.prepare_seconds)

    def remaining(self, progress: Progress) -> float | None:
        """Return seconds of one worker for what is left of a piece of work, within its limit; None if unknown."""
        if not progress.open:
            return 0.0
        pace = self.pace(progress)
        if pace is None:
            return None
        seconds = pace * progress.inputs
        if not progress.on:
            seconds += self.setup(progress)
        for worker in progress.on:
            job = pace * len(worker.job.places) if worker.job else 0.0
            if worker.computes:
                seconds += abs(job - worker.elapsed)  # what is overdue goes on for as long as it is overdue
            else:
                seconds += job + abs(self.setup(progress) - worker.elapsed)
        return min(seconds, max(progress.assignment.limits.seconds - progress.spent, 0.0))

    def left(self, workers: int) -> float | None:
        """Return the seconds after which `workers` workers are expected to have finished; None if unknown."""
        now = time.perf_counter()
        if now - self.told[0] >= AGAIN:
            self.told = now, self._left(workers)
        return self.told[1]

    def _left(self, workers: int) -> float | None:
        """Put what is long first; it is shared by as many as there are jobs, where that is worth it."""
        parts = list[float]()
        for progress in self.work:
            seconds = self.remaining(progress)
            if seconds is None:
                return None
            if seconds > 0.0:
                shared = min(progress.jobs, PARTS * workers) if self._divisible(progress) else 1
                parts += [seconds / shared] * shared
        ends = [0.0] * max(1, workers)
        for seconds in sorted(parts, reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)

    def worth_helping(self, progress: Progress) -> bool:
        """Say whether it is prepared, and what waits costs more than to prepare it again."""
        return progress.prepared is not None and progress.known is not None and self._divisible(progress)

    def _divisible(self, progress: Progress) -> bool:
        return (self.pace(progress) or 0.0) * progress.inputs > self.setup(progress)

    def _fit(self) -> None:
        now = time.perf_counter()
        if now - self.fitted < AGAIN:
            return
        self.fitted = now
        likes = [one.assignment.like for one in self.work]
        self.paces = fitted(likes, [one.known for one in self.work])
        self.setups = fitted(likes, [one.setup for one in self.work])
        answered = {kind(one): one for one in self.work if one.known is not None}
        refused = {kind(one) for one in self.work if one.refused} - answered.keys()
        for i, one in enumerate(self.work):
            if kind(one) in refused:
                self.paces[i] = self.setups[i] = 0.0


def kind(progress: Progress) -> tuple[str, ...]:
    """Return what work has in common with the same method's, in the same norm, on other models."""
    method, _, *rest = (*progress.assignment.like, "", "")
    return method, *rest


def fitted(likes: Sequence[tuple[str, ...]], values: Sequence[float | None]) -> list[float | None]:
    """Fit a factor to each part of each `like`, so that their products are the values; return all products.

    Args:
        likes: what work has in common with other work; places of tuples are methods, models and norms.
        values: those that are known.

    Returns:
        A value for each `like`; None if no value is known.
    """
    known = [i for i, value in enumerate(values) if value is not None]
    if not known:
        return [None] * len(likes)
    places = {part: i for i, part in enumerate(dict.fromkeys(part for like in likes for part in enumerate(like)))}
    rows = np.zeros((len(likes), len(places)))
    for i, like in enumerate(likes):
        rows[i, [places[part] for part in enumerate(like)]] = 1.0
    x, y = rows[known], np.log([max(values[i] or 0.0, LEAST) for i in known])
    mean = y.mean()
    inverse = np.linalg.inv(x.T @ x + DOUBT * np.eye(len(places)))
    factors = inverse @ x.T @ (y - mean)
    noise = (y - mean) @ (y - mean - x @ factors) / len(known)
    spread = noise * ((rows @ inverse) * rows).sum(axis=1)
    return list(np.exp(mean + rows @ factors + np.minimum(spread, WIDEST) / 2.0).tolist())
