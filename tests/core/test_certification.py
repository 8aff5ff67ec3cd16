"""The front door: what it refuses, how it cuts, seeds and times, and what failures become."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certbench.core.certificate import Certificate
from certbench.core.certification import certify
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee, Outcome
from certbench.core.classifier import Classifier
from certbench.core.inputs import as_tensor, check_classifier, input_seed
from certbench.core.options import build
from certbench.core.threat import L2, Linf, ThreatModel
from certbench.errors import ConfigError, CrashError, NumericalError, SolverError, UnsupportedError

BATCHES: list[int] = []


def fine(x: Tensor) -> None:
    del x


def solver(x: Tensor) -> None:
    raise SolverError("no answer")


def hungry(x: Tensor) -> None:
    if len(x) > 2:
        raise MemoryError


def starving(x: Tensor) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


def bug(x: Tensor) -> None:
    raise RuntimeError("the shapes do not fit")


@dataclass(frozen=True)
class Fake(Certifier[str]):
    """The first feature of each input is its radius, its seed is the evidence."""

    does: Callable[[Tensor], None] = fine
    prepares: Callable[[Tensor], None] = fine

    guarantee = Guarantee.SOUND
    norms = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> str:
        self.prepares(torch.zeros(0))
        return "prepared"

    def certify(self, state: str, x: Tensor, seeds: Sequence[int]) -> Certificate:
        assert state in ("prepared", "given")
        assert x.dtype == torch.float64
        BATCHES.append(len(x))
        self.does(x)
        return Certificate.of(
            torch.zeros(len(x), dtype=torch.int64), x[:, 0], evidence=[{"seed": seed, "state": state} for seed in seeds]
        )


@pytest.fixture
def classifier() -> Classifier:
    BATCHES.clear()
    return Classifier(nn.Linear(3, 2).eval(), (3,), 2)


X = torch.arange(15.0).reshape(5, 3) / 16


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_batches_do_not_show(classifier: Classifier, batch_size: int) -> None:
    certificate = certify(Fake(), classifier, X, L2, batch_size=batch_size)
    assert max(BATCHES) <= batch_size
    assert certificate.radius.tolist() == X[:, 0].tolist()
    assert [e["seed"] for e in certificate.evidence] == [input_seed(0, x) for x in X]
    assert bool((certificate.seconds > 0).all())


def test_seeds_depend_on_the_input_and_the_base_alone() -> None:
    assert input_seed(0, X[0]) == input_seed(0, X[0].clone().double())
    assert len({input_seed(seed, x) for seed in (0, 1) for x in X}) == 10
    assert input_seed(0, torch.zeros(4)) != input_seed(0, torch.zeros(2, 2))
    assert 0 <= input_seed(-3, X[0]) < 2**128


def test_a_state_is_paid_for_once(classifier: Classifier) -> None:
    certificate = certify(Fake(prepares=bug), classifier, X, L2, state="given")
    assert {e["state"] for e in certificate.evidence} == {"given"}


def test_no_inputs_give_an_empty_certificate(classifier: Classifier) -> None:
    assert len(certify(Fake(), classifier, X[:0], ThreatModel(2.0, (0, 1)))) == 0


@pytest.mark.parametrize(
    ("x", "threat", "words"),
    [
        (X[0], L2, "first axis is the batch"),
        (X[:, :2], L2, "shape"),
        (X.clone().fill_(math.nan), L2, "NaN"),
        (X.clone().fill_(-math.inf), L2, "infinity"),
        (X, ThreatModel(2.0, (0, 0.5)), "outside the domain"),
        (X - 0.1, ThreatModel(2.0, (0, 1)), "outside the domain"),
    ],
)
def test_inputs_that_mean_nothing_are_refused(
    classifier: Classifier, x: Tensor, threat: ThreatModel, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        certify(Fake(), classifier, x, threat, throw=False)


def test_another_norm_is_refused_with_those_on_offer(classifier: Classifier) -> None:
    with pytest.raises(UnsupportedError, match="Linf is not offered, only L2"):
        certify(Fake(), classifier, X, Linf, throw=False)


def test_certifiers_go_by_name_too(classifier: Classifier) -> None:
    assert certify("lipschitz", classifier, X, L2).outcome == (Outcome.COMPLETED,) * 5


def test_a_failed_computation_is_raised_or_becomes_rows(classifier: Classifier) -> None:
    for certifier in (Fake(does=solver), Fake(prepares=solver)):
        with pytest.raises(SolverError):
            certify(certifier, classifier, X, L2)
        certificate = certify(certifier, classifier, X, L2, throw=False)
        assert certificate.outcome == (Outcome.FAILED,) * 5
        assert certificate.evidence[0] == {"reason": "SolverError: no answer"}
        assert certificate.radius.tolist() == [0.0] * 5


def test_out_of_memory_halves_the_batch(classifier: Classifier) -> None:
    certificate = certify(Fake(does=hungry), classifier, X, L2)
    assert BATCHES == [5, 3, 2, 1, 2]
    assert [evidence["batch_after_out_of_memory"] for evidence in certificate.evidence] == [2, 2, 2, 3, 3]
    assert certificate.radius.tolist() == X[:, 0].tolist()


def test_out_of_memory_at_one_input_is_a_row(classifier: Classifier) -> None:
    certificate = certify(Fake(does=starving), classifier, X, L2, throw=False)
    assert certificate.outcome == (Outcome.OUT_OF_MEMORY,) * 5
    with pytest.raises(RuntimeError, match="allocate"):
        certify(Fake(does=starving), classifier, X, L2)


def test_a_bug_is_never_swallowed(classifier: Classifier) -> None:
    for certifier in (Fake(does=bug), Fake(prepares=bug)):
        with pytest.raises(CrashError, match="Fake raised RuntimeError: the shapes do not fit") as caught:
            certify(certifier, classifier, X, L2)
        assert isinstance(caught.value.__cause__, RuntimeError)
        rows = certify(certifier, classifier, X, L2, throw=False)
        assert rows.outcome == (Outcome.FAILED,) * 5 and rows.radius.tolist() == [0.0] * 5
        for evidence in rows.evidence:
            assert "Fake raised RuntimeError: the shapes do not fit" in evidence["reason"]
            assert "in bug" in evidence["traceback"]


@pytest.mark.parametrize("kind", [TypeError, AttributeError, AssertionError, IndexError, ZeroDivisionError, OSError])
def test_every_exception_that_is_not_ours_is_blamed_on_its_certifier(
    classifier: Classifier, kind: type[Exception]
) -> None:
    def raises(x: Tensor) -> None:
        raise kind

    rows = certify(Fake(does=raises), classifier, X, L2, throw=False)
    assert rows.evidence[0]["reason"] == f"CrashError: Fake raised {kind.__name__}: no message (a bug in it)"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_stops_it(classifier: Classifier, kind: type[BaseException]) -> None:
    def raises(x: Tensor) -> None:
        raise kind

    with pytest.raises(kind):
        certify(Fake(does=raises), classifier, X, L2, throw=False)


def test_a_bug_of_one_batch_costs_this_batch_alone(classifier: Classifier) -> None:
    def raises(x: Tensor) -> None:
        if bool((x[:, 0] == X[2, 0]).any()):
            raise RuntimeError("the shapes do not fit")

    rows = certify(Fake(does=raises), classifier, X, L2, throw=False, batch_size=1)
    assert [one is Outcome.FAILED for one in rows.outcome] == [False, False, True, False, False]


def test_an_answer_about_other_inputs_is_a_bug(classifier: Classifier) -> None:
    class Short(Fake):
        def certify(self, state: str, x: Tensor, seeds: Sequence[int]) -> Certificate:
            return Certificate.nothing(1, Outcome.ABSTAINED, "")

    with pytest.raises(CrashError, match="returned 1 rows for 5 inputs"):
        certify(Short(), classifier, X, L2)


@pytest.mark.parametrize("threat", ["L2", "l2", "2", 2, 2.0, np.float64(2)])
def test_a_norm_and_arrays_will_do(classifier: Classifier, threat: Any) -> None:
    right = certify("lipschitz", classifier, X, L2)
    for x in (X.numpy(), X.double().numpy(), X.tolist(), X.numpy()[::-1][::-1], X.clone().requires_grad_()):
        found = certify("lipschitz", classifier, x, threat)
        assert torch.equal(found.radius, right.radius)


def test_what_is_no_classifier_is_refused_with_what_to_write(classifier: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"a Linear is no classifier; write Classifier\(module, input_shape"):
        check_classifier(classifier.module)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "object, not numbers"),
        ([["a", "b"]], "not numbers"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (np.ones((2, 3), dtype=complex), "not numbers"),
        (torch.ones(2, 3, dtype=torch.complex64), "complex"),
        (object(), "object, not numbers"),
    ],
)
def test_what_are_no_numbers_is_refused(values: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        as_tensor(values)


@pytest.mark.parametrize(
    ("prediction", "radius", "upper"), [(0, math.nan, 1.0), (0, -1.0, 1.0), (0, 2.0, 1.0), (-1, 0.5, 1.0)]
)
def test_a_certificate_that_contradicts_itself_is_refused(prediction: int, radius: float, upper: float) -> None:
    columns = [torch.tensor([value], dtype=torch.float64) for value in (radius, upper)]
    with pytest.raises(NumericalError):
        Certificate.of(torch.tensor([prediction]), columns[0], upper=columns[1])


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return torch.cat([x, -x], dim=1)


def test_a_module_that_works_in_place_leaves_the_inputs_alone() -> None:
    x = torch.full((2, 1), 0.75, dtype=torch.float64)
    certify({"name": "smoothing", "n": 10}, Classifier(InPlace().double().eval(), (1,), 2), x, L2)
    assert (x == 0.75).all()


def test_a_state_of_another_threat_model_is_refused() -> None:
    classifier = Classifier(torch.nn.Linear(2, 2).eval(), (2,), 2)
    certifier = build("lipschitz")
    state = certifier.prepare(classifier, L2)
    with pytest.raises(ConfigError, match="prepared for L2, not for Linf"):
        certify(certifier, classifier, torch.zeros(1, 2), Linf, state=state)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        certify("lipschitz", Classifier(torch.nn.Linear(2, 2).eval(), (2,), 2), torch.zeros(1, 2), L2, batch_size=0)


def test_what_cancels_inside_the_network_is_not_certified() -> None:
    """A bias of 1e16 swallows the input in float64, so the prediction itself is rounding."""
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 2)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(1e16)
        second.weight.copy_(torch.tensor([[1.0], [0.0]]))
        second.bias.copy_(torch.tensor([-1e16, 0.5]))
    classifier = Classifier(torch.nn.Sequential(first, torch.nn.ReLU(), second).double().eval(), (1,), 2)
    certificate = certify("lipschitz", classifier, torch.tensor([[0.99]]), L2)
    assert certificate.radius.item() == 0


@dataclass(frozen=True)
class Far(Certifier[None]):
    """It claims 5 at every input, a bracket and a search that ended at its limit: in L0, too."""

    guarantee = Guarantee.SOUND
    norms = frozenset({0.0, 1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> None:
        return None

    def certify(self, state: None, x: Tensor, seeds: Sequence[int]) -> Certificate:
        evidence = [{"bracket": (5.0, math.inf), "mine": 1}] * len(x)
        label = torch.zeros(len(x), dtype=torch.int64)
        return Certificate.of(label, torch.full((len(x),), 5.0), evidence=evidence, outcome=[Outcome.LIMITED] * len(x))


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, math.inf])
def test_no_radius_exceeds_the_domain_whoever_claims_it(classifier: Classifier, p: float) -> None:
    threat = ThreatModel(p, (-0.25, 1.0))
    found = certify(Far(), classifier, X, threat)
    way = torch.maximum(X + 0.25, 1 - X).double()
    true = torch.linalg.vector_norm(way, ord=p, dim=1)
    torch.testing.assert_close(found.radius, true, rtol=1e-15, atol=0)
    for i, evidence in enumerate(found.evidence):
        far = found.radius[i].item()
        assert evidence == {"bracket": [far, math.inf], "mine": 1, "farthest": far}
    assert set(found.outcome) == {Outcome.COMPLETED}
    open_ended = certify(Far(), classifier, X, ThreatModel(p))
    assert open_ended.radius.tolist() == [5.0] * 5 and set(open_ended.outcome) == {Outcome.LIMITED}
    wide = certify(Far(), classifier, X, ThreatModel(p, (-100, 100)))
    assert set(wide.outcome) == {Outcome.LIMITED if p else Outcome.COMPLETED}
    assert ("farthest" in wide.evidence[0]) == (p == 0)


def test_radii_of_smoothed_classifiers_end_at_the_domain_too(classifier: Classifier) -> None:
    wide = {"name": "smoothing", "n": 1000, "noise": {"name": "gaussian", "sigma": 50.0}}
    module = nn.Linear(3, 2).eval()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([1.0, 0.0]))
    found = certify(wide, Classifier(module, (3,), 2), X, L2.within(0, 1))
    assert (found.radius <= math.sqrt(3)).all() and all("farthest" in one for one in found.evidence)


@pytest.mark.parametrize("name", ["lipschitz", "crown", "alpha-crown", "branch-and-bound", "milp", "best-of"])
def test_a_constant_classifier_is_unbounded_without_a_domain_and_whole_within_one(name: str) -> None:
    if name == "milp":
        pytest.importorskip("highspy")
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval().requires_grad_(False)
    module[2].weight.zero_()  # type: ignore[operator, union-attr]
    module[2].bias[:] = torch.tensor([1.0, 0.0])  # type: ignore[index, operator]
    constant, x = Classifier(module, (3,), 2), torch.tensor([[0.1, 0.5, 0.25], [0.0, 0.0, 1.0]])
    within = certify(name, constant, x, Linf.within(0, 1))
    assert within.radius.tolist() == [float(torch.tensor(0.1).neg().double() + 1), 1.0]
    assert within.outcome == (Outcome.COMPLETED,) * 2 and all("farthest" in one for one in within.evidence)
    assert certify(name, constant, x, Linf).outcome == (Outcome.LIMITED,) * 2


@pytest.mark.parametrize("name", ["lipschitz", "crown", "alpha-crown", "branch-and-bound", "milp"])
@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_radii_in_other_units_are_the_same_in_those_units(name: str, unit: float) -> None:
    if name == "milp":
        pytest.importorskip("highspy")
        unit = max(unit, 1.0)  # the solver's tolerance is 1e-9, whatever the unit
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval().requires_grad_(False)
    x, other = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), copy.deepcopy(base)
    other[0].weight.div_(unit)  # type: ignore[operator, union-attr]
    one, two = (certify(name, Classifier(net, (3,), 3), x * u, Linf) for net, u in ((base, 1.0), (other, unit)))
    assert set(two.outcome) == {Outcome.COMPLETED}
    torch.testing.assert_close(two.radius / unit, one.radius, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["lipschitz", "crown", "branch-and-bound"])
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_radii_do_not_depend_on_the_scale_of_the_logits(name: str, unit: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval().requires_grad_(False)
    x, other = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), copy.deepcopy(base)
    other[2].weight.mul_(unit)  # type: ignore[operator, union-attr]
    other[2].bias.mul_(unit)  # type: ignore[operator, union-attr]
    one, two = (certify(name, Classifier(net, (3,), 3), x, L2) for net in (base, other))
    torch.testing.assert_close(two.radius, one.radius, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["lipschitz", "crown", "branch-and-bound"])
def test_a_margin_within_the_allowance_for_rounding_says_so(name: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2)).double().eval().requires_grad_(False)
    module[0].weight[:] = torch.eye(2)  # type: ignore[index, operator]
    module[0].bias.zero_()  # type: ignore[operator, union-attr]
    x = torch.tensor([[1.0, 1.0 - 1e-12], [1.0, 0.5]], dtype=torch.float64)
    found = certify(name, Classifier(module, (2,), 2), x, L2)
    assert found.radius[0] == 0 and "within rounding" in found.evidence[0]["reason"]
    assert found.radius[1] > 0 and "reason" not in found.evidence[1]


def test_a_radius_of_zero_behind_wide_intervals_says_so() -> None:
    """Each of 200 layers turns by 45 degrees: intervals widen by sqrt(2), and rounding errors with them."""
    turn, layers = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64), 200
    module = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers))).double().requires_grad_(False)
    for layer in module:
        layer.weight[:] = turn / math.sqrt(2)
    steps = [step for layer in module for step in (layer, nn.LeakyReLU(0.999999))]
    classifier = Classifier(nn.Sequential(*steps[:-1]).eval(), (2,), 2)
    found = certify({"name": "ibp", "engine": "own"}, classifier, torch.tensor([[1.0, 0.5]], dtype=torch.float64), Linf)
    assert found.radius[0] == 0 and "no radius that was tried" in found.evidence[0]["reason"]


def test_the_front_door_loads_no_certifier() -> None:
    code = "import certbench.core.certification, sys; print([m for m in sys.modules if 'certbench.verifiers' in m])"
    code += "; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
