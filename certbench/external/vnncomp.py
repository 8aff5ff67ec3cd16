"""Result files of the competition of neural-network verifiers (VNN-COMP), against one another and known verdicts.

A tool writes results.csv without a header: category, onnx, vnnlib, seconds to prepare, result, seconds to run. The
benchmark has instances.csv: onnx, vnnlib, time limit. Known verdicts come as a CSV with a header that names at least
onnx, vnnlib and verdict. `unsat` and `holds` say that no counterexample exists, `sat` and `violated` that one does.
Two tools that contradict each other cannot both be right; `referee` finds out who is wrong, if it can.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from certbench.errors import ConfigError
from certbench.external.findings import Finding, Severity
from certbench.files.numbers import is_decimal

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

Instance = tuple[str, str, str]
"""Instance: category (empty if the file does not say), name of the network, name of the property."""


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
        program: whether a counterexample holds in the float program alone. Then `sat` is no wrong answer, and `unsat`
            is none where it is about real arithmetic.
    """

    verdict: str
    why: str
    program: bool = False


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of a benchmark, and the seconds that each may take."""

    path: Path
    limits: dict[Instance, float]


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
        limits = {}
        for number, cells in rows:
            if not _is_instance(cells):
                raise ConfigError(f"{path}:{number}: an instance is onnx, vnnlib, seconds")
            limits[_instance("", *cells[:2])] = float(cells[2])
        return Instances(path, limits)
    answers = []
    for number, cells in rows:
        if len(cells) != 6 or not _is_network(cells[1]):
            raise ConfigError(f"{path}:{number}: a result is category, onnx, vnnlib, seconds, result, seconds")
        if not is_decimal(cells[5]):
            raise ConfigError(f"{path}:{number}: {cells[5]!r} is not a time in seconds")
        instance = _instance(cells[0], cells[1], cells[2])
        answers.append(ToolAnswer(number, instance, _word(path, number, cells[4]), float(cells[5])))
    return Verdicts(path, _tool(path, answers[0].instance[0]), tuple(answers))


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
    return category, *pair(onnx, vnnlib)


def pair(onnx: str, vnnlib: str) -> tuple[str, str]:
    """Return the names of a network and a property, without folders and compression."""
    network, prop = (PurePosixPath(name).name.removesuffix(".gz") for name in (onnx, vnnlib))
    return network, prop


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
    inner = category and category in folder.name
    return (folder.parent.name if inner else folder.name) if path.name == "results.csv" else path.stem


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
        proved: verdicts that were proved here.
    """
    proved = {} if proved is None else proved
    truth: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    said: dict[Instance, dict[str, list[str]]] = defaultdict(lambda: {word: [] for word in ANSWERS})
    for file in files:
        for answer in file.answers:
            if answer.verdict in ANSWERS and file.known:
                truth[answer.instance[1:]].add((answer.instance[0], answer.verdict))
            elif answer.verdict in ANSWERS and file.source not in said[answer.instance][answer.verdict]:
                said[answer.instance][answer.verdict].append(file.source)
    found: dict[Path, list[Finding]] = {file.path: [] for file in files}
    for file in files:
        for answer in file.answers:
            category, *names = answer.instance
            if answer.verdict not in ANSWERS:
                continue
            known = {word for where, word in truth[names[0], names[1]] if where in ("", category) or not category}
            against = [] if file.known else said[answer.instance]["sat" if answer.verdict == "unsat" else "unsat"]
            judged = _judged(file, answer, known, against, proved.get(answer.instance, Truth("", "")))
            if judged is not None:
                message = f"{' '.join(names)}: {file.source} says {answer.verdict}, {judged[1]}"
                found[file.path].append(Finding("contradiction", judged[0], message, (answer.line,)))
        found[file.path] += _form(file, instances)
    return found


def _judged(
    file: Verdicts, answer: ToolAnswer, known: set[str], against: Sequence[str], proof: Truth
) -> tuple[Severity, str] | None:
    """Return what is to be said of an answer, if anything contradicts it."""
    other = "sat" if answer.verdict == "unsat" else "unsat"
    precisions = "; a counterexample holds in the float program alone, so both may be right"
    if proof.verdict == answer.verdict:
        return None
    if proof.verdict == other:
        if proof.program and answer.verdict == "sat":
            return Severity.WARNING, f"but it is unsat in real arithmetic: {proof.why}{precisions}"
        return Severity.REFUTED, f"but it is {other}: {proof.why}"
    if other in known and answer.verdict not in known:
        return Severity.REFUTED, f"but {other} is known"
    if other in known:
        return Severity.CONTRADICTED, "but known verdicts contradict each other; it is not known which is wrong"
    if against and not known:
        rivals = ", ".join(against)
        if proof.program:
            return Severity.WARNING, f"{rivals} {other}{precisions}"
        return Severity.CONTRADICTED, f"{rivals} {other}; one is wrong, and it is not known which"
    return None


def _form(file: Verdicts, instances: Iterable[Instances]) -> list[Finding]:
    found = []
    lines: dict[Instance, list[int]] = defaultdict(list)
    for answer in file.answers:
        lines[answer.instance].append(answer.line)
    twice = tuple(line for numbers in lines.values() for line in numbers[1:])
    if twice:
        found.append(Finding("duplicate", Severity.WARNING, f"{len(twice)} rows repeat an instance", twice))
    for wanted in instances:
        asked = {instance[1:]: limit for instance, limit in wanted.limits.items()}
        mine = [answer for answer in file.answers if answer.instance[1:] in asked]
        if not mine:
            continue
        missing = len(asked.keys() - {answer.instance[1:] for answer in mine})
        if missing:
            text = f"{missing} of the {len(asked)} instances of {wanted.path.name} are missing"
            found.append(Finding("missing", Severity.NOTE if file.known else Severity.WARNING, text))
        late = tuple(a.line for a in mine if a.verdict in ANSWERS and a.seconds > GRACE * asked[a.instance[1:]])
        if late:
            found.append(Finding("late", Severity.WARNING, f"{len(late)} answers came after the time limit", late))
    return found
