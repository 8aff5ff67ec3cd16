"""An executor in this process, one job after the other: for debugging. Its limits are checked between jobs."""

from collections import deque
from collections.abc import Iterator, Sequence

from certbench.core.claims import Outcome
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, Settings
from certbench.runs.executors.crew import Job, Progress
from certbench.runs.executors.forecast import Forecast
from certbench.runs.guarding import restored, settle
from certbench.runs.work import Failure, Session, attempt


class Inline:
    """Computes each job when its answer is asked for. A job that ends its process ends the run."""

    def __init__(self, settings: Settings) -> None:
        """Take the number of threads."""
        self.threads = settings.threads

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer]:
        """Yield the answer of each job."""
        if assignments:
            from certbench.runs.executors import preloaded  # noqa: F401  # so that no certifier is charged for imports

            settle(self.threads)
        work = [Progress(i, one, None, deque(map(Job, one.jobs))) for i, one in enumerate(assignments)]
        forecast = Forecast(work)
        for progress in work:
            if not progress.waiting:
                continue
            stop.check()
            stop.begins(progress.assignment.work.name)
            with restored():
                for answer in self._all(progress, stop):
                    if isinstance(answer.results, Failure):
                        progress.end(answer.results.outcome)
                    stop.left(forecast.left(1))
                    yield answer

    def _all(self, progress: Progress, stop: Stop) -> Iterator[Answer]:
        number, assignment = progress.number, progress.assignment
        stop.holding(len(progress.waiting[0].places))
        limit = assignment.limits.seconds
        work, passing, sessions = assignment.work, (KeyboardInterrupt,), list[Session]()
        failure = attempt(lambda: sessions.append(Session(work, work.source.open(), passing)), "at its start", passing)
        failure = failure or sessions[0].prepare()
        if failure is not None:
            yield Answer(number, progress.places(), failure, sessions[0].seconds if sessions else 0.0)
            return
        session, prepared = sessions[0], sessions[0].seconds
        progress.prepared = prepared
        stop.check()
        while progress.waiting:
            if session.seconds > limit:
                yield Answer(number, progress.places(), spent(limit, progress.left), prepared)
                return
            job, before = progress.waiting[0].places, session.seconds
            stop.holding(len(job))
            results = session.compute(assignment.rows(job))
            if isinstance(results, Failure):
                yield Answer(number, progress.places(), results, prepared)
                return
            progress.waiting.popleft()
            progress.took(len(job), session.seconds - before)
            yield Answer(number, job, results, prepared)
            stop.check()


def spent(limit: float, left: int) -> Failure:
    """Return the failure of inputs for which no time is left."""
    return Failure(Outcome.TIMED_OUT, f"the limit of {limit:g} s was spent with {left} inputs left")
