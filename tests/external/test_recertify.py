"""Certificates follow from counts alone, and from the files that counts come in.

The file is long because the rules, the readers of files and the command share the same counts.
"""

import csv
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import beta, multinomial

from certbench import ABSTAIN, ConfigError, Guarantee, Outcome, Subject
from certbench.cli.recertify import told
from certbench.external.count_files import read
from certbench.external.recertify import recertify_file, written_as
from certbench.results.store import Planned, Store, StoredAnswer
from certbench.verifiers.smoothing.confidence import binomial, top_k
from certbench.verifiers.smoothing.noise import gaussian_radius
from certbench.verifiers.smoothing.noise.families import NOISES
from certbench.verifiers.smoothing.recertification import recertify, recertify_exact
from tests.conftest import SHARED
from tests.support.terminal import text_of

COUNTS = [[900, 60, 40], [30, 520, 450], [340, 330, 330], [0, 0, 1000]]
LABELS = [0, 1, 2, 2]


def test_one_vs_rest_is_cohens_certify() -> None:
    certificate = recertify(COUNTS, sigma=0.5, alpha=0.001, rule="one-vs-rest", selected=[0, 1, 0, 2])
    wanted = []
    for own in (900, 520, 340, 1000):
        p = beta.ppf(0.001, own, 1001 - own)
        wanted.append(0.5 * ndtri(p) if p > 0.5 else 0.0)
    assert certificate.radius.tolist() == pytest.approx(wanted, rel=1e-8)
    assert certificate.prediction.tolist() == [0, ABSTAIN, ABSTAIN, 2]


def test_two_classes_divide_alpha_between_their_bounds() -> None:
    certificate = recertify(COUNTS, sigma=0.5, alpha=0.1, selected="label", labels=[0, 1, 0, 2])
    for row, own, radius in zip(COUNTS, (0, 1, 0, 2), certificate.radius.tolist(), strict=True):
        rival = max(count for c, count in enumerate(row) if c != own)
        low = binomial.lower(row[own], 1000, 0.05)
        assert radius == gaussian_radius.radius(low, min(binomial.upper(rival, 1000, 0.05), 1 - low), 0.5)
    assert certificate.radius[1] > 0


def test_top_k_is_the_pure_function_of_its_bounds() -> None:
    certificate = recertify(COUNTS, sigma=0.5, rule="top-k", k=2, labels=LABELS, selected="label")
    for row, label, radius in zip(COUNTS, LABELS, certificate.radius.tolist(), strict=True):
        assert radius == top_k.topk_radius(*top_k.simultaneous_bounds(row, label, 1000, 0.001), 2, 0.5)
    assert recertify(COUNTS, sigma=0.5, rule="top-k", k=3).radius.tolist() == [math.inf] * 4
    one = recertify(COUNTS, sigma=0.5, rule="top-k", k=1).radius
    more = recertify(COUNTS, sigma=0.5, rule="top-k", k=2).radius
    assert (one <= more).all() and one[1] == 0 < more[1]


@pytest.mark.parametrize(("name", "p"), [("L1", 1.0), ("2", 2.0), ("inf", math.inf), ("Linf", math.inf)])
def test_a_norm_may_have_its_name(name: str, p: float) -> None:
    named, plain = (recertify(COUNTS, sigma=0.5, norm=norm, d=16) for norm in (name, p))
    assert torch.equal(named.radius, plain.radius)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3], "they seem to start at 1, so give labels - 1"),
        (np.eye(3), "labels.argmax.axis=1.: these are one-hot"),
        (np.array([[0], [1], [2]]), "labels.:, 0..astype.int.: these are a column"),
        (np.array([0.0, 1.0, 2.0]), "give labels.astype.int."),
        (["a", "b", "c"], "give one integer per input"),
    ],
)
def test_labels_of_another_form_are_refused_with_what_to_give(labels: object, words: str) -> None:
    counts = [[90, 5, 5], [3, 95, 2], [1, 1, 98]]
    with pytest.raises(ConfigError, match=words):
        recertify(counts, sigma=0.5, labels=labels, selected="label")  # type: ignore[arg-type]


def test_norms_and_other_noises() -> None:
    two = recertify(COUNTS, sigma=0.5).radius
    assert torch.equal(recertify(COUNTS, sigma=0.5, norm=1.0).radius, two)
    cube = recertify(COUNTS, sigma=0.5, norm=math.inf, d=16).radius
    assert (cube <= two / 4).all() and torch.allclose(cube, two / 4, atol=1e-12)
    for name in ("gaussian", "laplace", "uniform"):
        noise = NOISES[name](0.5)
        found = recertify(COUNTS, sigma=0.5, norm=1.0, d=16, noise=noise)
        for radius, evidence in zip(found.radius.tolist(), found.evidence, strict=True):
            assert radius == pytest.approx(noise.radius(evidence["p_lower"], evidence["p_upper"], 1.0, 16), abs=1e-15)


WRONG_RULES = [("one-vs-rest", 1), ("two-class", 1), ("top-k", 1), ("top-k", 2)]


@cache
def every(n: int, alpha: float, rule: str, k: int, selected: str) -> list[tuple[tuple[int, ...], int, float]]:
    """All counts of n draws among three classes, each with the class and the radius that they give."""
    tables = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    found = recertify(tables, sigma=1.0, alpha=alpha, rule=rule, k=k, selected=selected)
    return list(zip(tables, found.prediction.tolist(), found.radius.tolist(), strict=True))


def wrong(truth: list[float], n: int, alpha: float, rule: str, k: int, selected: str) -> float:
    """Exact probability of a radius above what the truth allows."""
    total = 0.0
    for row, top, radius in every(n, alpha, rule, k, selected):
        if radius > 0:
            others = [p for c, p in enumerate(truth) if c != top]
            if rule == "one-vs-rest":
                true = gaussian_radius.radius(truth[top], 1 - truth[top], 1.0)
            else:
                true = top_k.topk_radius(truth[top], others, k, 1.0)
            total += float(multinomial.pmf(row, n, truth)) * (radius > true)
    return total


@pytest.mark.parametrize(("rule", "k"), WRONG_RULES)
@pytest.mark.parametrize("truth", [[0.5, 0.5, 0.0], [0.35, 0.35, 0.3], [0.7, 0.2, 0.1], [0.52, 0.46, 0.02]])
def test_a_class_chosen_by_the_same_counts_is_wrong_with_at_most_alpha(truth: list[float], rule: str, k: int) -> None:
    for alpha in (0.1, 0.35):
        assert wrong(truth, 10, alpha, rule, k, "reused") <= alpha


def test_the_literatures_way_is_wrong_more_often_than_alpha_on_the_same_counts() -> None:
    tail = 299 / 4096  # P[Bin(12, 1/2) >= 9]
    found = wrong([0.5, 0.5, 0.0], 12, tail * 1.001, "one-vs-rest", 1, "independent")
    assert found == pytest.approx(2 * tail)
    assert wrong([0.5, 0.5, 0.0], 12, 2.002 * tail, "one-vs-rest", 1, "reused") == pytest.approx(2 * tail)


def test_what_selects_the_class_is_recorded() -> None:
    ways = {
        "reused": recertify(COUNTS, sigma=1.0),
        "selection": recertify(COUNTS, sigma=1.0, selection=[[9, 1, 0], [3, 7, 0], [0, 0, 10], [0, 0, 10]]),
        "given": recertify(COUNTS, sigma=1.0, selected=[0, 1, 2, 2]),
        "label": recertify(COUNTS, sigma=1.0, labels=LABELS, selected="label"),
        "independent": recertify(COUNTS, sigma=1.0, selected="independent"),
    }
    for how, certificate in ways.items():
        assert {evidence["selected"] for evidence in certificate.evidence} == {how}
    assert [evidence["class"] for evidence in ways["selection"].evidence] == [0, 1, 2, 2]
    assert torch.equal(ways["selection"].radius, ways["given"].radius)
    assert (ways["reused"].radius[[0, 3]] < ways["independent"].radius[[0, 3]]).all()


@pytest.mark.parametrize("rule", ["one-vs-rest", "two-class"])
def test_draws_without_a_vote_are_one_more_rival(rule: str) -> None:
    counts = [[400, 0, 0], [900, 50, 0]]
    certificate = recertify(counts, sigma=1.0, rule=rule, draws=[1000, 1000])
    assert certificate.prediction.tolist() == [ABSTAIN, 0]
    assert certificate.radius[1] < recertify(counts, sigma=1.0, rule=rule).radius[1]


@pytest.mark.parametrize(
    "bad",
    [
        {"counts": [[1, -1]]},
        {"counts": [[1.0, 2.0]]},
        {"counts": [[5]]},
        {"counts": [[0, 0]]},
        {"draws": [999, 1, 1, 1]},
        {"sigma": 0.0},
        {"alpha": math.nan},
        {"rule": "best"},
        {"k": 2},
        {"rule": "top-k", "k": 0},
        {"norm": math.inf},
        {"norm": 3.0},
        {"noise": NOISES["laplace"](0.4), "d": 4},
        {"noise": NOISES["laplace"](0.5)},
        {"noise": NOISES["laplace"](0.5), "d": 4, "rule": "top-k"},
        {"selected": "guess"},
        {"selected": [0, 1]},
        {"selected": [0, 1, 2, 3]},
        {"selected": "label"},
        {"selection": [[1, 2]]},
    ],
)
def test_what_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        recertify(**({"counts": COUNTS, "sigma": 0.5} | bad))  # type: ignore[arg-type]


def lines(separator: str, *rows: list[object]) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


LAYOUTS: dict[str, str] = {
    "last": lines(" ", *([*row, label] for row, label in zip(COUNTS, LABELS, strict=True))),
    "first": lines("\t", *([label, *row] for row, label in zip(COUNTS, LABELS, strict=True))),
    "none": "\n" + lines("  ", *COUNTS),
    "header": lines(
        ",",
        ["idx", "label", "cat", "dog", "emu", "time"],
        *([i, *pair[:1], *pair[1], "0:01.5"] for i, pair in enumerate(zip(LABELS, COUNTS, strict=True))),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_in_every_layout(layout: str, tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text(LAYOUTS[layout])
    (table,) = read(tmp_path / "counts.txt")
    assert table.counts.tolist() == COUNTS
    assert (
        (table.labels is None) if layout == "none" else (table.labels is not None and table.labels.tolist() == LABELS)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n4 5\n", "line 2: 2 columns"),
        ("a,b\n1,2\n3,x\n", "line 3: 'x' is not"),
        ("3 7 0\n4 6 0\n", "does not tell"),  # is the last column a class, or the label 0?
        ("3 7\n4 9\n", "does not tell"),
        ("", "empty"),
        ("5.0 5.0\n", "counts"),
    ],
)
def test_text_that_leaves_something_open_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        table = read(tmp_path / "counts.txt")[0]
        recertify(table.counts, sigma=1.0)


def test_labels_may_be_stated(tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text("3 7 0\n4 6 0\n")
    assert read(tmp_path / "counts.txt", "none")[0].counts.shape == (2, 3)
    last = read(tmp_path / "counts.txt", "last")[0]
    assert last.counts.tolist() == [[3, 7], [4, 6]] and last.labels is not None and last.labels.tolist() == [0, 0]


def test_archives_and_json(tmp_path: Path) -> None:
    np.savez(tmp_path / "counts.npz", counts=COUNTS, labels=LABELS, selection=COUNTS)
    (table,) = read(tmp_path / "counts.npz")
    assert table.selection is not None and table.counts.tolist() == COUNTS
    objects = [{"label": c, "evidence": {"counts": row, "n": 1000}, "sigma": 0.5} for row, c in zip(COUNTS, LABELS, strict=True)]  # fmt: skip  # noqa: E501
    (tmp_path / "counts.jsonl").write_text("\n".join(map(json.dumps, objects)))
    (table,) = read(tmp_path / "counts.jsonl")
    assert table.sigma == 0.5 and table.draws is not None and table.labels is not None
    for name, content in (("a.npz", "x"), ("b.json", "{}"), ("c.json", "[{}]"), ("d.json", "[")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="no file"):
        read(tmp_path / "missing.txt")


GAUSSIAN = {"name": "smoothing", "noise": {"name": "gaussian", "sigma": 0.5}, "layer": None}


def stored(folder: Path, spec: Mapping[str, Any] = GAUSSIAN) -> Path:
    """A run of certbench with counts in its evidence, in two norms."""
    name = str(spec["name"])
    store, planned, results = Store(folder / "results.db"), [], []
    for norm, i in itertools.product((2.0, math.inf), range(4)):
        key = f"{norm}-{i}"
        planned.append(
            Planned(key, key, "net", name, spec, Guarantee.PROBABILISTIC, Subject.SMOOTHED, norm, None, i, LABELS[i])
        )
        evidence = {"counts": COUNTS[i], "selection": COUNTS[i], "n": 1000, "alpha": 0.01, "dimension": 16}
        results.append(StoredAnswer(key, 0, 0.0, math.inf, 0.0, 0.0, Outcome.COMPLETED, "", evidence))
    store.plan(planned)
    store.put(results)
    store.close()
    return folder


Command = Callable[..., str]


@pytest.fixture
def command() -> Command:
    """Do what the command does, and give what it prints."""

    def call(path: Path, radii: Sequence[float] = (0.5,), out: Path | None = None, **options: Any) -> str:
        text = None if out is None else written_as(out)
        tables = recertify_file(path, **options)
        if out is not None and text is not None:
            out.write_text(text(tables))
        return "".join(text_of(told(table, radii), width=120) for table in tables)

    return call


def test_a_run_knows_its_noise_labels_and_alpha(tmp_path: Path, command: Command) -> None:
    text = command(stored(tmp_path))
    assert "net smoothing: L2, gaussian noise, sigma 0.5, alpha 0.01" in text
    assert text.count("two-class") == 1 and "0.04 at most" in text and "draws of its own" in text
    assert "Linf" in command(tmp_path, norm=math.inf)
    for number, spec in enumerate(({"name": "splitting"}, {"name": "smoothing", "layer": "1"})):
        with pytest.raises(ConfigError, match="around the input"):
            command(stored(tmp_path / str(number), spec))


def test_the_shape_of_the_noise_is_kept(tmp_path: Path, command: Command) -> None:
    noise = NOISES["exp-inf"](0.5, k=2.0)  # type: ignore[call-arg]
    wanted = recertify(COUNTS, sigma=0.5, alpha=0.01, norm=1.0, d=16, noise=noise, selection=COUNTS).radius.tolist()
    assert (
        wanted != recertify(COUNTS, sigma=0.5, alpha=0.01, norm=1.0, d=16, noise=NOISES["exp-inf"](0.5)).radius.tolist()
    )
    folder = stored(tmp_path, {"name": "smoothing", "noise": {"name": "exp-inf", "sigma": 0.5, "k": 2.0}})
    for path in (folder, tmp_path / "once.json"):
        out = tmp_path / ("once.json" if path == folder else "twice.json")
        more = {} if path == folder else {"selected": "independent", "d": 16}
        text = command(path, norm=1.0, rules=["two-class"], out=out, **more)
        assert "exp-inf noise" in text
        assert [record["radius"] for record in json.loads(out.read_text())] == wanted


def test_the_command_prints_shares_of_the_inputs_that_are_right(tmp_path: Path, command: Command) -> None:
    (tmp_path / "counts.txt").write_text(LAYOUTS["last"])
    text = command(tmp_path / "counts.txt", sigma=0.5, alpha=0.01, k=2, radii=[0.5], selected="label")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("one", "two", "top"))}
    for rule, cells in rows.items():
        kind = "top-k" if rule == "top-2" else rule
        wanted = recertify(COUNTS, sigma=0.5, alpha=0.01, rule=kind, k=2 if kind == "top-k" else 1, labels=LABELS, selected="label").radius  # type: ignore[arg-type]  # fmt: skip  # noqa: E501
        share, at_half = 100 * (wanted > 0).double().mean(), 100 * (wanted >= 0.5).double().mean()
        assert cells == ["4", str(int((wanted == 0).sum())), f"{share:.1f}", f"{at_half:.1f}", f"{wanted.mean():.4f}"]
    assert set(rows) == {"one-vs-rest", "two-class", "top-2"}
    assert "right" not in command(stored_without_labels(tmp_path), sigma=0.5)


def stored_without_labels(folder: Path) -> Path:
    (folder / "bare.txt").write_text(LAYOUTS["none"])
    return folder / "bare.txt"


def test_what_is_written_has_all_digits_and_can_be_read_again(tmp_path: Path, command: Command) -> None:
    (tmp_path / "counts.txt").write_text(LAYOUTS["last"])
    radii = recertify(COUNTS, sigma=0.25, alpha=0.01).radius.tolist()
    for suffix in ("csv", "json"):
        command(tmp_path / "counts.txt", sigma=0.25, alpha=0.01, rules=["two-class"], out=tmp_path / f"out.{suffix}")
    with (tmp_path / "out.csv").open() as file:
        assert [float(row["radius"]) for row in csv.DictReader(file)] == radii
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["radius"] for record in records] == radii
    (again,) = read(tmp_path / "out.json")
    assert again.sigma == 0.25 and again.counts.tolist() == COUNTS
    assert again.labels is not None and again.labels.tolist() == LABELS
    command(tmp_path / "counts.txt", sigma=0.25, out=tmp_path / "both.json")
    with pytest.raises(ConfigError, match="different rule"):
        read(tmp_path / "both.json")


def test_the_command_says_what_is_missing(tmp_path: Path, command: Command) -> None:
    (tmp_path / "counts.txt").write_text(LAYOUTS["last"])
    for options in ({}, {"sigma": 0.5, "noise": "gausian"}, {"sigma": 0.5, "norm": math.inf}, {"sigma": 0.5, "out": Path("x.txt")}):  # fmt: skip  # noqa: E501
        with pytest.raises(ConfigError):
            command(tmp_path / "counts.txt", **options)


@pytest.mark.parametrize(
    ("log", "sigma", "alpha"),
    [
        ("cifar10/resnet110/noise_0.12/test/sigma_0.12", 0.12, 0.001),
        ("cifar10/resnet110/noise_0.25/test/sigma_0.25", 0.25, 0.01),
        ("cifar10/resnet110/noise_0.50/test/sigma_0.50", 0.5, 0.01),
        ("imagenet/resnet50/noise_0.25/test/sigma_0.25", 0.25, 0.01),
    ],
)
def test_the_largest_radii_of_a_published_log_tell_its_alpha(log: str, sigma: float, alpha: float) -> None:
    """Radii of n draws lie on a ladder; the logs print three digits. Not all are of the alpha that the paper states."""
    path = SHARED / "logs" / "cohen2019" / "certify" / log
    if not path.exists():
        pytest.skip("the published logs are not at hand")
    with path.open() as file:
        printed = sorted({float(row["radius"]) for row in csv.DictReader(file, delimiter="\t")}, reverse=True)[:3]
    n = 100_000
    ladders = {}
    for level in (0.001, 0.01):
        counts = [[n - j, j] for j in range(3)]
        found = recertify(counts, sigma=sigma, alpha=level, rule="one-vs-rest", selected="independent")
        ladders[level] = [float(f"{radius:.3}") for radius in found.radius.tolist()]
    assert printed == ladders[alpha]
    assert ladders[0.001] != ladders[0.01]


@pytest.mark.parametrize("rule", ["one-vs-rest", "two-class", "top-k"])
def test_additive_noise_certifies_nothing_in_l0(rule: str) -> None:
    with pytest.raises(ConfigError, match="no L0 radius"):
        recertify([[990, 10]], sigma=1.0, alpha=0.001, rule=rule, norm=0.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("large.txt", "99999999999999999999999 1\n"),
        ("long.csv", "a,b\n" + "1" * 200_000 + ",2\n"),
        ("noise.json", '[{"counts": [9, 1], "noise": {"name": ["x"]}, "sigma": 1}]'),
        ("option.json", '[{"counts": [9, 1], "noise": {"name": "pareto", "b": 3}, "sigma": 1}]'),
        ("text.json", '[{"counts": [9, 1], "sigma": "half"}]'),
        ("hidden.json", '[{"evidence": {"counts": [9, 1], "sigma": 1, "constants": {"2": 10}}}]'),
    ],
)
def test_files_that_mean_nothing_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        recertify_file(tmp_path / name)


def test_exact_counts_are_those_of_deterministic_splitting(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("label,a,b,c\n0,20,10,0\n1,11,10,9\n2,0,10,10\n2,0,0,0\n")
    (one,) = recertify_file(path, rules=["exact"], norm=1, grid=10)
    certificate = one.certificates["exact"]
    assert certificate.prediction.tolist() == [0, 0, 1, ABSTAIN]
    # 5 changes of 20:10 leave a tie, which goes to the first class; 11:10 has none to give, nor has a tie.
    assert certificate.radius.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert "exact" in text_of(told(one, (0.5,))) and "grid of 1/10" in text_of(told(one, (0.5,)))
    assert json.loads(written_as(Path("a.json"))([one]))[0]["noise"] == {"name": "deterministic-splitting", "grid": 10}


def test_exact_counts_leave_the_class_under_every_change_of_votes() -> None:
    rng = np.random.default_rng(0)
    for row in rng.integers(0, 6, (40, 3)).tolist():
        certificate = recertify_exact([row], grid=1)
        changes, top = int(certificate.radius[0]), int(certificate.prediction[0])
        for moved in itertools.product(range(3), repeat=changes):  # each change takes a vote from the class
            after = [count + moved.count(label) - changes * (label == top) for label, count in enumerate(row)]
            assert top == ABSTAIN or (min(after) >= 0 and after.index(max(after)) == top)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": 2, "grid": 10}, "norm 1"),
        ({"norm": 1}, "needs grid"),
        ({"norm": 1, "grid": 10, "alpha": 0.1}, "no alpha"),
        ({"norm": 1, "grid": 10, "rules": ["exact", "two-class"]}, "stands alone"),
        ({"norm": 1, "grid": 10, "rules": ["two-class"], "sigma": 1.0}, "belongs to"),
    ],
)
def test_options_that_exact_counts_do_not_have(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("a,b\n3,1\n")
    with pytest.raises(ConfigError, match=message):
        recertify_file(path, **({"rules": ["exact"]} | options))
