import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, MarginCertifier, ThreatModel, UnsupportedError
from certbench.core.margins import clean_margin, margin_rows
from certbench.models import data, zoo
from certbench.networks import folding, reading
from certbench.testing import inputs, network, sample_ball
from certbench.verifiers.linear.crown import AlphaCrown, Crown
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.ibp import IBP
from certbench.verifiers.linear.lirpa import release_0_3
from certbench.verifiers.linear.lirpa.forward import Forward, ForwardBackward
from certbench.verifiers.linear.lirpa.graph import Lirpa, LirpaState, first_bounds
from certbench.verifiers.linear.lirpa.perturbation import perturbation
from certbench.verifiers.linear.lirpa.writing import Written

pytestmark = pytest.mark.usefixtures("lirpa")
ALL = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


class Plain(nn.Module):
    """A sequence that may add to the input first."""

    def __init__(self, *layers: nn.Module, shift: float = 0.0) -> None:
        super().__init__()
        self.layers, self.shift = nn.Sequential(*layers), shift

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + self.shift if self.shift else x)


def wrap(module: nn.Module) -> Classifier:
    return Classifier(module.eval(), (1, 4, 4), 4)


def pooled(pool: nn.Module, d: int) -> Classifier:
    torch.manual_seed(1)
    return wrap(Plain(nn.Conv2d(1, 3, 1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(d, 4)))


@pytest.mark.parametrize("threat", ALL, ids=str)
@pytest.mark.parametrize("pool", [(2, 1, 0, 27), (2, 2, 1, 27), (3, 1, 1, 48)], ids=str)
def test_average_pooling_is_written_as_a_matrix(pool: tuple[int, int, int, int], threat: ThreatModel) -> None:
    """0.3's own backward bounds of windows that overlap or are padded are those of another layer."""
    classifier, x = pooled(nn.AvgPool2d(*pool[:3]), pool[3]), inputs(4)
    label, eps = classifier(x).argmax(1), torch.tensor([0.01, 0.05, 0.1, 0.3], dtype=torch.float64)
    own, lirpa = (
        certifier.margins(certifier.prepare(classifier, threat), x, label, eps).lower
        for certifier in (Crown(engine="own"), Crown(engine="auto-lirpa"))
    )
    torch.testing.assert_close(lirpa, own, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_average_pooling_that_tiles_is_sound(threat: ThreatModel) -> None:
    classifier, x = pooled(nn.AvgPool2d(2), 12), inputs(4)
    certificate = certbench.certify(Crown(engine="auto-lirpa"), classifier, x, threat)
    assert (certificate.radius > 0).any()
    points = sample_ball(x, certificate.radius.clamp(max=1e3), threat, 500)
    assert (classifier.double()(points.flatten(0, 1)).argmax(1).view(4, -1) == certificate.prediction[:, None]).all()


@pytest.mark.parametrize("certifier", [IBP(engine="auto-lirpa"), Crown(engine="auto-lirpa")], ids=["ibp", "crown"])
@pytest.mark.parametrize("threat", ALL, ids=str)
def test_an_addition_at_the_input_loses_no_width(certifier: Engined, threat: ThreatModel) -> None:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
    moved = certbench.certify(certifier, wrap(Plain(*layers, shift=0.25)), inputs(4), threat).radius
    with torch.no_grad():
        layers[1].bias += 0.25 * layers[1].weight.sum(1)
    plain = certbench.certify(certifier, wrap(Plain(*layers)), inputs(4), threat).radius
    torch.testing.assert_close(moved, plain, rtol=3e-3, atol=1e-9)


@pytest.mark.parametrize("threat", [L1, L2], ids=str)
def test_first_layer_bounds_are_the_dual_norms(threat: ThreatModel) -> None:
    classifier, x, eps = network("mlp"), inputs(3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    state = IBP(engine="auto-lirpa").prepare(classifier, threat)
    assert isinstance(state, LirpaState)
    inside = release_0_3.auto_lirpa().BoundedTensor(x, perturbation(threat, x, eps))
    ((low, high),) = first_bounds(state, inside).values()
    weight = classifier.double().module[1].weight  # type: ignore[index]
    reach = eps[:, None] * torch.linalg.vector_norm(weight, ord=threat.q, dim=1)
    torch.testing.assert_close(high - low, 2 * reach)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_convolutions_and_matrices_are_bounded_alike(threat: ThreatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions stay what they are where their matrices are large."""
    x, eps = inputs(3), torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64)
    found, kinds = [], []
    for limit in (folding.DENSE_LIMIT, 10):
        monkeypatch.setattr(folding, "DENSE_LIMIT", limit)
        classifier = network("cnn")
        reading._READ.clear()
        for certifier in (Crown(engine="auto-lirpa"), IBP(engine="auto-lirpa"), ForwardBackward()):
            state = certifier.prepare(classifier, threat)
            assert isinstance(state, LirpaState)
            kinds.append(any(isinstance(layer, nn.Conv2d) for layer in state.module.modules()))
            found.append(certifier.margins(state, x, classifier(x).argmax(1), eps).lower)
    reading._READ.clear()
    assert kinds == [False] * 3 + [True] * 3
    for one, two in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, two)


def test_dropout_and_missing_biases_change_nothing() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(16, 8, bias=False), nn.Linear(8, 4, bias=False)
    bare = wrap(nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.5), last))
    label, eps = bare(inputs(3)).argmax(1), torch.full((3,), 1e-9, dtype=torch.float64)
    crown = Crown(engine="auto-lirpa")
    bound = crown.margins(crown.prepare(bare, Linf), inputs(3), label, eps).lower.amin(dim=1)
    torch.testing.assert_close(bound, clean_margin(bare.double()(inputs(3)), label), rtol=0, atol=1e-6)
    assert first.bias is None


def test_a_dropout_that_stands_in_two_places_is_left_out_of_both() -> None:
    drop = nn.Dropout(0.5)
    parts = nn.Flatten(), nn.Linear(16, 8), drop, nn.ReLU(), drop, nn.Linear(8, 4)
    state = Crown(engine="auto-lirpa").prepare(wrap(nn.Sequential(*parts)), Linf)
    assert isinstance(state, LirpaState) and isinstance(state.module, Written)
    assert [type(part) for part in state.module.modules() if not [*part.children()]] == [nn.Linear, nn.Linear, nn.ReLU]


def test_deeply_nested_json_is_an_error_and_not_the_end_of_the_process(lirpa: ModuleType) -> None:
    code = (
        "import json\nfrom certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa\nauto_lirpa()\n"
        "try:\n    json.loads('[' * 100_000)\nexcept RecursionError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "refused", done.returncode


def test_the_default_precision_of_torch_is_restored() -> None:
    certbench.certify(AlphaCrown(engine="auto-lirpa", iterations=1), network("mlp"), inputs(1), L2)
    assert torch.get_default_dtype() is torch.float32


class Branch(nn.Module):
    """Its trace depends on the input that is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.sum() == 0 else -self.layer(x.flatten(1))


def test_a_module_that_branches_on_its_input_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        Crown(engine="auto-lirpa").prepare(wrap(Branch()), Linf)


def test_refusals_name_the_layer() -> None:
    torch.manual_seed(0)
    tanh = wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)))
    for engine in ("auto", "own", "auto-lirpa"):
        with pytest.raises(UnsupportedError, match="Tanh is not piecewise linear") as caught:
            certbench.build({"name": "fast-lin", "engine": engine}).prepare(tanh, Linf)
        assert str(caught.value).count("Tanh is not piecewise linear") == 1


def test_where_no_engine_can_both_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("of another reason")

    monkeypatch.setattr(Lirpa, "prepare", refuse)
    with pytest.raises(UnsupportedError, match=r"lgamma.*Through auto-LiRPA: of another reason"):
        Crown().prepare(network("unknown"), Linf)


FUNCTIONS = {
    "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "leaky": nn.LeakyReLU(0.2), "steep": nn.LeakyReLU(2.0),
    "falling": nn.LeakyReLU(-0.5), "relu6": nn.ReLU6(), "elu": nn.ELU(), "softplus": nn.Softplus(), "gelu": nn.GELU(),
    "silu": nn.SiLU(), "mish": nn.Mish(), "prelu": nn.PReLU(8),
}  # fmt: skip
"""Functions; 0.3 has no lines for most, and wrong ones for LeakyReLU with these slopes."""


@pytest.mark.parametrize("threat", [L2, Linf.within(0, 1)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_bounded_soundly_and_almost_exactly_on_tiny_balls(name: str, threat: ThreatModel) -> None:
    torch.manual_seed(0)
    parts = nn.Flatten(), nn.Linear(16, 8), FUNCTIONS[name], nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
    classifier, x = wrap(nn.Sequential(*parts)), inputs(4)
    double = classifier.double()
    label = double(x).argmax(1)
    eps, tiny = torch.tensor([0.05, 0.2, 0.5, 1.0], dtype=torch.float64), torch.full((4,), 1e-7, dtype=torch.float64)
    outputs = double(sample_ball(x, eps, threat, 500).flatten(0, 1)).view(4, -1, 4)
    least = (outputs @ margin_rows(label, 4).mT).amin(dim=1)
    for certifier in (
        IBP(engine="auto-lirpa"),
        Crown(engine="auto-lirpa"),
        Forward(),
        ForwardBackward(),
        AlphaCrown(engine="auto-lirpa", iterations=2),
    ):
        state = certifier.prepare(classifier, threat)
        close = certifier.margins(state, x, label, tiny).lower.amin(dim=1)
        torch.testing.assert_close(close, clean_margin(double(x), label), rtol=0, atol=1e-5)
        assert (certifier.margins(state, x, label, eps).lower <= least + 1e-9).all()


class Gate(nn.Module):
    """A product of two values, and a quotient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(16, 6), nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), -1)
        h = self.one(x) * torch.sigmoid(self.two(x))
        return self.last(h / (1 + h.square().sum(dim=1, keepdim=True)).sqrt())


@pytest.mark.parametrize("threat", [L2, Linf.within(0, 1)], ids=str)
def test_products_are_bounded_soundly(threat: ThreatModel) -> None:
    torch.manual_seed(0)
    classifier, x = wrap(Gate()), inputs(4)
    double = classifier.double()
    label, eps = double(x).argmax(1), torch.tensor([1e-7, 0.05, 0.1, 0.2], dtype=torch.float64)
    outputs = double(sample_ball(x, eps, threat, 2000).flatten(0, 1)).view(4, -1, 4)
    least = (outputs @ margin_rows(label, 4).mT).amin(dim=1)
    for certifier in (IBP(engine="auto-lirpa"), Crown(engine="auto-lirpa")):
        lower = certifier.margins(certifier.prepare(classifier, threat), x, label, eps).lower
        assert (lower <= least + 1e-9).all()
        torch.testing.assert_close(lower[0], least[0], rtol=0, atol=1e-4)


def test_a_head_that_is_left_out_is_in_the_evidence() -> None:
    torch.manual_seed(0)
    parts = nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
    bare, headed = wrap(nn.Sequential(*parts)), wrap(nn.Sequential(*parts, nn.Softmax(dim=1)))
    for crown in (Crown(engine="own"), Crown(engine="auto-lirpa")):
        one, two = (certbench.certify(crown, net, inputs(3), Linf) for net in (bare, headed))
        torch.testing.assert_close(one.radius, two.radius, rtol=1e-6, atol=0)
        assert [found["engine"] for found in two.evidence] == [crown.engine] * 3
        assert [found["dropped"] for found in two.evidence] == ["softmax"] * 3
        assert not any("dropped" in found for found in one.evidence)


@pytest.fixture
def shimmed(lirpa: ModuleType) -> ModuleType:
    """A release of auto-LiRPA that needs the shims."""
    if not release_0_3._needs_shims(release_0_3._release()):
        pytest.skip("this release of auto-LiRPA needs no shims")
    return lirpa


def _batch_norm(lirpa: ModuleType) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    dict(lirpa.BoundedModule(module, torch.zeros(1, 4)).named_buffers())


@pytest.mark.parametrize("shim", ["__getitem__", "_named_members"])
def test_each_shim_is_still_needed(shimmed: ModuleType, monkeypatch: pytest.MonkeyPatch, shim: str) -> None:
    _batch_norm(shimmed)
    if shim == "__getitem__":
        monkeypatch.delattr(torch._C.Node, shim)
    else:
        patched = shimmed.BoundedModule._named_members

        def as_released(self: object, get_members_fn: object, prefix: str = "", recurse: bool = True) -> object:
            return patched(self, get_members_fn, prefix=prefix, recurse=recurse)

        monkeypatch.setattr(shimmed.BoundedModule, shim, as_released)
    with pytest.raises((AttributeError, TypeError, ImportError, ModuleNotFoundError, KeyError)):
        _batch_norm(shimmed)


@pytest.mark.usefixtures("shimmed")
def test_the_unused_name_of_numpy_is_still_missing() -> None:
    import numpy.lib

    assert not hasattr(numpy.lib, "arraysetops")
    assert hasattr(sys.modules["numpy.lib.arraysetops"], "isin")


def test_a_graph_returns_itself_from_eval_and_train(shimmed: ModuleType) -> None:
    graph = shimmed.BoundedModule(nn.Linear(4, 2), torch.zeros(1, 4))
    assert graph.eval() is graph
    assert graph.train(False) is graph


@pytest.mark.parametrize("name", ["_set_opset_version", "_six"])
def test_a_name_that_torch_removed_is_still_missing(lirpa: ModuleType, name: str) -> None:
    where = {"_set_opset_version": "torch.onnx.symbolic_helper", "_six": "torch"}[name]
    program = f"import importlib; print(hasattr(importlib.import_module({where!r}), {name!r}))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "fast-lin"])
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_neighbours_with_other_unstable_neurons_do_not_move_a_bound(name: str, threat: ThreatModel) -> None:
    """auto-LiRPA's sparse bounds mix intervals in wherever a neuron is stable all over the batch."""
    certifier, classifier = certbench.build({"name": name, "engine": "auto-lirpa"}), zoo.load("mlp-ibp")
    assert isinstance(certifier, MarginCertifier)
    x = data.load("digits").inputs[:8].double()
    state = certifier.prepare(classifier, threat)
    label = classifier(x).argmax(dim=1)
    eps = torch.full((8,), {1.0: 0.8, 2.0: 0.3, math.inf: 0.05}[threat.p], dtype=torch.float64)
    whole = certifier.margins(state, x, label, eps).lower
    single = torch.cat(
        [certifier.margins(state, x[i : i + 1], label[i : i + 1], eps[i : i + 1]).lower for i in range(8)]
    )
    torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-9)


class LateBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.max() <= 5 else -self.layer(x.flatten(1))


def test_a_branch_on_the_input_is_refused_wherever_it_lies() -> None:
    with pytest.raises(UnsupportedError):
        Crown(engine="auto-lirpa").prepare(wrap(LateBranch()), L2)


def test_hooks_are_part_of_the_network() -> None:
    classifier, crown, x = network("cnn"), Crown(engine="auto-lirpa"), inputs(3)
    classifier.module[0].register_forward_hook(lambda module, inputs, output: output + 9 * (output - 0.1).relu())  # type: ignore[index]
    label, eps = classifier(x).argmax(1), torch.full((3,), 1e-9, dtype=torch.float64)
    lower = crown.margins(crown.prepare(classifier, L2), x, label, eps).lower
    torch.testing.assert_close(lower.amin(dim=1), clean_margin(classifier.double()(x), label), rtol=0, atol=1e-5)


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) - x.flatten(1).mean(dim=0))


def test_a_module_whose_inputs_meet_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        IBP(engine="auto-lirpa").prepare(wrap(Centred()), L2)
