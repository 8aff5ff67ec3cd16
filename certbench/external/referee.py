"""The referee of answers to instances of VNN-COMP: which ones are proved, and which ones are wrong.

For each instance that a tool says `unsat` or `sat` to, the counterexamples beside the results are replayed in the ONNX
file, by onnxruntime, and in float64. If none is right in both, the property is attacked and bounded anew. A
counterexample in real arithmetic proves `sat`, our bounds prove `unsat`; who says otherwise is wrong. A counterexample
that is right in one precision alone accuses nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.properties import Disjunct, Property
from certbench.errors import CertbenchError, ConfigError
from certbench.external.competition import Problem
from certbench.external.findings import Finding, Severity
from certbench.external.vnncomp import ANSWERS, ToolAnswer, Truth, Verdicts, pair
from certbench.external.vnncomp import Instance as InstanceName
from certbench.formats.vnnlib import reading, witnesses
from certbench.formats.vnnlib.reading import Instance
from certbench.formats.vnnlib.witnesses import Witness
from certbench.verifiers.complete.properties import violates

TOLERANCE = 1e-4
"""Amount by which a counterexample may miss a bound or a condition and still be right within a tolerance. Conditions
are measured in units of the outputs' size, where that is above 1. A judgement."""

APART = 1e-3
"""Difference between stated outputs and those of the file, in the same units, from which on it is named."""

RIGHT, SINGLE, DOUBLE, NEARLY, WRONG = "right", "in the program alone", "in float64 alone", "nearly", "wrong"


@dataclass(frozen=True)
class Judgement:
    """The replay of a counterexample.

    Attributes:
        kind: `RIGHT`, `SINGLE`, `DOUBLE`, `NEARLY` or `WRONG`.
        says: the replay, in a sentence.
    """

    kind: str
    says: str


@dataclass(frozen=True, eq=False)
class Refereed:
    """The result for all instances.

    Attributes:
        truth: proved verdicts, with who or what proved them.
        findings: findings in each file.
    """

    truth: Mapping[InstanceName, Truth]
    findings: Mapping[Path, list[Finding]]


def judge(problem: Problem, wanted: Property, witness: Witness) -> Judgement:
    """Replay a counterexample.

    Args:
        problem: the network.
        wanted: the property.
        witness: the counterexample.

    Raises:
        ConfigError: it has no value for some inputs, or for inputs that there are not.
    """
    count = len(witness.inputs)
    if sorted(witness.inputs) != list(range(wanted.inputs)):
        raise ConfigError(f"the counterexample has {count} of {wanted.inputs} inputs, or others")
    given = torch.tensor([witness.inputs[i] for i in range(count)], dtype=torch.float64)
    rounded = given.to(problem.program.dtype)
    shape = problem.module.input_shape
    with torch.no_grad():
        ours = problem.program.run(rounded[None])[0].double()
        double = problem.exact(given.reshape(1, *shape)).flatten()
    size = max(1.0, float(ours.abs().max()))
    single = any(one.outside(rounded) == 0 and one.holds(ours) for one in wanted.disjuncts)
    points = (given, rounded.double())
    real = any(violates(problem.exact, shape, x, wanted.disjuncts) for x in points)
    nearest = min(wanted.disjuncts, key=lambda one: _miss(one, given, ours, size))
    off = _off(witness, ours, size)
    if single and real:
        return Judgement(RIGHT, f"the counterexample is right in the program and in float64{off}")
    program = str(problem.program.dtype).removeprefix("torch.")
    if single:
        return Judgement(SINGLE, f"the counterexample is right in {program} alone, not in float64 beyond rounding{off}")
    if real:
        return Judgement(DOUBLE, f"the counterexample is right in float64 alone, not in {program}{off}")
    outside, short = nearest.outside(given), -float(nearest.least(ours[None])[0])
    text = f"it leaves the box by {outside:.2g}" if outside > 0 else ""
    if not nearest.holds(ours):
        text += " and" * bool(text) + f"{' ' * bool(text)}its outputs miss a condition by {max(short, 0.0):.2g}"
        gap = -float(nearest.least(double[None])[0])
        text += f" in {program}, by {gap:.2g} in float64" if gap > 0 else f" in {program}, not in float64"
    if _miss(nearest, given, ours, size) <= TOLERANCE:
        return Judgement(NEARLY, f"the counterexample is right within a tolerance of {TOLERANCE:g} alone: {text}{off}")
    return Judgement(WRONG, f"the counterexample is wrong: {text}{off}")


def _miss(one: Disjunct, x: Float[Tensor, " inputs"], y: Float[Tensor, " outputs"], size: float) -> float:
    """Return by how much an input misses a disjunct: the box, or a condition in units of the outputs' size."""
    return max(one.outside(x), max(0.0, -float(one.least(y[None])[0])) / size)


def _off(witness: Witness, ours: Float[Tensor, " outputs"], size: float) -> str:
    gaps = [abs(value - float(ours[i])) for i, value in witness.outputs.items() if i < len(ours)]
    worst = max(gaps, default=0.0)
    return f"; the stated outputs are off by {worst:.2g}" if worst > APART * size else ""


@dataclass
class _Case:
    """One instance, and what was said of it."""

    instance: Instance
    said: list[tuple[Verdicts, ToolAnswer]] = field(default_factory=list)


def referee(results: Sequence[Verdicts], root: Path | str, seconds: float) -> Refereed:
    """Prove or refute the answers to the instances of a benchmark.

    Instances are matched by the names of network and property. A file of results with several categories is matched in
    the category alone that has the folder's name in its own, or the other way round.

    Args:
        results: answers of tools, and known verdicts. Counterexamples are looked for beside each file.
        root: folder of the benchmark.
        seconds: time limit for each instance that no counterexample decides.

    Raises:
        ConfigError: the benchmark has no instances.
    """
    root = Path(root)
    cases = {pair(one.onnx, one.vnnlib): _Case(one) for one in reading.instances(root)}
    findings: dict[Path, list[Finding]] = {file.path: [] for file in results}
    for file in results:
        found = {answer.instance[0] for answer in file.answers if answer.instance[1:] in cases}
        name = root.resolve().name
        mine = found if len(found) <= 1 else {one for one in found if one and (one in name or name in one)}
        if found - mine:
            text = f"these categories are not those of {name}, and not refereed: {', '.join(sorted(found - mine))}"
            findings[file.path].append(Finding("category", Severity.NOTE, text))
        for answer in file.answers:
            case = cases.get((answer.instance[1], answer.instance[2]))
            if case is not None and answer.instance[0] in mine and answer.verdict in ANSWERS:
                case.said.append((file, answer))
    beside = {file.path: witnesses.beside(file.path.parent) for file in results if not file.known}
    truth: dict[InstanceName, Truth] = {}
    problems: dict[Path, Problem] = {}
    for names, case in sorted(cases.items(), key=lambda item: str(item[1].instance.network)):
        if not case.said:
            continue
        network = case.instance.network
        try:
            if network not in problems:
                problems.clear()
                problems[network] = Problem(network)
            wanted = reading.load(case.instance.property)
        except CertbenchError as error:
            for path in dict.fromkeys(file.path for file, _ in case.said):
                findings[path].append(
                    Finding("instance", Severity.WARNING, f"{' '.join(names)}: not refereed: {error}")
                )
            continue
        proved = _settle(case, names, problems[network], wanted, seconds, beside, findings)
        if proved is not None:
            truth |= {answer.instance: proved for _, answer in case.said}
    _summarise(results, cases, truth, findings)
    for file in results:
        lines = tuple(
            answer.line
            for case in cases.values()
            for said, answer in case.said
            if said is file
            and answer.verdict == "sat"
            and not file.known
            and witnesses.name_of(*answer.instance[1:]) not in beside[file.path]
        )
        if lines:
            text = f"{len(lines)} answers of sat have no counterexample beside the results"
            findings[file.path].append(Finding("witness", Severity.NOTE, text, lines))
    return Refereed(truth, findings)


def _settle(
    case: _Case,
    names: tuple[str, str],
    problem: Problem,
    wanted: Property,
    seconds: float,
    beside: Mapping[Path, Mapping[str, Path]],
    findings: dict[Path, list[Finding]],
) -> Truth | None:
    """Judge the counterexamples of an instance, and prove its verdict if that can be done."""
    judged: list[tuple[str, Judgement]] = []
    for file, answer in case.said:
        if answer.verdict != "sat" or file.known:
            continue
        path = beside[file.path].get(witnesses.name_of(*names))
        if path is None:
            continue
        title = f"{' '.join(names)}: {file.source}"
        try:
            judgement = judge(problem, wanted, witnesses.read(path))
        except ConfigError as error:
            text = f"{title}: no usable counterexample: {error}"
            findings[file.path].append(Finding("witness", Severity.WARNING, text, (answer.line,)))
            continue
        judged.append((file.source, judgement))
        if judgement.kind != RIGHT or "off by" in judgement.says:
            severity = Severity.REFUTED if judgement.kind == WRONG else Severity.WARNING
            findings[file.path].append(Finding("witness", severity, f"{title}: {judgement.says}", (answer.line,)))
    right = [source for source, judgement in judged if judgement.kind in (RIGHT, DOUBLE)]
    decision = None if right else problem.decide(wanted, seconds)
    single = any(judgement.kind == SINGLE for _, judgement in judged)
    if right:
        return Truth("sat", f"{right[0]}'s counterexample holds")
    assert decision is not None
    if decision.verdict == "unsat":
        return Truth("unsat", f"our bounds ({decision.method}) prove it", program=single)
    if decision.verdict == "sat":
        if decision.exact:
            return Truth("sat", "our counterexample holds in onnxruntime and in float64")
        return Truth("", "our counterexample holds in the program alone", program=True)
    return Truth("", "", program=True) if single else None


def _summarise(
    results: Sequence[Verdicts],
    cases: Mapping[tuple[str, str], _Case],
    truth: Mapping[InstanceName, Truth],
    findings: dict[Path, list[Finding]],
) -> None:
    for file in results:
        said = [answer for case in cases.values() for other, answer in case.said if other is file]
        proofs = [truth.get(answer.instance, Truth("", "")).verdict for answer in said]
        agreed = sum(proof == answer.verdict for proof, answer in zip(proofs, said, strict=True))
        left = sum(not proof for proof in proofs)
        if said:
            text = f"{agreed} of {len(said)} answers are proved here, {left} are neither proved nor refuted"
            findings[file.path].append(Finding("referee", Severity.NOTE, text))
