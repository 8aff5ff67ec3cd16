"""Noise at several layers: what each of them proves, against smoothed classifiers that are known exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L1, L2, Classifier, ConfigError, Linf, ThreatModel, UnsupportedError
from certbench.core import options
from certbench.networks.sequences import cut
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.counting import ESTIMATION
from certbench.verifiers.smoothing.hidden_layers import Noises
from certbench.verifiers.smoothing.noise.base import Noise
from certbench.verifiers.smoothing.noise.families import NOISES, Gaussian, Laplace, Uniform
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support.halfspaces import points

pytestmark = pytest.mark.machine

SEEDS = [11, 12, 13, 14]


def affine(weight: list[list[float]], bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.fill_(bias)
    return layer


FIRST = affine([[2.0, 0.5, 0.0, 1.0], [0.0, -1.0, 1.0, 0.0], [0.3, 0.0, 0.0, 1.0]], 0.1)
SECOND = affine([[0.5, 0.2, 0.0], [0.0, 1.0, -1.0]], -0.2)
LAST = affine([[0.0, 0.0], [1.0, -0.25]])


def linear() -> Classifier:
    """Class 1 on a half-space: of the input, and of the features behind "0", "1" and "2"."""
    return Classifier(nn.Sequential(nn.Identity(), FIRST, nn.Sequential(SECOND), LAST).eval(), (4,), 2, "linear")


def margin(x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What decides at each input, and its gradients at the input, the first and the second layer's output."""
    w3 = (LAST.weight[1] - LAST.weight[0]).detach().double()
    w2 = SECOND.weight.detach().double().T @ w3
    w1 = FIRST.weight.detach().double().T @ w2
    bias = w3 @ SECOND.bias.detach().double() + w2 @ FIRST.bias.detach().double() + LAST.bias.detach().double().diff()
    return x @ w1 + bias, [w1, w2, w3]


@pytest.mark.parametrize("layer", [None, "1"])
def test_probabilities_are_those_of_a_sum_of_independent_noises(layer: str | None) -> None:
    x = points(3, 0.3)
    also = (("1", 0.7), ("2.0", 0.5))[layer is not None :]
    certifier = Smoothing(Gaussian(0.3), n=10_000, layer=layer, also=also)
    value, gradients = margin(x)
    sigmas = [0.3, 0.7, 0.5] if layer is None else [0.0, 0.3, 0.5]
    spread = math.sqrt(sum(s**2 * float(g @ g) for s, g in zip(sigmas, gradients, strict=True)))
    certificate = certbench.certify(certifier, linear(), x, L2)
    for true, evidence in zip(ndtr(value.numpy() / spread), certificate.evidence, strict=True):
        assert abs(evidence["counts"][1] / 10_000 - true) < 4 * math.sqrt(true * (1 - true) / 10_000)


@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_bounds_and_radii_are_wrong_no_more_often_than_alpha(rule: str) -> None:
    certifier = Smoothing(Gaussian(0.4), 100, 60, 0.1, rule, "1", (("2.0", 0.4),))  # type: ignore[arg-type]
    x = points(1, -0.4).repeat(200, 1)
    state = certifier.prepare(linear(), L2)
    certificate = certifier.certify(state, x, range(200))
    value, gradients = margin(x[:1])
    spread = 0.4 * math.sqrt(sum(float(g @ g) for g in gradients[1:]))
    true = float(ndtr(float(value) / spread))
    assert 0.7 < true < 0.8 and all(e["selection"][1] > 30 for e in certificate.evidence)
    wrong = sum(e["p_lower"] > true or e["p_upper"] < 1 - true for e in certificate.evidence)
    assert 1 <= wrong <= 36  # Binomial(200, 0.1) is above 36 with probability 2e-4
    beyond = certificate.radius > abs(value) / gradients[0].norm()
    assert int((beyond | (certificate.prediction == 0)).sum()) <= wrong


@pytest.mark.parametrize("family", [Gaussian, Laplace, Uniform])
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_no_radius_is_beyond_the_border_of_the_smoothed_classifier(family: type[Noise], threat: ThreatModel) -> None:
    """Symmetric noise anywhere leaves the border of a linear classifier where it is."""
    x = points(12, 0.3)
    border = margin(x)[0].abs() / torch.linalg.vector_norm(margin(x)[1][0], threat.q)
    for layer, also in ((None, (("1", 0.2), ("2.0", 0.2))), ("1", (("2.0", 0.3),))):
        certificate = certbench.certify(Smoothing(family(0.3), n=2000, layer=layer, also=also), linear(), x, threat)
        assert (certificate.radius > 0).any()
        assert (certificate.radius <= border).all()


def density(noise: Noise, t: np.ndarray) -> np.ndarray:
    if isinstance(noise, Gaussian):
        return np.exp(-((t / noise.sigma) ** 2) / 2)
    scale = noise.scale(1)
    return np.exp(-np.abs(t) / scale) if isinstance(noise, Laplace) else (np.abs(t) <= scale).astype(float)


@pytest.mark.parametrize("later", [Gaussian(0.3), Laplace(0.3), Uniform(0.6)], ids=lambda noise: type(noise).__name__)
@pytest.mark.parametrize("earlier", [0.05, 0.5])
def test_a_later_layer_certifies_what_is_random_before_it(later: Noise, earlier: float) -> None:
    """On the line, by integration: g(x) = E u(fold(x + earlier noise)), u(z) = P[z + later noise in U], U random."""
    grid = np.linspace(-6, 6, 2401)
    step, stream = grid[1] - grid[0], np.random.default_rng(0)
    tightest = 0.0
    for _ in range(12):
        member = np.searchsorted(np.sort(stream.uniform(-3, 3, 7)), grid) % 2
        kernel = density(later, grid)
        u = np.convolve(member, kernel / kernel.sum(), "same")
        folded = np.abs(np.mod(grid + 1.0, 4.0) - 2.0) - 1.0  # slope 1 or -1
        hidden = np.interp(folded, grid, u)
        kernel = density(Gaussian(earlier), grid)
        g = np.convolve(hidden, kernel / kernel.sum(), "same")[800:1601]  # away from the ends
        other = np.abs(np.arange(801)[:, None] - np.arange(801)) * step
        differs = (g[:, None] > 0.5) != (g > 0.5)
        nearest = np.where(differs, other, math.inf).min(axis=1)
        for p, distance in zip(np.clip(g, 0, 1)[::5], nearest[::5], strict=True):
            radius = later.radius(max(p, 1 - p), min(p, 1 - p), 2.0, 1)
            assert radius <= distance + step
            tightest = max(tightest, radius / distance)
    assert tightest > 0.3


def test_the_radius_is_the_largest_that_a_layer_proves_and_the_evidence_has_them_all() -> None:
    x = points(4, 0.4)
    small, large = 0.05, 5.0
    for also, winner in (((("2.0", small),), 0), ((("2.0", large),), 1)):
        certifier = Smoothing(Gaussian(0.5), n=2000, layer="1", also=also)
        for evidence, radius in zip(*_found(certifier, x), strict=True):
            assert len(evidence["radii"]) == 2 and radius == max(evidence["radii"]) == evidence["radii"][winner]
            (later,) = evidence["also"]
            assert (evidence["layer"], later["layer"], later["sigma"]) == ("1", "2.0", also[0][1])
            assert (evidence["dimension"], later["dimension"]) == (3, 2)
            exact = float(torch.linalg.matrix_norm((SECOND.weight @ FIRST.weight).detach().double(), 2))
            assert later["constants"]["2"] == pytest.approx(exact, rel=1e-6)
            bounds = (evidence["p_lower"], evidence["p_upper"])
            by_hand = Gaussian(also[0][1]).radius(*bounds, 2.0, 2) / exact
            assert evidence["radii"][1] == pytest.approx(by_hand, rel=1e-6)


def _found(certifier: Smoothing, x: Tensor) -> tuple[tuple[dict[str, object], ...], list[float]]:
    certificate = certbench.certify(certifier, linear(), x, L2)
    assert (certificate.prediction == 1).all()
    return certificate.evidence, certificate.radius.tolist()  # type: ignore[return-value]


@pytest.mark.parametrize("share", [None, 5])
@pytest.mark.parametrize("layer", [None, "1"])
def test_neither_order_nor_batches_nor_interruptions_matter(
    layer: str | None, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    certifier = Smoothing(Gaussian(0.3), layer=layer, also=(("2", 0.2), ("4", 0.2)), share=share)
    state, x = certifier.prepare(network("mlp"), L2), inputs(4)
    counter = replace(state.counter, key="modules of a tested package have no fingerprint")
    z = certifier._features(counter, state.prefix, x)
    whole = counter.count(z, 2500, SEEDS, ESTIMATION)
    assert (whole.sum(dim=1) == 2500).all()
    assert torch.equal(counter.count(z, 2500, SEEDS, ESTIMATION), whole)
    counting._COUNTED.clear()
    order = [2, 0, 3, 1]
    assert (counter.count(z[order], 1300, [SEEDS[i] for i in order], ESTIMATION) <= whole[order]).all()
    one_by_one = [counter.count(z[i : i + 1], 2500, [SEEDS[i]], ESTIMATION) for i in range(4)]
    assert torch.equal(torch.cat(one_by_one), whole)


def test_noise_that_hardly_moves_anything_changes_no_count() -> None:
    x = points(3, 0.2)
    plain, more = (
        certbench.certify(Smoothing(Gaussian(0.5), n=1500, layer="1", also=also), linear(), x, L2)
        for also in ((), (("2.0", 1e-12),))
    )
    assert [e["counts"] for e in plain.evidence] == [e["counts"] for e in more.evidence]
    assert torch.equal(plain.radius, more.radius)
    assert "also" not in plain.evidence[0]


def test_the_noise_of_each_layer_has_draws_of_its_own() -> None:
    joint = Noises(((Gaussian(1.0), 3), (Gaussian(1.0), 3), (Gaussian(2.0), 1)))
    drawn = joint.sample(np.random.default_rng(0), 20_000, 7)
    assert drawn.shape == (20_000, 7)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(7)).max() < 0.04
    assert np.abs(drawn.std(axis=0) / [1, 1, 1, 1, 1, 1, 2] - 1).max() < 0.03


def test_predictions_are_of_the_same_smoothed_classifier() -> None:
    certifier = Smoothing(Gaussian(0.2), n=500, layer="1", also=(("2.0", 0.2),))
    far = points(3, 2.0)
    assert (certifier.predict(linear(), far) == 1).all()
    assert (certbench.certify(certifier, linear(), far, L2).prediction == 1).all()
    value, gradients = margin(points(3, 0.0))
    near = points(3, 0.0) - (value / (gradients[0] @ gradients[0]))[:, None] * gradients[0]
    assert (Smoothing(Gaussian(0.2), n=500, also=(("1", 0.2),)).predict(linear(), near) == ABSTAIN).all()


class Opaque(nn.Module):
    """Has no Lipschitz constant that anybody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sign() ** 2


def test_predicting_needs_no_lipschitz_constant() -> None:
    classifier = Classifier(nn.Sequential(Opaque(), *linear().module).eval(), (4,), 2)
    certifier = Smoothing(Gaussian(0.2), n=500, layer="2", also=(("3.0", 0.2),))
    assert (certifier.predict(classifier, points(3, 2.0)) == 1).all()
    with pytest.raises(UnsupportedError):
        certbench.certify(certifier, classifier, points(1, 2.0), L2)


def test_layers_that_are_not_there_or_in_another_order_are_refused() -> None:
    def refused(why: str, *also: tuple[str, float], layer: str | None = None) -> None:
        with pytest.raises(UnsupportedError, match=why):
            certbench.certify(Smoothing(n=10, layer=layer, also=also), linear(), points(1, 0.0), L2)

    refused("'1' does not come after '2.0'; write layers in order", ("1", 0.1), layer="2.0")
    refused("'1' does not come after '2.0'", ("2.0", 0.1), ("1", 0.1))
    refused("'1' does not come after '1'", ("1", 0.1), layer="1")
    refused("'7' is no layer .* known: 0, 1, 2.0, 3", ("7", 0.1))
    refused("'3' is no layer before the last", ("3", 0.1), layer="1")
    with pytest.raises(UnsupportedError, match="goes around 'inner'"):
        certbench.certify(Smoothing(n=10, also=(("inner", 0.1),)), network("residual"), inputs(1), L2)


def test_options_that_no_run_could_use_are_refused() -> None:
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError) as caught:
            Smoothing(also=(("1", sigma),))
        assert caught.value.path == ("also", 0, 1)
    with pytest.raises(ConfigError, match="features of a layer are not"):
        Smoothing(IntegerGaussian(), also=(("1", 0.1),))


def test_specifications_name_the_layers() -> None:
    built = options.build({"name": "smoothing", "layer": "1", "also": [["2.0", "1/4"]]})
    assert built == Smoothing(layer="1", also=(("2.0", 0.25),))
    assert options.build(options.describe(built)) == built
    assert hash(built) == hash(Smoothing(layer="1", also=(("2.0", 0.25),)))


@pytest.mark.parametrize("name", NOISES)
def test_every_noise_has_the_concave_rate_that_a_later_layer_needs(name: str) -> None:
    """The rate is one over the slope of the height: radii from p to 1 - p, where the argument of odd heights is used.

    Total variation gives radii that are linear in p, for which no more is needed; their rate is constant.
    """
    noise, d = NOISES[name](1.0), 5
    p = np.linspace(0.5, 0.97, 48)
    for norm in noise.direct(0.6, 0.4, d):
        heights = np.array([noise.direct(t, 1 - t, d)[norm] for t in p[1:]])
        if name in ("uniform", "uniform-ball"):
            continue
        rates = np.diff(p[1:]) / np.diff(heights)
        assert (np.diff(rates, 2) <= 1e-6 * rates.max()).all()
        assert (np.diff(rates) <= 1e-6 * rates.max()).all()


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_stands_in_two_places_is_in_both_parts(nested: bool) -> None:
    """Where everything is cut off below 0 twice, the second time nothing is left: class 1, always."""
    relu, eye = nn.ReLU(), torch.eye(2)
    layers = [affine(eye.tolist()), relu, affine((-eye).tolist()), relu, affine([[-1.0, 0.0], [0.0, 0.0]])]
    with torch.no_grad():
        layers[-1].bias.copy_(torch.tensor([0.0, 0.5]))  # type: ignore[operator, union-attr]
    module = nn.Sequential(layers[0], nn.Sequential(*layers[1:4]), layers[4]) if nested else nn.Sequential(*layers)
    classifier = Classifier(module.eval(), (2,), 2)
    assert [len(part) for part in cut(classifier, "0")] == [1, 4]
    x = torch.full((1, 2), 3.0, dtype=torch.float64)
    for settings in ({"layer": "0"}, {"also": (("0", 0.25),)}):
        found = certbench.certify(Smoothing(n=200, **settings), classifier, x, L2)  # type: ignore[arg-type]
        assert found.prediction == classifier(x).argmax(dim=1) == 1
        assert found.evidence[0]["counts"] == [0, 200]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_before_a_noise_are_refused(dtype: torch.dtype) -> None:
    """Their roundings move features by more than a Lipschitz constant says."""
    classifier = Classifier(linear().module.to(dtype), (4,), 2)  # type: ignore[arg-type]
    try:
        for settings in ({"layer": "1"}, {"also": (("1", 0.3),)}):
            certifier = Smoothing(n=100, **settings)  # type: ignore[arg-type]
            for use in (certbench.certify, lambda made, f, x, threat: made.predict(f, x)):
                with pytest.raises(UnsupportedError, match=r"float16, whose roundings .* convert it to float32"):
                    use(certifier, classifier, points(1, 0.3), L2)
        assert certbench.certify(Smoothing(n=100), classifier, points(1, 3.0), L2).prediction == 1
    finally:
        classifier.module.float()


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_before_a_noise_leave_the_callers_inputs_alone_and_need_no_parameters(inplace: bool) -> None:
    module = nn.Sequential(nn.Flatten(), nn.ReLU(inplace), affine([[1.0, 0.0], [0.0, 1.0]])).eval()
    x = torch.tensor([[-1.0, 2.0], [0.3, -0.1]], dtype=torch.float64)
    for classifier in (Classifier(module, (2,), 2), Classifier(module, (2,), 2).double()):
        for settings in ({"layer": "1"}, {"layer": "0", "also": (("1", 0.3),)}):
            certifier, mine = Smoothing(n=100, **settings), x.clone()  # type: ignore[arg-type]
            found = certbench.certify(certifier, classifier, mine, L2)
            certifier.predict(classifier, mine)
            assert torch.equal(mine, x) and found.prediction.tolist() == [1, 0]
