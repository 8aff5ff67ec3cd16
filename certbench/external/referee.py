"""The referee of answers to instances of VNN-COMP: which ones are proved, and which ones are wrong.

For each instance that a tool says `unsat` or `sat` to, the counterexamples beside the results are replayed in two
precisions: in the ONNX file, run by onnxruntime, mostly in float32, as the competition does; and in float64 beyond
rounding, which is a proof about real arithmetic. A counterexample that is right in both proves `sat`; so do two, one
for each. If there are none, the property is attacked and bounded anew; our bounds, which are about real arithmetic,
prove `unsat`. Whoever contradicts a proof is wrong.

Where counterexamples are right in one precision alone, nobody is accused: a tool that says `unsat` may speak of the
other one. A counterexample that is right within the competition's tolerance alone proves nothing, but is not called
wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.properties import Disjunct, Property
from certbench.errors import CertbenchError, ConfigError, ContradictionError
from certbench.external.competition import Problem
from certbench.external.findings import Finding, Severity
from certbench.external.instances import Instance as InstanceName
from certbench.external.instances import Instances, identify
from certbench.external.vnncomp import ANSWERS, ToolAnswer, Truth, Verdicts
from certbench.external.witness_files import WitnessFiles, witness_files
from certbench.formats.vnnlib import reading, witnesses
from certbench.formats.vnnlib.reading import Instance
from certbench.formats.vnnlib.witnesses import Witness
from certbench.verifiers.complete.properties import violates

TOLERANCE = 1e-4
"""Amount by which a counterexample may miss a bound or a condition and still be right within a tolerance. Conditions
are measured in units of the outputs' size, where that is above 1. A judgement."""

APART = 1e-3
"""Difference between stated outputs and those of the file, in the same units, from which on it is named."""

RIGHT, NEARLY, WRONG = "right", "nearly", "wrong"

REAL = "float64"
"""Name of the precision of a replay in our own module, beyond rounding."""


@dataclass(frozen=True)
class Judgement:
    """The replay of a counterexample.

    Attributes:
        kind: `RIGHT` in some precision, `NEARLY` (within a tolerance of the program alone) or `WRONG`.
        says: the replay, in a sentence.
        precisions: precisions in which it is right: that of the program, see `precision_of`, and `REAL`.
        off: largest difference between stated outputs and those of the file, if it is worth naming, else 0.
    """

    kind: str
    says: str
    precisions: tuple[str, ...] = ()
    off: float = 0.0


@dataclass(frozen=True, eq=False)
class Refereed:
    """The result for all instances.

    Attributes:
        truth: proved verdicts, with who or what proved them.
        findings: findings in each file.
        listed: the instances of the benchmark.
    """

    truth: Mapping[InstanceName, Truth]
    findings: Mapping[Path, list[Finding]]
    listed: Instances


def precision_of(problem: Problem) -> str:
    """Return the name of the precision in which the file is run; `REAL` is another one."""
    name = str(problem.program.dtype).removeprefix("torch.")
    return name if name != REAL else f"onnxruntime's {REAL}"


def judge(problem: Problem, wanted: Property, witness: Witness) -> Judgement:
    """Replay a counterexample.

    Args:
        problem: the network.
        wanted: the property.
        witness: the counterexample.

    Raises:
        ConfigError: it has no value for some inputs, or values for inputs or outputs that there are not; or the
            property does not fit the network.
    """
    problem.check(wanted)
    count = len(witness.inputs)
    if sorted(witness.inputs) != list(range(wanted.inputs)):
        raise ConfigError(f"the counterexample has {count} of {wanted.inputs} inputs, or others")
    if witness.outputs and max(witness.outputs) >= wanted.outputs:
        raise ConfigError(f"the counterexample states Y_{max(witness.outputs)} of {wanted.outputs} outputs")
    given = torch.tensor([witness.inputs[i] for i in range(count)], dtype=torch.float64)
    rounded = given.to(problem.program.dtype)
    shape = problem.module.input_shape
    with torch.no_grad():
        ours = problem.program.run(rounded[None])[0].double()
        double = problem.exact(given.reshape(1, *shape)).flatten()
    size = max(1.0, float(ours.abs().max()))
    program = precision_of(problem)
    points = given, rounded.double()  # the box of one number, such as 0.1, may have the first alone
    finite = bool(ours.isfinite().all())
    single = finite and any(one.holds(ours) and min(map(one.outside, points)) == 0 for one in wanted.disjuncts)
    real = any(violates(problem.exact, shape, x, wanted.disjuncts) for x in points)
    precisions = (program,) * single + (REAL,) * real
    off, stated = _off(witness, ours, size), ""
    if off:
        stated = f"; the stated outputs are off by {off:.2g}"
    if single and real:
        return Judgement(RIGHT, f"the counterexample is right in {program} and in {REAL}{stated}", precisions, off)
    if precisions:
        other = f"not in {REAL} beyond rounding" if single else f"not in {program}"
        says = f"the counterexample is right in {precisions[0]} alone, {other}{stated}"
        return Judgement(RIGHT, says, precisions, off)
    if not finite:
        return Judgement(WRONG, f"the counterexample is wrong: its outputs are not finite in {program}", off=off)
    nearest = min(wanted.disjuncts, key=lambda one: _miss(one, given, ours, size))
    outside, short = nearest.outside(given), -float(nearest.least(ours[None])[0])
    text = f"it leaves the box by {outside:.2g}" if outside > 0 else ""
    if not nearest.holds(ours):
        text += " and" * bool(text) + f"{' ' * bool(text)}its outputs miss a condition by {max(short, 0.0):.2g}"
        gap = -float(nearest.least(double[None])[0])
        text += f" in {program}, by {gap:.2g} in {REAL}" if gap > 0 else f" in {program}, not in {REAL}"
    if _miss(nearest, given, ours, size) <= TOLERANCE:
        says = f"the counterexample is right within a tolerance of {TOLERANCE:g} alone: {text}{stated}"
        return Judgement(NEARLY, says, off=off)
    return Judgement(WRONG, f"the counterexample is wrong: {text}{stated}", off=off)


def _miss(one: Disjunct, x: Float[Tensor, " inputs"], y: Float[Tensor, " outputs"], size: float) -> float:
    """Return by how much an input misses a disjunct: the box, or a condition in units of the outputs' size."""
    return max(one.outside(x), max(0.0, -float(one.least(y[None])[0])) / size)


def _off(witness: Witness, ours: Float[Tensor, " outputs"], size: float) -> float:
    gaps = [abs(value - float(ours[i])) for i, value in witness.outputs.items()]
    worst = max((gap if math.isfinite(gap) else math.inf for gap in gaps), default=0.0)
    return worst if not worst <= APART * size else 0.0


@dataclass
class _Case:
    """One instance, and what was said of it."""

    instance: Instance
    said: list[tuple[Verdicts, ToolAnswer]] = field(default_factory=list)


def referee(results: Sequence[Verdicts], root: Path | str, seconds: float, category: str = "") -> Refereed:
    """Prove or refute the answers to the instances of a benchmark.

    Answers of the benchmark's category are judged, and those of a file that names none. Instances are matched by the
    paths of network and property, see `identify`.

    Args:
        results: answers of tools, and known verdicts. Counterexamples are looked for beside each file.
        root: folder of the benchmark.
        seconds: time limit for each instance that no counterexample decides.
        category: category of the benchmark, as the results have it; if empty, the folder's name.

    Raises:
        ConfigError: the benchmark has no instances, or no answer is of its category.
        ContradictionError: our own bounds prove what a counterexample refutes in float64.
    """
    root = Path(root)
    category = category or root.resolve().name
    cases: dict[InstanceName, _Case] = {}
    limits: dict[tuple[str, str], float] = {}
    repeated = []
    for one in reading.instances(root):
        repeated += [one.line] if one.key in limits else []
        cases.setdefault((category, *one.key), _Case(one))
        limits[one.key] = max(one.limit, limits.get(one.key, 0.0))
    listed = Instances(root / "instances.csv", limits, category, tuple(repeated))
    findings = {file.path: _other_categories(file, category) for file in results}
    everywhere = {answer.instance[0] for file in results for answer in file.answers}
    if not everywhere & {"", category}:
        text = f"no answer is of the category {category}; give the one that is meant: {', '.join(sorted(everywhere))}"
        raise ConfigError(text, ("category",))
    meant = identify((answer.instance for file in results for answer in file.answers), [listed])
    for file in results:
        for answer in file.answers:
            found = meant[answer.instance]
            if len(found) == 1 and found[0] in cases and answer.verdict in ANSWERS:
                cases[found[0]].said.append((file, answer))
    beside = {file.path: witness_files(file, category, limits) for file in results if not file.known}
    truth: dict[InstanceName, Truth] = {}
    problems: dict[Path, Problem] = {}
    for name, case in sorted(cases.items(), key=lambda item: str(item[1].instance.network)):
        if not case.said:
            continue
        network = case.instance.network
        try:
            if network not in problems:
                problems.clear()
                problems[network] = Problem(network)
            wanted = reading.load(case.instance.property)
            proved = _settle(case, name, problems[network], wanted, seconds, beside, findings)
        except ContradictionError:  # a wrong bound of ours; nothing that we say is worth anything then
            raise
        except Exception as error:  # whatever one instance raises, the others are judged
            kind = "" if isinstance(error, CertbenchError) else f"{type(error).__name__}: "
            text = f"{' '.join(name[1:])}: not judged: {kind}{error}"
            for path in dict.fromkeys(file.path for file, _ in case.said):
                findings[path].append(Finding("instance", Severity.WARNING, text))
            continue
        if proved is not None:
            truth[name] = proved
    for file in results:
        findings[file.path] += _summary(file, cases, truth, beside)
    return Refereed(truth, findings, listed)


def _other_categories(file: Verdicts, category: str) -> list[Finding]:
    others = {answer.instance[0] for answer in file.answers} - {"", category}
    text = f"not refereed, as they are of other categories than {category}: {', '.join(sorted(others))}"
    return [Finding("category", Severity.NOTE, text)] if others else []


def _settle(
    case: _Case,
    name: InstanceName,
    problem: Problem,
    wanted: Property,
    seconds: float,
    beside: Mapping[Path, WitnessFiles],
    findings: dict[Path, list[Finding]],
) -> Truth | None:
    """Judge the counterexamples of an instance, and prove its verdict if that can be done."""
    problem.check(wanted)
    program = precision_of(problem)
    whole = ""  # whose counterexample is right in both precisions
    held: dict[str, str] = {}  # and in each
    for file, answer in case.said:
        if answer.verdict != "sat" or file.known:
            continue
        title, path = f"{' '.join(name[1:])}: {file.source}", beside[file.path].paths.get(name[1:])
        try:
            if name[1:] in beside[file.path].unclear:
                raise ConfigError(beside[file.path].unclear[name[1:]])
            if path is None:
                continue
            judgement = judge(problem, wanted, witnesses.read(path))
        except ConfigError as error:
            text = f"{title}: no usable counterexample: {error}"
            findings[file.path].append(Finding("witness", Severity.WARNING, text, (answer.line,)))
            continue
        if len(judgement.precisions) < 2 or judgement.off:
            severity = Severity.REFUTED if judgement.kind == WRONG else Severity.WARNING
            findings[file.path].append(Finding("witness", severity, f"{title}: {judgement.says}", (answer.line,)))
        if len(judgement.precisions) == 2 and not whole:
            whole = file.source
        held |= {precision: file.source for precision in judgement.precisions if precision not in held}
    if whole:
        return Truth("sat", f"{whole}'s counterexample holds")
    if len(held) == 2:
        return Truth("sat", f"{held[program]}'s counterexample holds in {program}, {held[REAL]}'s in {REAL}")
    decision, alone = problem.decide(wanted, seconds), next(iter(held), "")
    if decision.verdict == "unsat" and REAL in held:
        who = f"{held[REAL]}'s counterexample holds in {REAL}"
        raise ContradictionError(f"our bounds prove unsat, but {who}: a defect here, please report it")
    if decision.verdict == "unsat":
        return Truth("unsat", f"our bounds ({decision.method}) prove it", alone)
    if decision.verdict == "sat" and decision.exact:
        return Truth("sat", "our counterexample holds in onnxruntime and in float64")
    if decision.verdict == "sat" and REAL in held:
        return Truth("sat", f"our counterexample holds in {program}, {held[REAL]}'s in {REAL}")
    if decision.verdict == "sat":
        return Truth("", f"our counterexample holds in {program} alone", program)
    return Truth("", "", alone) if alone else None


def _summary(
    file: Verdicts,
    cases: Mapping[InstanceName, _Case],
    truth: Mapping[InstanceName, Truth],
    beside: Mapping[Path, WitnessFiles],
) -> list[Finding]:
    """Return how many answers are proved, and which of `sat` come without a counterexample."""
    said = [(name, answer) for name, case in cases.items() for other, answer in case.said if other is file]
    if not said:
        return []
    proofs = [truth.get(name, Truth("", "")).verdict for name, _ in said]
    agreed = sum(proof == answer.verdict for proof, (_, answer) in zip(proofs, said, strict=True))
    left = sum(not proof for proof in proofs)
    text = f"{agreed} of {len(said)} answers are proved here, {left} are neither proved nor refuted"
    found = [Finding("referee", Severity.NOTE, text)]
    if file.known:
        return found
    mine = beside[file.path]
    lines = tuple(
        answer.line
        for name, answer in said
        if answer.verdict == "sat" and name[1:] not in mine.paths and name[1:] not in mine.unclear
    )
    if lines:
        text = f"{len(lines)} answers of sat have no counterexample beside the results"
        found.append(Finding("witness", Severity.NOTE, text, lines))
    return found
