"""Ranges of options: what an annotation says is what a class accepts, at both ends, and what `show` prints."""

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench.core import ranges, registry
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.options import build, describe, describe_options, label
from certbench.core.ranges import Options, Range, above, at_least, between, one_of
from certbench.core.search import SEARCHES, Ladder
from certbench.core.threat import L2, ThreatModel
from certbench.errors import ConfigError
from certbench.verifiers.smoothing.noise.families import NOISES
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.patches import PatchSmoothing

if TYPE_CHECKING:
    Unknown = int

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")  # jaxtyping does, by the by

CLASSES: dict[str, Any] = {
    **{name: registry.find(name) for name in registry.table()},
    **SEARCHES,
    **NOISES,
    "integer-gaussian": IntegerGaussian,
    "patches": PatchSmoothing,
}
REQUIRED: dict[Any, dict[str, Any]] = {Ladder: {"eps": (0.1,)}}


def rules(hint: Any, wrap: Any = lambda value: value, path: tuple[int, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Every range inside a type, how to write an option of which that part has a value, and where the part lies."""
    hint, _ = ranges.without_none(hint)
    for rule in ranges.allowed(hint):
        yield rule, wrap, path
    if typing.get_origin(hint) is Annotated:
        yield from rules(hint.__origin__, wrap, path)
    if typing.get_origin(hint) is tuple:
        for i, part in enumerate(typing.get_args(hint)):
            if part is not Ellipsis and typing.get_args(hint)[-1] is Ellipsis:
                yield from rules(part, lambda value: wrap((value,)), (*path, 0))
            elif part is not Ellipsis:
                yield from rules(
                    part, lambda value, i=i: wrap(tuple(value if j == i else "" for j in (0, 1))), (*path, i)
                )


def step(value: float, towards: float, whole: bool) -> float:
    """The next number of an option's type."""
    return int(value + math.copysign(1, towards)) if whole else math.nextafter(value, towards)


def edges(rule: Any, whole: bool) -> tuple[list[Any], list[Any]]:
    """What lies just inside a range and just outside of it."""
    if not isinstance(rule, Range):
        return list(rule.choices), ["", "network"]
    inside, outside = [], [math.nan, -math.inf]
    for end, towards, included in ((rule.low, -math.inf, ("both", "left")), (rule.high, math.inf, ("both", "right"))):
        if math.isinf(end):
            (inside if rule.inclusive in included else outside).append(end)
        elif rule.inclusive in included:
            inside.append(end)
            outside.append(step(end, towards, whole))
        else:
            inside.append(step(end, -towards, whole))
            outside.append(end)
    return inside, outside


def given(cls: Any, option: str, value: Any) -> None:
    """Check an object with this value as its own constructor does, past the types that are checked in tests alone."""
    made = cls(**REQUIRED.get(cls, {}))
    object.__setattr__(made, option, value)
    made.__post_init__()


STATED = [
    pytest.param(name, option, rule, wrap, path, id=f"{name}.{option}")
    for name, cls in CLASSES.items()
    for option, hint in ranges.annotations(cls).items()
    for rule, wrap, path in rules(hint)
]


@pytest.mark.parametrize(("name", "option", "rule", "wrap", "path"), STATED)
def test_every_range_is_enforced_at_both_ends(
    name: str, option: str, rule: Any, wrap: Any, path: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = CLASSES[name]
    monkeypatch.setattr(cls, "check_together", lambda self: None)  # what concerns two options has tests of its own
    inside, outside = edges(rule, "int" in str(ranges.annotations(cls)[option]))
    for value in inside:
        given(cls, option, wrap(value))
    for value in outside:
        with pytest.raises(ConfigError) as caught:
            given(cls, option, wrap(value))
        assert caught.value.path == (option, *path)
        assert str(caught.value).startswith(option) and " and ".join(rule.words()) in str(caught.value)


@pytest.mark.parametrize("name", registry.table())
def test_build_refuses_what_the_class_refuses_and_says_where(name: str) -> None:
    for option, hint in ranges.annotations(registry.find(name)).items():
        for _, wrap, _ in rules(hint):
            with pytest.raises(ConfigError) as caught:
                build({"name": name, option: wrap("-1")})
            assert caught.value.path[0] == option


@pytest.mark.parametrize("name", CLASSES)
def test_every_number_has_a_range_and_defaults_lie_in_theirs(name: str) -> None:
    for option, hint in ranges.annotations(CLASSES[name]).items():
        if any(kind in str(hint) for kind in ("int", "float")):
            assert list(rules(hint)), option
    CLASSES[name](**REQUIRED.get(CLASSES[name], {}))


WORDS = {
    "milp": {
        "eps": "number, above 0, finite, or null",
        "seconds": "number, above 0, finite",
        "tolerance": "number, at least 1e-05, below 1",
        "tighten": "true or false",
    },
    "branch-and-bound": {
        "seconds": "number, above 0, finite",
        "domains": "whole number, at least 1",
        "iterations": "whole number, at least 1",
        "candidates": "whole number, at least 1",
        "relative": "number, strictly between 0 and 1",
        "eps": "number, above 0, finite, or null",
    },
    "smoothing": {
        "noise": f"one of {', '.join(NOISES)}, integer-gaussian",
        "pareto.a": "number, above 2, at most 1000",
        "exp-p.exponent": "number, from 0.1 to 10",
        "exp-inf.k": "number, from 0.1 to 100",
        "exp-inf.j": "number, at least 0, finite",
        "integer-gaussian.grid": "whole number, at least 1",
        "n": "whole number, at least 1",
        "n0": "whole number, at least 1",
        "alpha": "number, strictly between 0 and 1",
        "rule": "one of two-class, one-vs-rest",
        "layer": "text, or null",
        "also": "list of: [text; number, above 0, finite]",
        "share": "whole number, at least 0, or null",
        "precision": "bfloat16, or null",
    },
    "soft-smoothing": {"beta": "number, above 0, finite", "n": "whole number, at least 2"},
    "discrete": {"keep": "number, strictly between 0 and 1", "grid": "whole number, at least 1, below 2147483648"},
    "ablation": {"keep": "whole number, at least 1", "encode": "one of two-channel, zero"},
    "splitting": {"lam": "number, above 0, finite"},
    "deterministic-splitting": {"grid": "whole number, at least 1", "offsets": "whole number, at least 0"},
    "adaptive-smoothing": {"radius": "number, above 0, finite", "step": "whole number, at least 1"},
    "lipsdp": {"form": "one of neuron, layer", "iterations": "whole number, at least 0"},
    "lipschitz": {"rule": "one of best, pairwise, absolute, tsuzuku, centred, naive"},
    "recurjac": {"shells": "whole number, at least 1"},
    "sdp": {"solver": "one of scs, clarabel", "limit": "whole number, at least 2, or null"},
    "hybrid-zonotope": {"transformer": "one of switch, box, diagonal, least"},
    "alpha-crown": {
        "iterations": "whole number, at least 1",
        "layers": "whole number, at least 0",
        "learning_rate": "number, above 0, finite",
        "engine": "one of auto, own, auto-lirpa",
        "entries": "whole number, at least 1",
    },
    "crown": {
        "search": "one of secant, bisection, ladder",
        "secant.relative": "number, strictly between 0 and 1",
        "secant.evaluations": "whole number, at least 1",
        "bisection.start": "number, above 0, finite",
        "bisection.limit": "number, above 0, finite",
        "ladder.eps": "list of: number, above 0, finite",
    },
    "best-of": {"of": "list of: a certifier", "relative": "number, at least 0, below 1"},
}
"""What may be written for an option, which must not change unnoticed."""


@pytest.mark.parametrize("name", WORDS)
def test_ranges_are_shown_in_words(name: str) -> None:
    shown = {option.strip(): words for option, words, _ in describe_options(registry.find(name))}
    assert WORDS[name].items() <= shown.items()


@pytest.mark.parametrize("name", registry.table())
def test_a_default_is_shown_as_it_may_be_written(name: str) -> None:
    for option, _, default in describe_options(registry.find(name)):
        if not option.startswith(" "):
            text = (
                default if default[0] in '[{"' or default[0].isdigit() or default in ("null", "true", "false") else None
            )
            assert build({"name": name, option: default if text is None else json.loads(text)}) == build(name)


class Bare(Certifier[str]):
    """A certifier of another package."""

    guarantee = Guarantee.SOUND
    norms = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> str:
        return "prepared"

    def certify(self, state: str, x: Tensor, seeds: Sequence[int]) -> Certificate:
        return Certificate.of(torch.zeros(len(x), dtype=torch.int64), x[:, 0])


@dataclass(frozen=True)
class Ranged(Bare):
    """A certifier of another package, with ranges and a rule about two options."""

    low: Annotated[float, between(-1, 1, "right", "it is a slope")] = 0.0
    high: Annotated[float, above(-1)] | None = None
    kind: Literal["a", "b"] = "a"
    sizes: tuple[Annotated[int, at_least(2)], ...] = ()
    pair: tuple[Annotated[str, one_of("x", "y")], int] = ("x", 0)

    def check_together(self) -> None:
        if self.high is not None and self.high < self.low:
            raise ConfigError("high must be at least low", ("high",))


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"low": -1.0}, ("low",), "low must be above -1 and at most 1, not -1.0: it is a slope"),
        ({"low": math.nan}, ("low",), "low must be above -1 and at most 1, not nan: it is a slope"),
        ({"high": math.inf}, ("high",), "high must be above -1 and finite, or left out, not inf"),
        ({"high": -0.5}, ("high",), "high must be at least low"),
        ({"kind": "c"}, ("kind",), "kind must be one of a, b, not 'c'"),
        ({"sizes": (2, 1)}, ("sizes", 1), "sizes[1] must be at least 2, not 1"),
        ({"pair": ("z", 0)}, ("pair", 0), "pair[0] must be one of x, y, not 'z'"),
    ],
)
def test_a_message_says_what_to_write(given: dict[str, Any], path: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Ranged(**given)
    assert (caught.value.path, str(caught.value)) == (path, message)


def test_ranges_change_neither_specifications_nor_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "table", lambda: {"ranged": f"{__name__}:Ranged"})
    spec = {"name": "ranged", "low": "1/2", "high": "8", "sizes": ["1e1"]}
    built = build(spec)
    assert built == Ranged(low=0.5, high=8.0, sizes=(10,)) and type(built.sizes[0]) is int  # type: ignore[attr-defined]
    assert build(json.loads(json.dumps(describe(built)))) == built
    assert label(built) == "ranged(low=0.5, high=8, sizes=10)"
    with pytest.raises(ConfigError) as caught:
        build({**spec, "sizes": [2, "1"]})
    assert caught.value.path == ("sizes", 1)


@dataclass(frozen=True)
class Own(Bare):
    """A certifier of another package that knows nothing of ranges."""

    size: int = -1
    either: int | str = "x"
    anything: "Unknown | None" = None

    def __post_init__(self) -> None:
        if self.size == 0:
            raise ConfigError("no size", ("size",))


@dataclass(frozen=True)
class Plain(Bare):
    """Another, without a check, and with a name that only a type checker knows."""

    size: int = -1
    part: "Unknown" = 0
    share: Annotated[float, between(0, 1)] = 0.5


def test_a_certifier_without_ranges_works_as_before() -> None:
    assert (Own().size, Own(size=math.nan).either) == (-1, "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no size"):
        Own(size=0)
    assert Plain().size == -1
    with pytest.raises(ConfigError, match="share must be from 0 to 1"):
        Plain(share=2)
    assert [words for _, words, _ in describe_options(Plain)][-1] == "number, from 0 to 1"
    certificate = certbench.certify(Own(), Classifier(nn.Linear(3, 2).eval(), (3,), 2), torch.full((1, 3), 0.5), L2)
    assert certificate.radius.tolist() == [0.5]


@dataclass(frozen=True)
class Elsewhere(Options):
    """Options that are no certifier's."""

    rate: Annotated[float, between(0, 1, "both")] = 1.0


@pytest.mark.parametrize("value", [True, False, 0, 1, -0.0])
def test_a_range_is_about_the_value_not_about_its_type(value: Any) -> None:
    assert Elsewhere(value).rate == value


def test_no_range_contains_nan() -> None:
    for rule in (at_least(0), above(0), between(-math.inf, math.inf), between(0, 1, "neither")):
        assert math.nan not in rule


def test_fields_of_certifiers_are_all_options() -> None:
    for name in registry.table():
        cls: Any = registry.find(name)
        assert issubclass(cls, Certifier) and {field.name for field in dataclasses.fields(cls)} == {
            *ranges.annotations(cls)
        }
