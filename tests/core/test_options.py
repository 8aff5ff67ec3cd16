"""Options: `build` and `describe` are inverse; whatever cannot be meant is one `ConfigError` with its path."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from certbench.core import registry
from certbench.core.certifier import Certifier
from certbench.core.options import build, choose, describe, label, versions
from certbench.core.search import SEARCHES, Bisection, Ladder, RadiusSearch, Secant
from certbench.errors import ConfigError, MissingBackendError
from certbench.files.numbers import number, whole
from certbench.verifiers.linear.crown import AlphaCrown, Crown
from certbench.verifiers.smoothing.noise.families import NOISES, Gaussian, Noise
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")  # jaxtyping does, by the by

radii = st.floats(1e-6, 1e3)
searches = st.one_of(
    st.builds(Secant, relative=st.floats(1e-9, 0.5), limit=st.floats(1e3, 1e9)),
    st.builds(Bisection, start=radii, relative=st.floats(1e-9, 0.5), evaluations=st.integers(1, 10**6)),
    st.builds(Ladder, st.lists(radii, min_size=1, max_size=4).map(tuple)),
)
certifiers = st.one_of(
    st.builds(Crown, search=searches),
    st.builds(
        AlphaCrown, engine=st.sampled_from(["own", "auto-lirpa"]), search=searches, iterations=st.integers(1, 50)
    ),
    st.builds(
        Smoothing,
        noise=st.builds(Gaussian, sigma=radii),
        n=st.integers(1, 10**9),
        n0=st.integers(1, 10**9),
        alpha=st.floats(1e-12, 0.999),
        rule=st.sampled_from(["two-class", "one-vs-rest"]),
    ),
    st.builds(Smoothing, noise=st.sampled_from([*NOISES]).map(lambda name: choose(Noise, name))),
    st.sampled_from([*registry.table()]).map(build),
    st.sampled_from([case.spec for case in CASES]).map(build),
)


@settings(deadline=None, max_examples=50)
@given(certifiers)
def test_describe_is_the_inverse_of_build_through_json_and_yaml(certifier: Certifier[Any]) -> None:
    assert build(describe(certifier)) == certifier
    assert build(json.loads(json.dumps(describe(certifier), allow_nan=False))) == certifier
    assert build(yaml.safe_load(yaml.safe_dump(describe(certifier)))) == certifier


@given(searches)
def test_a_search_is_chosen_as_it_is_described(search: RadiusSearch) -> None:
    assert choose(RadiusSearch, describe(Crown(search=search))["search"]) == search


@pytest.mark.parametrize("name", registry.table())
def test_every_certifier_is_known_by_its_name_and_says_what_it_is(name: str) -> None:
    assert registry.name_of(registry.find(name)) == name == describe(build(name))["name"] == label(build(name))
    assert registry.summary(name) == (registry.find(name).__doc__ or "").partition("\n")[0] != ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 1e-3), ("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("inf", math.inf), ("-inf", -math.inf)),
        *((3, 3.0), (0.1, 0.1), ("3", 3.0), (math.inf, math.inf)),
    ],
)
def test_numbers_are_read_as_people_write_them(text: object, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(True, False, math.nan, "nan", "ten", "10k", "", "1/0", "8/0.0/2", "0x10", None, [1], {"a": 1}),
        *("1e999/1e", "1" + "0" * 400 + "/3"),
    ],
)
@pytest.mark.parametrize("read", [number, whole])
def test_what_is_no_number_is_refused(read: Any, text: object) -> None:
    with pytest.raises(ValueError, match=r"number"):
        read(text)


def test_a_whole_number_may_be_too_large_for_a_float() -> None:
    assert whole(10**400) == 10**400
    with pytest.raises(ValueError, match="number"):
        number(10**400)


@pytest.mark.parametrize(("text", "value"), [("1e5", 100_000), (1e5, 100_000), ("7", 7), (2**63 + 1, 2**63 + 1)])
def test_whole_numbers_are_exact(text: object, value: int) -> None:
    assert (whole(text), type(whole(text))) == (value, int)


@pytest.mark.parametrize("text", [0.5, "1/3", "inf", math.inf, "1.5"])
def test_what_is_not_whole_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        whole(text)


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ("crwon", ("name",), "did you mean 'crown'?"),
        ({"name": "smoothing", "niose": 1}, ("niose",), "did you mean 'noise'?"),
        (
            {"name": "smoothing", "zzz": 1},
            ("zzz",),
            "option 'zzz'. Known: alpha, also, compile, layer, n, n0, noise, precision, rule, share",
        ),
        ({"name": "smoothing", "noise": {"name": "gaussain"}}, ("noise",), "did you mean 'gaussian'?"),
        ({"name": "smoothing", "noise": "normal"}, ("noise",), "unknown noise 'normal'"),
        ({"name": "smoothing", "noise": "integer-gaussian", "share": 1}, ("share",), "leave share out"),
        ({"name": "smoothing", 1: 1}, ("1",), "unknown option"),
        ({"name": "smoothing", "noise": {"name": "gaussian", "sigma": "ten"}}, ("noise", "sigma"), "ten"),
        ({"name": "smoothing", "noise": {"name": "gaussian", "sigma": True}}, ("noise", "sigma"), "true and false"),
        ({"name": "smoothing", "noise": {"name": "gaussian", "sigma": math.nan}}, ("noise", "sigma"), "NaN"),
        ({"name": "smoothing", "noise": {"name": "gaussian", "sigma": "inf"}}, ("noise", "sigma"), "finite"),
        ({"name": "smoothing", "n": "10k"}, ("n",), "10k"),
        ({"name": "smoothing", "n": 0.5}, ("n",), "whole"),
        ({"name": "smoothing", "rule": "three-class"}, ("rule",), "two-class"),
        ({"name": "crown", "search": "secnat"}, ("search",), "did you mean 'secant'?"),
        ({"name": "crown", "search": {"name": "secant", "relativ": 0.1}}, ("search", "relativ"), "'relative'"),
        ({"name": "crown", "search": {"name": "secant", "relative": 2}}, ("search", "relative"), "between 0 and 1"),
        ({"name": "crown", "search": {"name": "ladder"}}, ("search",), "needs the option 'eps'"),
        ({"name": "crown", "search": {"name": "ladder", "eps": [0.1, "x"]}}, ("search", "eps", 1), "x"),
        ({"name": "crown", "search": {"name": "ladder", "eps": [0.1, -1]}}, ("search", "eps", 1), "eps[1] must be"),
        ({"name": "crown", "search": {"relative": 0.1}}, ("search",), "`name`"),
        ({"name": "crown", "search": 3}, ("search",), "`name`"),
        ({"name": "crown", "search": Smoothing()}, ("search",), "`name`"),
        ({"sigma": 1}, (), "`name`"),
        ({"name": 3}, (), "`name`"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_path_and_its_cure(spec: Any, path: tuple[object, ...], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(spec)
    assert caught.value.path == path
    assert words in str(caught.value)


def test_nested_specifications_are_built() -> None:
    spec: Mapping[str, Any] = {"name": "crown", "search": {"name": "ladder", "eps": ["8/255", "1e-3"]}}
    assert build(spec) == Crown(search=Ladder((1e-3, 8 / 255)))
    assert build({"name": "crown", "search": Ladder((0.1,))}) == Crown(search=Ladder((0.1,)))


def test_a_label_names_what_is_unusual() -> None:
    ladder = Ladder((0.1,))
    assert label(Crown(search=ladder)) == "crown(search=ladder(eps=0.1))"
    assert label(Crown(search=ladder), {"search": ladder}) == "crown"
    assert label(Smoothing(noise=Gaussian(0.5), n=100)) == "smoothing(noise=gaussian(sigma=0.5), n=100)"


@dataclass
class Entry:
    """An entry point of another package."""

    table: Mapping[str, str] | None
    value: str = "other:TABLE"

    def load(self) -> Mapping[str, str]:
        if self.table is None:
            raise ImportError("no module named other")
        return self.table


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*tables: Mapping[str, str] | None) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: [Entry(table) for table in tables])
        registry.table.cache_clear()

    yield install
    monkeypatch.undo()
    registry.table.cache_clear()


def test_another_package_adds_its_certifiers(entries: Any) -> None:
    entries({"a": "x:A"}, {"b": f"{Crown.__module__}:Crown", "a": "x:A"})
    assert registry.table() == {"a": "x:A", "b": f"{Crown.__module__}:Crown"}
    assert registry.find("b") is Crown


def test_a_name_is_claimed_once(entries: Any) -> None:
    entries({"a": "x:A"}, {"a": "y:A"})
    with pytest.raises(ConfigError, match="claimed twice"):
        registry.table()


def test_a_broken_package_is_named(entries: Any) -> None:
    entries(None)
    with pytest.raises(ConfigError, match="other:TABLE cannot be imported"):
        registry.table()


def test_lines_of_the_table_that_lead_nowhere_are_named(entries: Any) -> None:
    entries({"a": "no.such.module:A", "b": "certbench.core.claims:Nothing"})
    assert (registry.summary("a"), registry.summary("b")) == ("(not importable)", "")
    with pytest.raises(MissingBackendError, match="'a' needs a package"):
        build("a")
    with pytest.raises(ConfigError, match="'b'"):
        build("b")


def test_every_search_has_a_name() -> None:
    assert {describe(Crown(search=s))["search"]["name"] for s in (Secant(), Bisection(), Ladder((1.0,)))} == set(
        SEARCHES
    )


def test_the_version_of_a_certifier_made_of_others_changes_with_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build({"name": "best-of", "of": ["lipschitz", "crown"]})
    before = versions(built)
    assert versions(build("crown")) == Crown.version
    monkeypatch.setattr(Crown, "version", Crown.version + 1)
    assert versions(built) != before
