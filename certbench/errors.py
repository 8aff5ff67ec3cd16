"""Every error certbench raises on purpose.

    CertbenchError
    ├── ConfigError            the caller or a suite file asked for something that cannot be run
    ├── UnsupportedError       this certifier has no certificate for this classifier or threat model
    ├── MissingBackendError    an optional package is needed; the message says how to install it
    ├── StoreError             results could not be written or read
    └── CertificationError     one computation failed; the harness turns it into a row
        ├── SolverError        a solver gave no usable answer
        ├── TimeLimitError     the limit was spent first
        └── NumericalError     NaN, or a bound that contradicts itself

`certbench.certify(..., throw=False)` turns a `CertificationError`, and running out of memory, into rows; nothing else.
"""


class CertbenchError(Exception):
    """Root of the tree above."""


class ConfigError(CertbenchError, ValueError):
    """The caller or a suite file asked for something that cannot be run.

    `path` leads to the offending value inside a nested specification, so that a reader of
    files can add the line.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        """Remember `path` beside the message."""
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
    """The time limit was spent first."""


class NumericalError(CertificationError):
    """NaN, or a bound that contradicts itself."""
