"""Attacks on base classifiers. Each counterexample bounds the robust radius of its input from above.

foolbox (Rauber et al., 2020) and `gradient` find the points; each is replayed in float64 before it counts. Every point
counts in every norm, so an L2 attack may tighten the Linf bound. Every run calls `attack`; the audit of a run adds
`attack_with_all` and `refute`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import foolbox
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.attacks.counterexamples import Counterexamples, Hunt, PerThreat
from certbench.attacks.gradient import greedy, lbfgs, pgd
from certbench.attacks.reduced import attack_reduced, scaled
from certbench.attacks.walk import Bounds, clamped, distance, restore, shape, widest
from certbench.core.classifier import Classifier
from certbench.core.memory import out_of_memory
from certbench.core.reduction import Piece
from certbench.core.threat import ThreatModel

VERSION = 1
"""Version of the battery of `attack`. Raise it when the battery changes, so that counterexamples are searched again."""

INSIDE = 1 - 1e-7
"""Share of a claimed radius in which it is attacked, because balls are open."""


def attack(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threats: tuple[ThreatModel, ...],
    bounds: Bounds,
    *,
    steps: int = 100,
    seed: int = 0,
) -> PerThreat:
    """Attack the classifier's own prediction at each input: FMN, DDN, C&W and PGD, then a walk back to the input.

    Args:
        classifier: a base classifier.
        x: inputs, within `bounds`.
        threats: the norms in which distances are wanted.
        bounds: the box in which counterexamples may lie; the threat model's domain, or the range of the data.
        steps: number of steps of each attack.
        seed: seed of the attacks' random starts; torch's global generator is left unchanged.
    """
    if scaled(threats):

        def each(piece: Piece, plain: tuple[ThreatModel, ...], box: Bounds, known: PerThreat) -> PerThreat:
            del known
            return attack(piece.classifier, piece.z, plain, box, steps=steps, seed=seed)

        return attack_reduced(classifier, x, threats, bounds, each)
    hunt = Hunt.of(classifier, x, threats, bounds)
    if len(x) == 0:
        return hunt.found
    with _seeded(seed, classifier):
        for name, points in _battery(classifier, hunt.x, hunt.label, threats, bounds, steps):
            hunt.offer(name, points)
    return hunt.found


def attack_with_all(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threats: tuple[ThreatModel, ...],
    bounds: Bounds,
    *,
    steps: int = 100,
    seed: int = 0,
    known: Mapping[ThreatModel, Counterexamples] | None = None,
    deadline: float = math.inf,
) -> tuple[PerThreat, dict[str, str]]:
    """Attack with all methods: those of `attack`, FGSM, DeepFool, EAD, L0 FMN, the boundary attack, L-BFGS, greedy.

    Args:
        classifier: a base classifier.
        x: inputs, within `bounds`.
        threats: the norms in which distances are wanted.
        bounds: the box in which counterexamples may lie.
        steps: number of steps of each attack.
        seed: seed of the attacks' random starts; torch's and numpy's global generators are left unchanged.
        known: points to begin with; they are replayed, too.
        deadline: value of `time.monotonic` after which no attack begins.

    Returns:
        The counterexamples, and the reasons of attacks that failed; a failure does not stop the others.
    """
    failed: dict[str, str] = {}
    if scaled(threats):

        def each(piece: Piece, plain: tuple[ThreatModel, ...], box: Bounds, known: PerThreat) -> PerThreat:
            found, reasons = attack_with_all(
                piece.classifier, piece.z, plain, box, steps=steps, seed=seed, known=known, deadline=deadline
            )
            failed.update(reasons)
            return found

        return attack_reduced(classifier, x, threats, bounds, each, known), failed
    hunt = Hunt.of(classifier, x, threats, bounds)
    for threat in known or {}:
        hunt.offer(known[threat].attack, known[threat].point.to(hunt.x), walk=False)  # type: ignore[index]
    if len(x) == 0:
        return hunt.found, failed
    with _seeded(seed, classifier):
        try:
            for name, points in _battery(classifier, hunt.x, hunt.label, threats, bounds, steps):
                hunt.offer(name, points)
                if time.monotonic() > deadline:
                    break
        except Exception as error:
            _note(failed, "FMN, DDN, C&W, PGD", error)
        for name, method in _more(classifier, hunt, steps):
            if time.monotonic() > deadline:
                break
            try:
                hunt.offer(name, method())
            except Exception as error:  # an attack that fails does not stop the others
                _note(failed, name, error)
        hunt.set_back()
    return hunt.found, failed


def refute(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threat: ThreatModel,
    eps: Float[Tensor, " n"],
    bounds: Bounds,
    *,
    steps: int = 100,
    restarts: int = 4,
    seed: int = 0,
    known: Mapping[ThreatModel, Counterexamples] | None = None,
    deadline: float = math.inf,
) -> Counterexamples:
    """Search for counterexamples within each input's own radius, by PGD on the margin to one rival after another.

    PGD starts at the input, at known points of other norms, and at noise. In L0 the search is greedy; in known points,
    coordinates are set back to the input's as long as the class stays wrong.

    Args:
        classifier: a base classifier.
        x: inputs, within `bounds`.
        threat: the norm.
        eps: radii to search in; in L0 the number of coordinates that may change.
        bounds: the box in which counterexamples may lie.
        steps: number of steps of each descent.
        restarts: number of descents.
        seed: seed of the random starts.
        known: points to begin with.
        deadline: value of `time.monotonic` after which no descent begins.
    """
    if threat.scale is not None:

        def each(piece: Piece, plain: tuple[ThreatModel, ...], box: Bounds, before: PerThreat) -> PerThreat:
            (short,) = plain
            radius, known = eps[piece.rows], dict(before)
            found = refute(
                piece.classifier, piece.z, short, radius, box,
                steps=steps, restarts=restarts, seed=seed, known=known, deadline=deadline,
            )  # fmt: skip
            return {short: found}

        near = {other: found for other, found in (known or {}).items() if other == threat}
        return attack_reduced(classifier, x, (threat,), bounds, each, near)[threat]
    hunt = Hunt.of(classifier, x, (threat,), bounds)
    points = [found.point.to(hunt.x) for found in (known or {}).values()]
    if len(x) == 0:
        return hunt.found[threat]
    generator = torch.Generator(hunt.x.device).manual_seed(seed)
    reach = eps.to(hunt.x)
    others = hunt.exact(hunt.x).scatter(1, hunt.label[:, None], -math.inf).argsort(dim=1, descending=True)
    rivals = others.shape[1] - 1
    for restart in range(restarts):
        if time.monotonic() > deadline:
            break
        rival = others[:, restart % rivals]
        if threat.p == 0:
            changes = int(reach.max().clamp(max=float(hunt.x[0].numel())))
            hunt.offer("greedy", greedy(hunt.exact, hunt.x, hunt.label, bounds, changes=changes, rival=rival))
            continue
        start = None
        if restart and restart % 2 and points:
            start = points[restart // 2 % len(points)]
        elif restart:
            noise = torch.randn(hunt.x.shape, generator=generator, dtype=hunt.x.dtype, device=hunt.x.device)
            start = hunt.x + noise * reach.view(shape(hunt.x))
        found = pgd(
            hunt.exact, hunt.x, hunt.label, threat, reach, bounds, steps=steps, generator=generator, start=start,
            rival=rival if restart else None,
        )  # fmt: skip
        hunt.offer("PGD on the margin", found)
    if threat.p == 0:
        for point in points:
            hunt.offer("set back", restore(hunt.exact, hunt.x, hunt.label, point, singly=256), walk=False)
    hunt.set_back()
    return hunt.found[threat]


def _battery(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    threats: tuple[ThreatModel, ...],
    bounds: Bounds,
    steps: int,
) -> Iterator[tuple[str, Float[Tensor, "n ..."]]]:
    """Yield candidate points of each attack; the replay drops those that are no counterexamples."""
    attacks = foolbox.attacks
    model = foolbox.PyTorchModel(classifier.module, bounds=widest(bounds), device=classifier.device)
    images = clamped(x.to(classifier.dtype), bounds)
    criterion = foolbox.criteria.Misclassification(label)
    # The nearest other input that is classified differently needs no gradient.
    start = _other_class(images, label)
    if start is not None:
        yield "nearest input", start
    norms = {threat.p for threat in threats}
    minimal: dict[str, Any] = {}
    if 1.0 in norms:
        minimal["L1 FMN"] = attacks.L1FMNAttack(steps=steps)
    if 2.0 in norms or 1.0 in norms:
        minimal["L2 FMN"] = attacks.L2FMNAttack(steps=steps)
        minimal["DDN"] = attacks.DDNAttack(steps=steps)
        minimal["C&W"] = attacks.L2CarliniWagnerAttack(binary_search_steps=4, steps=steps, stepsize=0.05)
    if math.inf in norms:
        minimal["Linf FMN"] = attacks.LInfFMNAttack(steps=steps)
    for name, method in minimal.items():
        yield name, method.run(model, images, criterion)
    fixed = {
        1.0: ("L1 PGD", attacks.SparseL1DescentAttack(steps=steps)),
        2.0: ("L2 PGD", attacks.L2PGD(steps=steps)),
        math.inf: ("Linf PGD", attacks.LinfPGD(steps=steps)),
    }
    for threat in threats:
        if threat.p not in fixed:  # L0 has no attack of its own; points of the others count
            continue
        name, method = fixed[threat.p]
        for fraction in (0.5, 0.25):
            # PGD needs a radius: a share of the distance to the nearest input of another class, or to the middle of
            # the box if all inputs are of one class. The walk back shortens the result.
            goal = torch.zeros_like(x) + (bounds[0] + bounds[1]) / 2 if start is None else start
            eps = fraction * distance(threat, x, goal).median().item()
            if eps > 0:
                yield name, method.run(model, images, criterion, epsilon=eps)


def _more(classifier: Classifier, hunt: Hunt, steps: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield candidate points of the attacks that only the audit runs; they use the points found before them."""
    attacks, x, label, bounds = foolbox.attacks, hunt.x, hunt.label, hunt.bounds
    model = foolbox.PyTorchModel(classifier.module, bounds=widest(bounds), device=classifier.device)
    images = clamped(x.to(classifier.dtype), bounds)
    criterion = foolbox.criteria.Misclassification(label)
    norms = {threat.p for threat in hunt.found}

    def fast(method: Any, threat: ThreatModel, share: float) -> Callable[[], Tensor]:
        known = hunt.found[threat].distance
        finite = known[known.isfinite()]
        low, high = widest(bounds)
        span = (high - low) / 4
        eps = share * (float(finite.median()) if len(finite) else span)
        return lambda: method.run(model, images, criterion, epsilon=eps)

    gradient = {
        1.0: ("L1 fast gradient", attacks.L1FastGradientAttack()),
        2.0: ("L2 fast gradient", attacks.FGM()),
        math.inf: ("FGSM", attacks.FGSM()),
    }
    for threat in hunt.found:
        if threat.p in gradient:
            name, method = gradient[threat.p]
            for share in (0.75, 1.5, 3.0):
                yield name, fast(method, threat, share)
    if 2.0 in norms:
        yield "L2 DeepFool", lambda: attacks.L2DeepFoolAttack().run(model, images, criterion)
    if math.inf in norms:
        yield "Linf DeepFool", lambda: attacks.LinfDeepFoolAttack().run(model, images, criterion)
    if norms & {0.0, 1.0}:
        for const, pace, sparse in ((0.1, 0.01, 0.01), (1.0, 0.05, 0.1)):
            ead = attacks.EADAttack(
                binary_search_steps=4, steps=steps, initial_const=const, initial_stepsize=pace, regularization=sparse,
                decision_rule="L1",
            )  # fmt: skip
            yield "EAD", lambda ead=ead: ead.run(model, images, criterion)  # type: ignore[misc]
    others = hunt.exact(x).scatter(1, label[:, None], -math.inf).argsort(dim=1, descending=True)
    if 0.0 in norms:
        yield "L0 FMN", lambda: attacks.L0FMNAttack(steps=steps).run(model, images, criterion)
        for rank in range(min(3, others.shape[1] - 1)):
            yield (
                "greedy",
                lambda rank=rank: greedy(hunt.exact, x, label, bounds, changes=x[0].numel(), rival=others[:, rank]),  # type: ignore[misc]
            )
    for name, own in ATTACKS.items():
        yield name, partial(own, hunt, steps)
    if 2.0 in norms:
        yield "boundary attack", lambda: _boundary(model, hunt, images, steps)


def _lbfgs(hunt: Hunt, steps: int) -> Tensor:
    """Attack towards the most probable other class."""
    rival = hunt.exact(hunt.x).scatter(1, hunt.label[:, None], -math.inf).argmax(dim=1)
    return lbfgs(hunt.exact, hunt.x, hunt.label, hunt.bounds, steps=min(steps, 50), searches=6, rival=rival)


ATTACKS: dict[str, Callable[[Hunt, int], Tensor]] = {"L-BFGS": _lbfgs}
"""Attacks of our own that the audit runs in every norm: from what is known and a number of steps to candidate points.
To add one, write it in this room and name it here."""


def _boundary(model: Any, hunt: Hunt, images: Tensor, steps: int) -> Tensor:
    """Walk along the decision boundary, asking for classes alone (Brendel et al., 2018), from the best known points."""
    best = hunt.best(2.0)
    start = clamped(hunt.x + 1.05 * (best - hunt.x), hunt.bounds).to(images)  # well across, even in float32
    across = model(start).argmax(dim=1) != hunt.label
    if bool(across.any()):
        method = foolbox.attacks.BoundaryAttack(steps=2 * steps)
        criterion = foolbox.criteria.Misclassification(hunt.label[across])
        best[across] = method.run(model, images[across], criterion, starting_points=start[across]).to(best)
    return best


def _other_class(x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, "n ..."] | None:
    if bool((label == label[0]).all()):
        return None
    distance = torch.cdist(x.flatten(1).double(), x.flatten(1).double())
    distance[label[:, None] == label[None]] = math.inf
    return x[distance.argmin(dim=1)]


def _note(failed: dict[str, str], name: str, error: Exception) -> None:
    if out_of_memory(error):
        raise error
    failed[name] = f"{type(error).__name__}: {error}"


@contextmanager
def _seeded(seed: int, classifier: Classifier) -> Iterator[None]:
    """Draw the attacks' random numbers from the seed; leave the global generators unchanged."""
    devices = [classifier.device] if classifier.device.type == "cuda" else []
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)
