"""Scales and fixed coordinates: closed forms, a rescaled network, and what is refused."""

import copy
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L0, L1, L2, Classifier, ConfigError, Linf, ThreatModel, UnsupportedError
from certbench.core import ball
from certbench.core.reduction import pieces
from certbench.testing import inputs, nearest, network
from tests.cases import CASES

NORMS = (L1, L2, Linf)
GENERATOR = torch.Generator().manual_seed(3)
FIXED = [3, 7]
SCALE = torch.rand(16, generator=GENERATOR, dtype=torch.float64) * 3 + 0.01
SCALE[FIXED] = 0
X = inputs(2, 5)
X[1].view(-1)[FIXED] = X[0].view(-1)[FIXED]  # so that both have one preparation
LOW = X.flatten(1).amin(dim=0) - torch.rand(16, generator=GENERATOR, dtype=torch.float64) * 0.3
HIGH = X.flatten(1).amax(dim=0) + torch.rand(16, generator=GENERATOR, dtype=torch.float64) * 0.3
X[1].view(-1)[11] = X[0].view(-1)[11]
LOW[5], LOW[11], HIGH[11] = -math.inf, X[0].view(-1)[11], X[0].view(-1)[11]

TIGHT = {(case.name, case.spec.get("engine")): case for case in reversed(CASES) if case.tight}
LOOSE = [*itertools.product(("lipschitz", "eclipse", "lipsdp"), NORMS), ("jacobian-zonotope", L2)]
"""Certifiers that gain nothing, or not all, where a domain cuts the ball: they know how steep margins are alone."""


def exact(threat: ThreatModel) -> Tensor:
    """Return the closed form for the inputs."""
    far = ball.farthest(threat, X.flatten(1))
    return torch.minimum(nearest(network("linear"), X, threat), far)


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("case", TIGHT.values(), ids=["-".join(filter(None, key)) for key in TIGHT])
def test_radii_of_linear_networks_are_the_closed_form(request: Any, case: Any, threat: ThreatModel) -> None:
    if threat.p not in case.norms & case.tight:
        pytest.skip("is not offered, or not tight")
    if case.backend is not None:
        request.getfixturevalue(case.backend)
    search = {"search": {"name": "bisection", "relative": 1e-8}}
    fine = {"of": [{"name": "crown", **search}, "lipschitz"]} if case.name == "best-of" else case.fine and search
    spec, scaled = {**case.spec, **fine}, threat.scaled(SCALE)
    ends = ([-50.0] * 16, 50.0) if (case.name, threat) in LOOSE else (LOW, HIGH)
    for asked in (scaled, scaled.within(*ends)):
        found = certbench.certify(spec, network("linear"), X, asked).radius
        assert found.tolist() == pytest.approx(exact(asked).tolist(), rel=1e-6)


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_a_scale_of_ones_changes_nothing_and_others_are_a_rescaled_network(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(4)
    spec = {"name": "crown", "search": {"name": "secant", "relative": 1e-12}}
    plain = certbench.certify(spec, classifier, x, threat).radius
    ones = certbench.certify(spec, classifier, x, threat.scaled(torch.ones(1, 4, 4))).radius
    assert ones.tolist() == pytest.approx(plain.tolist(), rel=1e-9)

    layers = list(classifier.double().module)[1:]
    flat, scale = Classifier(nn.Sequential(*layers).eval(), (16,), 4), SCALE + 0.1
    first = copy.deepcopy(layers[0])
    first.weight.mul_(scale)
    rescaled = Classifier(nn.Sequential(first, *layers[1:]).eval(), (16,), 4)
    wanted = certbench.certify(spec, rescaled, x.flatten(1) / scale, threat).radius
    found = certbench.certify(spec, flat, x.flatten(1), threat.scaled(scale)).radius
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-9)


def test_each_input_keeps_its_own_fixed_coordinates() -> None:
    classifier, x, mask = network("mlp"), inputs(5), torch.ones(16)
    mask[FIXED] = 0
    x[3] = x[0] + 0.1 * mask.view(1, 4, 4)  # the first and the fourth have one reduced problem
    together = certbench.certify("crown", classifier, x, Linf.scaled(mask))
    alone = [certbench.certify("crown", classifier, row[None], Linf.scaled(mask)).radius.item() for row in x]
    assert together.radius.tolist() == pytest.approx(alone, rel=1e-3)
    assert together.prediction.tolist() == classifier.double()(x).argmax(dim=1).tolist()
    free = mask.nonzero().flatten()
    for i, radius in enumerate(alone):  # by hand: coordinates that do not move become a bias
        inner = classifier.double().module
        first = inner[1]
        assert isinstance(first, nn.Linear)
        smaller = nn.Linear(len(free), 12).double()
        with torch.no_grad():
            smaller.weight.copy_(first.weight[:, free])
            smaller.bias.copy_(first.bias + first.weight[:, FIXED] @ x[i].flatten()[FIXED])
        own = Classifier(nn.Sequential(smaller, *list(inner)[2:]).eval(), (len(free),), 4)
        wanted = certbench.certify("crown", own, x[i].flatten()[free][None], Linf).radius.item()
        assert radius == pytest.approx(wanted, rel=1e-3)


def test_the_rounded_centre_costs_its_distance_and_powers_of_two_cost_nothing() -> None:
    classifier, x = network("linear"), inputs(3)
    third = torch.full((16,), 0.3, dtype=torch.float64)
    (piece,) = pieces(classifier, x, L1.scaled(third).within(0, 1))
    off = [
        sum(abs(Fraction(z) - Fraction(v) / Fraction(0.3)) for z, v in zip(*row, strict=True))
        for row in zip(piece.z.tolist(), x.flatten(1).tolist(), strict=True)
    ]
    assert all(0 < lost <= bound < 1e-12 for lost, bound in zip(off, piece.rounding.tolist(), strict=True))
    _, high = piece.threat.ends(piece.z)
    assert all(Fraction(end) >= 1 / Fraction(0.3) for end in high.tolist())
    moved = piece.restore(piece.z, x)
    assert torch.equal(moved, x)

    (piece,) = pieces(classifier, x, L1.scaled(torch.full((16,), 0.25)).within(0, 1))
    assert not piece.rounding.any()
    assert piece.threat == L1.within((0.0,) * 16, (4.0,) * 16)


def test_margins_and_outputs_are_bounded_in_the_scaled_ball() -> None:
    classifier, threat = network("linear"), L2.scaled(SCALE).within(LOW, HIGH)
    radius = exact(threat)
    for share, proved in ((1 - 1e-6, True), (1 + 1e-6, False)):
        found = certbench.margins("crown", classifier, X, threat, radius * share)
        assert (found > 0).all(dim=1).tolist() == [proved, proved]
    linear = classifier.double()
    low, high = certbench.output_bounds("crown", classifier, X, Linf.scaled(SCALE), 0.1)
    weight = linear.module[1].weight
    move = 0.1 * (weight.abs() @ SCALE)
    assert torch.allclose(low, linear(X) - move, atol=1e-6)
    assert torch.allclose(high, linear(X) + move, atol=1e-6)
    far = certbench.output_radius("crown", classifier, X, Linf.scaled(SCALE), low, high)
    assert far.tolist() == pytest.approx([0.1, 0.1], rel=1e-3)


def test_a_prepared_state_knows_its_scales() -> None:
    classifier, x, threat = network("linear"), inputs(2), Linf.scaled(SCALE + 1)
    state = certbench.prepare("crown", classifier, threat)
    found = certbench.certify("crown", classifier, x, threat, state=state).radius
    assert torch.equal(found, certbench.certify("crown", classifier, x, threat).radius)
    crown = certbench.build("crown")
    with pytest.raises(ConfigError, match=r"certbench\.prepare"):
        crown.prepare(classifier, threat)
    with pytest.raises(ConfigError, match="was prepared for"):
        certbench.certify("crown", classifier, x, threat, state=crown.prepare(classifier, Linf))
    with pytest.raises(ConfigError, match="was prepared by"):
        certbench.certify("ibp", classifier, x, threat, state=state)


def test_noise_is_in_units_of_the_scale_and_leaves_fixed_coordinates_alone() -> None:
    """On a half-space the radius is the distance to the boundary, up to sampling: here, 0.3 / 0.1 or nothing at all."""
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        linear.bias.zero_()
    half, x = Classifier(linear.eval(), (2,), 2), torch.tensor([[0.03, 0.0]])
    spec = {"name": "smoothing", "n": 20_000, "noise": {"name": "gaussian", "sigma": 0.5}}
    found = certbench.certify(spec, half, x, L2.scaled([0.1, 5.0]))
    assert 0.25 < found.radius.item() <= 0.3 + 0.05
    held = certbench.certify({**spec, "n": 1000}, half, x, L2.scaled([0.0, 1.0]))
    assert held.evidence[0]["counts"] == [0, 1000]
    assert held.evidence[0]["dimension"] == 1


def test_discrete_noise_counts_the_coordinates_that_move() -> None:
    mask = torch.ones(16)
    mask[4:] = 0
    spec = {"name": "ablation", "keep": 2, "n": 500}
    found = certbench.certify(spec, network("linear"), inputs(2), L0.scaled(mask).within(0, 1))
    assert (found.radius <= 4).all()


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        ([1.0, -1.0], "finite numbers >= 0"),
        ([1.0, math.nan], "finite numbers >= 0"),
        ([1.0, math.inf], "finite numbers >= 0"),
        ("std", "finite numbers >= 0"),
        (0.5, "finite numbers >= 0"),
        ([0.0, 0.0], "nothing to certify"),
    ],
)
def test_what_is_no_scale_is_refused(scale: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        L2.scaled(scale)
    assert caught.value.path == ("scale",)


def test_scales_that_do_not_fit_are_refused() -> None:
    classifier, x = network("linear"), inputs(2)
    for threat in (L2.scaled([1.0] * 15), L2.within([0.0] * 17, 1)):
        with pytest.raises(ConfigError, match="takes 16 numbers"):
            certbench.certify("crown", classifier, x, threat)
    with pytest.raises(ConfigError, match="coordinate 2 of the inputs"):
        certbench.certify("crown", classifier, x, L2.within([0.0, 0.0, 2.0] + [0.0] * 13, 3.0))
    with pytest.raises(ConfigError, match="overflow"):
        certbench.certify("crown", classifier, x, L2.scaled([1e-320] * 16))
    with pytest.raises(ConfigError, match="0 or 1"):
        L0.scaled([2.0, 1.0])
    with pytest.raises(UnsupportedError, match="takes no scales"):
        certbench.certify({"name": "crown", "rounding_safe": True}, classifier, x, L2.scaled(SCALE))


@pytest.mark.parametrize("name", ["crown", "lipschitz"])
def test_a_mask_keeps_the_float_program(name: str) -> None:
    classifier, mask = network("linear"), (SCALE > 0).double()
    found = certbench.certify({"name": name, "rounding_safe": True}, classifier, X, Linf.scaled(mask)).radius
    wanted = exact(Linf.scaled(mask))
    assert ((found <= wanted) & (found > 0.9 * wanted)).all()


def test_a_threat_says_its_units() -> None:
    assert str(L2.within(0, 1)) == "L2 in [0, 1]"
    assert str(L2.scaled([0.5, 2.0])) == "L2, in units of the scale (0.5 to 2)"
    assert str(Linf.scaled([True, False])) == "Linf, 1 of 2 coordinates move"
    assert "in a box of 2 ranges" in str(L1.within([0, 1], [2, 3]))
    assert L2.scaled([0.5, 2.0]).units == "units of the scale"
    assert Linf.scaled([True, False]).units == L2.units == "units of the input"
