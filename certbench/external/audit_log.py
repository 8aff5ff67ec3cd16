"""The command `certbench audit-log`: recompute and check what somebody else's certification logs claim."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from certbench.errors import ConfigError, StoreError
from certbench.external import smoothing_logs, vnncomp
from certbench.external.findings import Finding, Severity, refuted
from certbench.external.ladder import SIGMAS, Inference, Sampling, infer, judge, rounding
from certbench.external.published import Cell, read_cells
from certbench.external.smoothing_logs import RADII, Log
from certbench.external.vnncomp import Instances, Verdicts

OK, UNREADABLE, REFUTED = 0, 2, 3

_STYLES = {Severity.REFUTED: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


@dataclass
class Audited:
    """A log and everything found in it."""

    log: Log
    inference: Inference | None = None
    findings: list[Finding] = field(default_factory=list)
    cells: list[tuple[Cell, float]] = field(default_factory=list)


def run(
    files: Sequence[Path],
    out: Console,
    *,
    sigma: float | None = None,
    n: int | None = None,
    alpha: float | None = None,
    classes: int | None = None,
    radii: Sequence[float] = (),
    published: Path | None = None,
    json_file: Path | None = None,
) -> int:
    """Audit logs of randomized smoothing, and result files of VNN-COMP, and print what was found.

    Args:
        files: logs, result files, known verdicts, instances, told apart by their first line; of a folder, all of these
            that are below it.
        out: to print to.
        sigma: noise of the certificates; else what the path states, or what the radii fit.
        n: draws per certificate, as claimed.
        alpha: probability of error per certificate, as claimed.
        classes: how many there are.
        radii: at which certified accuracy is shown; those of `RADII` that any log reaches, if empty.
        published: a CSV of cells to compare with, see `published_cells.read_cells`.
        json_file: to write everything to.

    Returns:
        0 if nothing claims more than is so; 3 if something does; else 2 if a file cannot be read.

    Raises:
        ConfigError: the published table cannot be read, or an option makes no sense.
        StoreError: `json_file` cannot be written.
    """
    for name, value in (("sigma", sigma), ("n", n), ("classes", classes)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive and finite, not {value}", (name,))
    if not all(0 <= radius < math.inf for radius in radii):
        raise ConfigError("a radius must be finite, and at least 0", ("radius",))
    if not (alpha is None or 0 < alpha < 1):
        raise ConfigError(f"alpha lies between 0 and 1, and is not {alpha}", ("alpha",))
    cells = [] if published is None else read_cells(published)
    logs, results, instances, unreadable = _read(files)
    audited = [_audit(log, cells, Sampling(n, alpha), sigma, classes) for log in logs]
    shown = radii or [r for r in RADII if any(log.has_radii and log.accuracy(r) > 0 for log in logs)]
    contradictions = vnncomp.audit(results, instances)

    for error in unreadable:
        out.print(f"[bold red]unreadable:[/] {escape(error)}", soft_wrap=True)
    best = envelope(logs, shown)
    names = _names([*(log.path for log in logs), *(file.path for file in results)])
    if logs:
        out.print(_accuracies(audited, names, shown, best))
    for row in best:
        out.print(escape(row["says"]), soft_wrap=True, style="dim")
    if any(one.inference for one in audited):
        out.print(_ladders(audited, names))
    if published is not None:
        pairs = [pair for one in audited for pair in one.cells]
        good = sum(abs(cell.percent - value) <= cell.half for cell, value in pairs)
        out.print(f"{published.name}: {good} of {len(pairs)} cells reproduced, {len(cells) - len(pairs)} have no log")
    if results:
        out.print(_verdict_table(results, contradictions, names))
    for path, findings in [*((one.log.path, one.findings) for one in audited), *contradictions.items()]:
        _print_findings(out, names[path], findings)
    everything = [finding for one in audited for finding in one.findings]
    everything += [finding for findings in contradictions.values() for finding in findings]
    code = REFUTED if refuted(everything) else UNREADABLE if unreadable else OK
    if json_file is not None:
        _write(json_file, audited, results, contradictions, shown, best, unreadable, code)
    return code


def _read(files: Sequence[Path]) -> tuple[list[Log], list[Verdicts], list[Instances], list[str]]:
    logs: list[Log] = []
    results: list[Verdicts] = []
    instances: list[Instances] = []
    errors: list[str] = []
    found = dict.fromkeys((path for path in files if path.is_dir()), 0)
    for path, folder in _expanded(files):
        chosen = folder is None
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            if chosen:
                errors.append(f"{path}: {error}")
            continue
        first = text.partition("\n")[0]
        if folder is not None:
            found[folder] += vnncomp.is_results(first) or smoothing_logs.is_log(first)
        try:
            if vnncomp.is_results(first):
                read = vnncomp.read(path, text)
                (instances if isinstance(read, Instances) else results).append(read)  # type: ignore[arg-type]
            elif chosen or smoothing_logs.is_log(first):
                logs.append(smoothing_logs.read(path, text))
        except (ConfigError, csv.Error) as error:
            errors.append(str(error))
    errors += [f"{folder}: no logs in it" for folder, count in found.items() if count == 0]
    return logs, results, instances, errors


def _expanded(files: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Every file, and the folder that was named instead of it; what lies there may be something else."""
    for path in files:
        if path.is_dir():
            yield from ((inner, path) for inner in sorted(path.rglob("*")) if inner.is_file())
        else:
            yield path, None


def _audit(log: Log, cells: Sequence[Cell], claim: Sampling, sigma: float | None, classes: int | None) -> Audited:
    result = Audited(log, findings=smoothing_logs.check(log, classes))
    mine = [cell for cell in cells if cell.is_of(log)]
    stated = {cell.claim for cell in mine}
    if claim == Sampling() and len(stated) == 1:
        claim = stated.pop()
    if log.radii:
        result.inference, found = _inferred(log, claim, sigma)
        result.findings += found
    for cell in mine:
        value = log.accuracy(cell.radius) if log.has_radii else log.clean
        result.cells.append((cell, value))
        off = cell.percent - value
        if abs(off) > cell.half:
            severity = Severity.REFUTED if off > 0 else Severity.WARNING
            text = f"published at radius {cell.radius:g}: {cell.percent:g} %; the log has {value:.2f} %"
            result.findings.append(Finding("cell", severity, text))
    return result


def _inferred(log: Log, claim: Sampling, sigma: float | None) -> tuple[Inference | None, list[Finding]]:
    """What the radii say, at the noise that is stated, or else at that which explains them with the fewest draws."""
    draws, alphas = [claim.n] if claim.n else [], [claim.alpha] if claim.alpha else []
    known = sigma or log.sigma
    tried = [infer(log.radii, s, draws=draws, alphas=alphas) for s in ([known] if known else SIGMAS)]
    if known:
        return tried[0], [*judge(log.radii, tried[0], claim), *rounding(log.radii, tried[0])]
    open_to = [found for found in tried if found.explained]
    open_to = [found for found in open_to if found.pile] or open_to
    open_to = [found for found in open_to if not [*judge(log.radii, found, claim)]] or open_to
    if not open_to:
        text = "the path does not state sigma, and no usual sigma, n and alpha gives these radii; give sigma"
        return None, [Finding("sigma", Severity.WARNING, text), *rounding(log.radii, None)]
    best = min(open_to, key=lambda found: (found.explained[0].n, len(found.fitting)))
    others = ", ".join(f"{found.sigma:g}" for found in open_to if found is not best)
    text = f"the path does not state sigma; {best.sigma:g} explains the radii{f', but so may {others}' * bool(others)}"
    note = Finding("sigma", Severity.NOTE, text)
    return best, [note, *judge(log.radii, best, claim), *rounding(log.radii, best)]


def envelope(logs: Sequence[Log], radii: Sequence[float]) -> list[dict[str, Any]]:
    """Best certified accuracy at each radius over logs of the same inputs: a selection on the test set.

    Args:
        logs: of several noises, say; they are of the same inputs if those they share have the same labels.
        radii: to choose at.
    """
    groups: list[list[Log]] = []
    for log in (log for log in logs if log.has_radii):
        for group in groups:
            if _same(group[0], log):
                group.append(log)
                break
        else:
            groups.append([log])
    result = []
    for group in (group for group in groups if len(group) > 1):
        names = _names([log.path for log in group])
        best = {r: max(group, key=lambda log, r=r: log.accuracy(r)) for r in radii}  # type: ignore[misc]
        values = {r: best[r].accuracy(r) for r in radii}
        counts = sorted({len(log.entries) for log in group})
        which = ", ".join(f"@{r:g} {values[r]:.1f} ({names[best[r].path]})" for r in radii if values[r] > 0)
        says = f"best of {len(group)} logs, selected on the test set, which is optimistic: {which}"
        if len(counts) > 1:
            says += f"; the logs are not of as many inputs: {', '.join(map(str, counts))}"
        result.append(
            {"logs": [str(log.path) for log in group], "says": says}
            | {"best": {f"{r:g}": {"log": str(best[r].path), "percent": values[r]} for r in radii}}
        )
    return result


def _same(one: Log, other: Log) -> bool:
    labels = {entry.index: entry.label for entry in one.entries if entry.index is not None}
    pairs = [(labels[e.index], e.label) for e in other.entries if e.index is not None and e.index in labels]
    return bool(pairs) and all(mine == yours for mine, yours in pairs)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path without the folders that all of them begin with."""
    common = 0
    if len(set(paths)) > 1:
        heads = [path.parts for path in paths]
        while len({parts[common] if common < len(parts) - 1 else None for parts in heads}) == 1 and all(
            common < len(parts) - 1 for parts in heads
        ):
            common += 1
    return {path: str(Path(*path.parts[common:])) if len(set(paths)) > 1 else path.name for path in paths}


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    return table


def _accuracies(
    audited: Sequence[Audited], names: dict[Path, str], radii: Sequence[float], best: Sequence[dict[str, Any]]
) -> Table:
    table = _table("log", "inputs", "abstain %", "clean %", *(f"@{r:g}" for r in radii), "ACR")
    for log in (one.log for one in audited):
        figures = [f"{log.accuracy(r):.1f}" if log.has_radii else "" for r in radii]
        acr = f"{log.average_radius:.4f}" if log.has_radii else ""
        row = (str(len(log.entries)), f"{log.abstained:.1f}", f"{log.clean:.1f}", *figures, acr)
        table.add_row(escape(names[log.path]), *row)
    for group in best:
        chosen = [f"{group['best'][f'{r:g}']['percent']:.1f}" for r in radii]
        table.add_row(f"best of {len(group['logs'])}, selected", "", "", "", *chosen, "", style="dim")
    return table


def _ladders(audited: Sequence[Audited], names: dict[Path, str]) -> Table:
    table = _table("log", "sigma", "largest radius", "rows", "n and alpha that explain it", "alpha, were it n of n")
    for one in audited:
        found = one.inference
        if found is None:
            continue
        top, n = one.log.radii[0], found.explained[0].n if found.explained else 0
        levels = found.levels(n) if n else None
        interval = f"{levels[0]:.3g} to {levels[1]:.3g}" if levels else ""
        row = (f"{found.sigma:g}", f"{top.value:g}", str(top.rows), found.verdict, interval)
        table.add_row(escape(names[one.log.path]), *row)
    return table


def _verdict_table(results: Sequence[Verdicts], found: dict[Path, list[Finding]], names: dict[Path, str]) -> Table:
    words = ("unsat", "sat", "unknown", "timeout", "error")
    table = _table("verdicts", "of", *words, "contradicted")
    for file in results:
        wrong = sum(finding.check == "contradiction" for finding in found[file.path])
        source = f"{file.source} (known)" if file.known else file.source
        table.add_row(escape(names[file.path]), escape(source), *(str(file.count(word)) for word in words), str(wrong))
    return table


def _print_findings(out: Console, name: str, findings: Sequence[Finding]) -> None:
    for finding in findings:
        where = f" ({finding.where})" if finding.lines else ""
        mark = f"[{_STYLES[finding.severity]}]{finding.severity.value}[/]"
        out.print(f"{mark} {escape(name)}: {finding.check}: {escape(finding.message)}{where}", soft_wrap=True)


def _write(
    path: Path,
    audited: Sequence[Audited],
    results: Sequence[Verdicts],
    contradictions: dict[Path, list[Finding]],
    radii: Sequence[float],
    best: Sequence[dict[str, Any]],
    unreadable: Sequence[str],
    code: int,
) -> None:
    document = {
        "exit_code": code,
        "unreadable": list(unreadable),
        "logs": [
            {"file": str(one.log.path), "inputs": len(one.log.entries), "sigma": one.inference and one.inference.sigma}
            | {"abstained_percent": one.log.abstained, "clean_percent": one.log.clean}
            | ({"ACR": one.log.average_radius} if one.log.has_radii else {})
            | {"certified_percent": {f"{r:g}": one.log.accuracy(r) for r in radii} if one.log.has_radii else {}}
            | {"fitting": [[ladder.n, ladder.alpha] for ladder in one.inference.fitting] if one.inference else []}
            | {"explained": [[ladder.n, ladder.alpha] for ladder in one.inference.explained] if one.inference else []}
            | {"cells": [{"radius": c.radius, "published": c.percent, "recomputed": v} for c, v in one.cells]}
            | {"findings": [asdict(finding) for finding in one.findings]}
            for one in audited
        ],
        "best": [{key: value for key, value in row.items() if key != "says"} for row in best],
        "verdicts": [
            {"file": str(file.path), "source": file.source, "known": file.known}
            | {word: file.count(word) for word in ("unsat", "sat", "unknown", "timeout", "error")}
            | {"findings": [asdict(finding) for finding in contradictions[file.path]]}
            for file in results
        ],
    }
    try:
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
