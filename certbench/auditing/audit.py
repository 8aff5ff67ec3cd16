"""The audit of a run: a battery of attacks, and other checks, against each of its certificates.

Keys prove that the given model and data are those of the run. Radii that rest on bounds of margins are bounded again
(`recheck_bounds`); radii that rest on counts are compared with the counts (`results.recheck_counts`). Every input then
gets the battery of `attacks.battery.search` in all norms at once. The rest of the budget goes to inputs where
certificate and attack are close, first to a direct attempt to refute each claim inside its ball. Closer points are
stored with the run, so that its rows, tables and reports show them. Smoothed classifiers have a test of their own, see
`smoothed_classifiers`.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from certbench.auditing import smoothed_classifiers
from certbench.auditing.base_classifiers import BaseAudit, distances, press
from certbench.auditing.contradictions import examine
from certbench.auditing.recheck_bounds import rebound
from certbench.auditing.result import UNBOUND, UNPROVED, UNREACHED, Audit, record
from certbench.auditing.rounding import FloatAudit, float_audit
from certbench.auditing.smoothed_test import conclude
from certbench.core import options, registry
from certbench.core.claims import ABSTAIN, Subject
from certbench.core.evidence import BracketEvidence
from certbench.core.reduction import pieces
from certbench.errors import CertbenchError, ConfigError, UnsupportedError
from certbench.files.writing import write
from certbench.results import recheck_counts
from certbench.results.folder import RESULTS
from certbench.results.rows import Row
from certbench.results.store import Store
from certbench.runs.reopen import StoredRow, StoredRun, reopen

SMOOTHED_BATCH = 16
BOUNDS_SHARE, SMOOTHED_SHARE = 0.25, 0.33
"""Largest part of the budget for bounds; part of the rest that is kept for attacks on smoothed classifiers, if any."""
DRAWS, LEVEL = 10_000, 0.001
"""Number of draws of PREDICT, and the largest level at which it names a class."""


def audit(
    run: Path | str,
    *,
    inputs: int | None = None,
    steps: int = 200,
    seed: int = 1,
    only: str | None = None,
    seconds: float = 600.0,
    floats: bool = False,
    watch: Callable[[str], None] = lambda stage: None,
) -> Audit:
    """Attack every certificate of a run, bound it again, and hold it against the others.

    Counterexamples that are closer than those known are stored with the run, as they are found; `audit.json` in its
    folder gets the whole result.

    Args:
        run: folder of the run.
        inputs: number of inputs, the first ones; None: all.
        steps: number of steps of each attack.
        seed: seed of the attacks' starts and of the draws that judge smoothed classifiers.
        only: one certifier, by its name or by its label in tables.
        seconds: budget of bounds and attacks. If it ends too early, the rows left are listed and the exit code is 5. No
            attack or batch of bounds begins after its end, but one that has begun is not cut off.
        floats: whether to measure the effect of rounding on bounds of margins, too; takes some twenty bounds per row.
        watch: function that is called with the name of each stage.

    Returns:
        The findings; `Audit.exit_code` is 0 if nothing is wrong.

    Raises:
        ConfigError: this is no run, none of its rows has been computed, or model or data are not those of the run.
        StoreError: the run cannot be read or written.
    """
    start, folder = time.monotonic(), Path(run)
    opened = reopen(folder)
    entries = _chosen(opened, inputs, only)
    keys = {entry.key for entry in entries if opened.proves(entry)}
    found = Audit(skipped=[(entry.row, UNPROVED) for entry in entries if entry.key not in keys])
    entries = [entry for entry in entries if entry.key in keys]
    smoothed = [entry for entry in entries if entry.row.subject is Subject.SMOOTHED]
    base = [entry for entry in entries if entry.row.subject is Subject.BASE]
    store = Store(folder / RESULTS)
    try:
        watch("attacks")
        deadline = start + seconds
        missing = store.missing()
        for entry in smoothed:
            reason = recheck_counts.wrong(entry.row, opened.inputs[entry.row.input].flatten().tolist())
            found.recounted.extend([] if reason is None else [(entry.row, reason)])
        watch("bounds")
        _rebound(opened, base, found, start + BOUNDS_SHARE * seconds)
        audits = [
            BaseAudit(opened, name, [entry for entry in base if entry.row.model == name], store, steps, seed, found)
            for name in dict.fromkeys(entry.row.model for entry in base)
        ]
        for part in audits:
            part.know(store.counterexamples(), store.attacked())
        attacked = _share(deadline, 1 - SMOOTHED_SHARE if smoothed and base else 1.0)
        for part in audits:
            watch(f"attacks on {part.model.name}")
            part.sweep(attacked)
        watch("attacks where certificates are close")
        press(audits, attacked)
        groups = _groups(smoothed)
        for number, group in enumerate(groups):
            watch(f"attacks on {group[0].row.certifier} of {group[0].row.model}")
            _test(opened, group, found, steps, seed, _share(deadline, 1 / (len(groups) - number)))
        keyed, stated = store.keyed_rows(), store.attacked()
        known = distances(opened, (StoredRow(*one) for one in keyed if one[0].subject is Subject.BASE), store)
    finally:
        store.close()
    fresh = {(row.model, row.certifier, row.norm, row.input): row for row, _, _ in keyed}
    for part in audits:
        part.conclude(fresh)
    names = {row.certifier for row in fresh.values() if only in (None, row.certifier, row.spec.get("name"))}
    refuting = (  # a point counts at its own distance; a certifier's own answer counts as stored
        replace(row, upper=known.get(key, math.inf)) if row.upper >= stated.get(key, math.inf) else row
        for row, _, key in keyed
        if inputs is None or row.input < inputs
    )
    found.crossed.extend(one for one in examine(refuting) if names & {one.row.certifier, one.other.certifier})
    if floats:
        for group in _groups(base):
            _round(opened, group, found)
    found = replace(
        found,
        folder=folder,
        missing=missing,
        closer=sum(part.closer for part in audits),
        settings={"seed": seed, "steps": steps, "seconds": seconds, "spent": time.monotonic() - start},
    )
    write(found.file, json.dumps(record(found), indent=2, allow_nan=False))
    return found


def _chosen(opened: StoredRun, inputs: int | None, only: str | None) -> list[StoredRow]:
    """Return the chosen rows; model and data at hand must be those of the run, at least for the counterexamples."""
    if not opened.entries:
        raise ConfigError(f"none of the rows of {opened.folder} has been computed; run the suite first")
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
    if not entries:
        raise ConfigError("none of the chosen rows has been computed", ("inputs",))
    for entry in entries:
        opened.check(entry)
    return entries


def _share(deadline: float, part: float) -> float:
    """Return the time at which this part of the time left until a deadline is spent."""
    now = time.monotonic()
    return now + part * (deadline - now) if deadline > now else deadline


def _rebound(opened: StoredRun, entries: list[StoredRow], whole: Audit, deadline: float) -> None:
    """Bound the margins at claimed radii again, beginning with the pairs that took the least time."""
    current = []
    for entry in entries:
        try:
            if entry.row.radius > 0 and entry.row.prediction != ABSTAIN and opened.certifier(entry):
                current.append(entry)
        except CertbenchError as error:  # another version may have proved more
            whole.bounds[entry.row.model, entry.row.certifier, entry.row.norm] = str(error)
    groups = _groups(current)
    for group in sorted(groups, key=lambda group: group[0].row.prepare_seconds + sum(e.row.seconds for e in group)):
        first, rows = group[0].row, [entry.row for entry in group]
        x = opened.inputs[[row.input for row in rows]]
        radius, beside = torch.tensor([[row.radius, _gave_up(row)] for row in rows], dtype=torch.float64).T
        key = first.model, first.certifier, first.norm
        try:
            found = rebound(
                opened.certifier(group[0]), opened.models[first.model], x, group[0].threat, radius,
                seed=opened.settings.seed, beside=beside, deadline=deadline,
            )  # fmt: skip
        except UnsupportedError as error:
            whole.bounds[key] = str(error)
            continue
        except Exception as error:  # a user's classifier may raise anything
            whole.failed[f"bounds of {first.certifier} on {first.model}, L{first.norm:g}"] = _reason(error)
            continue
        whole.bounds[key] = found
        (whole.unproved if found.repeatable else whole.unrepeated).extend(rows[i] for i in found.unproved)
        whole.skipped.extend((rows[i], UNBOUND) for i in found.unreached)


def _gave_up(row: Row) -> float:
    """Return the radius at which the bounds failed, according to the evidence; it is only one more radius to try."""
    found = BracketEvidence.read(row.evidence)
    return math.inf if found is None else found.bracket[1]


def _round(opened: StoredRun, group: list[StoredRow], whole: Audit) -> None:
    """Bound the margins of one classifier at its certified radii again, in float32, one by one, and by two threads."""
    first = group[0].row
    x = opened.inputs[[entry.row.input for entry in group]]
    radius = torch.tensor([entry.row.radius for entry in group], dtype=torch.float64)
    try:
        found: FloatAudit | str = float_audit(
            options.build(first.spec), opened.models[first.model], x, group[0].threat, radius
        )
    except Exception as error:  # a user's classifier may raise anything
        found = _reason(error)
    whole.floats[first.model, first.certifier, first.norm] = found


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CertbenchError) else f"{type(error).__name__}: {error}"


def _groups(entries: list[StoredRow]) -> list[list[StoredRow]]:
    groups: dict[tuple[str, str, float], list[StoredRow]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.model, entry.row.certifier, entry.row.norm].append(entry)
    return list(groups.values())


def _test(opened: StoredRun, group: list[StoredRow], whole: Audit, steps: int, seed: int, deadline: float) -> None:
    """Attack the certificates of one smoothed classifier inside their radii, and let PREDICT judge."""
    first = group[0]
    claims = [entry for entry in group if entry.row.radius > 0 and entry.row.prediction != ABSTAIN]
    if not claims:
        return

    def skip(entries: list[StoredRow], reason: str) -> None:
        whole.skipped.extend((entry.row, reason) for entry in entries)

    def fail(error: Exception) -> None:  # the exit code shows that it is not audited
        name = f"{first.row.certifier} on {first.row.model}, L{first.row.norm:g}"
        whole.failed[name] = f"{type(error).__name__}: {error}"

    try:
        certifier = options.build(first.row.spec)
    except CertbenchError as error:
        return skip(claims, f"the certifier cannot be built: {error}")
    try:
        x = opened.inputs[[first.row.input]]
        example = next(pieces(opened.models[first.row.model], x, first.threat))
        smoothed = certifier.smoothed(example.classifier, example.threat)
    except Exception as error:  # a user's classifier may raise anything
        fail(error)
        return skip(claims, "the attack failed")
    if smoothed is None:
        name = first.row.spec.get("name", type(certifier).__name__)
        return skip(claims, f"{name} has no PREDICT that can judge an attack")
    if first.row.norm == 0:
        return skip(claims, "there is no attack on a smoothed classifier in L0")
    level = min(smoothed.alpha, LEVEL)
    span = float(opened.inputs.max() - opened.inputs.min()) or 1.0
    least = min((one for one in first.threat.scale or (1.0,) if one), default=1.0)
    most = span / least * opened.inputs[0].numel() ** (1 / first.row.norm)  # infinite radii are attacked there
    labels, answers, hits = [], [], []
    for start in range(0, len(claims), SMOOTHED_BATCH):
        if time.monotonic() > deadline:
            skip(claims[start:], UNREACHED)
            break
        part = claims[start : start + SMOOTHED_BATCH]
        x = opened.inputs[[entry.row.input for entry in part]]
        label = torch.tensor([entry.row.prediction for entry in part])
        eps = torch.tensor([min(entry.row.radius, most) * (1 - 1e-6) for entry in part], dtype=torch.float64)
        try:
            answer = torch.full_like(label, ABSTAIN)
            for piece in pieces(opened.models[first.row.model], x, first.threat):
                own = smoothed if first.threat.scale is None else certifier.smoothed(piece.classifier, piece.threat)
                assert own is not None
                attacked = smoothed_classifiers.perturb(
                    own, piece.z.cpu(), label[piece.rows], eps[piece.rows], piece.threat,
                    steps=max(20, steps // 5), seed=seed,
                )  # fmt: skip
                answer[piece.rows] = own.predict(attacked, level=level, draws=DRAWS, seed=seed)
        except Exception as error:  # a user's classifier may raise anything
            fail(error)
            skip(claims[start:], "the attack failed")
            break
        labels.append(label)
        answers.append(answer)
        wrong = ((answer != label) & (answer != ABSTAIN)).tolist()
        hits += [entry.row for entry, hit in zip(part, wrong, strict=True) if hit]
    if labels:
        left = {entry.row.input for entry in claims[sum(map(len, labels)) :]}
        tried = frozenset(entry.row.input for entry in group) - left
        test = conclude(smoothed, len(tried), torch.cat(labels), torch.cat(answers), level=level)
        test = replace(test, inputs=tried, hits=frozenset(row.input for row in hits))
        whole.tests[first.row.model, first.row.certifier, first.row.norm] = test
        whole.hits.extend(hits)
