"""The audit of a run: what a battery of attacks finds against each of its certificates.

Keys prove that the model and the data at hand are those of the run. Every input then gets the battery of
`attacks.search` in all norms at once; what is left of the budget goes where certificate and attack are close, first
into a direct attempt to refute each claim inside its ball. Closer points are stored with the run, so that its rows,
tables and reports show them. Smoothed classifiers have a test of their own, see `smoothed_attack`.
"""

import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from certbench import benchmark, options, registry, smoothed_attack
from certbench.audit_base import BaseAudit, press
from certbench.audit_output import UNREACHED, Result, record, show
from certbench.cross_audit import examine
from certbench.errors import CertbenchError, ConfigError
from certbench.float_audit import FloatAudit, float_audit
from certbench.store import Store
from certbench.stored_run import Entry, StoredRun, load
from certbench.terms import ABSTAIN, Subject
from certbench.verifiers.smoothing import Smoothing

SMOOTHED_BATCH = 16
DRAWS, LEVEL = 10_000, 0.001
"""Of PREDICT: its draws, and the largest level at which it names a class."""
UNPROVED = "by its key, the row is of another model, input or version of the certifier"


def run(
    folder: Path,
    out: Console,
    *,
    inputs: int | None = None,
    steps: int = 200,
    seed: int = 1,
    only: str | None = None,
    seconds: float = 600.0,
    floats: bool = False,
) -> int:
    """The command `certbench audit`: attack a run's certificates, store what is closer, and write `audit.json`.

    Args:
        folder: of the run.
        out: to print to.
        inputs: the first so many inputs; None: all.
        steps: of each attack.
        seed: of the attacks' starts and of the draws that judge smoothed classifiers.
        only: one certifier, by its name or by its label in tables.
        seconds: budget of the attacks; what was not reached within it is listed, and the exit code is then 5.
        floats: also audit what rounding does to the bounds of margins, which takes some twenty bounds per row.

    Returns:
        0 fine; 1 an order of certifiers that is a theorem does not hold; 3 a certificate is refuted; 5 something was
        not reached, or an attack failed.

    Raises:
        ConfigError: no run, or the model or data at hand are not those of the run.
        StoreError: the run cannot be read or written.
    """
    start = time.monotonic()
    opened = load(folder)
    entries = _chosen(opened, inputs, only)
    result = Result(skipped=[(entry.row, UNPROVED) for entry in entries if not opened.proves(entry)])
    entries = [entry for entry in entries if opened.proves(entry)]
    smoothed = [entry for entry in entries if entry.row.subject is Subject.SMOOTHED]
    base = [entry for entry in entries if entry.row.subject is Subject.BASE]
    store = Store(folder / "results.db")
    with out.status("attacks") as status:
        try:
            deadline = start + seconds
            audits = [
                BaseAudit(
                    opened, name, [entry for entry in base if entry.row.model == name], store, steps, seed, result
                )
                for name in dict.fromkeys(entry.row.model for entry in base)
            ]
            for audit in audits:
                status.update(f"attacks on {audit.model.name}")
                audit.know(store.counterexamples())
                audit.sweep(deadline)
            status.update("attacks where certificates are close")
            left = max(0.0, deadline - time.monotonic())
            press(audits, deadline - left / 2 if smoothed else deadline)
            for group in _groups(smoothed):
                status.update(f"attacks on {group[0].row.certifier} of {group[0].row.model}")
                _test(opened, group, result, steps, seed, deadline)
            rows = store.rows()
        finally:
            store.close()
    fresh = {(row.model, row.certifier, row.norm, row.input): row for row in rows}
    for audit in audits:
        audit.conclude(fresh)
    names = {row.certifier for row in rows if only in (None, row.certifier, row.spec.get("name"))}
    refuting = (  # what is no counterexample when replayed refutes nothing
        replace(row, upper=math.inf) if (row.model, row.norm, row.input) in result.unconfirmed else row
        for row in rows
        if inputs is None or row.input < inputs
    )
    crossed = examine(refuting)
    result.crossed = [found for found in crossed if names & {found.row.certifier, found.other.certifier}]
    if floats:
        for group in _groups(base):
            _round(opened, group, result)
    written = record(result, seed=seed, steps=steps, seconds=seconds, spent=time.monotonic() - start)
    benchmark.write(folder / "audit.json", json.dumps(written, indent=2, allow_nan=False))
    show(result, written, out)
    out.print(f"Written: {folder / 'audit.json'}", markup=False, soft_wrap=True)
    return result.code


def _chosen(opened: StoredRun, inputs: int | None, only: str | None) -> list[Entry]:
    """The rows that are asked for, of which at least the counterexamples are those of this model and these data."""
    names = {entry.row.certifier for entry in opened.entries}
    names |= {str(entry.row.spec.get("name")) for entry in opened.entries}
    if only is not None and only not in names:
        raise ConfigError(registry.unknown("certifier of this run", only, sorted(names)), ("only",))
    entries = [
        entry
        for entry in opened.entries
        if only in (None, entry.row.certifier, entry.row.spec.get("name"))
        and (inputs is None or entry.row.input < inputs)
    ]
    for entry in entries:
        opened.check(entry)
    return entries


def _round(opened: StoredRun, group: list[Entry], result: Result) -> None:
    """Bound the margins of one classifier at its certified radii again, in every way."""
    first = group[0].row
    x = opened.inputs[[entry.row.input for entry in group]]
    radius = torch.tensor([entry.row.radius for entry in group], dtype=torch.float64)
    try:
        found: FloatAudit | str = float_audit(
            options.build(first.spec), opened.models[first.model], x, group[0].threat, radius
        )
    except CertbenchError as error:
        found = str(error)
    result.floats[first.model, first.certifier, first.norm] = found


def _groups(entries: list[Entry]) -> list[list[Entry]]:
    groups: dict[tuple[str, str, float], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.model, entry.row.certifier, entry.row.norm].append(entry)
    return list(groups.values())


def _test(opened: StoredRun, group: list[Entry], result: Result, steps: int, seed: int, deadline: float) -> None:
    """Attack the certificates of one smoothed classifier inside their radii, and let PREDICT judge."""
    first = group[0]
    claims = [entry for entry in group if entry.row.radius > 0]
    if not claims:
        return

    def skip(entries: list[Entry], reason: str) -> None:
        result.skipped.extend((entry.row, reason) for entry in entries)

    try:
        certifier = options.build(first.row.spec)
    except CertbenchError as error:
        return skip(claims, f"the certifier cannot be built: {error}")
    if not isinstance(certifier, Smoothing):
        name = first.row.spec.get("name", type(certifier).__name__)
        return skip(claims, f"{name} has no PREDICT of its own that could judge an attack")
    classifier, level = opened.models[first.row.model], min(certifier.alpha, LEVEL)
    span = float(opened.inputs.max() - opened.inputs.min()) or 1.0
    most = span * opened.inputs[0].numel() ** (1 / first.row.norm)  # infinite radii are attacked this far away
    labels, answers = [], []
    for start in range(0, len(claims), SMOOTHED_BATCH):
        if time.monotonic() > deadline:
            skip(claims[start:], UNREACHED)
            break
        part = claims[start : start + SMOOTHED_BATCH]
        x = opened.inputs[[entry.row.input for entry in part]]
        label = torch.tensor([entry.row.prediction for entry in part])
        eps = torch.tensor([min(entry.row.radius, most) * (1 - 1e-6) for entry in part], dtype=torch.float64)
        try:
            attacked = smoothed_attack.perturb(
                certifier, classifier, x, label, eps, first.threat, steps=max(20, steps // 5), seed=seed
            )
            answer = smoothed_attack.judge(certifier, classifier, attacked, level=level, draws=DRAWS, seed=seed)
        except Exception as error:  # the classifier is anybody's; that it is not audited shows in the exit code
            name = f"{first.row.certifier} on {first.row.model}, L{first.row.norm:g}"
            result.failed[name] = f"{type(error).__name__}: {error}"
            skip(claims[start:], "the attack failed")
            break
        labels.append(label)
        answers.append(answer)
        hits = ((answer != label) & (answer != ABSTAIN)).tolist()
        result.hits += [entry.row for entry, hit in zip(part, hits, strict=True) if hit]
    if labels:
        tried = len(group) - len(claims) + sum(map(len, labels))
        test = smoothed_attack.conclude(certifier, tried, torch.cat(labels), torch.cat(answers), level=level)
        result.tests[first.row.model, first.row.certifier, first.row.norm] = test
