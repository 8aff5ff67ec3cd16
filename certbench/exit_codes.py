"""Exit codes of the command line, one for each way in which a command ends."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Say how a command ended; where several hold, the command says which one it returns."""

    OK = 0
    VIOLATED = 1
    """A policy is violated."""
    USAGE = 2
    """Something was asked for that cannot be run, or a file cannot be read."""
    UNSOUND = 3
    """A certificate is refuted, or its file does not prove it."""
    INCOMPARABLE = 4
    """The runs cannot be compared."""
    INCOMPLETE = 5
    """Rows failed, timed out, ran out of memory or were not reached."""
    STORE = 6
    """Results cannot be written or read."""
    INTERRUPTED = 130
    """Ctrl-C was pressed."""
