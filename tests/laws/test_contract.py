"""The contract: laws for every certifier in the table. A certifier joins by its row in cases.py."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import (
    ABSTAIN,
    L0,
    L1,
    L2,
    Certifier,
    Classifier,
    Guarantee,
    Linf,
    MarginCertifier,
    Outcome,
    Subject,
    ThreatModel,
)
from certbench.attacks.battery import attack
from certbench.core import registry
from tests.cases import CASES, Case

NORMS = [L1, L2, Linf]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(z + self.inner(z)))


def network(kind: str) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module: nn.Module = {
            "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
            "mlp": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
            ),
            "cnn": lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 6, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
            ),
            "residual": Residual,
        }[kind]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return Classifier(module.eval(), (1, 4, 4), 4, kind)


def inputs(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(classifier: Classifier, x: Tensor, threat: ThreatModel) -> Tensor:
    """min_j (f_c - f_j)(x) / ||w_c - w_j||_q of a linear classifier."""
    linear = classifier.double().module[1]  # type: ignore[index]
    logits = linear(x.flatten(1))
    top = logits.argmax(dim=1)
    gap = logits.gather(1, top[:, None]) - logits
    length = torch.linalg.vector_norm(linear.weight[top][:, None] - linear.weight, ord=threat.q, dim=-1)
    return (gap / length).nan_to_num(math.inf).amin(dim=1)


@pytest.fixture(params=CASES, ids=[f"{case.name}-{i}" for i, case in enumerate(CASES)])
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    if chosen.backend is not None:
        request.getfixturevalue(chosen.backend)
    return chosen


@pytest.fixture
def certifier(case: Case) -> Certifier:
    return certbench.build(case.spec)


@pytest.fixture
def norm(case: Case) -> ThreatModel:
    """L2 where the certifier offers it; for laws that one norm is enough for."""
    return next(threat for threat in (L2, Linf, L1, L0) if threat.p in case.norms)


@pytest.fixture(autouse=True)
def offered(request: pytest.FixtureRequest) -> None:
    """A norm that a certifier does not offer is refused; no other law concerns it."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    case, threat = parameters.get("case"), parameters.get("threat")
    if case is None or threat is None or threat.p in case.norms:
        return
    with pytest.raises(certbench.UnsupportedError, match=f"{threat.name} is not offered"):
        certbench.certify(case.spec, network("mlp"), inputs(1), threat)
    pytest.skip("refused, as it must be")


def test_every_certifier_of_the_table_has_a_case() -> None:
    ours = {name for name, target in registry.table().items() if target.startswith("certbench.")}
    assert {case.name for case in CASES} == ours


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_closed_form_is_never_exceeded_and_met_where_the_method_is_exact(case: Case, threat: ThreatModel) -> None:
    certifier = certbench.build({**case.spec, **case.fine})
    classifier, x = network("linear"), inputs(12)
    exact = closed_form(classifier, x, threat)
    radius = certbench.certify(certifier, classifier, x, threat).radius
    if certifier.subject is Subject.BASE:
        assert (radius <= exact).all()
    if threat.p in case.tight:
        torch.testing.assert_close(radius, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", [*NORMS, *(threat.within(0, 1) for threat in NORMS)], ids=str)
def test_no_attack_and_no_random_point_inside_the_ball_changes_the_prediction(
    case: Case, certifier: Certifier, threat: ThreatModel, kind: str
) -> None:
    if certifier.subject is Subject.SMOOTHED:
        pytest.skip("certifies another function; see test_smoothing.py")
    if kind not in case.attacked:
        pytest.skip("takes too long")
    classifier, x = network(kind), inputs(8)
    certificate = certbench.certify(certifier, classifier, x, threat)
    assert kind not in case.layers or (certificate.radius > 0).any()
    assert (certificate.radius <= closest(kind, threat)).all()
    points = sample_ball(x, certificate.radius, threat, 400)
    predicted = classifier.double()(points.flatten(0, 1)).argmax(dim=1).view(len(x), -1)
    assert (predicted == certificate.prediction[:, None]).all()


@functools.cache
def closest(kind: str, threat: ThreatModel) -> Tensor:
    """Distances of counterexamples, the same for all certifiers."""
    return attack(network(kind), inputs(8), (threat,), threat.domain or (-2.0, 3.0), steps=30)[threat].distance


def sample_ball(x: Tensor, radius: Tensor, threat: ThreatModel, n: int) -> Tensor:
    """Points just inside the ball, many near its corners, moved into the domain."""
    generator = torch.Generator().manual_seed(0)
    d = x[0].numel()
    step = torch.randn(len(x), n, d, generator=generator, dtype=torch.float64)
    sparse = torch.rand(len(x), n, d, generator=generator) < torch.rand(1, n, 1, generator=generator)
    step = step * sparse if threat.p != math.inf else step.sign()
    step = step / torch.linalg.vector_norm(step, ord=threat.p, dim=-1, keepdim=True).clamp(min=1e-12)
    points = x[:, None] + (step * (1 - 1e-9) * radius[:, None, None]).view(len(x), n, *x.shape[1:])
    return points if threat.domain is None else points.clamp(*threat.domain)


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_neither_batch_size_nor_neighbours_nor_order_matter(
    case: Case, certifier: Certifier, threat: ThreatModel
) -> None:
    classifier, x = network("mlp"), inputs(4)
    whole = certbench.certify(certifier, classifier, x, threat)
    order = torch.tensor([3, 1, 0, 2])
    for other, back in (
        (certbench.certify(certifier, classifier, x, threat, batch_size=1), torch.arange(4)),
        (certbench.certify(certifier, classifier, x[order], threat, batch_size=3), order.argsort()),
    ):
        assert torch.equal(other.prediction[back], whole.prediction)
        torch.testing.assert_close(other.radius[back], whole.radius, rtol=case.batch, atol=1e-12)


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_margins_do_not_depend_on_the_batch(case: Case, certifier: Certifier, threat: ThreatModel) -> None:
    if not isinstance(certifier, MarginCertifier):
        pytest.skip("bounds no margins")
    classifier, x = network("mlp"), inputs(4)
    state = certifier.prepare(classifier, threat)
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.01, 0.05, 0.2, 0.5], dtype=torch.float64)
    whole = certifier.margins(state, x, label, eps).lower
    single = torch.cat(
        [certifier.margins(state, x[i : i + 1], label[i : i + 1], eps[i : i + 1]).lower for i in range(4)]
    )
    torch.testing.assert_close(single, whole, rtol=case.rounding, atol=case.rounding)


def test_the_same_seed_gives_the_same_certificate_and_another_seed_other_draws(
    certifier: Certifier, norm: ThreatModel
) -> None:
    classifier, x = network("mlp"), inputs(4)
    one, two, other = (certbench.certify(certifier, classifier, x, norm, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.radius, two.radius)
    assert one.evidence == two.evidence
    if certifier.guarantee is Guarantee.PROBABILISTIC and getattr(certifier, "share", None) is None:
        assert one.evidence != other.evidence


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_shapes_and_ranges(certifier: Certifier, threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(6)
    certificate = certbench.certify(certifier, classifier, x, threat)
    assert len(certificate) == 6
    assert certificate.radius.dtype == torch.float64
    assert (certificate.radius >= 0).all()
    assert (certificate.radius <= certificate.upper).all()
    assert (certificate.radius[certificate.prediction == ABSTAIN] == 0).all()
    assert set(certificate.outcome) <= {Outcome.COMPLETED, Outcome.ABSTAINED}
    assert len(certbench.certify(certifier, classifier, x[:0], threat)) == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_infinity_never_certify(certifier: Certifier, poison: float, norm: ThreatModel) -> None:
    """Poison in the weights either is refused, or fails, or certifies nothing."""
    classifier, x = network("mlp"), inputs(3)
    with torch.no_grad():
        classifier.module[3].weight[0, 0] = poison  # type: ignore[index, union-attr, operator]
    try:
        certificate = certbench.certify(certifier, classifier, x, norm, throw=False)
    except certbench.UnsupportedError:
        return
    assert (certificate.radius == 0).all()


def test_ties_certify_nothing(certifier: Certifier, norm: ThreatModel) -> None:
    classifier = network("linear")
    with torch.no_grad():
        for parameter in classifier.module.parameters():
            parameter.zero_()
    certificate = certbench.certify(certifier, classifier, inputs(3), norm)
    if certifier.subject is Subject.BASE:
        assert (certificate.radius == 0).all()


def test_scaling_the_logits_leaves_radii_alone(case: Case, certifier: Certifier, norm: ThreatModel) -> None:
    if not case.scale_free:
        pytest.skip("certifies scores that depend on the scale")
    classifier, x = network("mlp"), inputs(5)
    before = certbench.certify(certifier, classifier, x, norm).radius
    with torch.no_grad():
        last = classifier.module[-1]  # type: ignore[index]
        last.weight.mul_(1024.0)
        last.bias.mul_(1024.0)
    after = certbench.certify(certifier, classifier, x, norm).radius
    torch.testing.assert_close(
        after, before, rtol=1e-2 if case.name.startswith("alpha-crown") else max(case.batch, 1e-6), atol=0
    )


class Cubic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.gammaln(x.abs() + 1)


def test_an_unknown_layer_is_refused_with_a_reason(certifier: Certifier, norm: ThreatModel) -> None:
    if certifier.subject is Subject.SMOOTHED:
        pytest.skip("needs no knowledge of the layers")
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Cubic(), nn.Linear(8, 4)).eval()
    with pytest.raises(certbench.UnsupportedError, match=r"\w+"):
        certbench.certify(certifier, Classifier(module, (1, 4, 4), 4), inputs(2), norm)


def test_a_norm_that_is_not_offered_is_refused_with_a_reason(certifier: Certifier) -> None:
    narrow = type("Narrow", (type(certifier),), {"norms": frozenset({3.0})})(
        **{name: getattr(certifier, name) for name in certbench.describe(certifier) if name != "name"}
    )
    with pytest.raises(certbench.UnsupportedError, match="L2 is not offered, only L3"):
        certbench.certify(narrow, network("mlp"), inputs(2), L2)


def test_build_and_describe_are_inverse(certifier: Certifier) -> None:
    described = certbench.describe(certifier)
    assert certbench.build(described) == certifier
    assert certbench.describe(certbench.build(described)) == described


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual"])
def test_the_layers_of_the_case_are_certified(case: Case, certifier: Certifier, kind: str, norm: ThreatModel) -> None:
    if kind not in case.layers:
        with pytest.raises(certbench.UnsupportedError):
            certbench.certify(certifier, network(kind), inputs(2), norm)
    else:
        assert len(certbench.certify(certifier, network(kind), inputs(2), norm)) == 2


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_optimised_slopes_are_no_looser_than_crown(threat: ThreatModel) -> None:
    """A law with the same intermediate bounds; IBP <= CROWN and Wong-Kolter <= CROWN are none."""
    classifier, x = network("mlp"), inputs(10)
    crown, alpha = (certbench.certify(name, classifier, x, threat).radius for name in ("crown", "alpha-crown"))
    assert (alpha >= crown * (1 - 2e-3)).all()  # each search stops within 1e-3
