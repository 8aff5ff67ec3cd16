"""The LP relaxation: between CROWN and the truth, equal to the solver's optimum, and sound whatever the solver says."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, Outcome, ThreatModel, UnsupportedError
from certbench.core.search import Ladder, Secant
from certbench.networks.layers import Network
from certbench.networks.reading import relu_network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.programs import PlanetModel, Program, tightened
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.linear.lp import LP, improved
from tests.support.programs import THREATS, exact_distance, gaps, pieces, points, rows_at, sign_rows, tiny

pytest.importorskip("highspy")

pytestmark = pytest.mark.machine


def exact_minimum(network: Network, threat: ThreatModel, x: Tensor, eps: float, row: Tensor) -> float:
    """The minimum of a row times the logits over a ball, by enumeration."""
    centre, signs, best = x.numpy(), sign_rows(len(x), threat.p), math.inf
    for g, h, a, b in pieces(network):
        if gaps(threat, centre, g, h) > eps:
            continue
        found = linprog(
            row.numpy() @ a,
            np.concatenate([g, signs]),
            np.concatenate([h, eps + signs @ centre]),
            bounds=threat.domain or (None, None),
        )
        if found.status == 0:
            best = min(best, found.fun + row.numpy() @ b)
    return best


def balls(threat: ThreatModel, x: Tensor, eps: float) -> Region:
    return Region(threat, x, torch.full((len(x),), eps, dtype=torch.float64))


@pytest.mark.parametrize(("seed", "kind"), [(0, "mlp"), (13, "skip")])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_bounds_lie_between_crown_and_the_truth(threat: ThreatModel, seed: int, kind: str) -> None:
    classifier, x = tiny(seed, kind), points(2)
    network, eps = relu_network(classifier), 0.2 if threat.p == math.inf else 0.5
    rows, gained = rows_at(classifier, x), 0.0
    for i in range(len(x)):
        region, row = balls(threat, x[i : i + 1], eps), rows[i : i + 1]
        bounds = layer_bounds(network, region)
        crown, planet = backward(network, row, 2, bounds), improved(network, region, bounds, row)
        low, middle = region.minimum(crown.a, crown.b)[0], region.minimum(planet.a, planet.b)[0]
        high = torch.tensor([exact_minimum(network, threat, x[i], eps, one) for one in row[0]])
        assert (low <= middle).all()
        assert (middle <= high + 1e-9).all()
        gained += float((middle - low).max())
    assert gained > 1e-3  # the LP is good for something


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("tighten", [False, True])
def test_the_repaired_dual_is_the_solvers_optimum(threat: ThreatModel, tighten: bool) -> None:
    """Strong duality. The solver's value is read here, and nowhere else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Linear(8, 14), nn.ReLU(), nn.Linear(14, 14), nn.ReLU(), nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 4)
        )
    classifier, x = Classifier(module.eval(), (8,), 4), points(3, 8)
    network, rows = relu_network(classifier), rows_at(classifier, x)
    for i in range(len(x)):
        region = balls(threat, x[i : i + 1], 0.2 if threat.p == math.inf else 1.0)
        bounds = layer_bounds(network, region)
        bounds = tightened(network, region, bounds) if tighten else bounds
        model = PlanetModel.of(network, region, bounds, 3)
        assert all(len(neurons) for neurons in model.unstable)
        for row in rows[i]:
            slopes = model.slopes(row)
            _, constant = model.affine(3, scipy.sparse.csr_matrix(row.numpy()[None]))
            optimum = model._solver.getInfo().objective_function_value + constant.item()
            linear = backward(network, row[None, None], 3, bounds, slopes)
            assert region.minimum(linear.a, linear.b).item() == pytest.approx(optimum, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("threat", [Linf, L1.within(0, 1)], ids=str)
def test_any_dual_gives_a_sound_bound(threat: ThreatModel) -> None:
    classifier, x = tiny(3), points(1)
    network, row, region = relu_network(classifier), rows_at(classifier, x)[:, :1], balls(threat, x, 0.3)
    bounds = layer_bounds(network, region)
    model = PlanetModel.of(network, region, bounds, 2)
    truth = exact_minimum(network, threat, x[0], 0.3, row[0, 0])
    generator = np.random.default_rng(0)
    for scale in (1.0, 1e9, math.nan, math.inf, 0.0):
        duals = [generator.normal(size=n) * scale for n in (model.program.height, model.program.width)]
        linear = backward(network, row, 2, bounds, model.slopes_of(*duals))
        assert region.minimum(linear.a, linear.b).item() <= truth + 1e-9
    for slope in (-7.0, 0.3, 40.0):
        slopes = [torch.full_like(one, slope) for one in model.default_slopes()]
        linear = backward(network, row, 2, bounds, slopes)
        assert region.minimum(linear.a, linear.b).item() <= truth + 1e-9


class Broken:
    """A solver whose answers are wrong: its dual is noise, or it has none; it has no objective at all."""

    def __init__(self, solver: Any, valid: bool) -> None:
        self.solver, self.valid = solver, valid

    def changeColsCost(self, *args: Any) -> None:
        self.solver.changeColsCost(*args)

    def run(self) -> None:
        self.solver.run()

    def getSolution(self) -> Any:
        solution = self.solver.getSolution()
        solution.dual_valid = self.valid
        generator = np.random.default_rng(0)
        solution.row_dual = list(generator.normal(size=len(solution.row_dual)))
        solution.col_dual = list(generator.normal(size=len(solution.col_dual)))
        return solution


@pytest.mark.parametrize("valid", [True, False])
def test_a_broken_solver_costs_no_more_than_the_gain_over_crown(valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, x, threat = tiny(4), points(3), Linf.within(0, 1)
    real = Program.solver
    monkeypatch.setattr(Program, "solver", lambda self, **options: Broken(real(self, **options), valid))
    radius = certbench.certify(LP(), classifier, x, threat).radius
    state, label = NetworkState.of(classifier, threat), classifier(x).argmax(dim=1)
    assert (radius >= crown_radius(state, x, label, torch.zeros(3).double(), Secant()) * (1 - 2e-3)).all()
    for i in range(3):
        assert radius[i] <= exact_distance(state.network, threat, x[i], rows_at(classifier, x)[i])


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_radii_lie_between_crown_and_the_exact_distance(threat: ThreatModel) -> None:
    classifier, x = tiny(13, "skip"), points(2)
    state, label = NetworkState.of(classifier, threat), classifier(x).argmax(dim=1)
    crown = crown_radius(state, x, label, torch.zeros(2).double(), Secant())
    planet, sharper = (
        certbench.certify(LP(tighten=tighten), classifier, x, threat).radius for tighten in (False, True)
    )
    rows = rows_at(classifier, x)
    truth = torch.tensor([exact_distance(state.network, threat, x[i], rows[i]) for i in range(len(x))])
    assert (planet >= crown * (1 - 1e-6)).all()
    assert (sharper >= planet * (1 - 2e-3)).all()
    assert (sharper <= truth).all()
    assert (planet > crown * 1.01).any()


def test_tightened_bounds_hold_and_are_tighter() -> None:
    classifier, x = tiny(13, "skip"), points(1)
    network = relu_network(classifier)
    region = balls(Linf, x, 0.3)
    bounds = layer_bounds(network, region)
    sharper = tightened(network, region, bounds)
    assert sharper.method == "lp"
    near = x + (2 * torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)).double() - 1) * 0.3
    for i, z in enumerate(network.preactivations(near)[:-1]):
        assert (sharper.lower[i] >= bounds.lower[i]).all() and (sharper.upper[i] <= bounds.upper[i]).all()
        assert (z >= sharper.lower[i]).all() and (z <= sharper.upper[i]).all()
    assert (sharper.upper[1] - sharper.lower[1] < bounds.upper[1] - bounds.lower[1] - 1e-6).any()


def test_solving_every_row_changes_neither_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows left to CROWN are those that cannot matter."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    classifier, x, solved = Classifier(module.eval(), (6,), 8), points(4, 6), []
    network, rows = relu_network(classifier), rows_at(classifier, x)
    real = PlanetModel.slopes
    monkeypatch.setattr(PlanetModel, "slopes", lambda self, row: solved.append(1) or real(self, row))
    for i in range(len(x)):
        region = balls(Linf, x[i : i + 1], 0.1)
        bounds = layer_bounds(network, region)
        planet = improved(network, region, bounds, rows[i : i + 1])
        least = min(
            region.minimum(one.a, one.b).item()
            for one in (improved(network, region, bounds, row[None, None]) for row in rows[i])
        )
        assert region.minimum(planet.a, planet.b).min().item() == pytest.approx(least, abs=1e-6)  # HiGHS ends at 1e-7
    assert len(solved) < 2 * 7 * len(x)


def test_a_linear_network_has_its_closed_form() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 3)).eval()
    classifier, x = Classifier(module, (5,), 3), points(4, 5)
    linear = classifier.double().module[0]  # type: ignore[index]
    for threat in (L1, Linf):
        radius = certbench.certify(LP(search=Secant(relative=1e-8)), classifier, x, threat).radius
        exact = torch.stack(
            [
                ((rows @ linear(point)) / torch.linalg.vector_norm(rows @ linear.weight, ord=threat.q, dim=1)).min()
                for rows, point in zip(rows_at(classifier, x), x, strict=True)
            ]
        )
        assert (radius <= exact).all()
        torch.testing.assert_close(radius, exact, rtol=1e-6, atol=0)


def test_a_ladder_asks_once_per_rung_and_l2_is_refused() -> None:
    classifier, x = tiny(1), points(2)
    certificate = certbench.certify(LP(search=Ladder((1e-3,))), classifier, x, Linf)
    assert set(certificate.radius.tolist()) <= {0.0, 1e-3}
    assert set(certificate.outcome) == {Outcome.COMPLETED}
    with pytest.raises(UnsupportedError, match="L2 is not offered"):
        certbench.certify(LP(), classifier, x, L2)
