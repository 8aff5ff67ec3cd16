"""What an audit came to: as an exit code, as JSON and as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from certbench.auditing.result import Audit
from certbench.results.rows import Row


def show(result: Audit, written: Mapping[str, Any], out: Console) -> None:
    """Print tables, and a line for whatever is wrong or was left out."""

    def number(value: float | None) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"

    def table(*heads: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for i, head in enumerate(heads):
            made.add_column(head, justify="left" if i < 3 else "right")
        return made

    if written["base"]:
        shown = table("model", "certifier", "norm", "rows", "refuted", "radius/upper", "largest", "radius", "upper")
        for part in written["base"]:
            share = part["radius / upper"]
            shown.add_row(
                part["model"], part["certifier"], _norm(part["norm"]), str(part["rows"]), str(part["refuted"]),
                number(share["median"]), number(share["largest"]), number(part["mean radius"]),
                number(part["mean upper"]),
            )  # fmt: skip
        out.print(shown)
    if written["smoothed"]:
        shown = table("model", "certifier", "norm", "tested", "refuted", "by chance", "abstained", "p-value")
        for part in written["smoothed"]:
            shown.add_row(
                part["model"], part["certifier"], _norm(part["norm"]), str(part["tested"]), str(part["refuted"]),
                f"<= {part['expected']:.2g}", str(part["abstained"]), number(part["p_value"]),
            )  # fmt: skip
        out.print(shown)
    if result.floats:
        shown = table(
            "model", "certifier", "norm", "bounds", "float32 above", "off by", "claims more", "batch", "threads",
            "least room", "living on rounding", "arithmetic",
        )  # fmt: skip
        for (model, name, p), found in result.floats.items():
            if isinstance(found, str):
                continue
            shown.add_row(
                model, name, _norm(p), str(found.bounds), str(found.exceed), f"{found.single:.1e}", str(found.claims),
                f"{found.batch:.1e}", f"{found.threads:.1e}", f"{found.room:.1e}", str(found.living), found.arithmetic,
            )  # fmt: skip
        out.print(shown)
    lines: list[str] = [f"{result.closer} counterexamples are closer than those known before"]
    for row in result.refuted[:10]:
        lines.append(f"UNSOUND: {_place(row)}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}")
    for row in result.misnamed[:10]:
        lines.append(f"UNSOUND: {_place(row)}: certifies class {row.prediction}, which is not the classifier's")
    for model, name, p in result.inconsistent:
        test = result.tests[model, name, p]
        lines.append(
            f"UNSOUND: {name} on {model}, L{p:g}: {test.refuted} of {test.tested} smoothed certificates are refuted, "
            f"at most {test.expected:.2g} by chance on average (p-value {test.p_value:.2g})"
        )
    if result.chance and not result.inconsistent:
        lines.append(
            f"UNSOUND: smoothed certificates of {len(result.tests)} classifiers and norms: together, more are refuted "
            f"than by chance (p-value {result.together:.2g}); see the table"
        )
    for mark, what, rows in (
        ("UNSOUND", "its bounds do not prove", result.unproved),
        ("not proved again", "its bounds, which an optimiser chooses, do not prove", result.unrepeated),
    ):
        lines += [f"{mark}: {_place(row)}: {what} the radius {row.radius:.6g}" for row in rows[:10]]
        lines += [f"{len(rows)} such rows in all; see audit.json"] if len(rows) > 10 else []
    lines += [f"UNSOUND: {_place(row)}: its counts do not prove it: {why}" for row, why in result.recounted[:10]]
    if len(result.recounted) > 10:
        lines.append(f"{len(result.recounted)} such rows in all; see audit.json")
    lines += [f"{'UNSOUND' if crossed.unsound else 'ORDER'}: {crossed}" for crossed in result.crossed[:10]]
    if len(result.crossed) > 10:
        lines.append(f"{len(result.crossed)} contradictions between rows in all; see audit.json")
    for (model, name, p), rounding in result.floats.items():
        if isinstance(rounding, str):
            lines.append(f"no float audit of {name} on {model}, {_norm(p)}: {rounding}")
    for (model, name, p), again in result.bounds.items():
        if isinstance(again, str):
            lines.append(f"bounds of {name} on {model}, {_norm(p)}, not computed again: {again}")
    for part in written["not audited"]:
        lines.append(
            f"not audited: {part['rows']} rows of {part['certifier']} on {part['model']}, {_norm(part['norm'])}: "
            f"{part['reason']}"
        )
    lines += [f"failed: {name}: {reason}" for name, reason in result.failed.items()]
    if result.unconfirmed:
        text = "stored counterexamples are none when replayed, or farther away than is stored; see audit.json"
        lines.append(f"unconfirmed: {len(result.unconfirmed)} {text}")
    if result.missing:
        lines.append(f"missing: {result.missing} rows of this run have not been computed yet")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _place(row: Row) -> str:
    return f"{row.certifier} on {row.model}, L{row.norm:g}, input {row.input}"


def _norm(p: float | str) -> str:
    return f"L{float(p):g}"
