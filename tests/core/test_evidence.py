"""Evidence: every kind is read as it was written, and its JSON is the one that old stores and certificates have."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import certbench
from certbench.core import evidence
from certbench.core.certificate import Certificate
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import (
    BestOfEvidence,
    BracketEvidence,
    ConfidenceEvidence,
    DrawsEvidence,
    Evidence,
    LayersEvidence,
    NoiseEvidence,
    PlaceEvidence,
    ReasonEvidence,
    RecountEvidence,
    SplittingEvidence,
    TallyEvidence,
    VoteEvidence,
)
from certbench.core.threat import ThreatModel
from certbench.errors import StoreError
from certbench.files.json_text import plain
from certbench.results.store import Planned, Store, StoredAnswer
from certbench.verifiers.smoothing.patches import PatchSmoothing
from certbench.verifiers.smoothing.recertification import recertify

Some = TypeVar("Some", bound=Evidence)

KINDS: list[type[Evidence]] = [
    kind
    for kind in vars(evidence).values()
    if isinstance(kind, type) and issubclass(kind, Evidence) and kind is not Evidence
]
BEFORE = json.loads((Path(__file__).parent / "evidence_of_certifiers.json").read_text())
"""Keys of certifiers' evidence, and the types of its values, as old stores have them."""

SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: st.one_of(st.floats(allow_nan=False), st.integers()),
    str: st.text(),
    bool: st.booleans(),
    Any: st.one_of(st.text(), st.integers(), st.dictionaries(st.text(), st.integers())),
}
WRONG: dict[Any, Any] = {int: [1.5, "1", True], float: ["1", True, [1.0]], str: [1, ["x"]], bool: [1, "true"]}
"""Values that are not of a simple form."""


def values(form: Any) -> st.SearchStrategy[Any]:
    """Values of a field; of a kind of evidence, those of its fields."""
    if NoneType in get_args(form):
        return st.one_of(*(st.none() if part is NoneType else values(part) for part in get_args(form)))
    if form in SIMPLE:
        return SIMPLE[form]
    if get_origin(form) is tuple:
        first, last = values(get_args(form)[0]), get_args(form)[-1]
        return st.lists(first, max_size=4).map(tuple) if last is Ellipsis else st.tuples(first, first)
    if get_origin(form) is Mapping:
        return st.dictionaries(st.text(), values(get_args(form)[1]), max_size=3)
    return st.fixed_dictionaries({part.name: values(part.type) for part in own(form)})


def own(kind: type[Evidence]) -> list[Field[Any]]:
    """The fields of a kind that it has by itself."""
    return [part for part in fields(kind) if part.name != "more"]


def made(kind: type[Some], drawn: Mapping[str, Any]) -> Some:
    """Evidence of a kind, of values of its fields."""
    also = drawn.get("also") if kind is LayersEvidence else None
    places = {} if also is None else {"also": tuple(made(PlaceEvidence, place) for place in also)}
    return kind(**{**drawn, **places})


def fixed(form: Any) -> Any:
    """One JSON value of a field."""
    form = next((part for part in get_args(form) if part is not NoneType), form) if NoneType in get_args(form) else form
    if form in WRONG or form is Any:
        return {int: 3, float: 0.5, str: "x", bool: True, Any: {"a": None}}[form]
    if get_origin(form) is tuple:
        return [fixed(get_args(form)[0])] * 2
    if get_origin(form) is Mapping:
        return {"a": fixed(get_args(form)[1])}
    return {key_of(part): fixed(part.type) for part in own(form)}


def key_of(part: Field[Any]) -> str:
    """The key of a field."""
    return str(part.metadata.get("key", part.name))


def wrong(form: Any) -> Iterator[Any]:
    """JSON values that a field does not take."""
    forms = [part for part in get_args(form) if part is not NoneType] if NoneType in get_args(form) else [form]
    if forms[0] in WRONG:
        yield from WRONG[forms[0]]
    elif forms[0] is not Any:
        yield from ("x", 1, True)
        if get_origin(forms[0]) is tuple:
            yield {"a": 1}
            yield from ([bad] * 2 for bad in wrong(get_args(forms[0])[0]))
            if get_args(forms[0])[-1] is not Ellipsis:
                yield from ([1.0], [1.0, 2.0, 3.0])
        else:
            yield [1]


def stored(found: Mapping[str, Any]) -> Any:
    """As a store gives it back."""
    return json.loads(json.dumps(plain(found)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_kind_is_read_as_it_was_written(kind: type[Evidence], data: st.DataObject) -> None:
    one = made(kind, data.draw(values(kind)))
    assert kind.from_json(one.to_json()) == kind.from_json(stored(one.to_json())) == one
    assert kind.read(stored(one.to_json())) == one
    assert kind.part(one.to_json()) == one.to_json()
    assert kind.exactly(one.to_json().keys())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(st.data(), st.dictionaries(st.text(min_size=1).map("their {}".format), SIMPLE[Any], min_size=1))
def test_keys_of_others_are_kept(kind: type[Evidence], data: st.DataObject, others: dict[str, Any]) -> None:
    whole = {**others, **made(kind, data.draw(values(kind))).to_json()}
    found = kind.from_json(whole)
    assert found.more == others and found.to_json() == whole
    assert kind.part(whole).keys() == whole.keys() - others.keys()
    assert kind.stated(whole.keys()) and not kind.exactly(whole.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_evidence_is_refused_by_name(kind: type[Evidence]) -> None:
    whole = fixed(kind)
    assert kind.from_json(whole).to_json() == whole
    for part in own(kind):
        key = key_of(part)
        rest = {name: value for name, value in whole.items() if name != key}
        needed = not kind.stated(rest.keys())
        if needed:
            with pytest.raises(StoreError, match=f"^the evidence has no {key}$"):
                kind.from_json(rest)
            assert kind.read(rest) is None
        for bad in wrong(part.type):
            odd = {**rest, key: bad}
            with pytest.raises(StoreError, match=f"^{key} of the evidence must be"):
                kind.from_json(odd)
            read = kind.read(odd)
            if needed:
                assert read is None
            else:
                assert read is not None and getattr(read, part.name) is None and read.to_json() == odd


def network(activation: str) -> Classifier:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, 4))
    return Classifier(module.eval(), (1, 4, 4), 4, activation)


def point() -> torch.Tensor:
    """A point on the grid of 8-bit images."""
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x * 255).round() / 255


def form(value: Any) -> Any:
    """The type of a JSON value, and of what a list has."""
    if isinstance(value, list):
        return [form(part) for part in value[:1]]
    if isinstance(value, dict):
        return "object"
    return "float" if value in ("inf", "-inf") else type(value).__name__


@pytest.mark.parametrize("case", BEFORE, ids=lambda case: json.dumps(case["spec"]))
def test_certifiers_write_the_keys_that_they_wrote_before(case: Any, request: pytest.FixtureRequest) -> None:
    if case["backend"] is not None:
        request.getfixturevalue(case["backend"])
    threat = ThreatModel(float(case["norm"]))
    (found,) = certbench.certify(case["spec"], network(case["network"]), point(), threat).evidence
    json_text = stored(found)
    assert {key: form(value) for key, value in json_text.items()} == case["evidence"]
    assert json_text.keys() <= owned(json_text)


def owned(found: Mapping[str, Any]) -> set[str]:
    """Keys of the kinds that can be read from evidence."""
    return set().union(*(kind.keys() for kind in KINDS if kind.read(found) is not None))


def test_what_no_certifier_of_the_table_writes_has_the_keys_that_it_had() -> None:
    image = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval(), (1, 4, 4), 4)
    (patch,) = PatchSmoothing(encode="zero").certify(image, point()).evidence
    assert list(patch) == ["counts", "n", "kind", "size", "threshold", "rule", "encode", "claim"]
    for rule, more in (("two-class", []), ("top-k", ["k"])):
        counts = np.array([[90, 5, 5]])
        (found,) = recertify(counts, sigma=0.5, rule=rule, k=2 if rule == "top-k" else 1).evidence
        keys = ["counts", "n", "alpha", "sigma", "rule", "selected", "class", "p_lower", "p_upper", *more]
        assert list(found) == keys and owned(found) >= set(keys)  # columns of the table that the command writes
    (nothing,) = Certificate.nothing(1, Outcome.FAILED, "why").evidence
    assert nothing == {"reason": "why"}
    zero = network("relu")
    with torch.no_grad():
        for parameter in zero.module.parameters():
            parameter.zero_()
    (flat,) = certbench.certify("branch-and-bound", zero, point(), ThreatModel(2.0)).evidence
    assert flat == {"reason": "the margin at the input itself is zero, within rounding"}


@settings(max_examples=30, deadline=None)
@given(values(NoiseEvidence), values(SplittingEvidence), values(LayersEvidence))
def test_who_asks_for_a_few_keys_gets_what_the_certifier_wrote(
    noisy: dict[str, Any], split: dict[str, Any], layered: dict[str, Any]
) -> None:
    noise, splitting = made(NoiseEvidence, noisy), made(SplittingEvidence, split)
    layers = made(LayersEvidence, layered)
    whole = noise.to_json() | layers.to_json()
    views = (TallyEvidence, RecountEvidence, DrawsEvidence, ConfidenceEvidence, VoteEvidence)
    for kind, found, wrote in (*((kind, noise.to_json(), noise) for kind in views), (LayersEvidence, whole, layers)):
        read = kind.from_json(found)
        assert all(getattr(read, part.name) == getattr(wrote, part.name) for part in own(kind))
    assert VoteEvidence.from_json(splitting.to_json()).counts == splitting.counts
    assert not NoiseEvidence.exactly(splitting.to_json().keys())
    assert not SplittingEvidence.exactly(noise.to_json().keys())


@pytest.mark.parametrize(
    ("layers", "constant"),
    [
        (LayersEvidence(), False),
        (LayersEvidence(constants={"1": 1.0, "2": 0.0}), True),
        (LayersEvidence(constants={"2": 1.0}), False),
        (LayersEvidence(also=(PlaceEvidence(constants={"2": 1.0}), PlaceEvidence(constants={"2": 0.0}))), True),
        (LayersEvidence(also=(PlaceEvidence(constants={"2": 1.0}),)), False),
    ],
)
def test_features_that_the_input_does_not_move(layers: LayersEvidence, constant: bool) -> None:
    assert layers.constant is constant


def test_evidence_of_other_packages_is_stored_as_it_is(tmp_path: Path) -> None:
    theirs = {"theirs": {"a": [1, None]}, "counts": "many", "bracket": None, "reason": 7}
    certificate = Certificate.of(torch.tensor([0]), torch.tensor([0.5]), evidence=[theirs])
    assert certificate.evidence == (theirs,)
    store = Store(tmp_path / "results.db")
    spec: Mapping[str, Any] = {"name": "theirs"}
    store.plan([Planned("key", "key", "net", "theirs", spec, Guarantee.SOUND, Subject.BASE, 2.0, None, 0, 0)])
    store.put([StoredAnswer("key", 0, 0.5, math.inf, 0.0, 0.0, Outcome.COMPLETED, "", certificate.evidence[0])])
    (row,) = store.rows()
    store.close()
    assert row.evidence == theirs
    assert TallyEvidence.read(row.evidence) is None and TallyEvidence.stated(row.evidence.keys())
    assert BracketEvidence.read(row.evidence) is None and BracketEvidence.stated(row.evidence.keys())
    assert ReasonEvidence.from_json(row.evidence).reason == 7
    assert BestOfEvidence.from_json(row.evidence) == BestOfEvidence(more=theirs)


def test_nothing_heavy_is_imported() -> None:
    code = "import certbench.core.evidence, sys\nprint([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
