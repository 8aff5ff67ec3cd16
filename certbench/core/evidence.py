"""Evidence: facts with which a reader can re-check a claim, one frozen dataclass per kind. It imports nothing heavy.

A certificate, a store and a baseline hold evidence as a JSON object. Each class here owns some keys of that object.
It writes them with `to_json`, and reads them with `from_json`, which is strict, or with `read`, which is not. It leaves
all other keys alone and keeps them in `more`. So one object can have parts of several kinds (a certificate of `best-of`
has those of its member, too), and another package's certifier may give any JSON object. A reader asks for the class
that has the keys it needs: `BracketEvidence.read(row.evidence)`.

The file is long because it lists every kind with its fields; there is hardly any code in it.
"""

from collections.abc import Mapping, Set
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from certbench.errors import StoreError

SomeEvidence = TypeVar("SomeEvidence", bound="Evidence")

CLASS = {"key": "class"}
"""Metadata of a field whose key in JSON is `class`, a word that Python keeps for itself."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A kind of evidence. Its fields are the keys that it owns; a field that is None has no key.

    Attributes:
        more: the entries of other kinds, as they stand in the JSON object.
    """

    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; infinities are still numbers."""
        values = {entry.key: getattr(self, entry.name) for entry in _entries(type(self))}
        return {key: _encode(value) for key, value in values.items() if value is not None} | dict(self.more)

    @classmethod
    def from_json(cls: type[SomeEvidence], values: Mapping[str, Any]) -> SomeEvidence:
        """Read a JSON object, and refuse one that is not of this kind.

        Raises:
            StoreError: a key is missing, or its value has another form; the message names it.
        """
        return cls._of(values, strict=True)

    @classmethod
    def read(cls: type[SomeEvidence], values: Mapping[str, Any]) -> SomeEvidence | None:
        """Read a JSON object; None if it is not of this kind. An optional value of another form stays in `more`."""
        try:
            return cls._of(values, strict=False)
        except StoreError:
            return None

    @classmethod
    def part(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those entries of a JSON object that this kind owns, whatever their values are."""
        return {entry.key: values[entry.key] for entry in _entries(cls) if entry.key in values}

    @classmethod
    def keys(cls) -> Set[str]:
        """Return the keys that this kind owns."""
        return frozenset(entry.key for entry in _entries(cls))

    @classmethod
    def stated(cls, keys: Set[str]) -> bool:
        """Say whether all keys that this kind needs are among these."""
        return all(entry.key in keys for entry in _entries(cls) if entry.needed)

    @classmethod
    def exactly(cls, keys: Set[str]) -> bool:
        """Say whether these are all keys that this kind needs, and none that it does not own."""
        return cls.stated(keys) and keys <= cls.keys()

    @classmethod
    def _of(cls: type[SomeEvidence], values: Mapping[str, Any], *, strict: bool) -> SomeEvidence:
        found: dict[str, Any] = {}
        for entry in _entries(cls):
            if entry.key not in values and entry.needed:
                raise StoreError(f"the evidence has no {entry.key}")
            if entry.needed or values.get(entry.key) is not None:
                try:
                    found[entry.name] = _decode(values[entry.key], entry.form, entry.key)
                except StoreError:
                    if strict or entry.needed:
                        raise
        read = {entry.key for entry in _entries(cls) if entry.name in found}
        return cls(**found, more={key: value for key, value in values.items() if key not in read})


@dataclass(frozen=True, kw_only=True)
class ReasonEvidence(Evidence):
    """The reason why there is no answer.

    Attributes:
        reason: text; another package's certifier may give any JSON value.
    """

    reason: Any


@dataclass(frozen=True, kw_only=True)
class TracebackEvidence(ReasonEvidence):
    """An exception that is none of certbench's: a bug in a certifier, or in a package below it.

    Attributes:
        traceback: Python's traceback, as text.
    """

    traceback: str


@dataclass(frozen=True, kw_only=True)
class HalvedEvidence(Evidence):
    """A batch that ran out of memory, and was computed in parts; the certificate has its own evidence, too.

    Attributes:
        batch_after_out_of_memory: largest number of inputs that were then computed at once.
    """

    batch_after_out_of_memory: int


@dataclass(frozen=True, kw_only=True)
class BracketEvidence(Evidence):
    """The two radii between which a search ended.

    Attributes:
        bracket: the radius that is proved, and a larger one, in units of the input. For a complete certifier the second
            is the distance of a counterexample, for others a radius at which the bounds failed; inf if there is none.
    """

    bracket: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class DomainEvidence(Evidence):
    """A certificate of the whole domain: no point of it has another class, however far from the input.

    Attributes:
        farthest: distance of the domain's farthest point from the input, in units of the input; the radius is this.
    """

    farthest: float


@dataclass(frozen=True, kw_only=True)
class AttackEvidence(Evidence):
    """Attacks that a certificate was held against; they prove nothing.

    Attributes:
        attack: name of the attack that found the closest counterexample; empty if none did.
        failed: reasons of attacks that could not be run, by name. None if all could.
    """

    attack: str
    failed: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class HeadEvidence(Evidence):
    """A last layer that was left out, because it changes no class in exact arithmetic.

    Attributes:
        dropped: the layer: `sigmoid`, `softmax`, or several: `softmax of mul`.
    """

    dropped: str


@dataclass(frozen=True, kw_only=True)
class EngineEvidence(Evidence):
    """What computed the bounds, where there is a choice.

    Attributes:
        engine: `own` or `auto-lirpa`.
    """

    engine: str


@dataclass(frozen=True, kw_only=True)
class BoundsEvidence(Evidence):
    """The method that bounded the neurons of hidden layers.

    Attributes:
        bounds: name of the method: `crown`, `alpha-crown`, `lp`, ..., or `none` if no bounds were needed.
    """

    bounds: str


@dataclass(frozen=True, kw_only=True)
class MarginEvidence(BracketEvidence):
    """A search over radii at which margins were bounded.

    Attributes:
        evaluations: number of radii that were tried.
        arithmetic: `real`, if the claim is about the network in exact arithmetic; else the data type of the float
            program that it is about.
        bounds: as in `BoundsEvidence`, None if there are none.
        reason: reason why the radius is 0; None if it is positive.
    """

    evaluations: int
    arithmetic: str
    bounds: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class LipschitzEvidence(Evidence):
    """Global Lipschitz constants; the certificate has `MarginEvidence`, too.

    Attributes:
        constants: constants of the certified class's output less each output, in the order of the classes; change of
            the output per unit of the input. The entry of the class itself is 0.
        layers: bounds of each linear layer's operator norms, by the layer's name and by `p->q`.
    """

    constants: tuple[float, ...]
    layers: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class MilpEvidence(BracketEvidence):
    """Mixed-integer programs, one per rival class.

    Attributes:
        crown: radius that CROWN proves.
        bounds: as in `BoundsEvidence`.
        feasibility: tolerance of the solver for its constraints.
        programs: result of each program, by the position of the rival.
        reason: reason why there is no answer, None if there is one.
    """

    crown: float
    bounds: str
    feasibility: float
    programs: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class TreeEvidence(BracketEvidence):
    """A tree of branch and bound.

    Attributes:
        domains: number of leaves that were bounded.
        splits: number of leaves that were split.
        open: number of leaves that were left.
        bounds: as in `BoundsEvidence`.
    """

    domains: int
    splits: int
    open: int
    bounds: str


@dataclass(frozen=True, kw_only=True)
class BestOfEvidence(Evidence):
    """The certifier that won among several; the certificate has that one's evidence, too.

    Attributes:
        won: name of the certifier that proved the radius, with its options.
        refused: reasons of those that gave nothing, by name. None if all gave something.
    """

    won: str | None = None
    refused: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class DrawingEvidence(Evidence):
    """Unusual ways of drawing and classifying; no radius depends on them.

    Attributes:
        stream: the library and the device that drew the noise.
        precision: data type of the classifier, if it has fewer bits than float32.
        compiled: the compiler.
    """

    stream: str | None = None
    precision: str | None = None
    compiled: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConfidenceEvidence(Evidence):
    """The part of a probabilistic claim that the summary of a run needs.

    Attributes:
        alpha: probability that the input's certificate is wrong.
    """

    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class DrawsEvidence(Evidence):
    """The part that tells two samples apart: the same seed, number and counts are the same draws.

    Attributes:
        seed: seed of the draws, in hexadecimal digits.
        counts: votes for each class.
        n: number of draws.
    """

    seed: str | None = None
    counts: tuple[int, ...] | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class TallyEvidence(Evidence):
    """The part of votes that a baseline keeps, and with which tests compare the counts of two runs.

    Attributes:
        counts: votes for each class.
        n: number of draws, at least as many as votes.
        rule: rule that bounds the probabilities: `two-class` or `one-vs-rest`.
        seed: seed of the draws, in hexadecimal digits.
    """

    counts: tuple[int, ...]
    n: int | None = None
    rule: str | None = None
    seed: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecountEvidence(Evidence):
    """The part of votes that `certbench recertify` needs.

    Attributes:
        counts: votes for each class.
        selection: votes of other draws, which chose the class.
        n: number of draws that were counted.
        alpha: probability that the input's certificate is wrong.
        dimension: dimension of the features that the noise was added to.
    """

    counts: tuple[int, ...]
    selection: tuple[int, ...] | None = None
    n: int | None = None
    alpha: float | None = None
    dimension: int | None = None


@dataclass(frozen=True, kw_only=True)
class VoteEvidence(Evidence):
    """Two independent samples of votes, and the bounds that follow from them.

    Attributes:
        counts: votes for each class in the sample that bounds the probabilities.
        selection: votes for each class in the sample that chose the class.
        n: number of draws of the first of these, at least as many as votes.
        alpha: probability that the certificate is wrong.
        rule: rule that bounds the probabilities: `two-class` or `one-vs-rest`.
        p_lower: lower bound of the probability of the class.
        p_upper: upper bound of the probability of any other.
        seed: seed of the draws, in hexadecimal digits.
    """

    counts: tuple[int, ...]
    selection: tuple[int, ...]
    n: int
    alpha: float
    rule: str
    p_lower: float
    p_upper: float
    seed: str


@dataclass(frozen=True, kw_only=True)
class SplittingEvidence(VoteEvidence):
    """Votes under splitting noise.

    Attributes:
        lam: half the distance between cuts, in units of the input.
    """

    lam: float


@dataclass(frozen=True, kw_only=True)
class DiscreteEvidence(VoteEvidence):
    """Votes where coordinates are replaced by values of a grid.

    Attributes:
        keep: probability that a coordinate keeps its value.
        grid: number of steps between 0 and 1.
        unit: unit of the radius: `pixels` or `coordinates`.
    """

    keep: float
    grid: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class AblationEvidence(VoteEvidence):
    """Votes where all but some pixels are hidden.

    Attributes:
        keep: number of pixels that are shown.
        encode: what hides the others: `two-channel` (NaN) or `zero`.
        unit: unit of the radius: `pixels` or `coordinates`.
    """

    keep: int
    encode: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class NoiseEvidence(Evidence):
    """Votes under additive noise: the fields of `VoteEvidence`, and the noise.

    Attributes:
        counts: votes for each class in the sample that bounds the probabilities.
        selection: votes for each class in the sample that chose the class.
        n: number of draws of the first of these, at least as many as votes.
        alpha: probability that the certificate is wrong.
        rule: rule that bounds the probabilities: `two-class` or `one-vs-rest`.
        noise: name and options of the noise.
        sigma: standard deviation of the noise, in units of the features that it is added to.
        scale: the noise's own parameter of scale, in the same units.
        dimension: dimension of these features.
        p_lower: lower bound of the probability of the class.
        p_upper: upper bound of the probability of any other.
        seed: seed of the draws, in hexadecimal digits.
        shared: True if all inputs share the draws, else None.
    """

    counts: tuple[int, ...]
    selection: tuple[int, ...]
    n: int
    alpha: float
    rule: str
    noise: Mapping[str, Any]
    sigma: float
    scale: float
    dimension: int
    p_lower: float
    p_upper: float
    seed: str
    shared: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PlaceEvidence(Evidence):
    """A hidden layer behind which noise is added.

    Attributes:
        layer: name of the layer.
        sigma: standard deviation of the noise, in units of the layer's output.
        scale: the noise's own parameter of scale, in the same units.
        dimension: dimension of the layer's output.
        constants: Lipschitz constants of the part before, from the norm of the input to each p-norm of the output.
    """

    layer: str | None = None
    sigma: float | None = None
    scale: float | None = None
    dimension: int | None = None
    constants: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayersEvidence(Evidence):
    """The hidden layers behind which noise is added; the certificate has `NoiseEvidence`, about the first place, too.

    Attributes:
        layer: name of the first layer; None if the first place is the input.
        constants: Lipschitz constants of the part before it, as in `PlaceEvidence`.
        also: the places after the first one.
        radii: radius that the noise of each place proves, in units of the input.
    """

    layer: str | None = None
    constants: Mapping[str, float] | None = None
    also: tuple[PlaceEvidence, ...] | None = None
    radii: tuple[float, ...] | None = None

    @property
    def constant(self) -> bool:
        """Say whether noise is added to features that the input does not move."""
        tables = [self.constants or {}, *(place.constants for place in self.also or ())]
        return any(bound == 0 for table in tables for bound in table.values())


@dataclass(frozen=True, kw_only=True)
class SoftEvidence(Evidence):
    """Sampled scores, or classes that were drawn from them.

    Attributes:
        counts: number of draws of each class, for the bound `sampled`; else None.
        sums: sums of each class's scores, in units of 1 / `unit`; None for the bound `sampled`.
        unit: number of units in a score of 1; None for the bound `sampled`.
        variances: variances of each class's scores, for the bound `bernstein`; else None.
        n: number of draws.
        alpha: probability that the certificate is wrong.
        bound: name of the bound of the mean scores.
        beta: inverse temperature of the softmax.
        sigma: standard deviation of the Gaussian noise, in units of the input.
        top: the class that was chosen; `class` in JSON.
        selection: mean scores of other draws, which chose the class.
        dimension: dimension of the input.
        seed: seed of the draws, in hexadecimal digits.
        p_lower: lower bound of the mean score of the class.
        p_upper: upper bound of the mean score of any other.
    """

    counts: tuple[int, ...] | None = None
    sums: tuple[int, ...] | None = None
    unit: int | None = None
    variances: tuple[float, ...] | None = None
    n: int
    alpha: float
    bound: str
    beta: float
    sigma: float
    top: int = field(metadata=CLASS)
    selection: tuple[float, ...]
    dimension: int
    seed: str
    p_lower: float
    p_upper: float


@dataclass(frozen=True, kw_only=True)
class AdaptiveEvidence(Evidence):
    """Draws until a radius was decided.

    Attributes:
        answer: whether the class has the probability `p0`: `at least`, `less` or `open`.
        successes: votes for the class.
        draws: number of draws that gave these votes.
        top: the class that was chosen; `class` in JSON.
        selection: votes of other draws, which chose the class.
        p0: probability at which the noise certifies the radius.
        n: the largest number of draws.
        alpha: probability that the certificate is wrong.
        step: number of draws between two looks.
        sigma: standard deviation of the noise, in units of the input.
        scale: the noise's own parameter of scale, in the same units.
        dimension: dimension of the input.
        seed: seed of the draws, in hexadecimal digits.
    """

    answer: str
    successes: int
    draws: int
    top: int = field(metadata=CLASS)
    selection: tuple[int, ...]
    p0: float
    n: int
    alpha: float
    step: int
    sigma: float
    scale: float
    dimension: int
    seed: str


@dataclass(frozen=True, kw_only=True)
class ShiftsEvidence(Evidence):
    """Votes of all shifts of the cuts of splitting noise; nothing is sampled.

    Attributes:
        counts: votes for each class.
        n: number of shifts.
        lam: half the distance between cuts, in units of the input.
        grid: number of steps of the data between 0 and 1.
        points: perturbed inputs that the claim is about: `grid` or `all`.
        offsets: seed of the coordinates' offsets.
        claim: the same in words.
    """

    counts: tuple[int, ...]
    n: int
    lam: float
    grid: int
    points: str
    offsets: int
    claim: str


@dataclass(frozen=True, kw_only=True)
class PatchEvidence(Evidence):
    """Votes of all positions of a band or block that shows a part of the image; nothing is sampled.

    Attributes:
        counts: votes for each class; a position may vote for several.
        n: number of positions.
        kind: `band` or `block`.
        size: width of the band, or side of the block, in pixels.
        threshold: softmax from which on a position votes for a class.
        rule: `located` or `uniform`.
        encode: what hides the rest: `two-channel` (NaN) or `zero`.
        claim: meaning of the radius in words.
    """

    counts: tuple[int, ...]
    n: int
    kind: str
    size: int
    threshold: float
    rule: str
    encode: str
    claim: str


@dataclass(frozen=True, kw_only=True)
class RecertifiedEvidence(Evidence):
    """Counts that somebody else made.

    Attributes:
        counts: votes for each class.
        n: number of draws.
        alpha: probability that the certificate is wrong.
        sigma: standard deviation of the noise, in units of the input.
        rule: rule that bounds the probabilities: `two-class`, `one-vs-rest` or `top-k`.
        selected: way in which the class was chosen.
        top: the class; `class` in JSON.
        p_lower: lower bound of its probability.
        p_upper: upper bound of the probability of any other.
        k: the k of top-k, else None.
    """

    counts: tuple[int, ...]
    n: int
    alpha: float
    sigma: float
    rule: str
    selected: str
    top: int = field(metadata=CLASS)
    p_lower: float
    p_upper: float
    k: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExactCountsEvidence(Evidence):
    """Counts of all votes that somebody else made; nothing is sampled.

    Attributes:
        counts: votes for each class.
        n: number of votes, with those for no class.
        grid: number of steps of the data between 0 and 1.
        rule: `exact`.
        claim: perturbed inputs that the claim is about, in words.
    """

    counts: tuple[int, ...]
    n: int
    grid: int
    rule: str
    claim: str


class _Entry(NamedTuple):
    """A key that a kind owns, the field that holds its value, the form of the value, and whether it must be there."""

    key: str
    name: str
    form: Any
    needed: bool


_KNOWN: dict[type, tuple[_Entry, ...]] = {}
"""Entries of each kind that was used."""


def _entries(kind: type[Evidence]) -> tuple[_Entry, ...]:
    if kind not in _KNOWN:
        found = []
        for part in fields(kind):
            if part.name != "more":
                needed = part.default is MISSING
                form = part.type if needed else next(form for form in get_args(part.type) if form is not NoneType)
                found.append(_Entry(part.metadata.get("key", part.name), part.name, form, needed))
        _KNOWN[kind] = tuple(found)
    return _KNOWN[kind]


def _encode(value: Any) -> Any:
    if isinstance(value, Evidence):
        return value.to_json()
    return [_encode(part) for part in value] if isinstance(value, tuple) else value


WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
"""Names of the simple forms of values, in words."""


def _decode(value: Any, form: Any, key: str) -> Any:
    """Read the value of a key. Its form is one of `WORDS`, a kind of evidence, or a tuple or mapping of forms."""
    origin, parts = get_origin(form) or form, get_args(form)
    if form is Any:
        return value
    if form is float and value in ("inf", "-inf"):  # as `files.json_text.plain` writes them
        return float(value)
    if form in WORDS:
        if isinstance(value, (int, float) if form is float else form) and (form is bool or not isinstance(value, bool)):
            return value
        raise StoreError(f"{key} of the evidence must be {WORDS[form]}, not {value!r:.80}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise StoreError(f"{key} of the evidence must be a list, not {value!r:.80}")
        if parts[-1] is not Ellipsis and len(value) != len(parts):
            raise StoreError(f"{key} of the evidence must be a list of {len(parts)}, not {value!r:.80}")
        return tuple(_decode(part, parts[0], key) for part in value)
    if not isinstance(value, Mapping):
        raise StoreError(f"{key} of the evidence must be an object, not {value!r:.80}")
    if origin is Mapping:
        return value if parts[1] is Any else {name: _decode(part, parts[1], key) for name, part in value.items()}
    return form.from_json(value)
