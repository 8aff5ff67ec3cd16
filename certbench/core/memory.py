"""Memory and time: what may be used, and what an answer is predicted to need.

A certifier predicts from sizes that are known beforehand: numbers of neurons, rows and nonzero weights. What does not
fit is refused before it starts, and batches are no larger than what fits. The limits belong to a run and are no options
of certifiers: no answer depends on them, and options are part of the keys of stored answers.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from certbench.errors import ConfigError, UnsupportedError
from certbench.files.numbers import size

SHARE = 0.75
"""Share of the free memory that may be used where no limit is given."""

SECONDS = 3600.0
"""Predicted seconds for one input above which a certifier refuses, where no limit is given. A judgement."""

SLOW = 1e9
"""Multiplications per second that every machine reaches. Only where this is too slow, the machine is measured."""


CPU = torch.device("cpu")


OVER, GRACE = 10.0, 60.0
"""Factor and seconds by which a prediction must exceed a limit that is checked while the work goes on. Predictions were
up to 8 times too high, and a refusal where there would be an answer is worse than an overrun."""


def patience(limit: float) -> float:
    """Return the predicted seconds above which work is refused that has a limit of its own."""
    return OVER * limit + GRACE


@dataclass(frozen=True)
class Limits:
    """What may be used.

    Attributes:
        memory: number of bytes beyond those that are used already; None: the share `SHARE` of what is free.
        seconds: predicted seconds for one input above which a certifier refuses.
    """

    memory: float | None = None
    seconds: float = SECONDS


_LIMITS: ContextVar[Limits] = ContextVar("certbench_limits", default=Limits())  # noqa: B039, it is frozen


@contextmanager
def limits(memory: float | str | None = None, seconds: float | None = None) -> Iterator[None]:
    """Limit what certifiers may use, in everything that is called inside the `with` block.

    Args:
        memory: bytes beyond those that are used already, as a number or as text like "8 GB". None leaves the limit
            that holds outside, which is three quarters of what is free.
        seconds: predicted seconds for one input above which a certifier refuses. None leaves the limit that holds
            outside, which is an hour.

    Raises:
        ConfigError: a limit is no positive number.
    """
    now = _LIMITS.get()
    if memory is not None:
        try:
            now = replace(now, memory=size(memory))
        except ValueError as error:
            raise ConfigError(str(error), ("memory",)) from error
    if seconds is not None:
        if not seconds > 0:
            raise ConfigError(f"seconds must be above 0, not {seconds}", ("seconds",))
        now = replace(now, seconds=float(seconds))
    token = _LIMITS.set(now)
    try:
        yield
    finally:
        _LIMITS.reset(token)


def now() -> Limits:
    """Return the limits that hold."""
    return _LIMITS.get()


@dataclass(frozen=True)
class Cost:
    """What a computation is predicted to need at most.

    Attributes:
        fixed: bytes, however many inputs there are at once.
        each: bytes for each input of a batch.
        work: multiplications for one input.
        pace: multiplications per second on this machine; it is measured when it is asked for.
        seconds: limit of time for one input that the certifier has of its own; None: the common one.
        advice: what to do where it does not fit.
        device: the device whose memory is used.
        partial: whether other things take most of the time: a solver, a search.
    """

    fixed: float = 0.0
    each: float = 0.0
    work: float = 0.0
    pace: Callable[[], float] = lambda: SLOW
    seconds: float | None = None
    advice: str = "use ibp, crown-ibp or lipschitz"
    device: torch.device = CPU
    partial: bool = False

    def batch(self, most: int) -> int:
        """Return the number of inputs that fit at once, at least 1 and at most `most`."""
        room = allowed(self.device) - self.fixed
        return most if self.each * most <= room else max(1, int(room // self.each))

    def memory(self, most: int) -> float:
        """Return the bytes that batches of at most `most` inputs need; 0 if memory is not predicted."""
        return self.fixed + self.each * self.batch(most)

    def time(self) -> float | None:
        """Return the seconds for one input; None if they cannot be predicted."""
        return None if self.partial else self.work / self.pace()

    def check(self, what: str) -> None:
        """Refuse what does not fit.

        Raises:
            UnsupportedError: one input needs more memory or time than the limits allow; the message has the numbers.
        """
        room, need = allowed(self.device), self.fixed + self.each
        common, own = _LIMITS.get().seconds, math.inf if self.seconds is None else patience(self.seconds)
        limit, seconds = min(own, common), self.work / SLOW
        if seconds > limit:
            seconds = self.work / self.pace()
        long, large = seconds > limit, need > room
        if not (long or large):
            return
        needed, given, names = [], [], []
        if large:
            needed, given, names = [f"{written(need)} of memory"], [written(room)], ["memory"]
        if long:
            needed, given = [*needed, _time(seconds)], [*given, _time(limit)]
            names += ["seconds"] if common < seconds else []
        cures = [f"allow more by certbench.limits({', '.join(f'{name}=...' for name in names)})"] if names else []
        cures += ["a larger option `seconds`"] if own < seconds else []
        raise UnsupportedError(
            f"{what} would need about {' and '.join(needed)} for one input, where {' and '.join(given)} may be used; "
            f"{self.advice}, or {' and '.join(cures)}"
        )


def allowed(device: torch.device) -> float:
    """Return the number of bytes that may be used beyond those that are used already."""
    given = _LIMITS.get().memory
    return SHARE * free(device) if given is None else given


def free(device: torch.device) -> float:
    """Return the number of free bytes on a device; infinity where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = [_available(), _of_group("memory.max", "memory.current"), _of_group(*_V1)]
    return min(found)


_V1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
"""Files of the first version of control groups."""


def _available() -> float:
    """Return what Linux calls available, or where it says nothing, the size of the memory."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf


def _of_group(limit: str, used: str) -> float:
    """Return what the control group of a container leaves, its file cache counted as free; infinity without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return math.inf
        now = int((folder / used).read_text(encoding="ascii"))
        stat = ((folder / used).parent / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return math.inf
    cache = sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file "))
    return max(0.0, float(int(most) - now + cache))


def written(size: float) -> str:
    """Write a number of bytes."""
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    """Write a time."""
    for name, unit in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out; torch reports a failed CPU allocation as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
