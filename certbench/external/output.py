"""Findings in files of others, as tables and lines for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from certbench.external.audit_log import AuditedLog, LogAudit, short_names
from certbench.external.findings import Finding, Severity
from certbench.external.vnncomp import Verdicts

_STYLES = {
    Severity.REFUTED: "bold red",
    Severity.CONTRADICTED: "red",
    Severity.WARNING: "yellow",
    Severity.NOTE: "dim",
}


def told(audit: LogAudit) -> Iterator[Table | Text | str]:
    """Yield the findings of an audit of logs, as tables and lines."""
    for error in audit.unreadable:
        yield Text.assemble(("unreadable:", "bold red"), f" {error}")
    names = short_names([*(one.log.path for one in audit.logs), *(file.path for file in audit.results)])
    if audit.logs:
        yield _accuracies(audit.logs, names, audit.radii, audit.best)
    for row in audit.best:
        yield Text(row["says"], style="dim")
    if any(one.inference for one in audit.logs):
        yield _ladders(audit.logs, names)
    if audit.published is not None:
        pairs = [pair for one in audit.logs for pair in one.cells]
        good = sum(abs(cell.percent - value) <= cell.half for cell, value in pairs)
        left = audit.cells - len(pairs)
        yield f"{audit.published.name}: {good} of {len(pairs)} cells reproduced, {left} have no log"
    if audit.results:
        yield _verdict_table(audit.results, audit.contradictions, names)
    for path, findings in audit.findings:
        for finding in findings:
            where = f" ({finding.where})" if finding.lines else ""
            mark = (finding.severity.value, _STYLES[finding.severity])
            yield Text.assemble(mark, f" {names[path]}: {finding.check}: {finding.message}{where}")


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    return table


def _accuracies(
    audited: Sequence[AuditedLog], names: Mapping[Path, str], radii: Sequence[float], best: Sequence[dict[str, Any]]
) -> Table:
    table = _table("log", "inputs", "abstain %", "clean %", *(f"@{r:g}" for r in radii), "ACR")
    for log in (one.log for one in audited):
        figures = [f"{log.accuracy(r):.1f}" if log.has_radii else "" for r in radii]
        acr = f"{log.average_radius:.4f}" if log.has_radii else ""
        row = (str(len(log.entries)), f"{log.abstained:.1f}", f"{log.clean:.1f}", *figures, acr)
        table.add_row(names[log.path], *row)
    for group in best:
        chosen = [f"{group['best'][f'{r:g}']['percent']:.1f}" for r in radii]
        table.add_row(f"best of {len(group['logs'])}, selected", "", "", "", *chosen, "", style="dim")
    return table


def _ladders(audited: Sequence[AuditedLog], names: Mapping[Path, str]) -> Table:
    table = _table("log", "sigma", "largest radius", "rows", "n and alpha that explain it", "alpha if all n agree")
    for one in audited:
        found = one.inference
        if found is None:
            continue
        top, n = one.log.radii[0], found.explained[0].n if found.explained else 0
        levels = found.levels(n) if n else None
        interval = f"{levels[0]:.3g} to {levels[1]:.3g}" if levels else ""
        row = (f"{found.sigma:g}", f"{top.value:g}", str(top.rows), found.verdict, interval)
        table.add_row(names[one.log.path], *row)
    return table


def _verdict_table(
    results: Sequence[Verdicts], found: Mapping[Path, list[Finding]], names: Mapping[Path, str]
) -> Table:
    words = ("unsat", "sat", "unknown", "timeout", "error")
    table = _table("verdicts", "of", *words, "contradicted")
    for file in results:
        wrong = sum(finding.check == "contradiction" for finding in found[file.path])
        source = f"{file.source} (known)" if file.known else file.source
        table.add_row(names[file.path], source, *(str(file.count(word)) for word in words), str(wrong))
    return table
