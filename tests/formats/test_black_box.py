"""Query access: smoothing certifies what answers queries, everything else refuses it; identity is the version."""

import copy
import importlib.util
import inspect
import pickle
import urllib.error
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import certbench
from certbench import (
    ABSTAIN,
    L1,
    L2,
    CertificationError,
    Classifier,
    ConfigError,
    Linf,
    NumericalError,
    Outcome,
    UnsupportedError,
)
from certbench.attacks.battery import attack
from certbench.formats import black_box
from certbench.testing import inputs, network
from certbench.verifiers.smoothing.adaptive import AdaptiveSmoothing
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.soft import SoftSmoothing
from tests.support.halfspaces import halfspace, points

EXAMPLE = Path(__file__).parents[2] / "examples" / "http_endpoint.py"

fresh = (f"test-{i}" for i in count())


def sign(x: NDArray[np.float32]) -> NDArray[np.int64]:
    return (x[:, 0] > 0).astype(np.int64)


@pytest.mark.machine
def test_counts_are_those_of_the_classifier_itself() -> None:
    inner, x = network("cnn"), inputs(3)
    for answer in (
        lambda batch: inner(torch.from_numpy(batch)).argmax(dim=1).numpy(),
        lambda batch: inner(torch.from_numpy(batch)).softmax(dim=1).tolist(),  # a list will do
    ):
        asked = black_box.labels(answer, (1, 4, 4), 4, version=next(fresh))
        for spec in ({"name": "smoothing", "n": 1500}, AdaptiveSmoothing(Gaussian(0.1), 0.03, n=1500)):
            own, other = (certbench.certify(spec, classifier, x, L2) for classifier in (inner, asked))
            assert torch.equal(own.radius, other.radius)
            assert own.evidence == other.evidence
            assert (own.radius > 0).any()


def test_labels_become_one_hot_and_scores_stay() -> None:
    hot = black_box.labels(sign, (4,), 2, version=next(fresh))
    assert hot(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])).tolist() == [[0, 1], [1, 0]]
    assert hot(torch.zeros(0, 4)).shape == (0, 2)
    scores = black_box.labels(lambda x: np.stack([x[:, 0], 1 - x[:, 0]], 1), (4,), 2, version=next(fresh))
    assert scores(torch.full((1, 4), 0.25)).tolist() == [[0.25, 0.75]]
    certificate = certbench.certify(SoftSmoothing(n=500, beta=5.0), hot, points(2, 2.0), L2)
    assert (certificate.prediction == 1).all()


@pytest.mark.parametrize(
    "name", ["lipschitz", "crown", "deepz", "jacobian-zonotope", "alpha-crown", "branch-and-bound"]
)
def test_certifiers_that_look_inside_refuse_with_a_reason(name: str) -> None:
    classifier = black_box.labels(sign, (4,), 2, version=next(fresh))
    with pytest.raises(UnsupportedError, match="is a black box: it answers queries, and shows no layers"):
        certbench.certify(name, classifier, points(2, 0.5), L2)


@pytest.mark.parametrize("name", ["forward", "forward-backward", "crown-lirpa"])
def test_auto_lirpa_refuses_too_and_takes_no_answer_for_a_constant(name: str, lirpa: ModuleType) -> None:
    classifier = black_box.labels(sign, (4,), 2, version=next(fresh))
    with pytest.raises(UnsupportedError, match="is a black box"):
        certbench.certify(name, classifier, points(2, 0.5), Linf)


def test_gradients_are_refused_and_queries_under_a_gradient_are_not() -> None:
    classifier = black_box.labels(sign, (4,), 2, version=next(fresh))
    with pytest.raises(UnsupportedError, match="is a black box"):
        attack(classifier, points(2, 0.5), (L2,), (-1, 1), steps=2)
    with pytest.raises(UnsupportedError, match="is a black box"):
        classifier.module(torch.zeros(1, 4, requires_grad=True))
    assert classifier(torch.ones(1, 4, requires_grad=True)).tolist() == [[0, 1]]
    assert certbench.certify({"name": "splitting", "n": 100}, classifier, points(1, 0.5), L1) is not None


def test_the_fingerprint_is_the_versions_and_not_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (
        "__init__",
        "forward",
        "_answer",
    ):  # as they are without the tests' checks of types, which no fingerprint reads
        monkeypatch.setattr(black_box.BlackBox, method, inspect.unwrap(getattr(black_box.BlackBox, method)))
    first, second = next(fresh), next(fresh)
    one = black_box.labels(sign, (4,), 2, version=first, name="one", batch=7)
    assert one.fingerprint() == black_box.labels(sign, (4,), 2, version=first, name="two").fingerprint()
    assert one.fingerprint() == one.double().fingerprint()
    other = black_box.labels(sign, (4,), 2, version=second)
    assert other.fingerprint() != one.fingerprint()
    assert black_box.labels(sign, (4,), 3, version=first).fingerprint() != one.fingerprint()
    with open(__file__) as held:  # what no fingerprint could read
        known = black_box.labels(lambda x: sign(x) * (not held.closed), (4,), 2, version=next(fresh))
        assert len(known.fingerprint()) == 64


def test_one_version_never_names_two_functions() -> None:
    version = next(fresh)
    black_box.labels(sign, (4,), 2, version=version)
    with pytest.raises(ConfigError, match="names another function already"):
        black_box.labels(lambda x: 1 - sign(x), (4,), 2, version=version)


def test_a_copy_asks_the_same_function_and_a_pickle_is_refused() -> None:
    classifier = black_box.labels(sign, (4,), 2, version=next(fresh))
    assert copy.deepcopy(classifier).double()(torch.ones(1, 4)).tolist() == [[0, 1]]
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.loads(pickle.dumps(classifier))


def test_batches_are_no_larger_than_allowed_and_answers_keep_their_order() -> None:
    sizes: list[int] = []

    def noted(x: NDArray[np.float32]) -> NDArray[np.int64]:
        assert x.dtype == np.float32 and x.shape[1:] == (4,)
        sizes.append(len(x))
        return sign(x)

    small = black_box.labels(noted, (4,), 2, version=next(fresh), batch=3)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    sizes.clear()
    assert small(x).argmax(dim=1).tolist() == sign(x.numpy()).tolist()
    assert sizes == [3, 3, 3, 1]


def test_failures_of_the_function_name_it_and_become_rows_if_wanted() -> None:
    def failing(x: NDArray[np.float32]) -> NDArray[np.int64]:
        if x.any():
            raise TimeoutError("no answer in 3 s")
        return sign(x)

    classifier = black_box.labels(failing, (4,), 2, version=next(fresh), name="service")
    expected = r"service failed on a batch of shape \(1000, 4\): TimeoutError: no answer in 3 s"
    with pytest.raises(CertificationError, match=expected) as caught:
        certbench.certify({"name": "smoothing", "n": 100}, classifier, points(1, 0.5), L2)
    assert isinstance(caught.value.__cause__, TimeoutError)
    rows = certbench.certify({"name": "smoothing", "n": 100}, classifier, points(2, 0.5), L2, throw=False)
    assert rows.outcome == (Outcome.FAILED, Outcome.FAILED)
    assert (rows.radius == 0).all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.arange(1, 3), "gave labels from 1 to 2, not within 0 to 1"),
        (lambda x: sign(x) - 1, "gave labels from -1 to -1"),
        (lambda x: sign(x).astype(float), "answered 2 inputs with float64 of shape"),
        (lambda x: sign(x)[:1], r"of shape \(1,\)"),
        (lambda x: np.zeros((len(x), 7)), r"scores of shape \(2, 2\)"),
        (lambda x: ["cat"] * len(x), "answered 2 inputs with <U3"),
        (lambda x: None, "answered 2 inputs with object"),
        (lambda x: np.zeros((len(x), 2), dtype=complex), "answered 2 inputs with complex128"),
    ],
)
def test_answers_that_are_no_labels_are_refused(answer: object, message: str) -> None:
    with pytest.raises(NumericalError, match=message):
        black_box.labels(answer, (4,), 2, version=next(fresh))  # type: ignore[arg-type]


def test_scores_that_are_not_finite_certify_nothing() -> None:
    scores = black_box.labels(
        lambda x: np.where(x[:, :2] > 0, np.nan, x[:, :2]), (4,), 2, version=next(fresh)
    )  # finite for a quarter of the draws
    certificate = certbench.certify({"name": "smoothing", "n": 500}, scores, torch.zeros(2, 4), L2)
    assert (certificate.prediction == ABSTAIN).all()


def test_a_version_is_needed() -> None:
    with pytest.raises(ConfigError, match="needs a version"):
        black_box.labels(sign, (4,), 2, version="")
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        black_box.labels(sign, (4,), 2, version=next(fresh), batch=0)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("http_endpoint", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_http_endpoint_is_certified_as_the_network_behind_it(example: ModuleType) -> None:
    inner, x = halfspace(), points(2, 0.4)
    with example.serve(inner) as address:
        found = example.certify(address, next(fresh), x, 2, 300)
    expected = certbench.certify({"name": "smoothing", "n": 300}, inner, x, L2)
    assert torch.equal(found.radius, expected.radius)
    assert (found.radius > 0).all()


def test_an_endpoint_that_refuses_or_is_gone_fails_with_its_words(example: ModuleType) -> None:
    inner: Classifier = halfspace()
    with example.serve(inner) as address:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            example.ask(address)(np.zeros((2, 5), dtype=np.float32))
        classifier = black_box.labels(example.ask(address), (4,), 2, version=next(fresh), name=address)
    with pytest.raises(CertificationError, match="failed on a batch of shape"):
        certbench.certify({"name": "smoothing", "n": 100}, classifier, points(1, 0.4), L2)
