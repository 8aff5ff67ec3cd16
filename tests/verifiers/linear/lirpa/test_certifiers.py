import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from certbench.verifiers.linear.lirpa.certifiers import IBP, AlphaCrownLirpa, CrownLirpa, FastLin
from certbench.verifiers.linear.lirpa.rewriting import as_expected
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, MarginCertifier, ThreatModel, UnsupportedError
from certbench.core.margins import clean_margin
from certbench.models import data, zoo
from certbench.testing import inputs, network, sample_ball
from certbench.verifiers.linear.lirpa import release_0_3
from certbench.verifiers.linear.lirpa.graph import Lirpa

pytestmark = pytest.mark.usefixtures("lirpa")
ALL = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


class Plain(nn.Module):
    """Hides a sequence from the dense rewriting; it may add to the input first."""

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


@pytest.mark.parametrize("pool", [(2, 1, 0, 27), (2, 2, 1, 27), (3, 1, 1, 48)], ids=str)
def test_average_pooling_that_is_bounded_wrongly_is_refused(pool: tuple[int, int, int, int]) -> None:
    classifier = pooled(nn.AvgPool2d(*pool[:3]), pool[3])
    for certifier in (CrownLirpa(), AlphaCrownLirpa(iterations=2)):
        with pytest.raises(UnsupportedError, match="average pooling"):
            certifier.prepare(classifier, L2)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_average_pooling_that_tiles_is_sound(threat: ThreatModel) -> None:
    classifier, x = pooled(nn.AvgPool2d(2), 12), inputs(4)
    certificate = certbench.certify(CrownLirpa(), classifier, x, threat)
    assert (certificate.radius > 0).any()
    points = sample_ball(x, certificate.radius.clamp(max=1e3), threat, 500)
    assert (classifier.double()(points.flatten(0, 1)).argmax(1).view(4, -1) == certificate.prediction[:, None]).all()


@pytest.mark.parametrize("certifier", [IBP(), CrownLirpa()], ids=["ibp", "crown"])
@pytest.mark.parametrize("threat", ALL, ids=str)
def test_an_addition_at_the_input_loses_no_width(certifier: Lirpa, threat: ThreatModel) -> None:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
    moved = certbench.certify(certifier, wrap(Plain(*layers, shift=0.25)), inputs(4), threat).radius
    with torch.no_grad():
        layers[1].bias += 0.25 * layers[1].weight.sum(1)
    plain = certbench.certify(certifier, wrap(Plain(*layers)), inputs(4), threat).radius
    torch.testing.assert_close(moved, plain, rtol=3e-3, atol=1e-9)


@pytest.mark.parametrize("threat", [L1, L2], ids=str)
def test_first_layer_bounds_are_the_dual_norms(threat: ThreatModel) -> None:
    classifier = network("mlp")
    state = IBP().prepare(classifier, threat)
    (rows,) = state.first.values()
    weight = classifier.double().module[1].weight  # type: ignore[index]
    torch.testing.assert_close(rows, torch.linalg.vector_norm(weight, ord=threat.q, dim=1))


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_dense_layers_leave_the_bound_of_convolutions_alone(threat: ThreatModel) -> None:
    dense, x = network("cnn"), inputs(3)
    patches = wrap(Plain(*dense.module))  # type: ignore[arg-type]
    assert any(isinstance(layer, nn.Conv2d) for layer in CrownLirpa().prepare(patches, threat).module.modules())
    eps, label = torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64), dense(x).argmax(1)
    one, two = (
        CrownLirpa().margins(CrownLirpa().prepare(net, threat), x, label, eps).lower for net in (dense, patches)
    )
    torch.testing.assert_close(one, two)


def test_dropout_and_missing_biases_change_nothing() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(16, 8, bias=False), nn.Linear(8, 4, bias=False)
    bare = wrap(nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.5), last))
    label, eps = bare(inputs(3)).argmax(1), torch.full((3,), 1e-9, dtype=torch.float64)
    bound = CrownLirpa().margins(CrownLirpa().prepare(bare, Linf), inputs(3), label, eps).lower.amin(dim=1)
    torch.testing.assert_close(bound, clean_margin(bare.double()(inputs(3)), label), rtol=0, atol=1e-6)
    assert first.bias is None


def test_a_dropout_that_stands_in_two_places_is_left_out_of_both() -> None:
    drop = nn.Dropout(0.5)
    layers = nn.Linear(16, 8), drop, nn.ReLU(), drop, nn.Linear(8, 4)
    rewritten = as_expected(nn.Sequential(*layers).eval())
    assert not any(isinstance(layer, nn.Dropout) for layer in rewritten.modules())
    assert len(rewritten) == 5  # type: ignore[arg-type]


def test_deeply_nested_json_is_an_error_and_not_the_end_of_the_process(lirpa: ModuleType) -> None:
    code = (
        "import json\nfrom certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa\nauto_lirpa()\n"
        "try:\n    json.loads('[' * 100_000)\nexcept RecursionError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "refused", done.returncode


def test_the_default_precision_of_torch_is_restored() -> None:
    certbench.certify(AlphaCrownLirpa(iterations=1), network("mlp"), inputs(1), L2)
    assert torch.get_default_dtype() is torch.float32


class Branch(nn.Module):
    """Its trace depends on the input that is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.sum() == 0 else -self.layer(x.flatten(1))


def test_a_module_that_branches_on_its_input_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot be traced for every input"):
        CrownLirpa().prepare(wrap(Branch()), Linf)


def test_refusals_name_the_layer() -> None:
    torch.manual_seed(0)
    tanh = wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)))
    leaky = wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(), nn.Linear(8, 4)))
    with pytest.raises(UnsupportedError, match="not Tanh"):
        FastLin().prepare(tanh, Linf)
    with pytest.raises(UnsupportedError, match="not LeakyRelu"):
        AlphaCrownLirpa().prepare(leaky, Linf)
    assert math.isfinite(float(certbench.certify(CrownLirpa(), leaky, inputs(1), Linf).radius[0]))


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


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown-lirpa", "fast-lin"])
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_neighbours_with_other_unstable_neurons_do_not_move_a_bound(name: str, threat: ThreatModel) -> None:
    """auto-LiRPA's sparse bounds mix intervals in wherever a neuron is stable all over the batch."""
    certifier, classifier = certbench.build(name), zoo.load("mlp-ibp")
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


@pytest.mark.parametrize("slope", [-0.5, 2.0])
def test_leaky_relu_with_another_slope_is_refused(slope: float) -> None:
    """auto-LiRPA 0.3 takes it for monotone and convex."""
    with pytest.raises(UnsupportedError, match="slopes in"):
        IBP().prepare(wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(slope), nn.Linear(8, 4))), Linf)


class LateBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.max() <= 5 else -self.layer(x.flatten(1))


def test_a_branch_on_the_input_is_refused_wherever_it_lies() -> None:
    with pytest.raises(UnsupportedError, match="cannot be traced for every input"):
        CrownLirpa().prepare(wrap(LateBranch()), L2)


def test_hooks_are_refused() -> None:
    classifier = network("cnn")
    classifier.module[0].register_forward_hook(lambda module, inputs, output: output + 100 * (output - 3).relu())
    with pytest.raises(UnsupportedError, match="has hooks"):
        CrownLirpa().prepare(classifier, L2)


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) - x.flatten(1).mean(dim=0))


def test_a_module_whose_inputs_meet_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        IBP().prepare(wrap(Centred()), L2)
