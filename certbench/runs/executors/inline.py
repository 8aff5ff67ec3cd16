"""An executor in this process, one job after the other: for debugging. Its limits are checked between jobs."""

from collections.abc import Iterator, Sequence

from certbench.core.claims import Outcome
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, Settings
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
        for number, assignment in enumerate(assignments):
            stop.check()
            stop.begins(assignment.work.name)
            with restored():
                yield from self._all(number, assignment, stop)

    def _all(self, number: int, assignment: Assignment, stop: Stop) -> Iterator[Answer]:
        left = [place for job in assignment.jobs for place in job]
        stop.holding(len(assignment.jobs[0]))
        limit = assignment.limits.seconds
        work, passing, sessions = assignment.work, (KeyboardInterrupt,), list[Session]()
        failure = attempt(lambda: sessions.append(Session(work, work.source.open(), passing)), "at its start", passing)
        failure = failure or sessions[0].prepare()
        if failure is not None:
            yield Answer(number, tuple(left), failure, sessions[0].seconds if sessions else 0.0)
            return
        session, prepared = sessions[0], sessions[0].seconds
        stop.check()
        for job in assignment.jobs:
            if session.seconds > limit:
                break
            stop.holding(len(job))
            results = session.compute(assignment.rows(job))
            if isinstance(results, Failure):
                yield Answer(number, tuple(left), results, prepared)
                return
            yield Answer(number, job, results, prepared)
            left = left[len(job) :]
            stop.check()
        if left:
            yield Answer(number, tuple(left), spent(limit, len(left)), prepared)


def spent(limit: float, left: int) -> Failure:
    """Return the failure of inputs for which no time is left."""
    return Failure(Outcome.TIMED_OUT, f"the limit of {limit:g} s was spent with {left} inputs left")
