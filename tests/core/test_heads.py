"""Modules as people have them: outputs, single logits, exported programs, lazy layers."""

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, Regressor, UnsupportedError
from certbench.errors import ConfigError
from certbench.networks import reading

Named = namedtuple("Named", ["logits", "features"])


@dataclass
class ModelOutput:
    """As the outputs of the module of a well-known library."""

    logits: Tensor
    features: Tensor


RETURNS: dict[str, tuple[Callable[[Tensor, Tensor], Any], int | str, str]] = {
    "tuple": (lambda z, x: (z, x), 0, "write output=0"),
    "list": (lambda z, x: [x, z], 1, "write output=0 for the first of its 2"),
    "mapping": (lambda z, x: {"features": x, "logits": z}, "logits", "output='features' or 'logits'"),
    "named tuple": (Named, "logits", "write output=0"),
    "object": (ModelOutput, "logits", "write output='logits'"),
}


class Several(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)), how

    def forward(self, x: Tensor) -> Any:
        return RETURNS[self.how][0](self.net(x), x)


def points(n: int = 4, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("how", RETURNS)
def test_one_of_several_outputs_is_the_classifier(how: str) -> None:
    module, (_, output, cure) = Several(how).double().eval(), RETURNS[how]
    with pytest.raises(ConfigError, match=f"not a tensor; .*{cure}"):
        Classifier(module, (3,), 3)
    whole, alone = Classifier(module, (3,), 3, output=output), Classifier(module.net, (3,), 3)
    for name in ("crown", "lipschitz", "branch-and-bound"):
        radii = [certbench.certify(name, one, points(2), L2).radius for one in (whole, alone)]
        assert torch.equal(*radii)
    assert whole.fingerprint() != alone.fingerprint()
    assert torch.equal(whole.double()(points()), alone(points()))


@pytest.mark.parametrize("output", [2, "nothing", -5])
def test_an_output_that_is_not_there_is_refused(output: int | str) -> None:
    with pytest.raises(ConfigError, match=r"does not take a batch of shape.*(IndexError|KeyError|TypeError)"):
        Classifier(Several("tuple" if output != "nothing" else "mapping").eval(), (3,), 3, output=output)


def linear(threshold: float = 0.0) -> tuple[nn.Linear, Callable[[Tensor], Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Linear(3, 1).double().eval().requires_grad_(False)
    return module, lambda x: (module(x)[:, 0] - threshold).abs() / module.weight.norm()


class Flat(nn.Module):
    """A logit for each input, without an axis for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x).squeeze(1)
        return found


@pytest.mark.parametrize("name", ["lipschitz", "crown", "branch-and-bound"])
@pytest.mark.parametrize("threshold", [None, 0.5, -2])
def test_one_logit_is_a_classifier_of_two_classes_with_the_distance_to_its_threshold(
    name: str, threshold: float | None
) -> None:
    module, exact = linear(threshold or 0.0)
    classifier = Classifier(nn.Sequential(module).eval(), (3,), 1, threshold=threshold)
    assert classifier.num_classes == 2 and classifier.dropped == ""
    found = certbench.certify(name, classifier, points(), L2)
    assert torch.equal(found.prediction, (module(points())[:, 0] > (threshold or 0.0)).long())
    torch.testing.assert_close(found.radius, exact(points()), rtol=1e-3, atol=0)
    assert "dropped" not in found.evidence[0]


@pytest.mark.parametrize("threshold", [None, 0.5, 0.9])
def test_a_last_sigmoid_is_left_out_and_its_threshold_carried_over(threshold: float | None) -> None:
    module, _ = linear()
    p = 0.5 if threshold is None else threshold
    cut = math.log(p / (1 - p))
    classifier = Classifier(nn.Sequential(module, nn.Sigmoid()).eval(), (3,), 1, threshold=threshold)
    found = certbench.certify("crown", classifier, points(), L2)
    assert torch.equal(found.prediction, (module(points()).sigmoid()[:, 0] > p).long())
    torch.testing.assert_close(found.radius, linear(cut)[1](points()), rtol=1e-3, atol=1e-12)
    assert found.evidence[0]["dropped"] == "sigmoid" and classifier.double().dropped == "sigmoid"


def test_claims_about_the_float_program_do_not_leave_a_part_of_it_out() -> None:
    classifier = Classifier(nn.Sequential(linear()[0], nn.Sigmoid()).eval(), (3,), 1)
    for ask in (certbench.certify, lambda *args: certbench.margins(*args, 0.1)):
        with pytest.raises(UnsupportedError, match="of which the last sigmoid was left out"):
            ask({"name": "crown", "rounding_safe": True}, classifier, points(), Linf)


class Hidden(nn.Module):
    """A sigmoid that is no layer, and that something moves after it."""

    def __init__(self) -> None:
        super().__init__()
        self.l = linear()[0]

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.l(x)).squeeze(1)


def test_a_sigmoid_that_is_no_layer_sets_the_threshold_and_stays() -> None:
    classifier = Classifier(Hidden().eval(), (3,), 1)
    z = linear()[0](points())[:, 0]
    assert torch.equal(classifier(points()).argmax(dim=1), (z > 0).long()) and classifier.dropped == ""
    tanh = Classifier(nn.Sequential(linear()[0], nn.Tanh()).eval(), (3,), 1)
    assert torch.equal(tanh(points()).argmax(dim=1), (z > 0).long())


def test_a_number_for_each_input_is_one_logit_too() -> None:
    classifier = Classifier(Flat(linear()[0]).eval(), (3,), 1)
    found = certbench.certify({"name": "smoothing", "n": 100}, classifier, points(), L2)
    assert classifier(points()).shape == (4, 2) and (found.radius > 0).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: Classifier(m, (3,), 1, threshold=math.nan), "a threshold is a finite number"),
        (
            lambda m: Classifier(nn.Sequential(m, nn.Sigmoid()).eval(), (3,), 1, threshold=0),
            "between 0 and 1, not at 0",
        ),
        (lambda m: Classifier(nn.Linear(3, 2).eval(), (3,), 2, threshold=0.5), "belongs to a classifier of one logit"),
        (lambda m: Classifier(nn.Linear(3, 2).eval(), (3,), 1), "write num_classes=2"),
        (lambda m: Classifier(nn.Linear(3, 2).eval(), (3,), 5), r"not \(2, 5\); write num_classes=2"),
        (lambda m: Classifier(m, (3,), 2), r"not \(2, 2\); write num_classes=1"),
        (lambda m: Classifier(m, (3,), 0), "num_classes is the number of the module's logits, at least 1, not 0"),
        (
            lambda m: Classifier(nn.Sequential(nn.LazyLinear(2)).eval(), (3,), 2),
            r"run module\(torch.zeros\(1, 3\)\) once",
        ),
        (lambda m: Regressor(m, (3,), 1, threshold=0.5), "belongs to a classifier of one logit"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_write(make: Callable[[nn.Module], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(linear()[0])


def test_a_regressor_of_one_output_stays_one() -> None:
    low, high = certbench.output_bounds(
        "crown", Regressor(nn.Sequential(linear()[0]).eval(), (3,), 1), points(), L1, 0.1
    )
    assert low.shape == high.shape == (4, 1) and (low < high).all()


@pytest.mark.parametrize(
    "kind", [TypeError, AttributeError, AssertionError, IndexError, KeyError, ValueError, StopIteration]
)
def test_a_module_that_raises_is_refused_with_its_exception(kind: type[Exception]) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise kind

    with pytest.raises(ConfigError, match=rf"does not take a batch of shape \(2, 3\): {kind.__name__}$"):
        Classifier(Raises().eval(), (3,), 2)


def exported(module: nn.Module, rows: int = 2) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim("batch")},) if rows > 1 else None
    return torch.export.export(module, (torch.zeros(rows, 3),), dynamic_shapes=dynamic)


def test_an_exported_program_has_the_mode_in_which_it_was_exported() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    asleep, awake = exported(module.eval()), exported(module.train())
    classifier, x = Classifier(asleep.module(), (3,), 2), torch.rand(5, 3)
    assert torch.equal(classifier(x), module.eval()(x))
    with pytest.raises(ConfigError, match="was exported in training mode"):
        Classifier(awake.module(), (3,), 2)
    with pytest.raises(ConfigError, match="export it with a dynamic batch axis"):
        Classifier(exported(module.eval(), rows=1).module(), (3,), 2)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_a_scripted_module_is_sampled() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for made in (torch.jit.script(module), torch.jit.trace(module, torch.zeros(2, 3))):
        classifier = Classifier(made, (3,), 2)
        torch.testing.assert_close(classifier.double()(points()).float(), module(points().float()))
        assert len(certbench.certify({"name": "smoothing", "n": 100}, classifier, points(), L2)) == 4


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("kind", ["script", "trace", "export"])
def test_numbers_inside_code_without_submodules_count_for_the_scale_of_rounding(kind: str) -> None:
    """A bias of -1e6 in front of a ReLU is no logit, but what it rounds away may be one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval().requires_grad_(False)
    module[0].bias[1] = -1e6  # type: ignore[index, operator]
    made = {
        "script": lambda: torch.jit.script(module),
        "trace": lambda: torch.jit.trace(module, torch.zeros(2, 3, dtype=torch.float64)),
        "export": lambda: torch.export.export(
            module, (torch.zeros(2, 3, dtype=torch.float64),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        ).module(),
    }[kind]()
    classifier = Classifier(made, (3,), 2)
    logits, scale = classifier.logits_and_scale(points())
    plain, least = Classifier(module, (3,), 2).logits_and_scale(points())
    torch.testing.assert_close(logits, plain)
    assert (scale >= least).all() and (least > 1e5).all()
    assert scale.tolist() == [classifier.logits_and_scale(point[None])[1].item() for point in points()]


@pytest.mark.parametrize(
    "last", [[nn.Flatten()], [nn.Softmax(1), nn.Flatten()], [nn.Flatten(), nn.Softmax(1)]], ids=str
)
def test_views_of_the_logits_to_themselves_are_no_function(last: list[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)
    bare, module = (nn.Sequential(*layers, *more).double().eval() for more in ([], last))
    whole, alone = Classifier(module, (3,), 3), Classifier(bare, (3,), 3)
    read = reading.read(whole)
    assert read.head == ("softmax" if len(last) > 1 else None)
    assert torch.equal(*(certbench.certify("crown", one, points(), L2).radius for one in (whole, alone)))
