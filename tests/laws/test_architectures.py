"""Architectures that people bring: each is bounded soundly by every certifier, or refused for a known reason."""

import warnings

import pytest
import torch
from torch import Tensor

import certbench
from certbench import Classifier, Linf, UnsupportedError
from certbench.attacks.certified import held
from certbench.core import heads
from certbench.core.support import supports
from certbench.networks.reading import read
from tests.support.users import architectures

SIDE = 8
"""Pixels along an image here. `python -m benchmarks.architectures` writes a table of the full sizes."""

LARGE = frozenset({"ResNet-18", "VGG-11"})
"""Networks for which all this takes minutes."""

WIDE = frozenset({"vision transformer", "LSTM"})
"""Networks for which CROWN takes minutes; intervals inside, and one pass backwards, take seconds."""

DEEP = frozenset({"ResNet-18"})
"""Networks whose intervals, rounded outward layer by layer, are wider than every margin."""

ROWS = architectures(SIDE)


def made(name: str) -> Classifier:
    """Make one of them, in eval mode; equal functions have equal weights."""
    make, shape, outputs = ROWS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are out of fashion
        module = make()
    if not heads.is_exported(module):
        module.eval()
    return Classifier(module, shape, outputs, name)


def inputs(name: str, count: int = 1) -> Tensor:
    """Draw inputs in [0, 1]."""
    shape = ROWS[name][1]
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in ROWS]
)
def test_a_linear_relaxation_and_intervals_bound_it_and_no_attack_contradicts(name: str) -> None:
    classifier, x = made(name), inputs(name)
    certificates = []
    for spec in ("ibp", "crown-ibp", *(() if name in LARGE | WIDE else ("crown",))):
        certificates.append(certbench.certify({"name": spec, "engine": "own"}, classifier, x, Linf))
        if name in DEEP:
            assert (certificates[-1].radius > 0).any() or "no radius that was tried" in certificates[-1].evidence[0][
                "reason"
            ]
        else:
            assert (certificates[-1].radius > 0).any(), spec
    widest = max(certificates, key=lambda one: float(one.radius))
    held(widest, classifier, x, Linf)  # what breaks a smaller one, breaks it


@pytest.mark.parametrize(
    "names",
    [
        ("functions and view", "functions and flatten", "softmax last", "log-softmax last"),
        ("ReLU", "compiled", "scripted", "exported", "float64"),
        ("residual, pooled by a function", "residual, pooled by a module"),
    ],
    ids=" = ".join,
)
def test_equal_functions_have_equal_bounds(names: tuple[str, ...]) -> None:
    x = inputs(names[0])
    first, *others = (
        certbench.margins({"name": "crown", "engine": "own"}, made(name), x, Linf, 0.01) for name in names
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in LARGE | WIDE])
def test_every_certifier_bounds_it_or_says_why_not(name: str) -> None:
    classifier, x = made(name), inputs(name)
    for found in supports(classifier, Linf):
        if found.reason is None:
            certbench.certify(found.certifier, classifier, x, Linf, attack=True, throw=False)
        else:
            assert len(found.reason) > 20 and "\n" not in found.reason, found


def test_what_cannot_be_read_is_refused_with_the_line() -> None:
    class Sorting(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=1)[0]

    with pytest.raises(UnsupportedError, match=r"test_architectures.py:\d+: return x.sort"):
        read(Classifier(Sorting().eval(), (3,), 3))
