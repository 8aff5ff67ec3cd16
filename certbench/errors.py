"""All errors that certbench raises on purpose.

    CertbenchError
    ├── ConfigError            the caller or a suite file asks for something that cannot be run
    ├── UnsupportedError       this certifier has no certificate for this classifier or threat model
    ├── MissingBackendError    an optional package is needed; the message says how to install it
    ├── StoreError             results could not be written or read
    └── CertificationError     one computation failed; the harness turns it into a row
        ├── SolverError        a solver gave no usable answer
        ├── TimeLimitError     the time limit ended before there was an answer
        ├── NumericalError     a result is NaN, or a bound contradicts itself
        ├── ContradictionError an attack found a counterexample inside a certified radius
        └── CrashError         a certifier, or a package below it, raised an exception of another kind: a bug

`certbench.certify(..., throw=False)` turns a `CertificationError`, and running out of memory, into rows; nothing else.
"""

import traceback


class CertbenchError(Exception):
    """The base class of all errors that certbench raises on purpose."""


class ConfigError(CertbenchError, ValueError):
    """The caller or a suite file asks for something that cannot be run.

    `path` leads to the wrong value inside a nested specification, so that whoever reads a file can add the line.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        """Store `path` beside the message."""
        super().__init__(message)
        self.path = path


class UnsupportedError(CertbenchError):
    """This certifier has no certificate for this classifier or threat model; the message is the reason."""


class MissingBackendError(CertbenchError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class StoreError(CertbenchError):
    """Results could not be written or read; what was written before is intact."""


class CertificationError(CertbenchError):
    """One computation failed; the harness turns it into a row."""


class SolverError(CertificationError):
    """A solver gave no usable answer."""


class TimeLimitError(CertificationError):
    """The time limit ended before there was an answer."""


class NumericalError(CertificationError):
    """A result is NaN, or a bound contradicts itself."""


class ContradictionError(CertificationError):
    """An attack found a counterexample inside a certified radius: the certifier or its implementation is wrong."""


class CrashError(CertificationError):
    """A certifier, or a package below it, raised an exception of another kind; `__cause__` is that exception."""

    @property
    def trace(self) -> str:
        """The traceback, as text."""
        return "".join(traceback.format_exception(self))
