"""CLEVER: the numbers it should give, and that it is an estimate, which no certificate contains."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Certificate, Classifier, Linf, ThreatModel
from certbench.attacks.clever import _endpoint, _sample, clever
from certbench.errors import ConfigError
from certbench.testing import closed_form, inputs, network
from tests.support.holes import Hole

pytestmark = pytest.mark.machine

FEW = {"batches": 5, "samples": 20}


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_on_a_linear_network_it_is_the_closed_form(threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(6)
    exact = closed_form(classifier, x, threat)
    found = clever(classifier, x, threat, radius=100.0, **FEW)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)
    capped = clever(classifier, x, threat.within(0, 1), radius=float(exact.median()), **FEW)
    torch.testing.assert_close(capped, exact.clamp(max=float(exact.median())), rtol=1e-9, atol=0)


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_it_is_at_most_what_the_largest_sampled_gradient_allows(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(3)
    found = clever(classifier, x, threat, radius=1e-3, **FEW)
    steep = closed_form_at(classifier, x, threat)
    assert (found <= steep.clamp(max=1e-3) * (1 + 1e-9)).all()  # the ball is so small that the gradient is the same
    assert (clever(classifier, x, threat, radius=5.0, **FEW) <= 5.0).all()


def closed_form_at(classifier: Classifier, x: Tensor, threat: ThreatModel) -> Tensor:
    """The least margin over dual norm of its gradient, both at the inputs themselves."""
    exact, result = classifier.double(), []
    for point in x:
        jacobian = torch.autograd.functional.jacobian(lambda z: exact.module(z[None])[0], point).flatten(1)
        logits = exact(point[None])[0]
        label = int(logits.argmax())
        norms = torch.linalg.vector_norm(jacobian[label] - jacobian, ord=threat.q, dim=1)
        result.append(((logits[label] - logits) / norms).nan_to_num(math.inf).amin())
    return torch.stack(result)


def test_an_input_and_the_seed_decide_nothing_else_does() -> None:
    classifier, x = network("mlp"), inputs(4)
    state = torch.get_rng_state()
    found = clever(classifier, x, L2, radius=1.0, **FEW)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(clever(classifier, x[[2, 0]], L2, radius=1.0, **FEW), found[[2, 0]])
    assert (clever(classifier, x, L2, radius=1.0, seed=1, **FEW) != found).any()
    assert clever(classifier, x[:0], L2, radius=1.0).shape == (0,)


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_samples_are_uniform_in_the_ball_and_stay_in_the_domain(threat: ThreatModel) -> None:
    x, generator = torch.full((1, 3), 0.1, dtype=torch.float64), torch.Generator().manual_seed(0)
    change = (_sample(x, threat, 2.0, 20_000, generator) - x).flatten(1)
    length = torch.linalg.vector_norm(change, ord=threat.p, dim=1) / 2
    assert length.amax() <= 1 + 1e-9
    for share in (0.3, 0.6, 0.9):
        assert float((length < share).double().mean()) == pytest.approx(share**3, abs=0.015)
    assert change.mean(dim=0).abs().amax() < 0.03
    clipped = _sample(x, threat.within(0, 1), 2.0, 100, generator)
    assert clipped.amin() == 0 and clipped.amax() == 1


def test_the_endpoint_of_a_known_distribution_is_found() -> None:
    generator = np.random.default_rng(0)
    for shape in (1.5, 3.0, 5.0):
        maxima = 10 - 2 * generator.weibull(shape, size=500)
        assert maxima.max() <= _endpoint(maxima) == pytest.approx(10, abs=0.4)
        assert _endpoint(maxima * 1e-6) == pytest.approx(_endpoint(maxima) * 1e-6, rel=1e-3)


def test_the_endpoint_is_finite_where_the_likelihood_has_no_maximum() -> None:
    for draw in (np.random.default_rng(1).gumbel, np.random.default_rng(1).exponential):
        maxima = 10 + draw(size=50)
        top, spread = maxima.max(), maxima.max() - maxima.min()
        assert top <= _endpoint(maxima) <= top + 5 * spread
    assert [_endpoint(np.array(same)) for same in ([3.0], [3.0] * 9, [0.0] * 9, [3.0, 3.0 + 1e-12])] == [
        3,
        3,
        0,
        3 + 1e-12,
    ]


def constant(biases: list[float]) -> Classifier:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, len(biases)))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor(biases))
    return Classifier(module.eval(), (1, 4, 4), len(biases))


class Detached(nn.Module):
    """Its logits have no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :3]


def test_where_there_is_no_gradient_to_speak_of() -> None:
    x = inputs(3)
    assert clever(constant([1.0, 0.0]), x, L2, radius=2.5, **FEW).tolist() == [2.5] * 3
    assert clever(constant([1.0, 1.0, 0.0]), x, L2, radius=2.5, **FEW).tolist() == [0.0] * 3
    assert clever(Classifier(Detached().eval(), (1, 4, 4), 3), x, L2, radius=1.0, **FEW).isnan().all()


def test_nan_logits_give_no_estimate() -> None:
    torch.manual_seed(0)
    classifier, x = Classifier(Hole().eval(), (1, 4, 4), 4), inputs(8)
    hole = x[:, 0, 0, 0] > 0.5
    found = clever(classifier, x, L2, radius=1e-6, **FEW)
    assert 0 < hole.sum() < 8
    assert torch.equal(found.isnan(), hole)


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"radius": math.inf}, {"batches": 0}, {"samples": 0}], ids=str)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive and finite"):
        clever(network("linear"), inputs(1), L2, **{"radius": 1.0, **options})  # type: ignore[arg-type]


def cliff() -> Classifier:
    """Flat but for a cliff at x_0 = 0.3, so steep and narrow that no sample meets it: a masked gradient."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1e6, 0.0], [1e6, 0.0]]))
        module[0].bias.copy_(torch.tensor([-300_000.0, -300_001.0]))
        module[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
        module[2].bias.copy_(torch.tensor([0.5, 0.0]))
    return Classifier(module.eval(), (2,), 2, "cliff")


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_an_estimate_may_lie_far_beyond_a_counterexample_and_no_certificate_does(threat: ThreatModel) -> None:
    classifier, threat = cliff(), threat.within(0, 1)
    x = torch.tensor([[0.05, 0.5], [0.2, 0.1], [0.9, 0.5]], dtype=torch.float64)
    beyond = x.clone()
    beyond[:, 0] = torch.tensor([0.300001, 0.300001, 0.3])  # over the cliff; an attack may or may not find the way
    assert (classifier.double()(beyond).argmax(dim=1) != classifier.double()(x).argmax(dim=1)).all()
    distance = (beyond - x).norm(dim=1)  # in every norm, as one number changes
    estimate = clever(classifier, x, threat, radius=0.8)
    assert (estimate > distance * 1.2).all()
    assert isinstance(estimate, Tensor) and not isinstance(estimate, Certificate)
    for name in ("lipschitz", "crown", "wong-kolter"):
        certificate = certbench.certify(name, classifier, x, threat)
        assert (certificate.radius <= distance).all()
        assert "clever" not in str(certificate.evidence)
