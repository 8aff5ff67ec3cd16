"""Exit codes of the command line, one for each way in which a command ends."""

from enum import IntEnum


class ExitCode(IntEnum):
    """A number that says how a command ended; if several apply, the command says which one it returns.

    Attributes:
        meaning: meaning of the code, as the command line's help lists it.
    """

    _value_: int
    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        """Make a member from its number and its meaning."""
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    OK = 0, "fine"
    VIOLATED = 1, "a policy is violated"
    USAGE = 2, "something was asked for that cannot be run"
    UNSOUND = 3, "a certificate is refuted, or not proved by its file"
    INCOMPARABLE = 4, "runs cannot be compared"
    INCOMPLETE = 5, "rows failed, timed out, ran out of memory or were not reached"
    STORE = 6, "results cannot be written or read"
    INTERNAL = 70, "an error that nobody foresaw; a log file has the traceback"
    INTERRUPTED = 130, "interrupted"


def explained() -> str:
    """Return all codes with their meanings, in a sentence."""
    return f"Exit codes: {'; '.join(f'{code.value} {code.meaning}' for code in ExitCode)}."
