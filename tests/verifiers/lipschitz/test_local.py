"""Local Lipschitz constants against sampled Jacobians, quotients and attacks, and the orders that are theorems."""

import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, ThreatModel, UnsupportedError
from certbench.attacks.battery import attack
from certbench.core.margins import margin_rows
from certbench.core.search import Secant
from certbench.networks.reading import relu_network
from certbench.networks.relu import ReluNetwork
from certbench.numerics.spectral import spectral
from certbench.testing import closed_form, inputs, network, sample_ball
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz import fast_lip
from certbench.verifiers.lipschitz.fast_lip import FastLip, RecurJac
from certbench.verifiers.lipschitz.local import LocalLipschitz, Slopes
from certbench.verifiers.lipschitz.masked_product import MaskedProduct, _first, spectra

NORMS = [L1, L2, Linf]
KINDS = ["mlp", "cnn", "residual", "skip"]
PLAIN: list[LocalLipschitz] = [FastLip(), RecurJac(), MaskedProduct()]
CHORDS: list[LocalLipschitz] = [FastLip(chords=True, gram=True), RecurJac(chords=True), MaskedProduct(chords=True)]


def short(certifier: LocalLipschitz) -> str:
    return f"{type(certifier).__name__}-{'chords' if certifier.chords else 'tangents'}"


def mlp(*sizes: int, seed: int = 0) -> Classifier:
    """A random network with hidden layers of these sizes between, gains such that slopes matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers[::2]:
        layer.weight.data.mul_(2)  # type: ignore[union-attr, operator]
    return Classifier(nn.Sequential(*layers[:-1]).eval(), (sizes[0],), sizes[-1], f"mlp-{seed}")


class Skip(nn.Module):
    """A sum that skips a ReLU; `network("residual")` has one that does not, and folds into a plain chain."""

    def __init__(self, from_input: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.from_input = from_input

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        z = torch.relu(self.first(x))
        return self.last((x if self.from_input else z) + torch.relu(self.inner(z)))


def net(kind: str, from_input: bool = False) -> Classifier:
    if kind != "skip":
        return network(kind)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Classifier(Skip(from_input).eval(), (1, 4, 4), 4, "skip")


class Question:
    """A network, inputs, rows of margins and radii at which many ReLUs are open."""

    def __init__(self, classifier: Classifier, x: Tensor, threat: ThreatModel, scale: float = 1.0) -> None:
        self.x, self.state, classes = x, NetworkState.of(classifier, threat), classifier.num_classes
        self.rows = margin_rows(classifier.double()(x).argmax(dim=1), classes)
        widest = {1.0: 0.8, 2.0: 0.4, math.inf: 0.1}[threat.p] * scale
        self.eps = torch.linspace(widest / 8, widest, len(x), dtype=torch.float64)
        self.region = Region(threat, x.flatten(1), self.eps)
        self.bounds = layer_bounds(self.state.network, self.region)

    def slope(self, certifier: LocalLipschitz) -> Tensor:
        with torch.no_grad():
            return certifier.steepness(self.state, self.region, self.rows, self.bounds).slope

    def slopes(self, chords: bool) -> Slopes:
        if chords:
            return Slopes.chords(self.bounds, self.state.network, self.region.x)
        return Slopes.tangents(self.bounds)


@cache
def question(kind: str, threat: ThreatModel) -> Question:
    asked = Question(net(kind), inputs(6), threat, 3.0 if kind == "skip" else 1.0)
    assert all(bool(asked.bounds.unstable(i).any()) for i in range(len(asked.bounds.lower)))
    return asked


def refused(certifier: LocalLipschitz, kind: str) -> bool:
    return kind == "skip" and not isinstance(certifier, FastLip)


def jacobian(net: ReluNetwork, slopes: list[Tensor]) -> Tensor:
    """Of all logits, for given slopes: (m, outputs, inputs)."""
    m = len(slopes[0])
    sources = [torch.eye(net.inputs, dtype=torch.float64).expand(m, -1, -1)]
    for i, layer in enumerate(net.layers):
        z = sum(
            part.forward(sources[source].transpose(1, 2).flatten(0, 1)).view(m, net.inputs, -1).transpose(1, 2)
            for source, part in layer.maps.items()
        )
        sources.append(slopes[i][..., None] * z if i < len(slopes) else z)
    return sources[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("certifiers", [PLAIN, CHORDS], ids=["tangents", "chords"])
def test_no_matrix_that_the_slopes_allow_is_steeper(
    certifiers: list[LocalLipschitz], threat: ThreatModel, kind: str
) -> None:
    asked = question(kind, threat)
    slopes = asked.slopes(certifiers[0].chords)
    generator = torch.Generator().manual_seed(0)
    steepest = torch.zeros_like(asked.rows[..., 0])
    for i in range(len(asked.x)):
        drawn = []
        for low, high in zip(slopes.low, slopes.high, strict=True):
            at = torch.rand(300, low.shape[1], generator=generator, dtype=torch.float64)
            at[:200] = at[:200].round()  # corners
            drawn.append(low[i] + at * (high[i] - low[i]))
        product = asked.rows[i] @ jacobian(asked.state.network, drawn)
        steepest[i] = torch.linalg.vector_norm(product, ord=threat.q, dim=-1).amax(dim=0)
    for certifier in certifiers:
        if not refused(certifier, kind):
            slope = asked.slope(certifier)
            assert (steepest <= slope * (1 + 1e-9)).all()
            assert (steepest >= slope / 30).all()  # it is about these


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", [*NORMS, *(threat.within(0, 1) for threat in NORMS)], ids=str)
def test_margins_fall_no_faster_between_points(threat: ThreatModel, kind: str) -> None:
    asked = question(kind, threat)
    n, count = len(asked.x), 20000 // len(asked.x)
    points = sample_ball(asked.x, asked.eps, threat, count)
    reach = torch.rand(n, count, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = asked.x[:, None] + (points - asked.x[:, None]) * reach

    def fall(a: Tensor, b: Tensor) -> Tensor:
        logits = [asked.state.classifier(part.flatten(0, 1)).view(n, count, -1) for part in (a, b)]
        distance = torch.linalg.vector_norm((a - b).flatten(2), ord=threat.p, dim=-1).clamp(min=1e-9)
        change = ((logits[0] - logits[1]) @ asked.rows.transpose(1, 2)).abs()
        return (change - 1e-12).clamp(min=0) / distance[..., None]

    centre = asked.x[:, None].expand_as(points)
    reached = asked.state.classifier(points.flatten(0, 1)).view(n, count, -1) @ asked.rows.transpose(1, 2)
    from_centre, between = fall(points, centre).amax(dim=1), fall(points, points.roll(1, dims=1)).amax(dim=1)
    for certifier in PLAIN + CHORDS:
        if not refused(certifier, kind):
            slope = asked.slope(certifier) * (1 + 1e-9)
            assert (from_centre <= slope).all()
            assert certifier.chords or (between <= slope).all()
            assert (certifier.lower(asked.state, asked.x, asked.rows, asked.eps).lower <= reached.amin(dim=1)).all()


@cache
def attacked(kind: str, threat: ThreatModel) -> Tensor:
    return attack(net(kind), inputs(4), (threat,), threat.domain or (-2.0, 3.0), steps=30)[threat].distance


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["mlp", "skip"])
@pytest.mark.parametrize("threat", [L1, L2, L2.within(0, 1), Linf.within(0, 1)], ids=str)
def test_no_attack_and_no_random_point_inside_the_ball_changes_the_prediction(threat: ThreatModel, kind: str) -> None:
    classifier, x = net(kind), inputs(4)
    for certifier in (*PLAIN, *CHORDS, FastLip(shells=4), FastLip(gram=True, rounding_safe=True)):
        if refused(certifier, kind):
            with pytest.raises(UnsupportedError, match="skip connection"):
                certbench.certify(certifier, classifier, x, threat)
            continue
        certificate = certbench.certify(certifier, classifier, x, threat)
        assert (certificate.radius > 0).all()
        assert (certificate.radius <= attacked(kind, threat)).all()
        points = sample_ball(x, certificate.radius, threat, 200)
        predicted = classifier.double()(points.flatten(0, 1)).argmax(dim=1).view(len(x), -1)
        assert (predicted == certificate.prediction[:, None]).all()


@pytest.mark.parametrize("threat", [*NORMS, L2.within(0, 1)], ids=str)
def test_narrower_slopes_are_never_steeper(threat: ThreatModel) -> None:
    """Theorems: a product of intervals is inclusion-monotone, RecurJac's recursion too, and a mask shrinks."""
    for kind in KINDS:
        asked, deep = question(kind, threat), Question(mlp(8, 10, 9, 8, 3), inputs(5).flatten(1)[:, :8], threat)
        for case in (asked, deep) if kind == "mlp" else (asked,):
            for kinds in (FastLip, RecurJac, MaskedProduct):
                if refused(kinds(), kind):
                    continue
                tangents, chords = case.slope(kinds()), case.slope(kinds(chords=True))
                assert (chords <= tangents * (1 + 1e-9)).all()
                assert (chords < 0.98 * tangents).any()


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("chords", [False, True])
def test_recurjac_is_never_steeper_than_fast_lip(threat: ThreatModel, chords: bool) -> None:
    cases = [question("mlp", threat), question("cnn", threat)]
    cases += [Question(mlp(6, 9, 8, 7, 3, seed=s), inputs(6, s).flatten(1)[:, :6], threat) for s in range(4)]
    for case in cases:
        better, plain = case.slope(RecurJac(chords=chords)), case.slope(FastLip(chords=chords))
        assert (better <= plain * (1 + 1e-9)).all()
        assert (better < 0.98 * plain).any()


def steepest_corner(case: Question) -> Tensor:
    """Of all tangents, for one input and one margin."""
    slopes = case.slopes(chords=False)
    low, high = (torch.cat(ends, dim=1)[0] for ends in (slopes.low, slopes.high))
    open_ = (low < high).nonzero().squeeze(1)
    corners = low.repeat(2 ** len(open_), 1)
    corners[:, open_] = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(open_))), dtype=torch.float64)
    drawn = list(corners.split([part.shape[1] for part in slopes.low], dim=1))
    return (case.rows[0] @ jacobian(case.state.network, drawn)).abs().amax()


@pytest.mark.parametrize("known", ["signs", "slopes"])
def test_recurjac_is_exact_where_signs_or_slopes_are_known_and_fast_lip_is_not(known: str) -> None:
    """With one input, so that norms are of one entry: outer weights of known sign, or a first layer that is stable."""
    classifier = mlp(1, 4, 4, 2, seed=2)
    first, second, last = (classifier.module[i] for i in (0, 2, 4))  # type: ignore[index]
    if known == "signs":
        second.weight.data.abs_()
        last.weight.data.abs_()[1].neg_()
    else:
        first.bias.data.fill_(100.0)
        second.bias.data = -second.weight.data @ first.bias.data
    case = Question(classifier, torch.zeros(1, 1, dtype=torch.float64), L2, scale=10)
    exact = steepest_corner(case)
    torch.testing.assert_close(case.slope(RecurJac()).squeeze(), exact, rtol=1e-9, atol=0)
    assert case.slope(FastLip()).squeeze() > 1.05 * exact


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_norm_is_at_most_that_of_the_entries(kind: str) -> None:
    for chords in (False, True):
        plain, gram = (question(kind, L2).slope(FastLip(chords=chords, gram=gram)) for gram in (False, True))
        assert (gram <= plain).all()
        assert (gram < 0.98 * plain).any()
    for threat in (L1, Linf):
        assert torch.equal(*(question(kind, threat).slope(FastLip(gram=gram)) for gram in (False, True)))


def test_the_gram_norm_itself_is_a_bound_and_is_no_more_than_that_of_the_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, radius = torch.randn(2, 2, 3, 7, generator=generator, dtype=torch.float64)
    radius = radius.clamp(min=0)
    first = relu_network(mlp(5, 7, 2)).layers[0].maps[0]
    found = fast_lip._together(first, centre, radius)
    weight = first.matrix()
    assert (found <= (centre @ weight).abs().add(radius @ weight.abs()).norm(dim=-1) * (1 + 1e-12)).all()
    for signs in itertools.product([-1.0, 1.0], repeat=7):
        row = (centre + torch.tensor(signs, dtype=torch.float64) * radius) @ weight
        assert (row.norm(dim=-1) <= found * (1 + 1e-12)).all()


def test_gram_changes_nothing_where_another_layer_reads_the_input() -> None:
    asked = Question(net("skip", from_input=True), inputs(4), L2, scale=3.0)
    assert torch.equal(asked.slope(FastLip()), asked.slope(FastLip(gram=True)))


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_more_shells_are_never_worse(threat: ThreatModel) -> None:
    asked = question("mlp", threat)
    for kinds in (FastLip, RecurJac, MaskedProduct):
        one, eight = (kinds(shells=s).lower(asked.state, asked.x, asked.rows, asked.eps).lower for s in (1, 8))
        assert (eight >= one - 1e-9).all()
        assert (eight > one + 1e-3).any()
    finest = [FastLip(shells=shells, search=Secant(relative=1e-7)) for shells in (1, 8)]
    few, many = (certbench.certify(certifier, network("mlp"), inputs(2), threat).radius for certifier in finest)
    assert (many >= few * (1 - 1e-6)).all()


@pytest.mark.parametrize("kinds", [FastLip, RecurJac, MaskedProduct])
def test_shells_are_refused_with_chords_and_below_one(kinds: type[LocalLipschitz]) -> None:
    with pytest.raises(ConfigError, match="shells need chords: false"):
        kinds(chords=True, shells=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="at least 1"):
        kinds(shells=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("certifier", CHORDS, ids=short)
def test_chords_start_at_the_input_and_are_no_lipschitz_constant_of_the_ball(certifier: LocalLipschitz) -> None:
    """max(x, 0) around -1, to both sides by 2: from there it rises by 1/2 of the way, from 0 to 1 by all of it."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    for layer, weight in ((module[0], [[1.0]]), (module[2], [[1.0], [0.0]])):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
        layer.bias.data.zero_()
    state = NetworkState.of(Classifier(module.eval(), (1,), 2, "relu"), L2)
    region = Region(L2, torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    rows, bounds = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), layer_bounds(state.network, region)
    slope = float(certifier.steepness(state, region, rows, bounds).slope)
    low, start, end = (float(state.classifier(torch.tensor([[at]]).double())[0, 0]) for at in (-1.0, 0.0, 1.0))
    assert end - start > 1.9 * slope
    assert math.isclose((end - low) / 2, slope, rel_tol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_in_small_balls_steepness_is_the_gradients(threat: ThreatModel, kind: str) -> None:
    classifier, x = net(kind), inputs(6)
    state = NetworkState.of(classifier, threat)
    rows = margin_rows(classifier.double()(x).argmax(dim=1), 4)
    region = Region(threat, x.flatten(1), torch.full((6,), 1e-7, dtype=torch.float64))
    slopes = [(z > 0).double() for z in state.network.preactivations(region.x)[:-1]]
    exact = torch.linalg.vector_norm(rows @ jacobian(state.network, slopes), ord=threat.q, dim=-1)
    bounds = layer_bounds(state.network, region)
    for certifier in (FastLip(), FastLip(chords=True, gram=True), RecurJac(), RecurJac(chords=True)):
        if not refused(certifier, kind):
            found = certifier.steepness(state, region, rows, bounds).slope
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("certifier", PLAIN + CHORDS, ids=short)
def test_linear_networks_have_the_closed_form(certifier: LocalLipschitz, threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(8)
    radius = certbench.certify(certifier, classifier, x, threat).radius
    exact = closed_form(classifier, x, threat)
    assert (radius <= exact).all()
    torch.testing.assert_close(radius, exact, rtol=1e-6, atol=0)


def test_the_masked_product_is_at_most_the_product() -> None:
    asked = question("mlp", L2)
    *maps, last = (asked.state.network.layers[i].maps[i].matrix() for i in range(3))
    product = (asked.rows @ last).norm(dim=-1) * math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in maps)
    masked = asked.slope(MaskedProduct())
    assert (masked <= product * (1 + 1e-9)).all()
    assert (masked < 0.9 * product).any()
    everywhere = layer_bounds(asked.state.network, Region(L2, asked.region.x, torch.full_like(asked.eps, 100.0)))
    assert all(bool(everywhere.unstable(i).all()) for i in range(2))
    open_ = MaskedProduct().steepness(asked.state, asked.region, asked.rows, everywhere).slope
    torch.testing.assert_close(open_, product, rtol=1e-9, atol=0)


@pytest.mark.parametrize("certifier", CHORDS, ids=short)
def test_chains_of_single_neurons_are_as_steep_as_their_weights_and_slopes(certifier: LocalLipschitz) -> None:
    classifier = mlp(1, 1, 1, 1, 2)
    for i in (0, 2, 4):
        classifier.module[i].weight.data.fill_(3.0)  # type: ignore[index]
        classifier.module[i].bias.data.fill_(-1.0)  # type: ignore[index]
    case = Question(classifier, torch.tensor([[-0.1], [0.2]], dtype=torch.float64), L2, scale=4)
    high = torch.cat(case.slopes(chords=True).high, dim=1)
    assert ((high[1] > 0.5) & (high[1] < 1)).all()
    last = case.rows @ case.state.network.layers[3].maps[3].matrix()
    torch.testing.assert_close(case.slope(certifier), last.abs()[..., 0] * 27 * high.prod(dim=1)[:, None])


@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 9, 6), (3, 1, 5), (3, 5, 1), (2, 60, 60)])
@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e180])
def test_spectral_norms_are_proved_for_each_matrix_alone(shape: tuple[int, ...], scale: float) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices[1] *= 1e-3 * scale
    found, exact = spectra(matrices), torch.linalg.matrix_norm(matrices, 2)
    assert (found >= exact * (1 - 1e-15)).all()
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)
    assert torch.equal(spectra(matrices[1:2]), found[1:2])
    assert math.isclose(spectral(matrices), float(found.amax()), rel_tol=1e-9)


def test_spectral_norms_of_nothing_and_of_what_is_no_number() -> None:
    matrices = torch.zeros(3, 4, 4, dtype=torch.float64)
    matrices[1, 2, 3], matrices[2, 0, 1] = torch.nan, torch.inf
    found = spectra(matrices)
    assert found[0] == 0
    assert not found[1:].isfinite().any()


def test_norms_from_one_and_inf_to_two() -> None:
    matrices = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices[1, :, 2:5] = 0
    torch.testing.assert_close(_first(matrices, 1.0), matrices.norm(dim=1).amax(dim=1), rtol=1e-12, atol=0)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    exact = (matrices @ signs.T).norm(dim=1).amax(dim=1)
    found = _first(matrices, math.inf)
    assert (found >= exact * (1 - 1e-12)).all()
    assert (found <= 1.3 * exact).all()


def test_large_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_lip, "WORK", 1000)
    with pytest.raises(UnsupportedError, match="multiplications"):
        certbench.certify(RecurJac(), network("mlp"), inputs(1), L2)
    monkeypatch.setattr("certbench.verifiers.lipschitz.masked_product.DENSE", 100)
    with pytest.raises(UnsupportedError, match="12 x 16 matrix, too large"):
        certbench.certify(MaskedProduct(), network("mlp"), inputs(1), L2)


@pytest.mark.parametrize("certifier", PLAIN + CHORDS, ids=short)
def test_blocks_change_nothing(certifier: LocalLipschitz, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = question("mlp", L2).slope(certifier)
    monkeypatch.setattr(fast_lip, "ENTRIES", 100)
    monkeypatch.setattr("certbench.verifiers.lipschitz.masked_product.DENSE", 300)
    torch.testing.assert_close(question("mlp", L2).slope(certifier), whole, rtol=1e-12, atol=0)
