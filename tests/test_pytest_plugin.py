"""The fixture that holds radii to a baseline, as a stranger's test suite uses it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from certbench import pytest_plugin
from certbench.comparison.baseline import read
from certbench.comparison.classes import Kind
from certbench.comparison.compare import compare

pytest.importorskip("pytest_regressions.common")
assert pytest_plugin  # what is imported before the inner runs is not imported again in each

pytest_plugins = ["pytester"]

TEST = """
import warnings
def test_radii(certified_radii):
    certified_radii.check({radii}, {more})
"""


PLUGINS = ("-p", "pytest_datadir.plugin", "-p", "pytest_regressions.plugin")
"""What the inner runs load; to look for others, each time, is slow."""


class Suite:
    """A suite of one test, with a baseline of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makeconftest("from certbench.pytest_plugin import certified_radii")

    def run(self, radii: str, more: str = "", *arguments: str) -> tuple[bool, str]:
        self.pytester.makepyfile(test_it=TEST.format(radii=radii, more=more))
        result = self.pytester.runpytest_inprocess(*PLUGINS, "-p", "no:cacheprovider", *arguments)
        return result.ret == 0, result.stdout.str()

    @property
    def baseline(self) -> Path:
        return self.pytester.path / "test_it" / "test_radii.radii.json"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    suite = Suite(pytester)
    passed, text = suite.run("[0.5, 0.30000000000000004, 0.0, float('inf')]")
    assert not passed and "File not found in data directory, created" in text
    return suite


RADII = "[0.5, 0.30000000000000004, 0.0, float('inf')]"


def test_the_baseline_is_written_once_and_exactly(suite: Suite) -> None:
    assert suite.baseline.read_text() == '{"radii": [\n0.5,\n0.30000000000000004,\n0.0,\n"inf"\n]}\n'
    passed, text = suite.run(RADII)
    assert passed and "warning" not in text
    assert suite.run("__import__('numpy').array([0.5, 0.3, 0.0, float('inf')])")[0]
    assert suite.run("[0.5 - 2e-5, 0.3, 0.0, float('inf')]")[0]


@pytest.mark.parametrize(
    ("radii", "words"),
    [
        ("[0.4, 0.3, 0.0, float('inf')]", "input 0: looser, 0.5 -> 0.4 (-20.00 %)"),
        ("[0.0, 0.3, 0.0, float('inf')]", "input 0: lost, 0.5 -> 0"),
        ("[0.5, float('nan'), 0.0, float('inf')]", "input 1: non-finite"),
        ("[0.5, -0.3, 0.0, float('inf')]", "input 1: non-finite"),
        ("[0.5, float('inf'), 0.0, float('inf')]", "input 1: non-finite"),
        ("[0.5, 0.3, 0.0]", "3 radii, but the baseline test_radii.radii.json has 4"),
    ],
)
def test_what_got_worse_fails(suite: Suite, radii: str, words: str) -> None:
    passed, text = suite.run(radii)
    assert not passed and words in text


def test_a_counterexample_fails_even_without_a_baseline_and_is_never_renewed(suite: Suite) -> None:
    upper = "upper=[0.49, 1, 1, float('inf')]"
    suite.baseline.unlink()
    for option in ("--force-regen", "--regen-all", "-q"):
        passed, text = suite.run(RADII, upper, option)
        assert not passed and "input 0: unsound" in text and "a counterexample lies at 0.49" in text
        assert not suite.baseline.exists()
    assert not suite.run("[float('nan')]", "", "--regen-all")[0] and not suite.baseline.exists()


def test_what_got_better_warns_and_is_renewed(suite: Suite) -> None:
    better = "[0.6, 0.3, 0.1, float('inf')]"
    passed, text = suite.run(better)
    assert passed and "TighterWarning: 2 radii grew" in text and "input 2: gained, 0 -> 0.1" in text
    passed, text = suite.run(better, "", "--force-regen")
    assert not passed and "regenerating" in text
    passed, text = suite.run(better)
    assert passed and "TighterWarning" not in text
    assert not suite.run("[0.5, 0.3, 0.1, float('inf')]")[0]


def test_tolerances_and_names_are_the_test_s(suite: Suite) -> None:
    assert suite.run("[0.49, 0.3, 0.0, float('inf')]", "relative=0.05")[0]
    assert not suite.run("[0.49999, 0.3, 0.0, float('inf')]", "absolute=0, relative=0")[0]
    assert not suite.run("[0.5]", "'other'")[0]
    assert (suite.baseline.parent / "other.radii.json").exists()
    passed, text = suite.run("[0.5]", "'other', upper=[1, 2]")
    assert not passed and "1 radii, but 2 distances" in text
    passed, text = suite.run("[0.5]", "'other', upper=[float('nan')]")
    assert not passed and "is NaN" in text


@pytest.mark.parametrize(
    ("radii", "more", "words"),
    [
        ("0.5", "", "one number per input, in a sequence, not '0.5'"),
        ("__import__('numpy').array(0.5)", "", "in a sequence, not '0.5'"),
        ("__import__('numpy').ones((2, 2))", "", "an array of shape (2, 2); flatten it"),
        ("[[0.5, 0.3], [0.0, 1.0]]", "", "one number per input, not '[0.5, 0.3]'"),
        ("'123'", "", "in a sequence, not '123'"),
        ("['0.5']", "", "one number per input, not '0.5'"),
        ("[None, 0.1]", "", "one number per input, not 'None'"),
        ("[True]", "", "one number per input, not 'True'"),
        ("None", "", "in a sequence, not 'None'"),
        ("{0: 0.5}", "", "in a sequence"),
        ("[]", "", "there are no radii"),
        ("[0.5]", "upper=0.9", "distances of counterexamples are one number per input"),
    ],
)
def test_what_is_no_sequence_of_radii_is_refused(suite: Suite, radii: str, more: str, words: str) -> None:
    suite.baseline.unlink()
    passed, text = suite.run(radii, more)
    assert not passed and words in text and not suite.baseline.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("garbage", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ("{}", "KeyError: 'radii'"),
        ('{"radii": "123"}', "its radii are no list"),
        ('{"radii": ["0.5", 0.3, 0.0, "inf"]}', "one number per input, not '0.5'"),
        ('{"radii": [NaN, 0.3, 0.0, "inf"]}', "the radius of input 0 is nan"),
        ('{"radii": [0.5, -1, 0.0, "inf"]}', "the radius of input 1 is -1"),
    ],
)
def test_what_is_no_baseline_fails_and_can_be_renewed(suite: Suite, content: str, words: str) -> None:
    suite.baseline.write_text(content)
    passed, text = suite.run(RADII)
    assert not passed and "test_radii.radii.json is no complete baseline of radii" in text and words in text
    suite.run(RADII, "", "--force-regen")
    assert suite.run(RADII)[0]


def test_numbers_of_many_kinds_are_radii(suite: Suite) -> None:
    for radii in (
        "__import__('numpy').array([0.5, 0.3, 0.0, float('inf')], dtype='float32')",
        "list(__import__('numpy').array([0.5, 0.3, 0.0, float('inf')], dtype='float32'))",
        "(radius for radius in (0.5, __import__('fractions').Fraction(3, 10), 0, float('inf')))",
    ):
        assert suite.run(radii)[0], radii


def test_certificates_bring_their_counterexamples(suite: Suite) -> None:
    found = "type('C', (), dict(radius=[0.5, 0.3, 0.0, float('inf')], upper=[{}, 1, 1, float('inf')]))"
    assert suite.run(found.format(0.5))[0]
    assert not suite.run(found.format(0.4))[0]
    assert suite.run(found.format(0.4), "upper=[1, 1, 1, float('inf')]")[0]


def test_benchmarks_carry_cost_and_tightness_in_one_file(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # beside others it would measure nothing
    pytester.makeconftest("from certbench.pytest_plugin import certified_radii")
    sides = []
    for name, radius in (("old", 0.5), ("new", 0.4)):
        pytester.makepyfile(
            test_it=f"""
            def test_cost(certified_radii, benchmark):
                radii = benchmark.pedantic(lambda: [{radius}, 0.0, float("inf")], rounds=3)
                certified_radii.record(benchmark, radii, upper=[0.6, 1, float("inf")], content="f")
            """
        )
        plugins = ("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider")
        assert pytester.runpytest_subprocess(*plugins, f"--benchmark-json={name}.json").ret == 0
        sides.append(read(pytester.path / f"{name}.json"))
    (entry,) = json.loads((pytester.path / "new.json").read_text())["benchmarks"]
    info = entry["extra_info"]["certbench"]
    assert info["radii"] == [0.4, 0.0, "inf"] and info["mean"] == 0.2 and info["certified"] == pytest.approx(2 / 3)
    assert entry["stats"]["median"] > 0
    kinds = [change.kind for change in compare(*sides).changes]
    assert kinds == [Kind.LOOSER, Kind.SAME, Kind.SAME]


def test_the_plugin_is_light() -> None:
    code = "import sys, certbench.pytest_plugin; print(*(name for name in sys.modules if name.startswith('certbench')))"
    heavy = "; assert not {'torch', 'numpy', 'scipy', 'yaml', 'pydantic', 'rich', 'sqlite3'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code + heavy], check=True, capture_output=True, text=True, timeout=60)
    assert not {"certbench.core.certifier", "certbench.core.certificate", "certbench.results.store"} & set(
        done.stdout.split()
    )
