"""Suites: the shipped ones are valid, and every mistake is one `ConfigError` with file and line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from certbench.core.search import Ladder, Secant
from certbench.errors import ConfigError
from certbench.runs.plan import plan
from certbench.runs.shipped import suites
from certbench.runs.suite import Suite, load
from certbench.verifiers.linear.crown import Crown
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support import mnist

GOOD = """\
name: mine
data: digits
inputs: 3
models: [linear]
norms: [2, inf]
domain: [0, 1]
radii: {2: [0.1], inf: [8/255]}
search: {name: secant, relative: 1e-2}
certifiers:
  - crown
  - {name: crown, search: {name: ladder, eps: [0.1]}}
  - lipschitz
attacks: {steps: 0}
"""


def read(folder: Path, text: str) -> Suite:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load(str(path))


def test_a_matrix_is_every_combination(tmp_path: Path) -> None:
    sweep = "  - {name: smoothing, n: 100, noise: gaussian, matrix: {noise.sigma: [0.25, 0.5], alpha: [0.1, 1e-2]}}\n"
    found = read(tmp_path, GOOD.replace("  - crown\n", sweep))
    swept = [(one.noise.sigma, one.alpha) for one in found.certifiers if isinstance(one, Smoothing)]
    assert swept == [(0.25, 0.1), (0.25, 0.01), (0.5, 0.1), (0.5, 0.01)]
    for wrong in ("{}", "{n: 3}", "{n: []}"):
        with pytest.raises(ConfigError, match=r"line 10: .*a matrix has a list of values"):
            read(tmp_path, GOOD.replace("  - crown\n", f"  - {{name: smoothing, matrix: {wrong}}}\n"))


@pytest.mark.parametrize("name", suites())
def test_a_shipped_suite_can_be_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load(name)
    assert suite.settings.name == name
    mnist.offer(suite.settings.data.path, monkeypatch)
    assert plan(suite) == len(suite.settings.models) * len(suite.threats) * len(suite.certifiers)


def test_what_is_written_is_what_is_run(tmp_path: Path) -> None:
    suite = read(tmp_path, GOOD)
    assert [(threat.name, threat.domain) for threat in suite.threats] == [("L2", (0, 1)), ("Linf", (0, 1))]
    usual = Secant(relative=1e-2)
    assert suite.certifiers == (Crown(search=usual), Crown(search=Ladder((0.1,))), LayerwiseLipschitz(search=usual))
    assert suite.settings.radii == {2.0: [0.1], float("inf"): [8 / 255]}
    assert suite.settings.clever is None
    clever = read(tmp_path, GOOD + "clever: {radius: {inf: 8/255}, samples: 1e3}").settings.clever
    assert clever is not None and (clever.radius, clever.samples) == ({float("inf"): 8 / 255}, 1000)


def test_a_suite_means_the_same_in_json(tmp_path: Path) -> None:
    one, other = read(tmp_path, GOOD), read(tmp_path, yaml.safe_dump(yaml.safe_load(GOOD), default_flow_style=True))
    assert (one.settings, one.certifiers) == (other.settings, other.certifiers)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("inputs: 3", "inptus: 3", 3, "did you mean 'inputs'?"),
        ("domain: [0, 1]", "domian: [0, 1]", 6, "did you mean 'domain'?"),
        ("steps: 0", "step: 0", 13, "did you mean 'steps'?"),
        ("steps: 0", "steps: -1", 13, "greater than or equal to 0"),
        ("attacks: {steps: 0}", "clever: {radius: {2: 1}, sample: 3}", 13, "did you mean 'samples'?"),
        ("attacks: {steps: 0}", "clever: {samples: 3}", 13, "clever.radius: Field required"),
        ("attacks: {steps: 0}", "clever: {radius: {}}", 13, "at least 1"),
        ("attacks: {steps: 0}", "clever: {radius: {1: 1}}", 13, "norm 1, which is not among the norms"),
        ("attacks: {steps: 0}", "clever: {radius: {2: inf}}", 13, "positive and finite, not inf"),
        ("attacks: {steps: 0}", "clever: {radius: {2: 0}}", 13, "positive and finite, not 0"),
        ("inputs: 3", "inputs: ten", 3, "ten"),
        ("inputs: 3", "inputs: 10k", 3, "10k"),
        ("inputs: 3", "inputs: yes", 3, "true and false"),
        ("inputs: 3", "inputs: .nan", 3, "NaN"),
        ("inputs: 3", "inputs: 0", 3, "greater than 0"),
        ("inputs: 3", "inputs: 2.5", 3, "whole number"),
        ("inputs: 3", "inputs: 501", 3, "501 inputs are wanted, but digits/test has 500"),
        ("name: mine", "name: ../mine", 1, "name"),
        ("data: digits", "data: digitz", 2, "data set 'digitz' is unknown"),
        ("data: digits", "data: missing.npz", 2, "missing.npz"),
        ("[linear]", "[linaer]", 4, "did you mean 'linear'?"),
        ("[linear]", "[3]", 4, "models.0"),
        ("[linear]", "[]", 4, "at least 1"),
        ("[linear]", "[linear, linear]", 4, "same name"),
        ("[linear]", "[{name: linear, wieghts: x}]", 4, "did you mean 'weights'?"),
        ("[linear]", "[{name: linear, weights: x.safetensors}]", 4, "factory"),
        ("[linear]", "[{name: my, factory: 'no_such_module:make', weights: x.safetensors}]", 4, "no_such_module"),
        ("[linear]", "[{name: my, factory: 'no_such_module:make'}]", 4, "weights: file.safetensors"),
        ("norms: [2, inf]", "norms: [2, 3]", 5, "write 1, 2 or inf"),
        ("norms: [2, inf]", "norms: [2, two]", 5, "two"),
        ("norms: [2, inf]", "norms: [2, inf, 2.0]", 5, "twice"),
        ("domain: [0, 1]", "domain: [1, 0]", 6, "empty"),
        ("domain: [0, 1]", "domain: [0, inf]", 6, "finite"),
        ("domain: [0, 1]", "domain: [0, 0.5]", 6, "outside domain"),
        ("radii: {2: [0.1]", "radii: {1: [0.1]", 7, "norm 1, which is not among the norms"),
        ("radii: {2: [0.1]", "radii:\n  2: [0.1]\n  1: [0.1]\n#", 9, "norm 1, which is not among the norms"),
        ("radii: {2: [0.1]", "radii: {2: [a lot]", 7, "a lot"),
        ("radii: {2: [0.1]", "radii: {two: [0.1]", 7, "two"),
        ("name: secant", "name: secnat", 8, "did you mean 'secant'?"),
        ("{name: secant, relative: 1e-2}", "3", 8, "`name`"),
        ("relative: 1e-2", "realtive: 1e-2", 8, "did you mean 'relative'?"),
        ("relative: 1e-2", "relative: 2", 8, "between 0 and 1"),
        ("  - crown\n", "  - crwon\n", 10, "did you mean 'crown'?"),
        ("  - crown\n", "  - 3\n", 10, "`name`"),
        ("  - crown\n", "  - {search: secant}\n", 10, "`name`"),
        ("  - crown\n", "  - crown\n  - crown\n", 11, "twice"),
        ("  - crown\n", "  - {name: smoothing, niose: 1}\n", 10, "did you mean 'noise'?"),
        (
            "  - crown\n",
            "  - name: smoothing\n    n: 10\n    noise: {name: gaussian, sigma: ten}\n",
            12,
            "certifiers.0.noise.sigma: 'ten'",
        ),
        ("eps: [0.1]", "eps: [0.1, -1]", 11, "eps[1] must be above 0"),
        ("inputs: 3", "inputs: 3\ninputs: 4", 4, "'inputs' is given twice"),
        ("name: secant,", "name: secant, name: secant,", 8, "'name' is given twice"),
        ("inputs: 3", "inputs: [3", None, "not valid YAML"),
        ("inputs: 3", "inputs: *three", 3, "not valid YAML"),
        ("inputs: 3", "inputs: 2026-02-31", None, "not valid YAML"),
        ("inputs: 3", "? [1, 2]\n: 3", 3, "not valid YAML"),
        ("[linear]", "&a [*a]", 4, "nested deeper"),
        ("inputs: 3", "1: 3", 3, "strings"),
        ("inputs: 3\n", "", 1, "inputs: Field required"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_line(
    tmp_path: Path, old: str, new: str, line: int | None, words: str
) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        plan(read(tmp_path, GOOD.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}" + (f", line {line}: " if line else ""))
    assert words in str(caught.value)
    assert "function-" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text", "3"])
def test_what_is_no_mapping_is_no_suite(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml.*: a suite is a mapping"):
        read(tmp_path, text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "nul.yaml").write_bytes(b"name: \0")
    for name in ("missing.yaml", "bytes.yaml", "folder.yaml", "nul.yaml"):
        with pytest.raises(ConfigError, match=name):
            load(str(tmp_path / name))


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        load("defualt")


def test_a_norm_that_no_certifier_offers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerwiseLipschitz, "norms", frozenset({2.0}))
    text = GOOD.replace("  - crown\n", "").replace("  - {name: crown, search: {name: ladder, eps: [0.1]}}\n", "")
    with pytest.raises(ConfigError, match=r"line 5: norms\.1: no certifier of this suite offers Linf"):
        read(tmp_path, text)


def test_a_model_must_fit_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays: dict[str, Any] = {"inputs": np.zeros((3, 5), dtype=np.float32), "labels": np.array([0, 1, 2])}
    np.savez("other.npz", **arrays)
    with pytest.raises(ConfigError, match=r"line 4: models\.0: model 'linear' takes \(1, 8, 8\)"):
        plan(read(tmp_path, GOOD.replace("data: digits", "data: other.npz")))
