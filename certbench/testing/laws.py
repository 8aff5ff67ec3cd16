"""The laws. Each is a function whose docstring is its statement; its decorator has its questions.

They stand in one file, long as it is, because they are read as one list.
"""

import json
import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from certbench.core.certificate import Certificate
from certbench.core.certification import certify
from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.options import build, describe
from certbench.core.threat import L0, L1, L2, Linf, ThreatModel
from certbench.errors import UnsupportedError
from certbench.files.json_text import plain
from certbench.testing import networks
from certbench.testing.case import KINDS, Case
from certbench.testing.law import LAWS, LawBroken, NotConcerned, demand, law
from certbench.testing.networks import closest, half_space, inputs, nearest, network, sample_ball

__all__ = ["LAWS"]

NORMS = (L1, L2, Linf)
BOXES = ((0.0, 1.0), (-0.25, 1.25))
"""Domains: the unit box, and one that no certifier can have built in."""

TINY = 1e-9
"""Relative rounding that is allowed if two distances are computed in different ways."""

COUNT, DISTANCE, CHANCE = 100, 0.1, 1e-6
"""Number of inputs of the law `coverage`, their distance from the boundary, and the chance that the law finds a right
certifier wrong."""

INSIDE = 400
"""Number of points that are tried inside each ball."""


@law(threat=NORMS)
def closed_form(case: Case, threat: ThreatModel) -> None:
    """On a linear classifier no radius exceeds the distance to the boundary.

    No counterexample is closer than that, and in the case's `tight` norms the radius equals the distance.
    """
    certifier = build({**case.spec, **case.fine})
    _offers(case, threat)
    classifier, x = _network(case, "linear"), _inputs(case, 12)
    exact = networks.closed_form(classifier, x, threat)
    found = certify(certifier, classifier, x, threat)
    if certifier.subject is Subject.BASE:
        demand(
            found.radius <= exact,
            "linear",
            lambda i: f"radius {found.radius[i]:.9g} exceeds the distance to the boundary, {exact[i]:.9g}",
        )
        demand(
            found.upper >= exact * (1 - TINY),
            "linear",
            lambda i: f"a counterexample at {found.upper[i]:.9g}, closer than the boundary, {exact[i]:.9g}",
        )
    if threat.p in case.tight:
        demand(
            (found.radius - exact).abs() <= 1e-6 * exact,
            "linear",
            lambda i: f"radius {found.radius[i]:.9g} is called tight, but the distance is {exact[i]:.9g}",
        )


@law(threat=NORMS)
def hidden(case: Case, threat: ThreatModel) -> None:
    """Behind a hidden layer whose ReLUs stay on, no radius exceeds the distance to the boundary."""
    _offers(case, threat)
    certifier = build({**case.spec, **case.fine})
    if certifier.subject is Subject.SMOOTHED:
        raise NotConcerned("the certificate speaks of the smoothed classifier")
    if "mlp" not in case.layers:
        raise NotConcerned("does not certify hidden layers")
    classifier, x = networks.raised(), _inputs(case, 6)
    exact = networks.raised_distance(classifier, x, threat)
    radius = certify(certifier, classifier, x, threat).radius
    demand(
        radius <= exact * (1 + TINY),
        "raised",
        lambda i: f"radius {radius[i]:.9g} exceeds the distance to the boundary, {exact[i]:.9g}",
    )


@law(threat=NORMS, box=BOXES)
def domain(case: Case, threat: ThreatModel, box: tuple[float, float]) -> None:
    """On a linear classifier no radius inside a domain exceeds the distance of the closest counterexample inside it."""
    _offers(case, threat)
    threat = threat.within(*box)
    certifier = build(case.spec)
    classifier = _network(case, "linear")
    x = ((_inputs(case, 4) - 0.5) * 2 + 0.5).clamp(0, 1)  # half of it at the border
    if not case.domain:
        return _refuses(certifier, classifier, x, threat)
    if certifier.subject is Subject.SMOOTHED:
        raise NotConcerned("the certificate speaks of the smoothed classifier")
    exact = nearest(classifier, x, threat)
    radius = certify(certifier, classifier, x, threat).radius
    demand(
        radius <= exact * (1 + TINY),
        "linear",
        lambda i: f"radius {radius[i]:.9g}, but a counterexample inside the domain lies at {exact[i]:.9g}",
    )


@law(threat=(*NORMS, *(threat.within(0, 1) for threat in NORMS)), kind=("mlp", "cnn", "residual"))
def attack(case: Case, threat: ThreatModel, kind: str) -> None:
    """No attack and no random point inside the ball changes the prediction, and something is certified."""
    _offers(case, threat)
    certifier = build(case.spec)
    if certifier.subject is Subject.SMOOTHED:
        raise NotConcerned("the certificate speaks of the smoothed classifier")
    if kind not in case.attacked:
        raise NotConcerned("attacks on this network take too long")
    classifier, x = _network(case, kind), _inputs(case, 8)
    if threat.domain is not None and not case.domain:
        raise NotConcerned("takes no domain")
    found = certify(certifier, classifier, x, threat)
    demand(bool((found.radius > 0).any()), kind, "nothing is certified at all")
    near = closest(kind, threat)[: len(x)]
    demand(
        found.radius <= near,
        kind,
        lambda i: f"radius {found.radius[i]:.9g}, but an attack finds a counterexample at {near[i]:.9g}",
    )
    points = sample_ball(x, found.radius, threat, INSIDE)
    predicted = classifier.double()(points.flatten(0, 1)).argmax(dim=1).view(len(x), -1)
    demand(
        (predicted == found.prediction[:, None]).all(dim=1),
        kind,
        lambda i: f"a point inside radius {found.radius[i]:.9g} is not of class {found.prediction[i]}",
    )


@law(threat=NORMS)
def coverage(case: Case, threat: ThreatModel) -> None:
    """Radii of a smoothed half-space exceed the distance to its boundary no more often than alpha allows.

    Symmetric noise does not move the boundary. Radii of a certifier that is not probabilistic may never exceed it.
    """
    _offers(case, threat)
    certifier = build(case.spec)
    if certifier.subject is Subject.BASE:
        raise NotConcerned("certifies the classifier itself, which the other laws test")
    if not case.symmetric:
        raise NotConcerned("the noise is not symmetric")
    if not case.seeded:
        raise NotConcerned("inputs share their draws, and fail together")
    classifier, x = half_space(), inputs(COUNT, seed=3)
    x[:, 0, 0, 0] = 0.5 + DISTANCE
    found = certify(certifier, classifier, x, threat)
    wrong = (found.radius > 0) & ((found.prediction != 1) | (found.radius > DISTANCE * (1 + TINY)))
    allowed = 0
    if certifier.guarantee is Guarantee.PROBABILISTIC:
        from scipy.stats import binom

        allowed = int(binom.isf(CHANCE, COUNT, case.alpha))
    demand(
        int(wrong.sum()) <= allowed,
        "half-space",
        f"{int(wrong.sum())} of {COUNT} radii exceed the distance {DISTANCE}; alpha {case.alpha:g} allows {allowed}",
    )


@law(threat=NORMS)
def batch(case: Case, threat: ThreatModel) -> None:
    """An input's certificate depends neither on the batch size nor on neighbours nor on order."""
    _offers(case, threat)
    certifier = build(case.spec)
    classifier, x = network(case.usual), _inputs(case, 4)
    n = len(x)
    whole = certify(certifier, classifier, x, threat)
    order = torch.tensor([i for i in (3, 1, 0, 2) if i < n])
    for said, other, back in (
        ("alone", certify(certifier, classifier, x, threat, batch_size=1), torch.arange(n)),
        ("in another order", certify(certifier, classifier, x[order], threat, batch_size=n - 1), order.argsort()),
    ):
        _same(whole, _reordered(other, back), case.usual, said, case.batch)


@law(threat=NORMS)
def margins(case: Case, threat: ThreatModel) -> None:
    """The bounds of an input's margins do not depend on its batch."""
    _offers(case, threat)
    certifier = build(case.spec)
    if not isinstance(certifier, MarginCertifier):
        raise NotConcerned("bounds no margins")
    classifier, x = network(case.usual), inputs(4)
    state = certifier.prepare(classifier, threat)
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.01, 0.05, 0.2, 0.5], dtype=torch.float64)
    whole = certifier.margins(state, x, label, eps).lower
    single = torch.cat(
        [certifier.margins(state, x[i : i + 1], label[i : i + 1], eps[i : i + 1]).lower for i in range(4)]
    )
    good = (single == whole) | ((single - whole).abs() <= case.rounding + case.rounding * whole.abs())
    demand(
        good.all(dim=1),
        case.usual,
        lambda i: f"margins {single[i].tolist()} alone, but {whole[i].tolist()} among others",
    )


@law()
def memory(case: Case) -> None:
    """A certificate depends on what the classifier computes: neither on its name, nor on what was certified before."""
    threat = _norm(case)
    first, second = (_named_network(case, seed, name) for seed, name in ((1, "first"), (2, "second")))
    x = inputs(2)
    alone = certify(build(case.spec), second, x, threat)
    certifier = build(case.spec)
    certify(certifier, first, x, threat)
    after = certify(certifier, replace(second, name="first"), x, threat)
    _same(alone, after, case.usual, "after another network of the same name", 0.0)


@law()
def untouched(case: Case) -> None:
    """A certifier leaves the classifier and the inputs as they are."""
    classifier, x = network(case.usual), inputs(2)
    before = {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}
    certify(build(case.spec), classifier, x, _norm(case))
    after = classifier.module.state_dict()
    same = before.keys() == after.keys() and all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
    demand(same, case.usual, "the weights are others than before")
    demand(not any(module.training for module in classifier.module.modules()), case.usual, "is in training mode now")
    demand(torch.equal(x, inputs(2)), case.usual, "the inputs are others than before")


@law()
def seed(case: Case) -> None:
    """The same seed gives the same certificate; for a probabilistic certifier, another seed gives other draws."""
    certifier, classifier, x = build(case.spec), network(case.usual), _inputs(case, 4)
    one, two, other = (certify(certifier, classifier, x, _norm(case), seed=seed) for seed in (5, 5, 6))
    _same(one, two, case.usual, "with the same seed", 0.0)
    demand(one.evidence == two.evidence, case.usual, "the same seed gives other evidence")
    if certifier.guarantee is Guarantee.PROBABILISTIC and case.seeded:
        demand(one.evidence != other.evidence, case.usual, "another seed gives the same evidence")


@law(threat=NORMS)
def ranges(case: Case, threat: ThreatModel) -> None:
    """A certificate has one float64 radius per input, from 0 to the distance of a known counterexample.

    It names the classifier's own class, or abstains without a radius. Its evidence is JSON.
    """
    _offers(case, threat)
    certifier = build(case.spec)
    classifier, x = network(case.usual), _inputs(case, 6)
    found = certify(certifier, classifier, x, threat)
    demand(len(found) == len(x), case.usual, f"{len(found)} rows for {len(x)} inputs")
    demand(found.radius.dtype == torch.float64, case.usual, f"radii are {found.radius.dtype}, not float64")
    demand(found.radius >= 0, case.usual, lambda i: f"radius {found.radius[i]}")
    demand(found.radius <= found.upper, case.usual, lambda i: f"radius {found.radius[i]} above {found.upper[i]}")
    abstains = found.prediction == ABSTAIN
    demand(~abstains | (found.radius == 0), case.usual, lambda i: f"abstains with radius {found.radius[i]}")
    if certifier.subject is Subject.BASE:
        own = classifier(x).argmax(dim=1)
        demand(
            abstains | (found.prediction == own),
            case.usual,
            lambda i: f"certifies class {found.prediction[i]}, but the classifier says {own[i]}",
        )
    outcomes = set(found.outcome)
    demand(outcomes <= {Outcome.COMPLETED, Outcome.ABSTAINED}, case.usual, f"outcomes {sorted(outcomes)}")
    try:
        json.dumps(plain(found.evidence), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LawBroken(f"network {case.usual}: evidence is no JSON: {error}") from error
    demand(len(certify(certifier, classifier, x[:0], threat)) == 0, case.usual, "rows for no inputs")


@law(poison=(math.nan, math.inf))
def poison(case: Case, poison: float) -> None:
    """NaN or infinity in the weights is refused, or fails, or certifies nothing."""
    classifier = network(case.usual)
    weights = [parameter for parameter in classifier.module.parameters() if parameter.dim() > 1]
    with torch.no_grad():
        weights[len(weights) // 2].view(-1)[0] = poison
    try:
        radius = certify(build(case.spec), classifier, inputs(3), _norm(case), throw=False).radius
    except UnsupportedError:
        return
    demand(radius == 0, case.usual, lambda i: f"radius {radius[i]:.9g} with {poison} in the weights")


@law()
def ties(case: Case) -> None:
    """Nothing is certified if all logits are equal."""
    certifier, classifier = build(case.spec), network(case.usual if "linear" not in case.layers else "linear")
    with torch.no_grad():
        for parameter in classifier.module.parameters():
            parameter.zero_()
    radius = certify(certifier, classifier, inputs(3), _norm(case)).radius
    if certifier.subject is Subject.BASE:
        demand(radius == 0, "of zeros", lambda i: f"radius {radius[i]:.9g} at a tie")


@law()
def scale(case: Case) -> None:
    """Radii do not change if logits are scaled by a power of two."""
    if not case.scale_free:
        raise NotConcerned("certifies scores that depend on the scale")
    certifier, classifier, x = build(case.spec), network(case.usual), _inputs(case, 5)
    before = certify(certifier, classifier, x, _norm(case))
    with torch.no_grad():
        last = [module for module in classifier.module.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(1024.0)
        last.bias.mul_(1024.0)
    after = certify(certifier, classifier, x, _norm(case))
    relative = max(case.batch, 1e-6) if case.scaling is None else case.scaling
    _same(before, after, case.usual, "with logits 1024 times as large", relative, absolute=0.0)


@law()
def unknown_layer(case: Case) -> None:
    """A layer that the method does not know is refused with a reason; it is never skipped."""
    certifier = build(case.spec)
    if certifier.subject is Subject.SMOOTHED:
        raise NotConcerned("needs no knowledge of the layers")
    _refuses(certifier, network("unknown"), inputs(2), _norm(case))


@law(threat=(L0, *NORMS))
def norms(case: Case, threat: ThreatModel) -> None:
    """A norm that the case does not list is refused, and the reason names it; a norm that it lists is offered."""
    certifier, classifier = build(case.spec), network(case.usual)
    if threat.p not in case.norms:
        return _refuses(certifier, classifier, inputs(1), threat, threat.name)
    demand(threat.p in certifier.norms, case.usual, f"{threat.name} is not among the norms of the class")
    reason = certifier.unsupported(classifier, threat)
    demand(reason is None, case.usual, f"{threat.name} is refused: {reason}")


@law()
def narrow(case: Case) -> None:
    """The attribute `norms` says which norms are offered: a subclass that narrows it refuses the others."""
    certifier = build(case.spec)
    options = {part.name: getattr(certifier, part.name) for part in fields(certifier)}  # type: ignore[arg-type]
    smaller = type("Narrow", (type(certifier),), {"norms": frozenset({3.0})})(**options)
    _refuses(smaller, network(case.usual), inputs(2), L2, "L2 is not offered, only L3")


@law()
def round_trip(case: Case) -> None:
    """`build` and `describe` are inverse: a certifier built from its description is equal to it."""
    certifier = build(case.spec)
    described = describe(certifier)
    demand(build(described) == certifier, "none", f"{described} builds {build(described)}, not {certifier}")
    again = describe(build(described))
    demand(again == described, "none", f"{described} is described as {again} once it is built")


@law(kind=KINDS)
def layers(case: Case, kind: str) -> None:
    """The kinds of networks that the case lists are certified, the others refused."""
    certifier, classifier, x = build(case.spec), network(kind), inputs(2)
    if kind not in case.layers:
        return _refuses(certifier, classifier, x, _norm(case))
    try:
        found = certify(certifier, classifier, x, _norm(case))
    except UnsupportedError as error:
        raise LawBroken(f"network {kind}: is listed, but refused: {error}") from error
    demand(len(found) == 2, kind, f"{len(found)} rows for 2 inputs")


def _network(case: Case, kind: str) -> Classifier:
    if kind not in case.layers:
        raise NotConcerned(f"does not certify {kind}")
    return network(kind)


def _inputs(case: Case, n: int) -> Tensor:
    """Return n inputs, or as many of them as the case allows."""
    return inputs(n)[: case.inputs]


def _named_network(case: Case, seed: int, name: str) -> Classifier:
    return network(case.usual, seed=seed, name=name)


def _norm(case: Case) -> ThreatModel:
    """Return L2 if the certifier offers it, or else another norm; for laws that need only one norm."""
    return next(threat for threat in (L2, Linf, L1, L0) if threat.p in case.norms)


def _offers(case: Case, threat: ThreatModel) -> None:
    if threat.p not in case.norms:
        raise NotConcerned(f"{threat.name} is not offered; the law `norms` tests that it is refused")


def _refuses(
    certifier: Certifier[Any], classifier: Classifier, x: Tensor, threat: ThreatModel, words: str = ""
) -> None:
    """Demand a refusal with a reason that contains the words."""
    try:
        certify(certifier, classifier, x, threat)
    except UnsupportedError as error:
        demand(bool(str(error).strip()), classifier.name, "is refused without a reason")
        demand(words in str(error), classifier.name, f"is refused, but {str(error)!r} does not say {words!r}")
    else:
        demand(False, classifier.name, f"{threat} is certified, but must be refused")


def _same(one: Certificate, other: Certificate, kind: str, said: str, relative: float, absolute: float = 1e-12) -> None:
    """Demand equal classes, and radii that differ by no more than a tolerance."""
    demand(
        one.prediction == other.prediction,
        kind,
        lambda i: f"class {one.prediction[i]}, but {other.prediction[i]} {said}",
    )
    limit = relative * one.radius.nan_to_num(posinf=0.0) + (absolute if relative else 0.0)
    near = (one.radius == other.radius) | ((one.radius - other.radius).abs() <= limit)
    demand(near, kind, lambda i: f"radius {one.radius[i]:.9g}, but {other.radius[i]:.9g} {said}")


def _reordered(certificate: Certificate, order: Tensor) -> Certificate:
    """Return the rows in another order."""
    return Certificate.of(certificate.prediction[order], certificate.radius[order], upper=certificate.upper[order])
