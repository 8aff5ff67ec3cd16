"""The SDP relaxation against exact minima, and its bound against whatever a solver may return."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.core.search import Ladder
from certbench.errors import ConfigError, UnsupportedError
from certbench.networks.reading import relu_network
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear import sdp
from certbench.verifiers.linear.sdp import SDP, crown
from certbench.verifiers.linear.semidefinite import BACKENDS, Backend, SemidefiniteProgram, lift, propose

pytest.importorskip("cvxpy")

pytestmark = pytest.mark.machine

SHIFTED = Linf.within(0.0, 1.0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.first(x))
        return self.last(torch.relu(z + self.inner(z)))


def network(kind: str, seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: nn.Module = {
            "linear": lambda: nn.Sequential(nn.Linear(3, 3)),
            "mlp": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
            "residual": Residual,
        }[kind]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return Classifier(module.eval(), (3,), 3, kind).double()


def point(seed: int) -> Tensor:
    return torch.rand(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """One ball and one row, with everything that is known of it."""

    def __init__(self, kind: str, seed: int, threat: ThreatModel, eps: float, cuts: bool = True) -> None:
        self.classifier, x = network(kind, seed), point(seed)
        self.network = relu_network(self.classifier)
        self.region = Region(threat, x, torch.tensor([eps], dtype=torch.float64))
        self.rows = margin_rows(self.classifier(x).argmax(dim=1), 3)
        self.bounds, found = crown(self.network, self.region, self.rows)
        self.crown = float(self.region.minimum(found.a, found.b)[0, 0])
        self.row = self.rows[0, 0].numpy()
        self.relaxation = SemidefiniteProgram.of(self.network, self.region, self.bounds, cuts)

    def proved(self, solver: str = "clarabel") -> float:
        w = propose(self.relaxation, self.row, BACKENDS[solver])
        assert w is not None
        return self.relaxation.bound(self.row, self.relaxation.polished(self.row, w))

    def exact(self) -> float:
        """The minimum over a box: one linear program for each pattern of open neurons."""
        low, high = (end[0].numpy() for end in self.region.box())
        open_ = [(i, int(k)) for i in range(2) for k in self.bounds.unstable(i)[0].nonzero().flatten()]
        best = math.inf
        for signs in itertools.product((0.0, 1.0), repeat=len(open_)):
            sources, above, offsets = [np.c_[np.eye(3), np.zeros(3)]], [], []
            for i, layer in enumerate(self.network.layers):
                z = np.c_[np.zeros((layer.outputs, 3)), layer.bias.numpy()]
                z = z + sum(part.matrix().numpy() @ sources[source] for source, part in layer.maps.items())
                if i == 2:
                    break
                on = (self.bounds.lower[i][0] >= 0).double().numpy()
                for (layer_of, k), sign in zip(open_, signs, strict=True):
                    if layer_of == i:
                        on[k] = sign
                        above.append((1 - 2 * sign) * z[k, :3])
                        offsets.append((2 * sign - 1) * z[k, 3])
                sources.append(on[:, None] * z)
            c = self.row @ z
            found = linprog(c[:3], above or None, offsets or None, bounds=np.c_[low, high])
            if found.status == 0:
                best = min(best, found.fun + c[3])
        return best

    def sampled(self) -> float:
        """The smallest value at points of the ball, most of them on its surface."""
        generator = torch.Generator().manual_seed(0)
        step = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
        norm = torch.linalg.vector_norm(step, ord=self.region.threat.p, dim=1, keepdim=True)
        points = self.region.x + self.region.eps * step / norm
        if self.region.threat.domain is not None:
            points = points.clamp(*self.region.threat.domain)
        return float((self.classifier(points) @ self.rows[0, 0]).min())


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("threat", [Linf, SHIFTED], ids=str)
def test_the_bound_lies_below_the_exact_minimum_and_above_crown(kind: str, threat: ThreatModel) -> None:
    gains = []
    for seed, eps in itertools.product(range(3), (0.1, 0.3)):
        problem = Problem(kind, seed, threat, eps)
        exact, bound = problem.exact(), problem.proved()
        assert bound <= exact
        assert bound >= problem.crown - 1e-6 * (1 + abs(problem.crown))
        gains.append((bound - problem.crown) / max(exact - problem.crown, 1e-9))
    assert max(gains) > 0.3  # and it is no other name for CROWN


@pytest.mark.parametrize("threat", [L2, L2.within(0, 1)], ids=str)
def test_in_l2_the_bound_lies_below_all_samples_and_above_crown(threat: ThreatModel) -> None:
    for seed, eps in itertools.product(range(3), (0.15, 0.5)):
        problem = Problem("mlp", seed, threat, eps)
        bound = problem.proved()
        assert bound <= problem.sampled()
        if threat.domain is None:
            assert bound >= problem.crown - 1e-6 * (1 + abs(problem.crown))


@pytest.mark.parametrize("threat", [Linf, L2, L2.within(0, 1)], ids=str)
def test_no_multipliers_prove_too_much(threat: ThreatModel) -> None:
    generator = np.random.default_rng(0)
    for seed in range(3):
        problem = Problem("mlp", seed, threat, 0.3)
        relaxation, row = problem.relaxation, problem.row
        true = problem.exact() if threat.p == math.inf else problem.sampled()
        good = propose(relaxation, row, BACKENDS["clarabel"])
        assert good is not None
        for scale in (0.0, 1e-6, 1.0, 1e3, 1e12, 1e200):
            noise = generator.standard_normal((6, len(relaxation.free)))
            for w in (*scale * noise, *(good + scale * noise[:2]), scale * good, -scale * good):
                assert relaxation.bound(row, w) <= true
                assert relaxation.bound(row, relaxation.polished(row, w)) <= true


def test_without_the_cuts_the_bound_is_sound_and_no_better() -> None:
    for seed in range(3):
        with_cuts, without = (Problem("mlp", seed, Linf, 0.2, cuts) for cuts in (True, False))
        assert without.relaxation.forms.shape[1] < with_cuts.relaxation.forms.shape[1]
        assert without.proved() <= with_cuts.proved() + 1e-5
        assert without.proved() <= without.exact()


def test_cuts_use_bounds_that_the_other_constraints_do_not_imply() -> None:
    """With z = x in [-1, 1], known to lie in [-1/2, 1/2]: min z / 2 - h is -1/4, and without the edge z = -1 counts."""
    identity = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for parameter in identity.parameters():
            parameter.zero_()
        identity[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        identity[0].bias.copy_(torch.tensor([0.0, 5.0]))  # the second neuron hands x on: h_2 = x + 5
        identity[2].weight.copy_(torch.tensor([[-1.0, 0.5], [0.0, 0.0]]))
        identity[2].bias.copy_(torch.tensor([-2.5, 0.0]))
    relu = relu_network(Classifier(identity.eval(), (1,), 2))
    region = Region(Linf, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    ends = torch.tensor([[[-0.5, 4.5]], [[0.5, 5.5]]], dtype=torch.float64)
    bounds, row = LayerBounds((ends[0],), (ends[1],), "known"), np.array([1.0, 0.0])
    found = []
    for cuts in (True, False):
        relaxation = SemidefiniteProgram.of(relu, region, bounds, cuts)
        w = propose(relaxation, row, BACKENDS["clarabel"])
        assert w is not None
        found.append(relaxation.bound(row, relaxation.polished(row, w)))
    assert found == pytest.approx([-0.25, -0.5], abs=1e-5)


@pytest.mark.parametrize("threat", [Linf, L2], ids=str)
def test_both_solvers_lead_to_the_same_bound(threat: ThreatModel) -> None:
    for seed in range(3):
        problem = Problem("mlp", seed, threat, 0.2)
        assert problem.proved("scs") == pytest.approx(problem.proved("clarabel"), rel=1e-3, abs=1e-3)


def test_one_relu_alone_is_bounded_exactly() -> None:
    """|x| + 0.1 is positive on [-1, 1]; CROWN's lower lines leave -0.9."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        module[2].bias.copy_(torch.tensor([0.1, 0.0]))
    classifier = Classifier(module.eval(), (1,), 2)
    certifier = SDP(solver="clarabel", search=Ladder((1.0,)))
    assert float(certbench.certify(certifier, classifier, torch.zeros(1, 1), Linf).radius) == 1.0


@pytest.mark.parametrize("threat", [Linf, L2], ids=str)
def test_linear_networks_get_their_exact_radius(threat: ThreatModel) -> None:
    classifier, x = network("linear"), torch.cat([point(seed) for seed in range(4)])
    logits, weight = classifier(x), classifier.module[0].weight
    top = logits.argmax(dim=1)
    length = torch.linalg.vector_norm(weight[top][:, None] - weight, ord=threat.q, dim=-1)  # type: ignore[index]
    exact = ((logits.gather(1, top[:, None]) - logits) / length).nan_to_num(math.inf).amin(dim=1)
    certificate = certbench.certify(SDP(), classifier, x, threat)
    assert (certificate.radius <= exact).all()
    torch.testing.assert_close(certificate.radius, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threat", [Linf, L2], ids=str)
def test_radii_are_at_least_crowns_and_no_sample_refutes_them(threat: ThreatModel) -> None:
    classifier, x = network("mlp", 1), torch.cat([point(seed) for seed in range(2)])
    certifier = SDP(solver="clarabel")
    state = certifier.prepare(classifier, threat)
    label = classifier(x).argmax(dim=1)
    crowns = certifier.start(state, x, label).guess / sdp.GROWTH
    radius = certbench.certify(certifier, classifier, x, threat).radius
    assert (radius >= 0.98 * crowns).all()
    assert (radius > 1.02 * crowns).any()
    step = torch.randn(2, 5000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = step / torch.linalg.vector_norm(step, ord=threat.p, dim=-1, keepdim=True) * (1 - 1e-9)
    points = x[:, None] + step * radius[:, None, None]
    assert (classifier(points.flatten(0, 1)).argmax(dim=1).view(2, -1) == label[:, None]).all()


def test_rows_do_not_depend_on_the_batch() -> None:
    classifier, x = network("mlp", 1), torch.cat([point(seed) for seed in range(3)])
    certifier = SDP()
    state = certifier.prepare(classifier, Linf)
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.05, 0.1, 0.3], dtype=torch.float64)
    whole = certifier.margins(state, x, label, eps).lower
    single = torch.cat([certifier.margins(state, x[[i]], label[[i]], eps[[i]]).lower for i in range(3)])
    assert torch.equal(single, whole)


@pytest.mark.parametrize("answer", [math.nan, math.inf, 10.0, -1.0, None], ids=str)
def test_whatever_the_solver_answers_the_bound_is_one(monkeypatch: pytest.MonkeyPatch, answer: float | None) -> None:
    def broken(relaxation: SemidefiniteProgram, row: np.ndarray, backend: Backend) -> np.ndarray | None:
        w = propose(relaxation, row, backend)
        return None if answer is None or w is None else answer * w

    for seed in range(2):
        problem = Problem("mlp", seed, Linf, 0.3)
        state = NetworkState(problem.classifier, Linf, problem.network)
        true = problem.exact()
        with monkeypatch.context() as patch:
            patch.setattr(sdp, "propose", broken)
            lower = SDP(solver="clarabel").lower(state, problem.region.x, problem.rows[:, :1], problem.region.eps).lower
        crown_alone = pytest.approx(problem.crown, rel=1e-12)  # of one row; `problem` bounds all rows in one product
        assert float(lower) == crown_alone or problem.crown < float(lower) <= true
        if answer is None or not math.isfinite(answer):
            assert float(lower) == crown_alone


def test_a_solver_that_stops_early_proves_less_not_more() -> None:
    for name, settings in (("scs", {"max_iters": 3}), ("clarabel", {"max_iter": 2})):
        problem = Problem("mlp", 0, Linf, 0.3)
        backend = replace(BACKENDS[name], settings=settings)
        w = propose(problem.relaxation, problem.row, backend)
        if w is not None:
            bound = problem.relaxation.bound(problem.row, problem.relaxation.polished(problem.row, w))
            assert bound <= problem.exact()
            assert bound <= problem.proved() + 1e-5  # as near to the optimum as a solver's tolerance


def test_constraints_hold_at_points_of_the_ball() -> None:
    for kind, threat in itertools.product(("mlp", "residual"), (Linf, SHIFTED, L2, L2.within(0, 1))):
        problem = Problem(kind, 1, threat, 0.4)
        relaxation, region = problem.relaxation, problem.region
        step = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = region.x + region.eps * step / torch.linalg.vector_norm(step, ord=threat.p, dim=1, keepdim=True)
        x = x if threat.domain is None else x.clamp(*threat.domain)
        low, high = region.box()
        if threat.p == math.inf:
            scaled = (x - (low + high) / 2) / ((high - low) / 2)
        else:
            scaled = (x - region.x) / region.eps * math.sqrt(3) / 2
        hidden = [
            (2 * z.clamp(min=0) / top - 1)[:, problem.bounds.unstable(i)[0]]
            for i, (z, top) in enumerate(zip(problem.network.preactivations(x)[:-1], problem.bounds.upper, strict=True))
        ]
        v = torch.cat([torch.ones(len(x), 1), scaled, *hidden], dim=1).double().numpy()
        values = np.einsum("si,sj->sij", v, v).reshape(len(v), -1) @ relaxation.forms
        assert (values >= -1e-9).all()
        assert (np.abs(values[:, relaxation.free]) <= 1e-9).all()
        assert ((v**2).sum(axis=1) <= relaxation.trace + 1e-9).all()
        assert (v**2 <= relaxation.largest + 1e-9).all()
        np.testing.assert_allclose(v @ relaxation.outputs.rows.T, problem.classifier(x), rtol=1e-9, atol=1e-9)


def test_lift_covers_the_smallest_eigenvalue() -> None:
    generator = np.random.default_rng(0)
    for n in (1, 5, 40):
        for scale in (1e-8, 1.0, 1e8):
            a = generator.standard_normal((n, n)) * scale
            for m in (a + a.T, a @ a.T, np.outer(a[0], a[0]), np.zeros((n, n))):
                least, found = max(0.0, -np.linalg.eigvalsh(m)[0]), lift(m)
                assert least <= found <= least + 1e-9 * (np.abs(m).sum() + 1)
    assert not lift(np.full((3, 3), math.nan)) < math.inf


def test_large_networks_and_other_norms_are_refused_with_the_number() -> None:
    classifier = network("mlp")
    with pytest.raises(UnsupportedError, match=r"dimension 12 .* 11 is the limit"):
        SDP(limit=11).prepare(classifier, Linf)
    assert SDP(limit=12).prepare(classifier, Linf).network.inputs == 3
    with pytest.raises(UnsupportedError, match="L1 is not offered"):
        certbench.certify(SDP(), classifier, point(0), L1)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="solver must be"):
        SDP(solver="mosek")
    with pytest.raises(ConfigError, match="limit must be"):
        SDP(limit=1)


def test_a_ball_in_which_all_signs_are_known_needs_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdp, "propose", None)
    classifier, x = network("mlp"), point(0)
    state = SDP().prepare(classifier, Linf)
    eps = torch.tensor([1e-6], dtype=torch.float64)
    assert not any(layer_bounds(state.network, Region(Linf, x, eps)).unstable(i).any() for i in range(2))
    lower = SDP().margins(state, x, classifier(x).argmax(dim=1), eps).lower
    assert lower.isfinite().all()
