import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from certbench import Classifier, ThreatModel
from certbench.errors import ConfigError, NumericalError
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from tests.support.constants import P, prepare, table, wrap

DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


class Normalise(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.shortcut = nn.Conv2d(4, 8, 1, 2)
        self.activation = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.activation(self.norm(self.stem(x)))
        y = self.second(functional.relu(self.first(x)))
        y += self.shortcut(x)
        y = torch.add(y.relu(), functional.gelu(y))
        return self.head(functional.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


class Functional(nn.Module):
    """The forms that a hand-written forward uses."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(48, 10), nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu((x - 0.5) * 2.0)
        x = functional.max_pool2d(functional.leaky_relu(self.conv(x), 0.2), 3, stride=2, padding=1)
        x = functional.dropout(torch.flatten(x, 1), 0.5, self.training)
        return self.head(torch.sigmoid(3 * functional.linear(x, self.fc.weight, self.fc.bias)).reshape(x.shape[0], 10))


def build(name):
    torch.manual_seed(0)
    shape = (2, 8, 8)
    module = {
        "linear": lambda: nn.Linear(6, 4),
        "mlp": lambda: nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 4)),
        "thin": lambda: nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 4)),
        "last is no linear layer": lambda: nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4), nn.ELU(2.0)),
        "batch norms": lambda: nn.Sequential(
            *(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.SiLU(), nn.BatchNorm1d(20), nn.Linear(20, 4), nn.BatchNorm1d(4))
        ),
        "cnn": lambda: nn.Sequential(
            *(Normalise([0.4, 0.6], [0.2, 0.3]), nn.Conv2d(2, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 6, 3, groups=3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Dropout(), nn.Linear(6, 4)),
        ),
        "wide cnn": lambda: nn.Sequential(
            *(nn.Conv2d(2, 36, 3, 1, 1), nn.ReLU(), nn.Conv2d(36, 20, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Flatten(), nn.Linear(80, 4)),
        ),
        "normalised and flat": lambda: nn.Sequential(
            *(Normalise([0.4, 0.6], [0.2, 0.3]), nn.Flatten(), nn.Tanh(), nn.Unflatten(1, (2, 8, 8)), nn.Flatten()),
            nn.Linear(128, 4),
        ),
        "residual": Residual,
        "functional": Functional,
    }[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.1, 2.0)
            nn.init.normal_(layer.weight)
    if next(module.parameters()).shape[-1] == 6:
        shape = (6,)
    return Classifier(module.eval(), shape, 4, name)


ZOO = (
    *("linear", "mlp", "thin", "last is no linear layer", "batch norms"),
    *("normalised and flat", "cnn", "wide cnn", "residual", "functional"),
)


def certify(classifier, x, p):
    return LayerwiseLipschitz().certify(prepare(classifier, p), x.double(), [0] * len(x))


def steepest(classifier, c, j, q, x, steps=4):
    """Largest dual norm of the gradient of f_c - f_j that a few ascent steps find."""

    def slope(x):
        logits = classifier.module(x)
        (gradient,) = torch.autograd.grad((logits[:, c] - logits[:, j]).sum(), x, create_graph=True)
        return torch.linalg.vector_norm(gradient.flatten(1), q, dim=1)

    best = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        found = slope(x)
        best = torch.maximum(best, found.detach())
        if not found.requires_grad:
            break
        (ascent,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
        x = x + (0 if ascent is None else 0.3 * ascent.sign())
    return float(best.max())


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("name", ZOO)
def test_no_pair_of_points_is_steeper_than_its_constant(name, p):
    classifier = build(name)
    exact = classifier.double()
    constants = prepare(classifier, p).constants[:-1, :-1]
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(100, *classifier.input_shape, generator=generator, dtype=torch.float64)
    far = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    spike = far * (far.abs() == far.abs().flatten(1).amax(1).reshape(-1, *[1] * (x.dim() - 1)))
    for delta in (far, 1e-3 * far, far.sign(), 1e-3 * far.sign(), spike, 1e-3 * spike):
        moved = exact(x + delta) - exact(x)
        ratio = (moved[:, :, None] - moved[:, None]).abs() / delta.flatten(1).norm(p, dim=1)[:, None, None]
        assert bool((ratio <= constants * (1 + 1e-9) + 1e-12).all())
    for c in range(4):
        for j in range(c):
            found = steepest(exact, c, j, DUAL[p], x[:40])
            assert found <= float(constants[c, j]) * (1 + 1e-9)
            assert found >= 1e-4 * float(constants[c, j])  # else the test could not fail
    assert torch.equal(constants, constants.T) or torch.allclose(constants, constants.T, rtol=1e-12)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("kind", ["linear", "normalised", "two layers", "scaled logits"])
def test_linear_classifiers_meet_the_closed_form(kind, p):
    torch.manual_seed(0)
    shape, module = {
        "linear": ((5,), nn.Linear(5, 4)),
        "normalised": ((2, 3, 3), nn.Sequential(Normalise([0.1, 0.5], [0.2, 0.7]), nn.Flatten(), nn.Linear(18, 4))),
        "two layers": ((5,), nn.Sequential(nn.Linear(5, 9), nn.Identity(), nn.Linear(9, 4))),
        "scaled logits": ((2, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.BatchNorm1d(4))),
    }[kind]
    classifier = Classifier(module.eval(), shape, 4, kind)
    x = torch.rand(20, *shape, dtype=torch.float64)
    exact = classifier.double()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    eye = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *shape)
    weight, logits = (exact(eye) - exact(zero)).T, exact(x)
    c = logits.argmax(1)
    ratio = (logits.gather(1, c[:, None]) - logits) / torch.linalg.vector_norm(weight[c][:, None] - weight, DUAL[p], 2)
    true = ratio.scatter(1, c[:, None], math.inf).amin(1)
    radius = certify(classifier, x, p).radius
    assert torch.allclose(radius, true, rtol=1e-6, atol=1e-8)
    assert bool((radius <= true).all())


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("a, b, c", [(6, 8, 7), (2, 50, 40)])
def test_positive_weights_are_exact(a, b, c, p):
    torch.manual_seed(0)
    classifier = wrap(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, 4), shape=(a,))
    layers = [layer for layer in classifier.module if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.weight.data.abs_()
    layers[-1].weight.data[1:] *= -1
    row, *others = layers[-1].weight.double()
    product = (row - others[1]) @ layers[1].weight.double() @ layers[0].weight.double()
    assert float(prepare(classifier, p).constants[0, 2]) == pytest.approx(
        float(product.detach().norm(DUAL[p])), rel=1e-9
    )


def test_the_2_norm_chain_is_that_of_gloro():
    classifier = build("mlp")
    first, _, second, _, last = classifier.double().module
    body = torch.linalg.matrix_norm(first.weight, 2) * torch.linalg.matrix_norm(second.weight, 2)
    state = prepare(classifier, 2.0)
    gloro = body * torch.linalg.vector_norm(last.weight[:, None] - last.weight, dim=2)
    assert torch.allclose(state.constants[:-1, :-1], gloro, rtol=1e-8)
    assert math.prod(layer["2->2"] for layer in state.facts["layers"].values()) == pytest.approx(float(body), rel=1e-8)


def test_mixed_chains_beat_both_pure_ones():
    torch.manual_seed(0)
    classifier = wrap(nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4))
    first, _, second, _, last = classifier.double().module
    for p in (1.0, math.inf):
        rows = last.weight[:, None] - last.weight
        pure = torch.linalg.matrix_norm(first.weight, p) * torch.linalg.matrix_norm(second.weight, p)
        pure = pure * torch.linalg.vector_norm(rows, DUAL[p], dim=2)
        through = torch.linalg.matrix_norm(first.weight, 2) * torch.linalg.matrix_norm(second.weight, 2)
        through = through * rows.norm(dim=2) * (1 if p == 1 else math.sqrt(6))
        found, other = prepare(classifier, p).constants[:-1, :-1], ~torch.eye(4, dtype=torch.bool)
        assert bool((found < torch.minimum(pure, through))[other].all())


@pytest.mark.parametrize("p", P)
def test_scaling_and_shifting_the_logits_leaves_radii_alone(p):
    classifier, scaled, shifted = (build("cnn").double() for _ in range(3))
    scaled.module[-1].weight.data *= 7.3
    scaled.module[-1].bias.data *= 7.3
    shifted.module[-1].weight.data += 1.0
    x = torch.rand(8, 2, 8, 8, dtype=torch.float64)
    radius = certify(classifier, x, p).radius
    assert bool((radius > 0).all())
    assert torch.allclose(certify(scaled, x, p).radius, radius, rtol=1e-9)
    assert torch.allclose(certify(shifted, x, p).radius, radius, rtol=1e-6)


def test_ties_certify_nothing():
    classifier = wrap(nn.Linear(6, 4))
    classifier.module[0].weight.data[1] = classifier.module[0].weight.data[0]
    classifier.module[0].bias.data[:] = torch.tensor([5.0, 5.0, 0.0, 0.0])
    certificate = certify(classifier, torch.zeros(3, 6), 2.0)
    assert certificate.radius.tolist() == [0.0] * 3


def test_a_constant_classifier_is_certified_everywhere():
    classifier = wrap(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    classifier.module[2].weight.data.zero_()
    classifier.module[2].bias.data[:] = torch.tensor([0.0, 1.0, 0.5, 0.0])
    certificate = certify(classifier, torch.rand(2, 6), math.inf)
    assert certificate.radius.tolist() == [1e4] * 2 and certificate.prediction.tolist() == [1, 1]
    classifier.module[2].bias.data.zero_()
    assert certify(classifier, torch.rand(2, 6), math.inf).radius.tolist() == [0.0] * 2


def test_a_weight_that_is_no_number_certifies_nothing():
    for bad in (math.nan, math.inf):
        for index in (0, 2):
            classifier = wrap(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
            classifier.module[index].weight.data[0, 0] = bad
            with pytest.raises(NumericalError):
                prepare(classifier, 2.0)


def test_infinite_logits_certify_nothing():
    classifier = wrap(nn.Linear(6, 4))
    classifier.module[0].bias.data[:] = torch.tensor([math.inf, 0.0, 0.0, 0.0])
    with pytest.raises(NumericalError, match="infinite"):
        certify(classifier, torch.rand(2, 6), 2.0)


@pytest.mark.parametrize("p", P)
def test_predictions_hold_inside_the_ball(p):
    classifier = build("thin")
    x = torch.randn(40, 6, dtype=torch.float64)
    certificate = certify(classifier, x, p)
    exact = classifier.double()
    for _ in range(30):
        delta = torch.randn(40, 6, dtype=torch.float64)
        delta = delta.sign() if p == math.inf else delta
        delta = delta / delta.norm(p, dim=1, keepdim=True) * certificate.radius[:, None] * (1 - 1e-9)
        assert torch.equal(exact(x + delta).argmax(1), certificate.prediction)


def test_evidence_is_json_and_rechecks_the_radius():
    classifier = build("residual")
    x = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    certificate = certify(classifier, x, 2.0)
    logits = classifier.double()(x)
    for i, evidence in enumerate(certificate.evidence):
        constants = json.loads(json.dumps(evidence))["constants"]
        c = int(certificate.prediction[i])
        again = min(float(logits[i, c] - logits[i, j]) / constants[j] for j in range(4) if j != c)
        assert float(certificate.radius[i]) == pytest.approx(again, rel=1e-6)
        assert set(evidence["layers"]) >= {"stem+norm", "first", "second"}


def test_batches_give_the_same_radii():
    classifier = build("cnn")
    x = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    state = prepare(classifier, 2.0)
    whole = LayerwiseLipschitz().certify(state, x, [0] * 6).radius
    single = torch.cat([LayerwiseLipschitz().certify(state, row[None], [0]).radius for row in x])
    assert torch.allclose(whole, single, rtol=1e-9)


RULES = ["best", "pairwise", "absolute", "tsuzuku", "centred", "naive"]


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_bounds_pairs_and_single_logits(rule, p):
    classifier = build("thin")
    constants, exact = table(classifier, p, rule), classifier.double()
    x = 2 * torch.randn(4000, 6, dtype=torch.float64)
    delta = torch.randn(4000, 6, dtype=torch.float64) * torch.logspace(-3, 1, 4000, dtype=torch.float64)[:, None]
    moved = torch.nn.functional.pad(exact(x + delta) - exact(x), (0, 1))
    ratio = (moved[:, :, None] - moved[:, None]).abs() / delta.norm(p, dim=1)[:, None, None]
    assert (ratio <= constants * (1 + 1e-9)).all()
    assert torch.equal(constants, constants.T) and (constants.diagonal() == 0).all()


def test_rules_by_their_formulas():
    torch.manual_seed(0)
    first, last = nn.Linear(6, 5), nn.Linear(5, 4)
    classifier = wrap(first, nn.ReLU(), last)
    w, v = first.weight.detach().double(), last.weight.detach().double()
    body, differences = torch.linalg.matrix_norm(w, 2), v[:, None] - v
    expected = {
        "pairwise": body * differences.norm(dim=2),
        "absolute": (differences.abs() @ w.abs()).norm(dim=2),
        "tsuzuku": math.sqrt(2) * body * torch.linalg.matrix_norm(v, 2).expand(4, 4),
        "centred": math.sqrt(2) * body * torch.linalg.matrix_norm(v - v.mean(dim=0), 2).expand(4, 4),
        "naive": 2 * body * v.norm(dim=1).max().expand(4, 4),
    }
    expected["best"] = torch.minimum(expected["pairwise"], expected["absolute"])
    for rule, constants in expected.items():
        found = table(classifier, 2.0, rule)[:-1, :-1]
        torch.testing.assert_close(found, constants * (1 - torch.eye(4)), rtol=1e-8, atol=0)


def test_orders_of_the_rules_that_are_theorems():
    for name in ("thin", "cnn", "residual"):
        best, pairwise, tsuzuku, centred = (
            table(build(name), 2.0, rule)[:-1, :-1] for rule in ("best", "pairwise", "tsuzuku", "centred")
        )
        assert (best <= pairwise).all()
        assert (pairwise <= centred * (1 + 1e-9)).all() and (centred <= tsuzuku * (1 + 1e-9)).all()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="rule must be one of best, pairwise"):
        LayerwiseLipschitz(rule="gloro")


def test_a_row_with_an_entry_too_small_to_be_summed_is_no_plain_difference():
    classifier = wrap(nn.Linear(6, 4))
    certifier = LayerwiseLipschitz()
    state = certifier.prepare(classifier, ThreatModel(2.0))
    rows = torch.tensor([[1.0, -1.0, -1e-17, 0.0]], dtype=torch.float64).expand(1, 1, -1)
    bounds = certifier.lower(state, torch.zeros(1, 6, dtype=torch.float64), rows, torch.ones(1, dtype=torch.float64))
    assert bounds.slope[0, 0] > state.constants[0, 1]
