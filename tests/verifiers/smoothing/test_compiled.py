from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import certbench
from certbench import L2, Classifier, UnsupportedError
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.counting import ESTIMATION, Counter
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.smoothing import Smoothing


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())


@pytest.mark.parametrize("share", [None, 3])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_classifier_is_another_one_and_says_so(
    backend: str, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    classifier, x = network("mlp"), inputs(2)
    built = Smoothing(Gaussian(0.5), n=2000, share=share, compile=True)
    found = certbench.certify(built, classifier, x, L2)
    assert all(e["compiled"] == f"torch {torch.__version__}" for e in found.evidence)
    known = len(counting._COUNTED)
    plain = certbench.certify(Smoothing(Gaussian(0.5), n=2000, share=share), classifier, x, L2)
    assert len(counting._COUNTED) == 2 * known  # counted by itself
    for a, b in zip(plain.evidence, found.evidence, strict=True):
        assert np.abs(np.array(a["counts"]) - np.array(b["counts"])).max() <= 2
    counting._COUNTED.clear()
    assert certbench.certify(built, classifier, x[1:], L2).evidence[0] == found.evidence[1]
    assert "compile=true" in certbench.core.options.label(built).lower()


def test_without_a_compiler_it_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def broken(*arguments: object, **settings: object) -> object:
        def run(*rows: object) -> object:
            raise InvalidCxxCompiler

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler"):
        certbench.certify(Smoothing(Gaussian(0.5), n=10, compile=True), network("mlp"), inputs(1), L2)


@pytest.mark.parametrize("share", [None, 3])
def test_the_twelfth_classifier_is_compiled_like_the_first(share: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles one code object for eight functions, and runs all others as they are without a word."""
    ran = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        return lambda *arguments: ran.append(graph) or graph.forward(*arguments)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    alive = []
    for width in range(5, 17):
        module = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 3)).eval()
        counter = Counter.of(Classifier(module, (3,), 3), Gaussian(0.5), share, compiled=True)
        ran.clear()
        counter.count(torch.rand(1, 3, dtype=torch.float64), 1000, [1], ESTIMATION)
        assert len(ran) == 1, width
        alive.append(counter)


def test_a_classifier_that_compiles_in_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Prints(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    classifier = Classifier(nn.Sequential(Prints(), nn.Linear(3, 3)).eval(), (3,), 3)
    with pytest.raises(UnsupportedError, match="cannot compile the classifier"):
        Counter.of(classifier, Gaussian(0.5), compiled=True)
