r"""Decision of a property: whether outputs that must not occur do occur in a box of inputs.

A box becomes a classifier. With x = centre + half u, class 0 has the logit 0, and class j the least left-hand side of
the conditions of the j-th disjunct. So the disjuncts have no input in the box if class 0 wins on all of
$[-1, 1]^d$, the ball of radius 1 around u = 0, and every certifier decides that. The least of several numbers is made
of ReLUs, so that branch and bound stays complete. `half` is rounded up, so that the ball covers the box.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.classifier import Classifier, Regressor
from certbench.core.margins import SLACK, margin_rows
from certbench.core.properties import Disjunct, Property
from certbench.core.threat import Linf
from certbench.errors import CertificationError, ConfigError, UnsupportedError
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.complete.branch_and_bound import BranchAndBound
from certbench.verifiers.complete.input_splitting import covered

STEPS, RESTARTS = 40, 4
"""Number of steps of each descent of the attack, and of its starts. A judgement: seconds."""

CORNERS = 16
"""Number of corners of a box at which the sizes of numbers are looked at, for the allowance for rounding."""

MOST = 256
"""Largest number of disjuncts of a box that are decided together. A judgement: each is a class of one classifier."""

TARGETS = 64
"""Largest number of disjuncts that are attacked one by one; of more, the nearest is attacked at each point."""

METHODS = ("crown", "branch-and-bound", "input splitting")
"""Methods that prove, the costlier after the cheaper."""

FEW, SHARE = 16, 0.3
"""Largest number of inputs that are split, and the share of the time that this gets, before neurons are split. A
judgement."""

Run = Callable[[Float[Tensor, "n inputs"]], Float[Tensor, "n outputs"]]
"""The program that users run; it takes inputs in its own precision."""


@dataclass(frozen=True, eq=False)
class Program:
    """The program in which a counterexample must hold, and the precision of its inputs."""

    run: Run
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Decision:
    """The answer to a property.

    Attributes:
        verdict: `unsat`, `sat`, `unknown` or `timeout`.
        method: name of the method that decided.
        reason: reason why nothing was decided, or what a reader should know of the counterexample.
        witness: a counterexample, in the precision of the program's inputs.
        outputs: the program's outputs there.
        exact: whether the counterexample is one of the network in real arithmetic, too.
    """

    verdict: str
    method: str
    reason: str = ""
    witness: Float[Tensor, " inputs"] | None = None
    outputs: Float[Tensor, " outputs"] | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Boxed(Classifier):
    """The classifier of a box, with an allowance for rounding that knows numbers all over the box.

    Attributes:
        largest: largest number that was seen in a submodule or is an input, times the coefficients of a condition, and
            its constant.
    """

    largest: float = 0.0

    def logits_and_scale(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Return logits and, per input, the largest number on the way to them or in the box."""
        logits, scale = super().logits_and_scale(x)
        return logits, scale.clamp(min=self.largest)


class Question(nn.Module):
    """The classifier that a box and its disjuncts become: `(n, inputs) -> (n, 1 + disjuncts)`, in float64."""

    centre: Tensor
    reach: Tensor
    rows: Tensor
    constants: Tensor

    def __init__(self, module: nn.Module, input_shape: Sequence[int], disjuncts: Sequence[Disjunct]) -> None:
        """Store the module, a copy in float64, and the numbers of the box."""
        super().__init__()
        self.module, self.input_shape = module, tuple(input_shape)
        lower, upper = disjuncts[0].lower, disjuncts[0].upper
        centre = lower / 2 + upper / 2
        half = torch.maximum(upper - centre, centre - lower) * (1 + 2.0**-50)
        half = half + 2.0**-52 * torch.maximum(lower.abs(), upper.abs())  # a decimal number lies beside its float64
        self.register_buffer("centre", centre)
        self.register_buffer("reach", half)
        self.count, size = len(disjuncts), max(len(one.rows) for one in disjuncts)
        self.size = 1 << (size - 1).bit_length()
        index = [[min(i, len(one.rows) - 1) for i in range(self.size)] for one in disjuncts]  # the last is repeated
        pairs = list(zip(disjuncts, index, strict=True))
        self.register_buffer("rows", torch.cat([one.rows[places] for one, places in pairs]))
        self.register_buffer("constants", torch.cat([one.constants[places] for one, places in pairs]))

    def forward(self, u: Float[Tensor, "n inputs"]) -> Float[Tensor, "n classes"]:
        """Compute 0, and the least left-hand side of each disjunct."""
        x = self.centre + self.reach * u
        y = self.module(x.reshape(-1, *self.input_shape)).flatten(1)
        values = functional.linear(y, self.rows, self.constants)
        size = self.size
        while size > 1:
            pairs = values.reshape(-1, self.count, size // 2, 2)
            first, second = pairs[..., 0], pairs[..., 1]
            values = (first - functional.relu(first - second)).flatten(1)
            size //= 2
        return functional.pad(values, (1, 0))


def decide(
    module: nn.Module,
    input_shape: Sequence[int],
    wanted: Property,
    program: Program,
    seconds: float,
    seed: int = 0,
) -> Decision:
    """Decide a property within a time limit.

    `unsat` is about the network in real arithmetic, with the weights as they are stored, and about every real input of
    the boxes. `sat` comes with an input in the program's precision, inside its box, whose outputs in the program
    itself fulfil the conditions. If the box has no such input near a counterexample in real arithmetic, it is the
    nearest one, and the answer says so.

    Args:
        module: the network, `(n, *input_shape) -> (n, outputs)`, in eval mode.
        input_shape: shape of one input.
        wanted: the property.
        program: the program that a counterexample must hold in.
        seconds: time limit.
        seed: seed of the attack's starts.

    Raises:
        ConfigError: the property has other numbers of inputs or outputs than the network.
    """
    deadline = time.perf_counter() + seconds
    check_sizes(input_shape, wanted, program)
    boxes = wanted.boxes()
    if not boxes:
        return Decision("unsat", "empty boxes")
    exact = copy.deepcopy(module).double()
    searches: list[_Search] = []
    for disjuncts in boxes:
        for start in range(0, len(disjuncts), MOST):
            if time.perf_counter() > deadline:
                return Decision("timeout", "none", "the limit ended before all boxes were read")
            part = disjuncts[start : start + MOST]
            searches.append(_Search(exact, input_shape, part, program, deadline, seed))
    for search in searches:
        if time.perf_counter() < deadline and search.attack():
            return search.answer()
    for search in searches:
        if search.witness is not None:
            return search.answer()
    for search in searches:
        if time.perf_counter() < deadline and not search.prove() and search.witness is not None:
            return search.answer()
    open_ = [search for search in searches if not search.proved]
    if not open_:
        return Decision("unsat", max((search.method for search in searches), key=METHODS.index))
    if time.perf_counter() > deadline:
        return Decision("timeout", "none", f"{len(open_)} of {len(searches)} parts are open")
    return Decision("unknown", "none", "; ".join(dict.fromkeys(search.reason for search in open_)))


@torch.no_grad()
def check_sizes(input_shape: Sequence[int], wanted: Property, program: Program) -> None:
    """Compare the numbers of inputs and outputs of a network and a property.

    Raises:
        ConfigError: they differ.
    """
    if wanted.inputs != math.prod(input_shape):
        raise ConfigError(f"the property has {wanted.inputs} inputs, the network {math.prod(input_shape)}")
    outputs = program.run(torch.zeros(1, wanted.inputs, dtype=program.dtype)).shape[1]
    if wanted.outputs != outputs:
        raise ConfigError(f"the property has {wanted.outputs} outputs, the network {outputs}")


@torch.no_grad()
def violates(
    exact: nn.Module, input_shape: Sequence[int], x: Float[Tensor, " inputs"], disjuncts: Sequence[Disjunct]
) -> bool:
    """Say whether all conditions of one disjunct hold at an input in real arithmetic, beyond rounding.

    Args:
        exact: the network in float64.
        input_shape: shape of one input.
        x: the input; it must lie in the box itself.
        disjuncts: disjuncts of that box.
    """
    inside = [one for one in disjuncts if one.outside(x) == 0]
    if not inside:
        return False
    network = Regressor(exact, tuple(input_shape), exact(x.double().reshape(1, *input_shape)).shape[1])
    y, scale = network.logits_and_scale(x.double().reshape(1, *input_shape))
    for one in inside:
        size = one.rows.abs().sum(dim=1) * scale + one.constants.abs()
        if bool((one.values(y)[0] > SLACK * size).all()):
            return True
    return False


class _Search:
    """The search of one box."""

    def __init__(
        self,
        exact: nn.Module,
        input_shape: Sequence[int],
        disjuncts: Sequence[Disjunct],
        program: Program,
        deadline: float,
        seed: int,
    ) -> None:
        self.program, self.deadline, self.seed, self.disjuncts = program, deadline, seed, disjuncts
        self.module, self.input_shape, self.inputs = exact, tuple(input_shape), math.prod(input_shape)
        self.witness: Tensor | None = None
        self.outputs: Tensor | None = None
        self.exact, self.note = False, ""
        self.proved, self.method, self.reason = False, "attack", "the bounds are too loose"
        self.free = any(not len(one.rows) for one in disjuncts)  # then every input of the box is a counterexample
        if not self.free:
            question = Question(exact, input_shape, disjuncts).eval()
            classifier = Classifier(question, (self.inputs,), len(disjuncts) + 1, "property")
            corners = torch.randint(0, 2, (CORNERS, self.inputs), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
            seen = float(classifier.logits_and_scale(corners.double())[1].amax())
            inputs = float(torch.maximum(disjuncts[0].lower.abs(), disjuncts[0].upper.abs()).amax())
            sizes = question.rows.abs().sum(dim=1).clamp(min=1.0) * max(seen, inputs) + question.constants.abs()
            self.classifier = Boxed(
                question, (self.inputs,), len(disjuncts) + 1, "property", largest=float(sizes.amax())
            )

    def answer(self) -> Decision:
        """Return the counterexample as an answer."""
        return Decision("sat", self.method, self.note, self.witness, self.outputs, self.exact)

    def points(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n inputs"]:
        """Return the nearest inputs of the program's precision in the box; where it has none, the nearest ones."""
        lower, upper = self.disjuncts[0].lower, self.disjuncts[0].upper
        near = x.clamp(min=lower, max=upper).to(self.program.dtype)
        inward = torch.where(near.double() < lower, torch.inf, torch.where(near.double() > upper, -torch.inf, near))
        moved = torch.nextafter(near, inward.to(near))
        inside = (moved.double() >= lower) & (moved.double() <= upper)
        return torch.where(inside, moved, near)

    @torch.no_grad()
    def replay(self, x: Float[Tensor, "n inputs"]) -> bool:
        """Run inputs in the program, and keep the first counterexample; say whether it is one in real arithmetic, too.

        One that is right in the program alone is kept until there is a better one.
        """
        points = self.points(x)
        for point in points[points.isfinite().all(dim=1)]:
            y = self.program.run(point[None])[0]
            held = [one for one in self.disjuncts if one.holds(y)]
            if not held:
                continue
            inside = self.disjuncts[0].outside(point) == 0
            at = point.double().clamp(min=self.disjuncts[0].lower, max=self.disjuncts[0].upper)
            exact = violates(self.module, self.input_shape, at, self.disjuncts)
            if not (inside or exact):
                continue
            if self.witness is None or exact:
                notes = [] if exact else [f"it holds in {self.program.dtype} alone, not in float64 beyond rounding"]
                if not inside:
                    notes.append(f"the box has no {self.program.dtype} in some coordinate; the nearest is used")
                self.witness, self.outputs, self.exact, self.note = point, y, exact, "; ".join(notes)
            if exact:
                return True
        return False

    def attack(self) -> bool:
        """Search for a counterexample by projected steps along signs of gradients (Madry et al., 2018)."""
        lower, upper = self.disjuncts[0].lower, self.disjuncts[0].upper
        if self.replay(((lower + upper) / 2)[None]) or self.free:
            return self.exact
        count = len(self.disjuncts)
        aims = torch.arange(count) if count <= TARGETS else torch.full((TARGETS,), -1)
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        start = torch.zeros(len(aims), self.inputs, dtype=torch.float64)
        for _ in range(RESTARTS):
            if self.descend(start, aims):
                return True
            start = torch.rand(start.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return False

    def descend(self, u: Float[Tensor, "n inputs"], aims: Int[Tensor, " n"], first: float = 1.0) -> bool:
        """Raise the least left-hand side of one disjunct from each start; -1 aims at the nearest one."""
        question: Any = self.classifier.module
        for step in range(STEPS + 1):
            if time.perf_counter() > self.deadline:
                return False
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                values = question(u)[:, 1:]
                aimed = values.gather(1, aims.clamp(min=0)[:, None]).squeeze(1)
                goal = torch.where(aims < 0, values.amax(dim=1), aimed)
                (slope,) = torch.autograd.grad(goal.sum(), u)
            u, violated = u.detach(), values.detach().amax(dim=1) >= 0
            if bool(violated.any()) and self.replay(question.centre + question.reach * u[violated]):
                return True
            pace = first * (0.02 + 0.5 * (1 + math.cos(math.pi * step / STEPS)))
            u = (u + pace * slope.nan_to_num(0.0, 0.0, 0.0).sign()).clamp(-1, 1)
        return False

    def prove(self) -> bool:
        """Bound the box, by splits of inputs if there are few, and of neurons."""
        if self.free:
            self.reason = "a condition of inputs alone was not replayed"
            return False
        try:
            if self.inputs <= FEW:
                self.proved = self._cut()
            if not self.proved and self.witness is None:
                self.proved = self._split()
        except (UnsupportedError, CertificationError) as error:
            self.reason = str(error)
        return self.proved

    def _split(self) -> bool:
        """Decide by branch and bound; its counterexamples are replayed."""
        u = torch.zeros(1, self.inputs, dtype=torch.float64)
        search = BranchAndBound(seconds=max(self.deadline - time.perf_counter(), 1e-3), eps=1.0)
        state = search.prepare(self.classifier, Linf)
        logits, scale = state.classifier.logits_and_scale(u)
        if not float(-logits[0, 1:].amax()) > SLACK * float(scale):
            self.reason = "at the middle of the box a condition is undecided within rounding"
            return False
        found = search.one(state, state.network.to(torch.float32), u, self.seed)
        self.method = "branch-and-bound"
        if found.radius >= 1.0:
            self.method = "crown" if getattr(found.evidence, "bounds", "") == "crown" else self.method
            return True
        if found.point is not None:
            question: Any = self.classifier.module
            u = found.point[None]  # close to the boundary; the descent begins there
            aim = question(u)[:, 1:].argmax(dim=1)
            if not self.replay(question.centre + question.reach * u) and not self.descend(u, aim, 0.05):
                self.reason = "a counterexample in real arithmetic does not hold in the program"
        return False

    def _cut(self) -> bool:
        """Bound the parts of the box, cut again and again; points where a bound is least are replayed."""
        state = NetworkState.of(self.classifier, Linf, relus=False)
        scale = float(state.classifier.logits_and_scale(torch.zeros(1, self.inputs, dtype=torch.float64))[1])
        question: Any = self.classifier.module

        def offer(u: Float[Tensor, "n inputs"]) -> bool:
            violated = (question(u)[:, 1:] > 0).any(dim=1)
            return bool(violated.any()) and self.replay(question.centre + question.reach * u[violated][:1])

        self.method = "input splitting"
        rows = margin_rows(torch.zeros(1, dtype=torch.int64), self.classifier.num_classes)[0]
        now = time.perf_counter()
        return covered(state.network, rows, SLACK * scale, now + SHARE * (self.deadline - now), offer)
