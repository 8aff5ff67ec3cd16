"""The audit of logs: claims of somebody else's certification logs and result files are recomputed and checked."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from certbench.errors import ConfigError
from certbench.exit_codes import ExitCode
from certbench.external import smoothing_logs, vnncomp
from certbench.external.findings import Finding, Severity, refuted
from certbench.external.instances import Instance, Instances
from certbench.external.ladder import SIGMAS, Inference, Sampling, infer, judge, rounding
from certbench.external.published import Cell, read_cells
from certbench.external.smoothing_logs import RADII, Log
from certbench.external.vnncomp import Truth, Verdicts


@dataclass(frozen=True)
class AuditedLog:
    """A log of randomized smoothing with its findings.

    Attributes:
        log: the log.
        inference: n and alpha that its radii point to; None if they say nothing.
        findings: findings in the log.
        cells: cells of the published table that belong to this log, each with the log's own accuracy in percent.
    """

    log: Log
    inference: Inference | None
    findings: tuple[Finding, ...]
    cells: tuple[tuple[Cell, float], ...]


@dataclass(frozen=True)
class LogAudit:
    """The result of an audit of files that somebody else wrote.

    Attributes:
        logs: the logs of randomized smoothing.
        results: files of answers of VNN-COMP, and of known verdicts.
        contradictions: findings in each of these files.
        unreadable: reasons why files cannot be read.
        radii: radii at which certified accuracy is shown, in units of the input.
        best: best certified accuracy at each radius over logs of the same inputs, see `envelope`.
        published: path of the published table, if there is one.
        cells: number of its cells.
        proved: verdicts of instances that were proved here.
    """

    logs: tuple[AuditedLog, ...]
    results: tuple[Verdicts, ...]
    contradictions: Mapping[Path, list[Finding]]
    unreadable: tuple[str, ...]
    radii: tuple[float, ...]
    best: tuple[dict[str, Any], ...]
    published: Path | None = None
    cells: int = 0
    proved: Mapping[Instance, Truth] = field(default_factory=dict)

    @property
    def findings(self) -> list[tuple[Path, Sequence[Finding]]]:
        """Findings in each file."""
        return [*((one.log.path, one.findings) for one in self.logs), *self.contradictions.items()]

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command.

        `UNSOUND`: something claims too much. Else `USAGE`: a file cannot be read. Else `OK`.
        """
        if any(refuted(found) for _, found in self.findings):
            return ExitCode.UNSOUND
        return ExitCode.USAGE if self.unreadable else ExitCode.OK


def audit_log(
    files: Path | str | Iterable[Path | str],
    *,
    sigma: float | None = None,
    n: int | None = None,
    alpha: float | None = None,
    classes: int | None = None,
    radii: Sequence[float] = (),
    published: Path | str | None = None,
    root: Path | str | None = None,
    limit: float = 10.0,
    category: str = "",
) -> LogAudit:
    """Recompute and check the claims of somebody else's logs of randomized smoothing, or results of VNN-COMP.

    Args:
        files: logs, result files, known verdicts and instances, told apart by their first line; a folder stands for all
            such files below it.
        sigma: standard deviation of the noise of the certificates, in units of the input; None: the one that the path
            states, or that the radii fit.
        n: draws per certificate, as claimed.
        alpha: probability of error per certificate, as claimed.
        classes: number of classes, to check labels.
        radii: radii at which certified accuracy is shown; if empty, those of `RADII` that any log reaches.
        published: a CSV of published accuracies to compare with, see `published.read_cells`.
        root: folder of a benchmark of VNN-COMP, with `instances.csv`, networks and properties: answers to its instances
            are proved or refuted, see `referee`.
        limit: seconds for each instance that no counterexample decides.
        category: category of that benchmark, as the results have it; if empty, the folder's name.

    Returns:
        The findings; `LogAudit.exit_code` is 0 if nothing claims too much and every file can be read.

    Raises:
        ConfigError: the published table cannot be read, or an option is out of its range.
    """
    for name, value in (("sigma", sigma), ("n", n), ("classes", classes), ("limit", limit)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive and finite, not {value}", (name,))
    if not all(0 <= radius < math.inf for radius in radii):
        raise ConfigError("a radius must be finite, and at least 0", ("radius",))
    if not (alpha is None or 0 < alpha < 1):
        raise ConfigError(f"alpha must lie between 0 and 1, and is {alpha}", ("alpha",))
    cells = [] if published is None else read_cells(Path(published))
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    logs, results, instances, unreadable = _read(paths)
    instances, refereed = vnncomp.placed(instances, results), None
    if category and root is None:
        raise ConfigError("category is given, but root is not: it is the category of that benchmark", ("category",))
    if root is not None and not results:
        raise ConfigError("root is given, but no results of VNN-COMP are", ("root",))
    if root is not None:
        from certbench.external.referee import referee

        refereed = referee(results, root, limit, category)
        listed = refereed.listed
        instances = [listed, *(one for one in instances if one.path.resolve() != listed.path.resolve())]
    contradictions = vnncomp.audit(results, instances, None if refereed is None else refereed.truth)
    if refereed is not None:
        contradictions = {path: [*found, *refereed.findings[path]] for path, found in contradictions.items()}
    shown = radii or [r for r in RADII if any(log.has_radii and log.accuracy(r) > 0 for log in logs)]
    return LogAudit(
        logs=tuple(_audit(log, cells, Sampling(n, alpha), sigma, classes) for log in logs),
        results=tuple(results),
        contradictions=contradictions,
        unreadable=tuple(unreadable),
        radii=tuple(shown),
        best=tuple(envelope(logs, shown)),
        published=None if published is None else Path(published),
        cells=len(cells),
        proved={} if refereed is None else refereed.truth,
    )


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
    """Yield every file, and the folder that was given instead of it, which may hold other files, too."""
    for path in files:
        if path.is_dir():
            yield from ((inner, path) for inner in sorted(path.rglob("*")) if inner.is_file())
        else:
            yield path, None


def _audit(log: Log, cells: Sequence[Cell], claim: Sampling, sigma: float | None, classes: int | None) -> AuditedLog:
    findings, inference = smoothing_logs.check(log, classes), None
    mine = [cell for cell in cells if cell.is_of(log)]
    stated = {cell.claim for cell in mine}
    if claim == Sampling() and len(stated) == 1:
        claim = stated.pop()
    if log.radii:
        inference, found = _inferred(log, claim, sigma)
        findings += found
    pairs = [(cell, log.accuracy(cell.radius) if log.has_radii else log.clean) for cell in mine]
    for cell, value in pairs:
        off = cell.percent - value
        if abs(off) > cell.half:
            severity = Severity.REFUTED if off > 0 else Severity.WARNING
            text = f"published at radius {cell.radius:g}: {cell.percent:g} %; the log has {value:.2f} %"
            findings.append(Finding("cell", severity, text))
    return AuditedLog(log, inference, tuple(findings), tuple(pairs))


def _inferred(log: Log, claim: Sampling, sigma: float | None) -> tuple[Inference | None, list[Finding]]:
    """Infer n and alpha at the stated noise, or else at the noise that explains the radii with the fewest draws."""
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
    """Return the best certified accuracy at each radius over logs of the same inputs: a selection on the test set.

    Args:
        logs: logs, for several noises, for example; two are of the same inputs if shared indices have the same labels.
        radii: radii at which a log is chosen.
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
        names = short_names([log.path for log in group])
        best = {r: max(group, key=lambda log, r=r: log.accuracy(r)) for r in radii}  # type: ignore[misc]
        values = {r: best[r].accuracy(r) for r in radii}
        counts = sorted({len(log.entries) for log in group})
        which = ", ".join(f"@{r:g} {values[r]:.1f} ({names[best[r].path]})" for r in radii if values[r] > 0)
        says = f"best of {len(group)} logs, selected on the test set, which is optimistic: {which}"
        if len(counts) > 1:
            says += f"; the logs have different numbers of inputs: {', '.join(map(str, counts))}"
        result.append(
            {"logs": [str(log.path) for log in group], "says": says}
            | {"best": {f"{r:g}": {"log": str(best[r].path), "percent": values[r]} for r in radii}}
        )
    return result


def _same(one: Log, other: Log) -> bool:
    labels = {entry.index: entry.label for entry in one.entries if entry.index is not None}
    pairs = [(labels[e.index], e.label) for e in other.entries if e.index is not None and e.index in labels]
    return bool(pairs) and all(mine == yours for mine, yours in pairs)


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return each path without the folders that all of them begin with."""
    common = 0
    if len(set(paths)) > 1:
        heads = [path.parts for path in paths]
        while len({parts[common] if common < len(parts) - 1 else None for parts in heads}) == 1 and all(
            common < len(parts) - 1 for parts in heads
        ):
            common += 1
    return {path: str(Path(*path.parts[common:])) if len(set(paths)) > 1 else path.name for path in paths}


def record(audit: LogAudit) -> dict[str, Any]:
    """Return all findings as JSON."""
    return {
        "exit_code": int(audit.exit_code),
        "unreadable": list(audit.unreadable),
        "logs": [
            {"file": str(one.log.path), "inputs": len(one.log.entries), "sigma": one.inference and one.inference.sigma}
            | {"abstained_percent": one.log.abstained, "clean_percent": one.log.clean}
            | ({"ACR": one.log.average_radius} if one.log.has_radii else {})
            | {"certified_percent": {f"{r:g}": one.log.accuracy(r) for r in audit.radii} if one.log.has_radii else {}}
            | {"fitting": [[ladder.n, ladder.alpha] for ladder in one.inference.fitting] if one.inference else []}
            | {"explained": [[ladder.n, ladder.alpha] for ladder in one.inference.explained] if one.inference else []}
            | {"cells": [{"radius": c.radius, "published": c.percent, "recomputed": v} for c, v in one.cells]}
            | {"findings": [asdict(finding) for finding in one.findings]}
            for one in audit.logs
        ],
        "best": [{key: value for key, value in row.items() if key != "says"} for row in audit.best],
        "proved": [
            {"category": names[0], "onnx": names[1], "vnnlib": names[2]}
            | {"verdict": truth.verdict, "why": truth.why, "alone": truth.alone}
            for names, truth in audit.proved.items()
        ],
        "verdicts": [
            {"file": str(file.path), "source": file.source, "known": file.known}
            | {word: file.count(word) for word in ("unsat", "sat", "unknown", "timeout", "error")}
            | {"findings": [asdict(finding) for finding in audit.contradictions[file.path]]}
            for file in audit.results
        ],
    }
