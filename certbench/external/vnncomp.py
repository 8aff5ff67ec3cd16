"""Result files of the competition of neural-network verifiers (VNN-COMP), against one another and known verdicts.

A tool writes results.csv without a header: category, onnx, vnnlib, seconds to prepare, result, seconds to run. The
benchmark has instances.csv: onnx, vnnlib, time limit. An instance is known by its category and both paths, see
`identify`. Known verdicts come as a CSV with a header that names at least
onnx, vnnlib and verdict. `unsat` and `holds` say that no counterexample exists, `sat` and `violated` that one does.
Two tools that contradict each other cannot both be right; `referee` finds out who is wrong, if it can.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from certbench.errors import ConfigError
from certbench.external.findings import Finding, Severity
from certbench.external.instances import Instance, Instances, identify, is_folder_of, last
from certbench.files.numbers import is_decimal
from certbench.files.reading import plain

WORDS = {
    "unsat": "unsat",
    "holds": "unsat",
    "sat": "sat",
    "violated": "sat",
    "unknown": "unknown",
    "timeout": "timeout",
    "run_instance_timeout": "timeout",
    "prepare_instance_timeout": "timeout",
    "no_result_in_file": "error",
    "prepare_instance_error": "error",
    "error": "error",
    "": "error",
}
"""Meaning of the competition's words. A code at the end (`error_exit_code_2`) is dropped; unknown words are errors."""

ANSWERS = ("unsat", "sat")

GRACE = 1.1
"""Factor by which a run may exceed its limit without a warning: the competition's clock includes the start-up."""


@dataclass(frozen=True)
class ToolAnswer:
    """One row of a file: instance, answer (`unsat`, `sat`, `unknown`, `timeout`, `error`) and seconds."""

    line: int
    instance: Instance
    verdict: str
    seconds: float = math.nan


@dataclass(frozen=True, eq=False)
class Verdicts:
    """A file of answers.

    Attributes:
        path: path of the file.
        source: name of the tool; for known verdicts, name of the file.
        answers: rows of the file.
        known: whether these are verdicts known to be true.
    """

    path: Path
    source: str
    answers: tuple[ToolAnswer, ...]
    known: bool = False

    def count(self, verdict: str) -> int:
        """Return how often the file gives this verdict."""
        return sum(answer.verdict == verdict for answer in self.answers)


@dataclass(frozen=True)
class Truth:
    """The proved verdict of an instance.

    Attributes:
        verdict: `unsat` or `sat`; empty if neither is proved.
        why: the proof, in a sentence.
        alone: precision in which alone counterexamples hold, empty if there is none. Then neither `sat` nor `unsat` is
            a wrong answer: each may be about another precision.
    """

    verdict: str
    why: str
    alone: str = ""


def is_results(first: str) -> bool:
    """Say whether a first line is that of a file that this module reads."""
    cells = _cells(first)
    return (len(cells) >= 5 and _is_network(cells[1])) or _is_header(cells) or _is_instance(cells)


def read(path: Path, text: str) -> Verdicts | Instances:
    """Read a file of answers or of instances.

    Raises:
        ConfigError: the file cannot be read; the message names file and line.
    """
    try:
        rows = [(number, _cells(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except csv.Error as error:
        raise ConfigError(f"{path}: {error}") from error
    if not rows or not is_results(text.lstrip().splitlines()[0]):
        raise ConfigError(f"{path}:1: neither results, nor known verdicts, nor instances of VNN-COMP")
    if _is_header(rows[0][1]):
        return _known(path, rows)
    if _is_instance(rows[0][1]):
        return _listed(path, rows)
    answers = []
    for number, cells in rows:
        if len(cells) != 6 or not _is_network(cells[1]):
            raise ConfigError(f"{path}:{number}: a result is category, onnx, vnnlib, seconds, result, seconds")
        if not is_decimal(cells[5]):
            raise ConfigError(f"{path}:{number}: {cells[5]!r} is not a time in seconds")
        instance = _instance(cells[0], cells[1], cells[2])
        answers.append(ToolAnswer(number, instance, _word(path, number, cells[4]), float(cells[5])))
    return Verdicts(path, _tool(path, answers[0].instance[0]), tuple(answers))


def _listed(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Instances:
    limits: dict[tuple[str, str], float] = {}
    repeated = []
    for number, cells in rows:
        if not _is_instance(cells):
            raise ConfigError(f"{path}:{number}: an instance is onnx, vnnlib, seconds")
        names = plain(cells[0]), plain(cells[1])
        if names in limits:
            repeated.append(number)
        limits[names] = max(float(cells[2]), limits.get(names, 0.0))
    return Instances(path, limits, path.absolute().parent.name, tuple(repeated))


def _known(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Verdicts:
    header = [name.lower() for name in rows[0][1]]
    answers = []
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise ConfigError(f"{path}:{number}: {len(cells)} columns where the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        instance = _instance(row.get("category", ""), row["onnx"], row["vnnlib"])
        answers.append(ToolAnswer(number, instance, _word(path, number, row["verdict"])))
    return Verdicts(path, path.name, tuple(answers), known=True)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _is_network(cell: str) -> bool:
    return cell.removesuffix(".gz").endswith(".onnx")


def _is_header(cells: Sequence[str]) -> bool:
    return {"onnx", "vnnlib", "verdict"} <= {cell.lower() for cell in cells}


def _is_instance(cells: Sequence[str]) -> bool:
    return len(cells) == 3 and _is_network(cells[0]) and is_decimal(cells[2])


def _instance(category: str, onnx: str, vnnlib: str) -> Instance:
    return category, plain(onnx), plain(vnnlib)


def _word(path: Path, line: int, word: str) -> str:
    text = word.lower().partition("(")[0].strip()  # one tool has its counterexample in the same cell
    if text not in WORDS:
        text = "error" if text.startswith("error_") else text.rstrip("0123456789").rstrip("_")
    if text not in WORDS:
        raise ConfigError(f"{path}:{line}: {word!r} is no result; those known are {', '.join(filter(None, WORDS))}")
    return WORDS[text]


def _tool(path: Path, category: str) -> str:
    """Return the name of the tool: the competition keeps TOOL/results.csv and TOOL/CATEGORY/results.csv."""
    folder = path.absolute().parent
    inner = category and is_folder_of(folder.name, category)
    return (folder.parent.name if inner else folder.name) if path.name == "results.csv" else path.stem


def source_of(path: Path) -> str | None:
    """Return the tool whose results a file holds; None if it is no such file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            cells = _cells(file.readline())
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return _tool(path, cells[0]) if len(cells) >= 5 and _is_network(cells[1]) else None


def placed(lists: Sequence[Instances], files: Sequence[Verdicts]) -> list[Instances]:
    """Return lists of instances without the categories, which are names of folders, that no answer has."""
    categories = {answer.instance[0] for file in files for answer in file.answers}
    return [one if one.category in categories else replace(one, category="") for one in lists]


def audit(
    files: Sequence[Verdicts],
    instances: Sequence[Instances] = (),
    proved: Mapping[Instance, Truth] | None = None,
) -> dict[Path, list[Finding]]:
    """Return the findings per file, with who is wrong, or that it is not known.

    Whoever contradicts a proof is wrong; else whoever contradicts the one known verdict; else one of those who
    contradict each other is.

    Args:
        files: answers of tools, and known verdicts.
        instances: instances to be answered, with their time limits.
        proved: verdicts that were proved here, by instances as `identify` has them.
    """
    proved = {} if proved is None else proved
    meant = identify((answer.instance for file in files for answer in file.answers), instances)
    truth: dict[Instance, set[str]] = defaultdict(set)
    said: dict[Instance, dict[str, list[str]]] = defaultdict(lambda: {word: [] for word in ANSWERS})
    for file in files:
        for answer in file.answers:
            if answer.verdict not in ANSWERS or len(meant[answer.instance]) > 1:
                continue
            instance = meant[answer.instance][0]
            if file.known:
                truth[instance].add(answer.verdict)
            elif file.source not in said[instance][answer.verdict]:
                said[instance][answer.verdict].append(file.source)
    found: dict[Path, list[Finding]] = {file.path: [] for file in files}
    for file in files:
        for answer in file.answers:
            if answer.verdict not in ANSWERS or len(meant[answer.instance]) > 1:
                continue
            instance = meant[answer.instance][0]
            against = [] if file.known else said[instance]["sat" if answer.verdict == "unsat" else "unsat"]
            judged = _judged(file, answer, truth[instance], against, proved.get(instance, Truth("", "")))
            if judged is not None:
                message = f"{' '.join(instance[1:])}: {file.source} says {answer.verdict}, {judged[1]}"
                found[file.path].append(Finding("contradiction", judged[0], message, (answer.line,)))
        found[file.path] += _form(file, instances, meant)
    _name_apart(files, instances, meant, found)
    return found


def _name_apart(
    files: Sequence[Verdicts],
    lists: Sequence[Instances],
    meant: Mapping[Instance, tuple[Instance, ...]],
    found: dict[Path, list[Finding]],
) -> None:
    """Name rows that another file may have under other folders: without instances.csv nobody knows."""
    asked = {paths for wanted in lists for paths in wanted.limits}
    holders: dict[Instance, set[Path]] = defaultdict(set)
    for file in files:
        for answer in file.answers:
            if len(meant[answer.instance]) == 1 and meant[answer.instance][0][1:] not in asked:
                holders[meant[answer.instance][0]].add(file.path)
    groups: dict[tuple[str, str, str], list[Instance]] = defaultdict(list)
    for instance in holders:
        groups[instance[0], *last(instance[1:])].append(instance)
    apart = {
        instance: other
        for group in groups.values()
        for instance in group
        for other in group
        if other != instance and not holders[other] & holders[instance]
    }
    for file in files:
        mine = [row for row in file.answers if len(meant[row.instance]) == 1 and meant[row.instance][0] in apart]
        if mine:
            instance = meant[mine[0].instance][0]
            names = " and ".join(" ".join(one[1:]) for one in (instance, apart[instance]))
            text = f"{len(mine)} rows are not compared with those of other folders, such as {names}; give instances.csv"
            found[file.path].append(Finding("folders", Severity.NOTE, text, tuple(answer.line for answer in mine)))


def _judged(
    file: Verdicts, answer: ToolAnswer, known: set[str], against: Sequence[str], proof: Truth
) -> tuple[Severity, str] | None:
    """Return what is to be said of an answer, if anything contradicts it."""
    other = "sat" if answer.verdict == "unsat" else "unsat"
    if proof.verdict == answer.verdict:
        return None
    if proof.alone and (proof.verdict == other or other in known or against):
        who = (
            f"it is {other} in real arithmetic: {proof.why}"
            if proof.verdict
            else f"{', '.join(against) or 'a known verdict'} {other}"
        )
        return Severity.WARNING, f"{who}; a counterexample holds in {proof.alone} alone, so both may be right"
    if proof.verdict == other:
        return Severity.REFUTED, f"but it is {other}: {proof.why}"
    if other in known and answer.verdict not in known:
        return Severity.REFUTED, f"but {other} is known"
    if other in known:
        return Severity.CONTRADICTED, "but known verdicts contradict each other; it is not known which is wrong"
    if against and not known:
        return Severity.CONTRADICTED, f"{', '.join(against)} {other}; one is wrong, and it is not known which"
    return None


def _form(file: Verdicts, lists: Sequence[Instances], meant: Mapping[Instance, tuple[Instance, ...]]) -> list[Finding]:
    """Return what is repeated, missing, late, in no list, or named so that it may be several instances."""
    found = []
    lines: dict[Instance, list[int]] = defaultdict(list)
    unclear: list[ToolAnswer] = []
    for answer in file.answers:
        if len(meant[answer.instance]) > 1:
            unclear.append(answer)
        else:
            lines[meant[answer.instance][0]].append(answer.line)
    twice = {instance: numbers[1:] for instance, numbers in lines.items() if len(numbers) > 1}
    if twice:
        every = tuple(line for numbers in twice.values() for line in numbers)
        text = f"{len(every)} rows repeat an instance, such as {' '.join(next(iter(twice))[1:])}"
        found.append(Finding("duplicate", Severity.WARNING, text, every))
    if unclear:
        first = unclear[0].instance
        several = " and ".join(" ".join(filter(None, one)) for one in meant[first])
        text = (
            f"{len(unclear)} rows are not judged, as their names fit several instances: {' '.join(first[1:])} may be "
        )
        text += f"{several}; write the paths as instances.csv has them"
        found.append(Finding("names", Severity.WARNING, text, tuple(answer.line for answer in unclear)))
    asked = {paths for wanted in lists for paths in wanted.limits}
    for wanted in lists:
        mine = [
            (one, answer)
            for answer in file.answers
            for one in meant[answer.instance]
            if one[1:] in wanted.limits and (not wanted.category or one[0] in ("", wanted.category))
        ]
        scope = {wanted.category} if wanted.category else {one[0] for one, _ in mine}
        strange = [
            answer
            for answer in file.answers
            if answer.instance[0] in scope and not any(one[1:] in asked for one in meant[answer.instance])
        ]
        if strange:
            text = f"{len(strange)} rows are in no instances.csv, such as {' '.join(strange[0].instance[1:])}"
            found.append(Finding("unlisted", Severity.WARNING, text, tuple(answer.line for answer in strange)))
        if not mine:
            continue
        if wanted.repeated:
            numbers = ", ".join(map(str, wanted.repeated))
            found.append(Finding("duplicate", Severity.NOTE, f"{wanted.path} repeats an instance in lines {numbers}"))
        missing = len(wanted.limits.keys() - {one[1:] for one, _ in mine})
        if missing:
            text = f"{missing} of the {len(wanted.limits)} instances of {wanted.path.name} are missing"
            found.append(Finding("missing", Severity.NOTE if file.known else Severity.WARNING, text))
        late = tuple(
            answer.line
            for one, answer in mine
            if answer.verdict in ANSWERS and answer.seconds > GRACE * wanted.limits[one[1:]]
        )
        if late:
            found.append(Finding("late", Severity.WARNING, f"{len(late)} answers came after the time limit", late))
    return found
