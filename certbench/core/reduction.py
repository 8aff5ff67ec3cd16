r"""Scales and fixed coordinates, taken out of a problem by substitution, so that no certifier has to know of them.

Let $s_i \ge 0$ be the scales, and $z_i = x_i / s_i$ for the free coordinates, those with $s_i > 0$. Let g(z) be f at a
point with the free coordinates $s_i z_i$, and the others of x. That is a classifier, and the size of a perturbation of
x is the plain norm of that of z. So a radius of g at z is one of f at x, in units of the scale.

The computed $z$ is off by at most $2^{-53} |z_i|$ in each coordinate. By the triangle inequality radii lose
$\rho = 2^{-52} \|z\|_p$, nothing where every scale is a power of two.

Without fixed coordinates $g$ is one for all inputs. With them it is another one for each of their values, and a
certifier prepares anew for each.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.threat import Domain, ThreatModel
from certbench.errors import ConfigError, UnsupportedError

Made = TypeVar("Made")

SOME = 8
"""Number of the last preparations that are kept, for inputs with the same fixed coordinates."""

ROUNDING = 2.0**-52
"""Share of the norm of z that radii lose; half of it would do if norms were exact."""

TINY = 1e-300
"""Length that radii lose beside: underflow of z is far below it."""


class Placed(nn.Module):
    """Puts free coordinates, times their scales, in their places among the fixed ones.

    Attributes:
        shape: shape of an input.
        scale: scales of the free coordinates, or None if all are 1.
        places: for each coordinate of an input, the place of its free coordinate; one beyond the last if it is fixed.
            None if none is.
        fixed: the fixed coordinates, 0 at the others; None if there are none.
    """

    scale: Tensor | None
    places: Tensor | None
    fixed: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], scale: Tensor | None, places: Tensor | None, fixed: Tensor | None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("scale", scale)
        self.register_buffer("places", places)
        self.register_buffer("fixed", fixed)

    def forward(self, z: Tensor) -> Tensor:
        """Map `(n, free)` to `(n, *shape)`."""
        moved = z if self.scale is None else z * self.scale
        if self.places is not None and self.fixed is not None:
            moved = functional.pad(moved, (0, 1))[:, self.places] + self.fixed
        return moved.to(z.dtype).reshape(-1, *self.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Placed":
        """Move the numbers to another device, but keep their precision: rounded scales would be another threat."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None:
                self._buffers[name] = buffer.to(moved.device)
        return self


@dataclass(frozen=True, eq=False)
class Piece:
    """Inputs with the same reduced problem.

    Attributes:
        rows: places of the inputs in the batch.
        key: the values of the fixed coordinates, as bytes.
        classifier: the reduced classifier g.
        threat: the norm, and the domain of z; without scales.
        z: the reduced inputs.
        rounding: for each input, the length that radii lose.
        free: places of the free coordinates in a flat input; None: the problem has no scales and is itself.
        scale: their scales.
    """

    rows: list[int]
    key: bytes
    classifier: Classifier
    threat: ThreatModel
    z: Float[Tensor, "m ..."]
    rounding: Float[Tensor, " m"]
    free: Tensor | None = None
    scale: Tensor | None = None

    def reduce(self, points: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
        """Return the free coordinates of points in units of their scales; what the others are does not matter."""
        if self.free is None or self.scale is None:
            return points
        return points.flatten(1)[:, self.free.to(points.device)] / self.scale.to(points.device)

    def restore(self, z: Float[Tensor, "m ..."], x: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
        """Return the inputs x with their free coordinates replaced; those where z is that of x stay x to the bit."""
        if self.free is None or self.scale is None:
            return z
        free, flat = self.free.to(x.device), x.flatten(1).clone()
        moved = z.to(x) * self.scale.to(x.device)
        flat[:, free] = torch.where(z.to(x) == self.reduce(x), flat[:, free], moved)
        return flat.view(x.shape)


def pieces(classifier: Classifier, x: Float[Tensor, "n ..."], threat: ThreatModel) -> Iterator[Piece]:
    """Split inputs into reduced problems without scales; without scales there is one, the problem itself.

    Args:
        classifier: the classifier.
        x: inputs, which `check_inputs` has passed, in float64.
        threat: the threat model.

    Raises:
        ConfigError: an input divided by the scales overflows.
    """
    if threat.scale is None:
        yield Piece(list(range(len(x))), b"", classifier, threat, x, x.new_zeros(len(x)))
        return
    flat, every = x.flatten(1), x.new_tensor(threat.scale, dtype=torch.float64)
    free, held = (every > 0).nonzero().flatten(), (every == 0).nonzero().flatten()
    scale = every[free]
    z = flat[:, free].double() / scale
    if not bool(z.isfinite().all()):
        raise ConfigError("inputs divided by the scales overflow; write larger scales", ("scale",))
    lost = torch.zeros_like(z[:, 0])
    if not bool(_powers_of_two(scale).all() and (z * scale == flat[:, free]).all()):
        lost = torch.linalg.vector_norm(z, ord=threat.p, dim=1) * (ROUNDING * (1 + 2 * len(free) * ROUNDING)) + TINY
    reduced = ThreatModel(threat.p, _domain(threat, flat, free, scale))
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate((flat[:, held].cpu() + 0.0).numpy()):  # so that -0 is 0
        groups.setdefault(row.tobytes(), []).append(i)
    for key, rows in groups.items():
        own = _reduced(classifier, flat[rows[0]], every, free, scale)
        yield Piece(rows, key, own, reduced, z[rows], lost[rows], free, scale)


def _reduced(classifier: Classifier, x: Tensor, every: Tensor, free: Tensor, scale: Tensor) -> Classifier:
    """Return g for the fixed coordinates of one flat input."""
    places = fixed = None
    if len(free) < len(x):
        places = torch.full_like(x, len(free), dtype=torch.int64)
        places[free] = torch.arange(len(free), device=x.device)
        fixed = torch.where(every == 0, x.double(), 0.0)
    placed = Placed(classifier.input_shape, None if bool((scale == 1).all()) else scale, places, fixed)
    whole = nn.Sequential()
    whole.add_module("placed", placed.to(classifier.device))
    inner = classifier.module
    if type(inner) is nn.Sequential and classifier.hidden_code() is None and "placed" not in inner._modules:
        for name, part in inner._modules.items():  # layers keep their names
            whole.add_module(name, part)
    else:
        whole.add_module("module", inner)
    return replace(classifier, module=whole.eval(), input_shape=(len(free),))


def _domain(threat: ThreatModel, flat: Tensor, free: Tensor, scale: Tensor) -> Domain | None:
    """Return the domain of z, rounded outward."""
    if threat.domain is None or (threat.mask and isinstance(threat.domain[0], float)):
        return threat.domain
    found = []
    for end, out in zip(threat.ends(flat.double()), (-torch.inf, torch.inf), strict=True):
        there = (torch.zeros_like(flat[0], dtype=torch.float64) + end)[free]
        moved = there / scale
        exact = _powers_of_two(scale) & (moved * scale == there)
        outside = torch.nextafter(moved, torch.full_like(moved, out))
        found.append(tuple(torch.where(exact | moved.isinf(), moved, outside).tolist()))
    return found[0], found[1]


def _powers_of_two(scale: Tensor) -> Tensor:
    return torch.frexp(scale).mantissa == 0.5


@dataclass(eq=False)
class ReducedState:
    """What a certifier prepared for a threat with scales: its states for the reduced problems, the last few of them.

    Attributes:
        certifier: the certifier.
        classifier: the classifier that was given.
        threat: the threat model, with scales.
        known: the states, by the values of the fixed coordinates.
    """

    certifier: Certifier[Any]
    classifier: Classifier
    threat: ThreatModel
    known: "OrderedDict[bytes, Any]" = field(default_factory=OrderedDict)

    @staticmethod
    def prepare(certifier: Certifier[Any], classifier: Classifier, threat: ThreatModel) -> "ReducedState":
        """Prepare what is the same for all inputs: everything if all coordinates move, else nothing.

        Raises:
            UnsupportedError, MissingBackendError: as `Certifier.prepare`.
        """
        state = ReducedState(certifier, classifier, threat)
        if threat.scale is not None and all(threat.scale):
            zeros = torch.zeros(1, *classifier.input_shape, dtype=torch.float64, device=classifier.device)
            for piece in pieces(classifier, zeros, threat):
                state.of(piece)
        return state

    def of(self, piece: Piece) -> Any:
        """Return the certifier's state for a reduced problem.

        Raises:
            UnsupportedError: it has no certificate for that.
        """
        if piece.key not in self.known:
            reason = self.certifier.unsupported(piece.classifier, piece.threat)
            if reason is not None:
                raise UnsupportedError(reason)
            self.known[piece.key] = self.certifier.prepare(piece.classifier, piece.threat)
        self.known.move_to_end(piece.key)
        while len(self.known) > SOME:
            self.known.popitem(last=False)
        return self.known[piece.key]

    def certify(self, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Certify inputs by their reduced problems; as `Certifier.certify`."""
        parts, order = [], list[int]()
        base = self.certifier.subject is Subject.BASE
        label = self.classifier.double()(x).argmax(dim=1).cpu() if base else None
        for piece in pieces(self.classifier, x, self.threat):
            found = self.certifier.certify(self.of(piece), piece.z, [seeds[i] for i in piece.rows])
            if len(found) != len(piece.rows):
                raise ValueError(f"certify returned {len(found)} rows for {len(piece.rows)} inputs")
            parts.append(_restored(found, piece.rounding.cpu(), None if label is None else label[piece.rows]))
            order += piece.rows
        return _in_order(Certificate.concatenate(parts), order)


def _restored(found: Certificate, lost: Float[Tensor, " m"], label: Int[Tensor, " m"] | None) -> Certificate:
    """Return the certificates at x of those at z.

    Args:
        found: the certificates at z.
        lost: distances that z may be off, which radii lose.
        label: the classes at x; None: the classifier is smoothed.
    """
    loses = (lost > 0) & found.radius.isfinite()
    radius = torch.where(loses, _down(found.radius - lost).clamp(min=0), found.radius)
    upper = torch.where(lost > 0, (found.upper + 3 * lost) * (1 + 4 * ROUNDING), found.upper)
    prediction, outcome = found.prediction.clone(), list(found.outcome)
    if label is not None:
        named = prediction != ABSTAIN
        radius = torch.where(named & (prediction != label), 0.0, radius)
        prediction = torch.where(named, label, prediction)
    else:
        for i in ((radius == 0) & (found.radius > 0)).nonzero().flatten().tolist():
            prediction[i], outcome[i] = ABSTAIN, Outcome.ABSTAINED
    return replace(found, radius=radius, upper=upper, prediction=prediction, outcome=tuple(outcome))


def _down(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def _in_order(certificate: Certificate, order: list[int]) -> Certificate:
    """Return rows that stand in another order in their own."""
    back = torch.tensor(order).argsort()
    return Certificate(
        prediction=certificate.prediction[back],
        radius=certificate.radius[back],
        upper=certificate.upper[back],
        seconds=certificate.seconds[back],
        outcome=tuple(certificate.outcome[i] for i in back.tolist()),
        evidence=tuple(certificate.evidence[i] for i in back.tolist()),
    )
