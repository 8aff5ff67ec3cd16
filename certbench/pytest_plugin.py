"""A pytest fixture that compares certified radii with a committed baseline. It imports neither torch nor a certifier.

    def test_crown(certified_radii, benchmark):
        certificate = benchmark(certify, crown, classifier, x, L2)
        certified_radii.check(certificate)               # or any sequence of numbers
        certified_radii.record(benchmark, certificate)   # pytest-benchmark's JSON then has time and tightness

The baseline lies beside the test module, in a folder with the module's name. pytest-regressions writes it and renews it
(`--force-regen`). Wrong radii are never written.
"""

import json
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import pytest

from certbench.comparison.classes import Kind, Tolerance, classify
from certbench.core.claims import Outcome
from certbench.files.writing import write
from certbench.results.rows import refuted

FAILING = frozenset(Kind) - {Kind.SAME, Kind.NOISE, Kind.GAINED, Kind.TIGHTER}
"""Classes that make a test fail; `gained` and `tighter` only warn."""

SHOWN = 20
"""Maximum number of inputs that a message names."""


class TighterWarning(UserWarning):
    """Radii grew. That is suspicious if the method did not change; if it did, the baseline should be renewed."""


class CertifiedRadii:
    """The value of the fixture `certified_radii`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        """Remember the test."""
        self._request = request

    def check(
        self,
        radii: Any,
        name: str | None = None,
        *,
        upper: Any = None,
        absolute: float = Tolerance.absolute,
        relative: float = Tolerance.relative,
    ) -> None:
        """Fail if a radius is wrong, lost or looser than in the baseline; warn about radii that grew.

        Args:
            radii: one number per input: a sequence, an array or tensor of one axis, or a `certbench.Certificate`.
            name: name of the baseline; None: the test's name. A test that checks twice needs it.
            upper: distance of the closest known counterexample for each input; None: the certificate's.
            absolute: largest difference of two radii that count as the same.
            relative: the same, as a share of the older radius.

        Raises:
            ValueError: radii or distances are not one number per input, or a distance is NaN.
        """
        __tracebackhide__ = True
        values, uppers = _read(radii, upper)
        tolerance = Tolerance(absolute, relative)
        wrong = _described((i, radius, radius, uppers[i], Kind.SAME) for i, radius in enumerate(values))
        bad = [line for kind, line in wrong if kind in (Kind.NON_FINITE, Kind.UNSOUND)]
        if bad:
            pytest.fail(_message(bad, "wrong, whatever the baseline says; --force-regen does not help"), pytrace=False)
        check = _regressions()
        renewing = bool(self._request.config.getoption("force_regen"))

        def compare(obtained: Path, expected: Path) -> None:
            __tracebackhide__ = True
            del obtained
            old = _stored(expected)
            if len(old) != len(values):
                raise AssertionError(f"{len(values)} radii, but the baseline {expected.name} has {len(old)}")
            pairs = zip(old, values, uppers, strict=True)
            found = _described((i, *pair, classify(*pair[:2], tolerance, pair[2])) for i, pair in enumerate(pairs))
            failing = [line for kind, line in found if kind in FAILING]
            better = [line for kind, line in found if kind in (Kind.GAINED, Kind.TIGHTER)]
            if failing or (renewing and better):
                raise AssertionError(_message(failing + better, f"changed against the baseline {expected.name}"))
            if better:
                text = _message(better, f"grew against the baseline {expected.name}; --force-regen renews it")
                warnings.warn(TighterWarning(text), stacklevel=2)

        check(
            datadir=self._request.getfixturevalue("datadir"),
            original_datadir=self._request.getfixturevalue("original_datadir"),
            request=self._request,
            check_fn=compare,
            dump_fn=lambda path: _write(path, values),
            extension=".radii.json",
            basename=name,
        )

    def record(self, benchmark: Any, radii: Any, *, upper: Any = None, content: str = "unknown") -> None:
        """Put radii into pytest-benchmark's `extra_info`, so that one JSON file gates cost and tightness.

        `certbench compare OLD.json NEW.json` compares both: radii one by one, times by their medians.

        Args:
            benchmark: pytest-benchmark's fixture.
            radii: see `check`.
            upper: see `check`.
            content: fingerprint of classifier and inputs, for example `Classifier.fingerprint`; files with different
                fingerprints are incomparable.
        """
        values, uppers = _read(radii, upper)
        ends = getattr(radii, "outcome", [None] * len(values))
        finite = [r for r, end in zip(values, ends, strict=True) if math.isfinite(r) and end is not Outcome.LIMITED]
        benchmark.extra_info["certbench"] = {
            "content": content,
            "radii": [_text(radius) for radius in values],
            "upper": [_text(distance) for distance in uppers],
            "unbounded": len(values) - len(finite),
            "mean": statistics.fmean(finite) if finite else None,
            "median": statistics.median(finite) if finite else None,
            "certified": sum(radius > 0 for radius in values) / max(len(values), 1),
        }


@pytest.fixture
def certified_radii(request: pytest.FixtureRequest) -> CertifiedRadii:
    """Compare certified radii with a committed baseline, input by input: `check`, and `record` for benchmarks."""
    return CertifiedRadii(request)


def _regressions() -> Any:
    try:
        from pytest_regressions.common import perform_regression_check
    except ImportError:
        pytest.fail("certified_radii.check needs pytest-regressions; pip install pytest-regressions", pytrace=False)
    return perform_regression_check


def _read(radii: Any, upper: Any) -> tuple[list[float], list[float]]:
    """Return radii and distances of counterexamples as lists of floats."""
    if hasattr(radii, "radius"):
        radii, upper = radii.radius, radii.upper if upper is None else upper
    values = _floats(radii, "radii")
    uppers = [math.inf] * len(values) if upper is None else _floats(upper, "distances of counterexamples")
    if len(uppers) != len(values):
        raise ValueError(f"{len(values)} radii, but {len(uppers)} distances of counterexamples")
    if any(math.isnan(distance) for distance in uppers):
        raise ValueError("a distance of a counterexample is NaN; write inf where none is known")
    return values, uppers


def _floats(values: Any, what: str) -> list[float]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | bytes | Mapping) or not isinstance(listed, Iterable):
        raise ValueError(f"{what} are one number per input, in a sequence, not {str(listed)[:50]!r}")
    numbers = [value.item() if getattr(value, "shape", None) == () else value for value in listed]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real):
            shape = getattr(values, "shape", None)
            told = f"an array of shape {tuple(shape)}; flatten it" if shape is not None else f"{str(number)[:50]!r}"
            raise ValueError(f"{what} are one number per input, not {told}")
    if not numbers:
        raise ValueError(f"there are no {what}, so nothing would be compared")
    return [float(number) for number in numbers]


def _stored(path: Path) -> list[float]:
    """Read the radii of a baseline.

    Raises:
        AssertionError: the file is no baseline; `--force-regen` writes a new one.
    """
    try:
        radii = json.loads(path.read_text(encoding="utf-8"))["radii"]
        if not isinstance(radii, list):
            raise ValueError("its radii are no list")
        numbers = _floats([math.inf if radius == "inf" else radius for radius in radii], "radii")
        for i, number in enumerate(numbers):
            if not number >= 0:
                raise ValueError(f"the radius of input {i} is {number:g}")
    except (ValueError, TypeError, LookupError) as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        text = f"{path.name} is no complete baseline of radii ({said}); --force-regen writes a new one"
        raise AssertionError(text) from error
    return numbers


def _described(rows: Any) -> list[tuple[Kind, str]]:
    """Return class and sentence of each `(input, old, new, upper, class)`; what is wrong by itself stays wrong."""
    found = []
    for i, old, new, upper, kind in rows:
        alone = classify(new, new, upper=upper)
        kind = kind if alone is Kind.SAME else alone
        change = f" ({100 * (new / old - 1):+.2f} %)" if 0 < old < math.inf and old != new else ""
        beyond = f", but a counterexample lies at {upper:.6g}" if refuted(new, upper, math.inf) else ""
        found.append((kind, f"input {i}: {kind.value}, {old:.9g} -> {new:.9g}{change}{beyond}"))
    return found


def _message(lines: Sequence[str], what: str) -> str:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{len(lines)} radii {what}:", *lines[:SHOWN], *more])


def _write(path: Path, values: Sequence[float]) -> None:
    """Write one radius per line, with the fewest digits that give the same double."""
    lines = ",\n".join(json.dumps(_text(radius)) for radius in values)
    write(path, f'{{"radii": [\n{lines}\n]}}\n')


def _text(value: float) -> float | str:
    """Write infinity and NaN as text, because JSON has neither."""
    return value if math.isfinite(value) else str(value)
