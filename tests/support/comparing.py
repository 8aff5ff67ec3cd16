"""Rows and sides of a comparison."""

from pathlib import Path
from typing import Any

from certbench import ABSTAIN, Guarantee, Outcome, Subject
from certbench.comparison.classes import Kind
from certbench.comparison.compare import compare
from certbench.comparison.output import shape_of
from certbench.comparison.side import Side
from certbench.results.rows import Row

FINGERPRINTS = {"net": "a" * 64}


def row(radius: float, **more: Any) -> Row:
    values: dict[str, Any] = {
        "model": "net", "certifier": "crown", "guarantee": Guarantee.SOUND, "subject": Subject.BASE, "norm": 2.0,
        "input": 0, "label": 1, "prediction": 1, "outcome": Outcome.COMPLETED, "spec": {"name": "crown"},
    }  # fmt: skip
    return Row(radius=radius, **(values | more))


def side(*rows: Row, **more: Any) -> Side:
    return Side(**({"name": "run", "rows": rows, "models": FINGERPRINTS, "data": "d"} | more))


def counted(counts: list[int], radius: float, seed: str = "0", **more: Any) -> Row:
    evidence = {"counts": counts, "n": sum(counts), "rule": "two-class", "seed": seed}
    return row(
        radius, certifier="smoothing", spec={"name": "smoothing"}, guarantee=Guarantee.PROBABILISTIC,
        subject=Subject.SMOOTHED, **({"evidence": evidence, "prediction": 1 if radius else ABSTAIN} | more),
    )  # fmt: skip


def kind(old: Row, new: Row) -> Kind:
    (change,) = compare(side(old), side(new)).changes
    return change.kind


def called(old: str, new: str, shape: str = "text", **options: Any) -> tuple[int, str]:
    comparison = compare(Path(old), Path(new), **options)
    return comparison.exit_code, shape_of(shape)(comparison)
