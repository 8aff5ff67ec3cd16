"""Mixed-integer programs: equal to enumeration, a valid bracket at any time limit, no primal value in the radius."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, Outcome, ThreatModel, UnsupportedError
from certbench.core.ball import farthest
from certbench.core.margins import SLACK
from certbench.core.search import Secant
from certbench.networks.reading import relu_network
from certbench.verifiers.bounds.programs import Program
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.complete.milp import MILP
from tests.support.programs import THREATS, exact_distance, points, rows_at, tiny

pytest.importorskip("highspy")

pytestmark = pytest.mark.machine


def truth(classifier: Classifier, x: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    network, rows = relu_network(classifier), rows_at(classifier, x)
    return torch.tensor([exact_distance(network, threat, x[i], rows[i]) for i in range(len(x))], dtype=torch.float64)


@pytest.mark.parametrize(("seed", "kind"), [(0, "mlp"), (5, "mlp"), (13, "skip")])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_bracket_holds_the_enumerated_distance_and_closes(threat: ThreatModel, seed: int, kind: str) -> None:
    classifier, x = tiny(seed, kind), points(2)
    certificate, exact = certbench.certify(MILP(), classifier, x, threat), truth(classifier, x, threat)
    assert set(certificate.outcome) == {Outcome.COMPLETED}, certificate.evidence
    assert (certificate.radius <= exact * (1 + 1e-9)).all()
    assert (exact <= certificate.upper * (1 + 1e-9)).all()
    known = exact.isfinite()
    torch.testing.assert_close(certificate.radius[known], exact[known], rtol=1e-4, atol=0)
    torch.testing.assert_close(certificate.upper[known], exact[known], rtol=1e-4, atol=0)
    torch.testing.assert_close(certificate.radius[~known], farthest(threat, x)[~known], rtol=0, atol=0)
    assert all(("farthest" in one) != known for one, known in zip(certificate.evidence, known.tolist(), strict=True))


def test_a_kink_of_the_boundary_is_crossed() -> None:
    """There the gradient at the solver's point leads back to the predicted class."""
    classifier, x = tiny(120, "skip"), points(1, seed=120).round()
    certificate = certbench.certify(MILP(), classifier, x, L1)
    assert certificate.outcome == (Outcome.COMPLETED,)
    torch.testing.assert_close(certificate.upper, truth(classifier, x, L1), rtol=1e-4, atol=0)


def test_intermediate_bounds_by_lps_give_the_same_radius() -> None:
    classifier, x = tiny(13, "skip"), points(2)
    plain, sharper = (certbench.certify(MILP(tighten=tighten), classifier, x, L1) for tighten in (False, True))
    torch.testing.assert_close(sharper.radius, plain.radius, rtol=1e-4, atol=0)


@pytest.mark.parametrize("threat", [L1, Linf], ids=str)
def test_a_linear_network_has_its_closed_form(threat: ThreatModel) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 3)).eval()
    classifier, x = Classifier(module, (5,), 3), points(4, 5)
    linear = classifier.double().module[0]  # type: ignore[index]
    certificate = certbench.certify(MILP(), classifier, x, threat)
    exact = torch.stack(
        [
            ((rows @ linear(point)) / torch.linalg.vector_norm(rows @ linear.weight, ord=threat.q, dim=1)).min()
            for rows, point in zip(rows_at(classifier, x), x, strict=True)
        ]
    )
    assert (certificate.radius <= exact).all()
    assert (certificate.upper >= exact).all()
    torch.testing.assert_close(certificate.radius, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(certificate.upper, exact, rtol=1e-6, atol=0)


def test_eps_asks_for_one_radius() -> None:
    classifier, x = tiny(13, "skip"), points(2)
    exact = truth(classifier, x, Linf)
    below, above = float(exact.min()) * 0.999, float(exact.max()) * 1.001
    certificate = certbench.certify(MILP(eps=below), classifier, x, Linf)
    assert (certificate.radius >= below).all()
    assert set(certificate.outcome) == {Outcome.COMPLETED}
    certificate = certbench.certify(MILP(eps=above), classifier, x, Linf)
    assert (certificate.radius <= exact).all()
    assert (certificate.upper <= above * (1 + 1e-4)).all()
    assert set(certificate.outcome) == {Outcome.COMPLETED}


@pytest.fixture(scope="module")
def loose() -> tuple[Classifier, torch.Tensor]:
    """A network on which CROWN's radius is not the exact one, and points."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    return Classifier(module, (6,), 4), points(2, 6)


def test_a_time_limit_leaves_a_valid_bracket(loose: tuple[Classifier, torch.Tensor]) -> None:
    classifier, x = loose
    whole = certbench.certify(MILP(), classifier, x, Linf)
    assert set(whole.outcome) == {Outcome.COMPLETED}
    state, slack = NetworkState.of(classifier, Linf), SLACK * torch.ones(2).double()
    crown = crown_radius(state, x, classifier(x).argmax(dim=1), slack, Secant())
    assert (whole.radius > crown * 1.01).any()
    for seconds in (1e-6, 0.05, 0.1):
        hurried = certbench.certify(MILP(seconds=seconds), classifier, x, Linf)
        assert (hurried.radius <= whole.upper).all()
        assert (hurried.upper >= whole.radius).all()
        assert (hurried.radius >= crown * (1 - 1e-3)).all()
    hurried = certbench.certify(MILP(seconds=1e-6), classifier, x, Linf)
    for i in range(len(x)):
        assert hurried.outcome[i] is Outcome.TIMED_OUT
        assert hurried.evidence[i]["reason"] == "the time limit was spent first"


class Lying:
    """A solver that changes some of what it found."""

    def __init__(self, solver: Any, **lies: Any) -> None:
        self.solver, self.lies = solver, lies

    def __getattr__(self, name: str) -> Any:
        return getattr(self.solver, name)

    def getInfo(self) -> Any:
        info = self.solver.getInfo()
        told = {name: getattr(info, name) for name in ("mip_dual_bound", "mip_node_count", "objective_function_value")}
        return SimpleNamespace(**{**told, **{k: v for k, v in self.lies.items() if k != "col_value"}})

    def getSolution(self) -> Any:
        solution = self.solver.getSolution()
        if "col_value" in self.lies:
            solution.col_value = [self.lies["col_value"]] * len(solution.col_value)
        return solution


def lying(monkeypatch: pytest.MonkeyPatch, **lies: Any) -> None:
    real = Program.solver
    monkeypatch.setattr(Program, "solver", lambda self, **options: Lying(real(self, **options), **lies))


@pytest.mark.parametrize("value", [1e6, 0.0, -1.0, math.nan])
def test_no_primal_value_moves_the_radius(
    loose: tuple[Classifier, torch.Tensor], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    classifier, x = loose[0], loose[1][:1]
    honest = certbench.certify(MILP(), classifier, x, Linf)
    lying(monkeypatch, objective_function_value=value, col_value=value)
    told = certbench.certify(MILP(), classifier, x, Linf)
    assert (told.radius <= honest.upper).all()
    torch.testing.assert_close(told.radius, honest.radius, rtol=1e-3, atol=0)  # another ball, another tree
    assert (told.upper >= honest.radius).all()  # of the attack, then


@pytest.mark.parametrize("dual", [math.nan, -math.inf, math.inf])
def test_a_dual_bound_that_is_no_number_leaves_crowns_radius(
    loose: tuple[Classifier, torch.Tensor], monkeypatch: pytest.MonkeyPatch, dual: float
) -> None:
    classifier, x = loose[0], loose[1][:1]
    honest = certbench.certify(MILP(), classifier, x, Linf)
    lying(monkeypatch, mip_dual_bound=dual)
    told = certbench.certify(MILP(), classifier, x, Linf)
    assert told.outcome == (Outcome.FAILED,)
    assert (told.radius < honest.radius).all()
    assert told.evidence[0]["crown"] <= told.radius.item() <= honest.radius.item()


def test_a_solver_that_contradicts_a_counterexample_is_not_believed(
    loose: tuple[Classifier, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, x = loose[0], loose[1][:1]
    lying(monkeypatch, mip_dual_bound=1e6)
    told = certbench.certify(MILP(), classifier, x, Linf)
    assert told.outcome == (Outcome.FAILED,)
    assert "above the distance of a counterexample" in told.evidence[0]["reason"]
    assert told.radius.item() == told.evidence[0]["crown"]


def test_batches_do_not_matter() -> None:
    classifier, x = tiny(13, "skip"), points(3)
    whole = certbench.certify(MILP(), classifier, x, Linf)
    single = certbench.certify(MILP(), classifier, x, Linf, batch_size=1)
    torch.testing.assert_close(single.radius, whole.radius, rtol=1e-9, atol=0)


def test_a_tie_certifies_nothing() -> None:
    classifier = tiny(0)
    with torch.no_grad():
        for parameter in classifier.module.parameters():
            parameter.zero_()
    assert certbench.certify(MILP(), classifier, points(2), Linf).radius.tolist() == [0.0, 0.0]


def test_l2_and_bad_options_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="quadratic"):
        certbench.certify(MILP(), tiny(0), points(1), L2)
    for option, value in (("eps", 0.0), ("eps", math.inf), ("seconds", 0.0), ("tolerance", 1e-7), ("tolerance", 1.0)):
        with pytest.raises(ConfigError, match=option):
            MILP(**{option: value})  # type: ignore[arg-type]
