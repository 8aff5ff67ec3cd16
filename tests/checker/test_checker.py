"""Certificates as files: the checker agrees with the certifiers, believes nothing, and encloses its own rounding."""

import base64
import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certbench import Classifier, ThreatModel, build, checker
from certbench.checker import Verdict, check, check_file, reading, rounding
from certbench.checker.reading import Claim
from certbench.checker.relaxation import CutBall, Prover
from certbench.exit_codes import ExitCode
from certbench.export.exporter import Exporter
from certbench.export.proof import relaxation
from tests.support.exporting import THREATS, exported, inputs, network


def test_imports_numpy_and_nothing_heavy() -> None:
    code = (
        "import sys, certbench.checker, certbench.checker.relaxation\n"
        "print(sorted({'torch', 'scipy', 'auto_LiRPA', 'cvxpy', 'highspy', 'pydantic'} & set(sys.modules)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('certbench.') and not m.startswith('certbench.checker')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "[]",
        "['certbench.core', 'certbench.core.claims', 'certbench.core.threat', 'certbench.errors', 'certbench.version']",
    ]


# Tampering. A certificate of each kind, with every number and every word changed.


@pytest.fixture(scope="module", params=["interval", "relaxation"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small certificate; of the relaxation, with bounds that the backward pass proved."""
    folder, classifier = tmp_path_factory.mktemp(request.param), network("tiny")
    name = "ibp" if request.param == "interval" else "crown"
    if name == "ibp":
        request.getfixturevalue("lirpa")
    (found,) = exported(folder, name, classifier, ThreatModel(math.inf, (0.0, 1.0)), inputs(classifier, 1))
    content = json.loads(found[0].read_text())
    assert content["evidence"]["kind"] == request.param
    if name == "crown":
        assert content["evidence"]["layers"][1]["backward"] is not None
    return found[0]


def variants(value: Any) -> Iterator[Any]:
    """Other values of a leaf: a number by a little and by a lot, text by a character, an array by each entry."""
    if isinstance(value, dict):
        entries = np.frombuffer(base64.b64decode(value["float64"]), "<f8").reshape(value["shape"])
        for i in range(entries.size):
            for other in (entries.flat[i] * (1 + 1e-6) + 1e-9, entries.flat[i] + 10.0, -1e308):
                changed = entries.copy()
                changed.flat[i] = other
                yield reading.written(changed)
        yield {**value, "shape": [*value["shape"], 1]}
        yield {**value, "shape": [entries.size + 1]}
    elif isinstance(value, str):
        yield from (value + "x", value[1:], "inf", "")
    elif isinstance(value, bool) or value is None:
        yield from (1, "x", [])
    else:
        yield from (value + 1, -value - 1, value * (1 + 1e-6) + 1e-9, 1e308, True, str(value), None)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Numbers, words and arrays of a file, with the way there."""
    if isinstance(value, dict) and value.keys() != {"shape", "float64"}:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from leaves(part, (*path, i))
    else:
        yield path, value


def put(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with another value there."""
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def judged(file: Path, content: dict[str, Any], *, sealed: bool = True) -> Verdict:
    """The verdict on other content, sealed anew."""
    if sealed:
        content = {**content, "seal": reading.seal(content)}
    other = file.parent / "changed.json"
    other.write_text(json.dumps(content))
    return check_file(other)


LABELS = {("claim", "classifier", "fingerprint"), ("claim", "classifier", "name")}
"""What the claim does not rest on; `made_by` neither."""


def test_every_changed_field_is_noticed(file: Path) -> None:
    content = json.loads(file.read_text())
    count = 0
    for path, value in leaves(content):
        for other in list(variants(value))[:4]:
            if other != value:
                assert not judged(file, put(content, path, other), sealed=False).accepted, path
                count += 1
    assert count > 150


def test_what_is_sealed_anew_is_accepted_only_where_the_claim_stands(file: Path) -> None:
    content = json.loads(file.read_text())
    accepted = set()
    for path, value in leaves({name: part for name, part in content.items() if name != "seal"}):
        for other in variants(value):
            if other != value and judged(file, put(content, path, other)).accepted:
                accepted.add(path)
    claims = {path for path in accepted if path[0] == "claim"}
    assert claims <= LABELS | {("claim", "logits")}  # the latter up to rounding
    rest = {path for path in accepted if path[0] != "claim" and path[0] != "made_by"}
    assert all(path[0] == "evidence" for path in rest)  # looser evidence for the same claim may do


def claimed(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The file with another claim, its statement in accordance."""
    changed = copy.deepcopy(content)
    changed["claim"] |= changes
    part = changed["claim"]
    shape = tuple(part["input"]["array"]["shape"])
    claim = Claim(
        np.zeros(math.prod(shape)),
        reading.NORMS[part["norm"]],
        None if part["domain"] is None else (float(part["domain"][0]), float(part["domain"][1])),
        *(part["prediction"], float(part["radius"]), part["subject"], part["guarantee"]),
        part["classifier"]["network"],
    )
    part["statement"] = reading.statement(claim)
    return changed


def test_larger_claims_are_refused(file: Path) -> None:
    content = json.loads(file.read_text())
    radius = content["claim"]["radius"]
    assert judged(file, claimed(content)).accepted
    assert judged(file, claimed(content, radius=radius / 2)).accepted
    assert judged(file, claimed(content, norm="2")).accepted  # that ball is inside the other
    for changes in (
        {"radius": radius * 1.01},
        {"radius": 1e308},
        {"radius": -radius},
        {"radius": 0.0},
        {"prediction": (content["claim"]["prediction"] + 1) % 3},
        {"prediction": 3},
        {"guarantee": "complete"},
        {"guarantee": "probabilistic"},
        {"subject": "smoothed"},
        {"domain": [0.6, 1.0]},
        {"domain": [-1.0, 2.0], "radius": radius * 1.01},
    ):
        assert not judged(file, claimed(content, **changes)).accepted, changes
        wider = claimed(content, **changes)
        wider["evidence"]["region"] = max(wider["evidence"]["region"], wider["claim"]["radius"])
        assert not judged(file, wider).accepted, changes


def test_evidence_that_proves_nothing_is_refused(file: Path) -> None:
    content = json.loads(file.read_text())
    margins, layers = content["evidence"]["margins"], content["evidence"]["layers"]
    rivals = margins["rivals"]
    lies: list[tuple[tuple[Any, ...], Any]] = [
        (("evidence", "margins", "rivals"), rivals[:1]),
        (("evidence", "margins", "rivals"), [rivals[0], rivals[0]]),
        (("evidence", "margins", "rivals"), rivals[::-1]),
        (("evidence", "layers"), layers[:1]),
        (("evidence", "layers"), [layers[1], layers[0]]),
        (("evidence", "layers", 0, "lower"), layers[0]["upper"]),
        (("evidence", "layers", 0, "upper"), layers[0]["lower"]),
        (("evidence", "region"), 1e-9),
        (("evidence", "kind"), "semidefinite"),
        (("evidence", "kind"), "counts"),
    ]
    if content["evidence"]["kind"] == "relaxation":
        slopes = reading.array(margins["slopes"][0], "slopes")
        backward = layers[1]["backward"]
        lies += [
            (("evidence", "margins", "slopes", 0), reading.written(slopes + 1e-9 + (slopes.max() - slopes))),
            (("evidence", "margins", "slopes", 0), reading.written(slopes - 2)),
            (("evidence", "margins", "slopes"), []),
            (("evidence", "layers", 1, "backward", "slopes"), []),
            (("evidence", "layers", 1, "backward", "lower"), [4]),
            (("evidence", "layers", 1, "backward", "lower"), [*backward["lower"], *backward["lower"]]),
            (("evidence", "layers", 1, "backward", "lower"), [-1]),
            (("evidence", "layers", 1, "backward"), None),
        ]
    for path, value in lies:
        assert not judged(file, put(content, path, value)).accepted, path


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"version": 1', '"version": 2', 1),
        lambda text: text.replace('"version": 1', '"version": true', 1),
        lambda text: text.replace('"version": 1', '"version": 1, "version": 1', 1),
        lambda text: text.replace('"version": 1', '"version": 1, "more": 1', 1),
        lambda text: text.replace('"radius":', '"radius": NaN, "other":', 1),
        lambda text: text.replace('"radius":', '"radius": 1e999, "other":', 1),
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: '{"a": ' * 100_000,
        lambda text: "\ud800",
        lambda text: "",
    ],
)
def test_what_is_no_certificate_is_unreadable(file: Path, damage: Callable[[str], str]) -> None:
    other = file.parent / "damaged.json"
    other.write_text(damage(file.read_text()), encoding="utf-8", errors="surrogatepass")
    assert check_file(other).status == "unreadable"
    assert check_file(file.parent / "missing.json").status == "unreadable"


def test_another_network_is_noticed(file: Path, tmp_path: Path) -> None:
    (path,) = file.parent.glob("network-*.json")
    copied = tmp_path / file.name
    copied.write_bytes(file.read_bytes())
    assert check_file(copied).status == "unreadable"
    (tmp_path / path.name).write_bytes(path.read_bytes() + b" ")
    assert check_file(copied).status == "unreadable"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    assert check_file(copied).accepted


# The arithmetic.


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_no_point_of_the_region_falls_further(p: float, box: tuple[float, float] | None) -> None:
    rng = np.random.default_rng(0)
    x, a = rng.random(6), rng.standard_normal((40, 6)) * rng.choice([1e-8, 1.0, 1e8], (40, 1))
    region = CutBall.of(Claim(x, p, box, 0, 0.5, "base", "sound"), 0.5)
    step = rng.standard_normal((20_000, 6)) ** 3
    step *= 0.5 / np.linalg.norm(step, p, axis=1, keepdims=True)
    points = x + step if box is None else np.clip(x + step, *box)
    seen = (a @ points.T).min(axis=1)
    low = region.minimum(a, np.zeros(40))
    assert (low <= seen).all()
    exact = 0.5 * np.linalg.norm(a, {1.0: np.inf, 2.0: 2, np.inf: 1}[p], axis=1)
    assert ((a @ x - low) <= exact * (1 + 1e-9)).all()
    if box is None:
        assert ((a @ x - low) >= exact * (1 - 1e-9)).all()


@pytest.mark.parametrize("threat", [THREATS[0], THREATS[3], THREATS[4]], ids=str)
def test_no_witness_carries_a_radius_beyond_a_counterexample(tmp_path: Path, threat: ThreatModel) -> None:
    """Asked for the distance of the closest counterexample that sampling finds, with any slopes at all."""
    rng = np.random.default_rng(0)
    for seed in range(8):
        classifier = network("tiny", seed)
        x = inputs(classifier, 1, seed)
        step = rng.standard_normal((20_000, 3)) * rng.random((20_000, 1))
        points = x.numpy() + step
        points = points if threat.domain is None else points.clip(*threat.domain)
        label = int(classifier.double()(x).argmax())
        wrong = (classifier.double()(torch.from_numpy(points)).argmax(dim=1) != label).numpy()
        if not wrong.any():
            continue
        distance = float(np.linalg.norm(points - x.numpy(), threat.p, axis=1)[wrong].min())
        net, digest = Exporter(classifier, tmp_path).network
        claim = Claim(x[0].numpy(), threat.p, threat.domain, label, distance * (1 + 1e-9), "base", "sound", digest)
        certifier = build("crown")
        state = certifier.prepare(classifier, threat)
        for factor in (1.0, 0.5, 2.0):
            eps = torch.tensor([claim.radius * factor], dtype=torch.float64)
            witness = certifier.witness(state, x, torch.tensor([label]), eps)
            for _ in range(5):
                slopes = [torch.rand_like(s) for s in witness.slopes]
                found, _ = relaxation(net, claim, replace(witness, slopes=slopes), float(eps))
                assert found < distance


def exact_outputs(nodes: Any, x: list[Fraction]) -> list[Fraction]:
    """A network's outputs in rational arithmetic."""
    values = [x]
    for node in nodes[1:]:
        h = values[node.inputs[0]]
        if node.op == "affine":
            values.append(
                [
                    sum((Fraction(float(w)) * v for w, v in zip(row, h, strict=True)), Fraction(float(b)))
                    for row, b in zip(node.weight, node.bias, strict=True)
                ]
            )
        else:
            values.append([max(v, Fraction(0)) for v in h])
    return values[-1]


def test_linear_functions_lie_below_in_exact_arithmetic(tmp_path: Path) -> None:
    """Where everything cancels, so that rounding is all that could be wrong: tiny regions, large weights."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        torch.manual_seed(trial)
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        for part in module:
            if isinstance(part, nn.Linear):
                part.weight.data *= 1e4
        net, _ = Exporter(Classifier(module.eval(), (3,), 2), tmp_path).network
        x, radius = rng.random(3), 10.0 ** rng.integers(-12, -2)
        claim = Claim(x, math.inf, None, 0, radius, "base", "sound")
        prover = Prover(net, CutBall.of(claim, radius))
        for at in net.relus:
            prover.advance()
            source, index = net.nodes[at].inputs[0], np.arange(4)
            prover.bounds[at] = prover.least(source, index, 1.0, None), -prover.least(source, index, -1.0, None)
        prover.advance()
        slopes = [rng.random((1, 4)) for _ in net.relus]
        a, b = prover.below(len(net.nodes) - 1, np.array([[1.0, -1.0]]), slopes)
        for _ in range(5):
            point = [
                Fraction(float(v)) + Fraction(float(radius)) * int(s)
                for v, s in zip(x, rng.choice([-1, 0, 1], 3), strict=True)
            ]
            outputs = exact_outputs(net.nodes, point)
            below = sum((Fraction(float(c)) * v for c, v in zip(a[0], point, strict=True)), Fraction(float(b[0])))
            assert below <= outputs[0] - outputs[1]


def test_enclosures_hold_in_exact_arithmetic() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 30)) * 10.0 ** rng.integers(-160, 100, (5, 30)), rng.standard_normal(30)
    for row in a:
        exact = sum((abs(Fraction(float(v)) * Fraction(float(w))) for v, w in zip(row, b, strict=True)), Fraction(0))
        assert Fraction(float(rounding.product_up(np.abs(row[None]), np.abs(b))[0])) >= exact
        square = sum((Fraction(float(v)) ** 2 for v in row), Fraction(0))
        assert Fraction(float(rounding.norm_up(row[None], 2.0)[0])) ** 2 >= square
        assert Fraction(float(rounding.norm_up(row[None], 1.0)[0])) >= sum(abs(Fraction(float(v))) for v in row)


def test_what_a_file_says_stays_on_its_line(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "a.json").write_text(json.dumps({"x\nb.json: accepted\n\x1b[1m\ud800": 1}))
    checked = check(tmp_path / "a.json", lambda file, verdict: said.append(checker.told(file, verdict)))
    assert (checked.exit_code, checked.summary) == (2, "0 of 1 accepted")
    assert len(said) == 1 and said[0].isprintable() and r"x\nb.json: accepted\n\x1b[1m\ud800" in said[0]


def test_several_files_end_with_the_code_of_the_worst(file: Path, tmp_path: Path) -> None:
    good, bad, odd = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    content = json.loads(file.read_text())
    (network_file,) = file.parent.glob("network-*.json")
    (tmp_path / network_file.name).write_bytes(network_file.read_bytes())
    good.write_bytes(file.read_bytes())
    bad.write_text(json.dumps(content | {"seal": "0" * 64}))
    odd.write_text("{")
    (tmp_path / "empty").mkdir()
    for files, code, count in (
        ([good], ExitCode.OK, 1),
        (good, ExitCode.OK, 1),
        (str(good), ExitCode.OK, 1),
        ([good, odd], ExitCode.USAGE, 1),
        ([good, tmp_path / "empty"], ExitCode.USAGE, 1),
        ([odd, bad, good], ExitCode.UNSOUND, 1),
        (tmp_path, ExitCode.UNSOUND, 1),
        ([], ExitCode.USAGE, 0),
    ):
        checked = check(files)
        assert (checked.exit_code, checked.accepted) == (code, count), files
    assert [path.name for path, _ in check(tmp_path).verdicts] == ["a.json", "b.json", "c.json"]
    assert check(tmp_path / "empty").empty == (tmp_path / "empty",)


def test_the_checkers_exit_codes_are_those_of_the_command_line() -> None:
    assert checker.EXITS == {"accepted": ExitCode.OK, "unreadable": ExitCode.USAGE, "refused": ExitCode.UNSOUND}
