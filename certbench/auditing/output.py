"""The result of an audit, as tables and lines for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from certbench.auditing.result import Audit, record
from certbench.results.rows import Row


def told(audit: Audit) -> Iterator[Table | str]:
    """Yield the tables, then a line for each thing that is wrong or was left out."""
    written = record(audit)

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
        yield shown
    if written["smoothed"]:
        shown = table("model", "certifier", "norm", "tested", "refuted", "by chance", "abstained", "p-value")
        for part in written["smoothed"]:
            shown.add_row(
                part["model"], part["certifier"], _norm(part["norm"]), str(part["tested"]), str(part["refuted"]),
                f"<= {part['expected']:.2g}", str(part["abstained"]), number(part["p_value"]),
            )  # fmt: skip
        yield shown
    if audit.floats:
        shown = table(
            "model", "certifier", "norm", "bounds", "float32 above", "off by", "claims more", "batch", "threads",
            "least room", "living on rounding", "arithmetic",
        )  # fmt: skip
        for (model, name, p), found in audit.floats.items():
            if isinstance(found, str):
                continue
            shown.add_row(
                model, name, _norm(p), str(found.bounds), str(found.exceed), f"{found.single:.1e}", str(found.claims),
                f"{found.batch:.1e}", f"{found.threads:.1e}", f"{found.room:.1e}", str(found.living), found.arithmetic,
            )  # fmt: skip
        yield shown
    lines: list[str] = [f"{audit.closer} counterexamples are closer than those known before"]
    for row in audit.refuted[:10]:
        lines.append(f"UNSOUND: {_place(row)}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}")
    for row in audit.misnamed[:10]:
        lines.append(f"UNSOUND: {_place(row)}: certifies class {row.prediction}, which is not the classifier's")
    for model, name, p in audit.inconsistent:
        test = audit.tests[model, name, p]
        lines.append(
            f"UNSOUND: {name} on {model}, L{p:g}: {test.refuted} of {test.tested} smoothed certificates are refuted, "
            f"at most {test.expected:.2g} by chance on average (p-value {test.p_value:.2g})"
        )
    if audit.chance and not audit.inconsistent:
        lines.append(
            f"UNSOUND: smoothed certificates of {len(audit.tests)} classifiers and norms: together, more are refuted "
            f"than by chance (p-value {audit.together:.2g}); see the table"
        )
    for mark, what, rows in (
        ("UNSOUND", "its bounds do not prove", audit.unproved),
        ("not proved again", "its bounds, which an optimiser chooses, do not prove", audit.unrepeated),
    ):
        lines += [f"{mark}: {_place(row)}: {what} the radius {row.radius:.6g}" for row in rows[:10]]
        lines += [f"{len(rows)} such rows in all; see audit.json"] if len(rows) > 10 else []
    lines += [f"UNSOUND: {_place(row)}: its counts do not prove it: {why}" for row, why in audit.recounted[:10]]
    if len(audit.recounted) > 10:
        lines.append(f"{len(audit.recounted)} such rows in all; see audit.json")
    lines += [f"{'UNSOUND' if crossed.unsound else 'ORDER'}: {crossed}" for crossed in audit.crossed[:10]]
    if len(audit.crossed) > 10:
        lines.append(f"{len(audit.crossed)} contradictions between rows in all; see audit.json")
    for (model, name, p), rounding in audit.floats.items():
        if isinstance(rounding, str):
            lines.append(f"no float audit of {name} on {model}, {_norm(p)}: {rounding}")
    for (model, name, p), again in audit.bounds.items():
        if isinstance(again, str):
            lines.append(f"bounds of {name} on {model}, {_norm(p)}, not computed again: {again}")
    for part in written["not audited"]:
        lines.append(
            f"not audited: {part['rows']} rows of {part['certifier']} on {part['model']}, {_norm(part['norm'])}: "
            f"{part['reason']}"
        )
    lines += [f"failed: {name}: {reason}" for name, reason in audit.failed.items()]
    if audit.unconfirmed:
        text = "stored counterexamples are not confirmed by replaying, or are farther away than stored; see audit.json"
        lines.append(f"unconfirmed: {len(audit.unconfirmed)} {text}")
    if audit.missing:
        lines.append(f"missing: {audit.missing} rows of this run have not been computed yet")
    lines.append(f"Written: {audit.file}")
    yield from lines


def _place(row: Row) -> str:
    return f"{row.certifier} on {row.model}, L{row.norm:g}, input {row.input}"


def _norm(p: float | str) -> str:
    return f"L{float(p):g}"
