"""ONNX files: batches of any size, outputs that are meant, and files that are refused."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certbench.attacks.certified import certify
from certbench.core.classifier import Classifier
from certbench.errors import ConfigError, MissingBackendError, UnsupportedError
from certbench.formats.onnx import files
from certbench.formats.onnx.loading import load
from certbench.formats.onnx.operators import TABLE
from certbench.formats.onnx.operators.base import Operator
from certbench.networks.reading import read
from tests.support.onnx_files import Node, numbers, write

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LAST: Node = ("Gemm", "f,w", "y", {})
W = {"w": numbers(6, 3)}
FLAT = {"to": np.int64([1, -1])}

BATCHES: dict[str, tuple[list[Node], Any, dict[str, Any], bool]] = {
    "reshape to [1, -1]": ([("Reshape", "x,to", "f", {}), LAST], (1, 2, 3), {**W, **FLAT}, True),
    "reshape to [1, 6]": ([("Reshape", "x,to", "f", {}), LAST], (1, 2, 3), {**W, "to": np.int64([1, 6])}, True),
    "reshape to [-1, 6]": ([("Reshape", "x,to", "f", {}), LAST], ("n", 2, 3), {**W, "to": np.int64([-1, 6])}, True),
    "reshape by the shape": (
        [
            ("Shape", "x", "s", {}),
            ("Gather", "s,zero", "n", {"axis": 0}),
            ("Unsqueeze", "n,axis", "n1", {}),
            ("Concat", "n1,rest", "to", {"axis": 0}),
            ("Reshape", "x,to", "f", {}),
            LAST,
        ],
        ("n", 2, 3),
        {**W, "zero": np.int64(0), "axis": np.int64([0]), "rest": np.int64([-1])},
        True,
    ),
    "a token for each input": (
        [
            ("Shape", "x", "s", {"end": 1}),
            ("Concat", "s,rest", "to", {"axis": 0}),
            ("Expand", "token,to", "t", {}),
            ("Concat", "t,x", "z", {"axis": 1}),
            ("ReduceMean", "z", "f", {"axes": [2], "keepdims": 0}),
        ],
        ("n", 5, 3),
        {"token": numbers(1, 1, 3), "rest": np.int64([1, 3])},
        True,
    ),
    "a token, folded for one input": (
        [("Concat", "t,x", "z", {"axis": 1}), ("ReduceMean", "z", "f", {"axes": [2], "keepdims": 0})],
        (1, 5, 3),
        {"t": numbers(1, 1, 3)},
        True,
    ),
    "batch and rows merged": (
        [("Reshape", "x,a", "z", {}), ("MatMul", "z,w", "u", {}), ("Reshape", "u,b", "f", {})],
        ("n", 2, 3),
        {"a": np.int64([-1, 3]), "w": numbers(3, 4), "b": np.int64([-1, 8])},
        True,
    ),
    "everything in one row": ([("Flatten", "x", "f", {"axis": 0}), LAST], (1, 2, 3), W, False),
    "a mean over the batch": (
        [("ReduceMean", "x", "z", {"axes": [0]}), ("Flatten", "z", "f", {}), LAST], (1, 2, 3), W, False,
    ),
    "a squeeze of the batch": (
        [("Squeeze", "x", "z", {}), ("Unsqueeze", "z,axis", "f", {})], (1, 4), {"axis": np.int64([0])}, True,
    ),
    "no batch axis": ([("MatMul", "x,w", "f", {})], (6,), W, False),
    "four inputs at once": ([("Reshape", "x,to", "f", {}), LAST], (4, 2, 3), {**W, "to": np.int64([4, 6])}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_each_input_gets_the_outputs_that_the_file_gives_for_it(tmp_path: Path, name: str) -> None:
    """Loading compares single inputs with onnxruntime, so batches have to equal these."""
    nodes, shape, constants, at_once = BATCHES[name]
    end = nodes[-1][2]
    module = load(write(tmp_path / "net.onnx", nodes, shape, constants, opset=15, output=end))
    assert (module.alone is None) == at_once
    x = torch.randn(5, *module.input_shape, generator=torch.Generator().manual_seed(1))
    found = module(x)
    assert module(x[:0]).shape == (0, found.shape[1])
    for n in (1, 2, 3):
        assert torch.allclose(torch.cat([module(part) for part in x.split(n)]), found, atol=1e-6)


def test_a_file_for_several_inputs_that_mixes_them_is_refused(tmp_path: Path) -> None:
    nodes: list[Node] = [("ReduceMean", "x", "z", {"axes": [0]}), ("Sub", "x,z", "y", {})]
    with pytest.raises(ConfigError, match="written for 4 inputs at once"):
        load(write(tmp_path / "net.onnx", nodes, (4, 3), opset=13))


def test_large_numbers_on_the_way_are_seen_wherever_the_batch_stands(tmp_path: Path) -> None:
    """The allowance for rounding is in proportion to the largest number on the way to the logits."""
    nodes: list[Node] = [
        ("Flatten", "x", "f", {"axis": 0}),
        ("Mul", "f,large", "z", {}),
        ("Sub", "z,f", "u", {}),
        ("Sub", "u,z", "y", {}),
    ]
    module = load(write(tmp_path / "net.onnx", nodes, (1, 3), {"large": np.float32(1024.0)}))
    classifier = Classifier(module, (3,), 3)
    logits, scale = classifier.logits_and_scale(torch.ones(2, 3))
    assert module.conceals and logits.abs().max() == 1 and scale.tolist() == [1024, 1024]


def test_what_jumps_is_run_and_bounded_by_none(tmp_path: Path) -> None:
    nodes: list[Node] = [("Cast", "x", "i", {"to": 7}), ("Cast", "i", "y", {"to": 1})]
    module = load(write(tmp_path / "net.onnx", nodes, ("n", 3)))
    assert module(torch.tensor([[1.7, -1.7, 0.2]])).tolist() == [[1, -1, 0]]
    with pytest.raises(UnsupportedError):
        read(Classifier(module, (3,), 3))


def test_a_file_is_certified_as_the_same_network_of_torch(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.LeakyReLU(0.1), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    nodes: list[Node] = [
        ("Conv", "x,k,b", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("LeakyRelu", "c", "r", {"alpha": 0.1}),
        ("MaxPool", "r", "p", {"kernel_shape": [2, 2]}),
        ("Reshape", "p,to", "f", {}),
        ("Gemm", "f,w,v", "y", {"transB": 1}),
    ]
    constants = {
        "k": numbers(2, 1, 3, 3),
        "b": numbers(2),
        "to": np.int64([1, -1]),
        "w": numbers(3, 8),
        "v": numbers(3),
    }
    for key, name in (("0.weight", "k"), ("0.bias", "b"), ("4.weight", "w"), ("4.bias", "v")):
        module.get_parameter(key).data = torch.from_numpy(constants[name])
    opened = load(write(tmp_path / "net.onnx", nodes, (1, 1, 6, 6), constants))
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radii = [certify("crown", Classifier(net, (1, 6, 6), 3), x, "L2").radius for net in (opened, module)]
    assert (radii[0] > 0).all() and torch.allclose(*radii, rtol=1e-7)  # the slope is 0.1 in float32 in the file


def test_an_operator_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, ("", "Relu"), Operator(torch.abs))
    with pytest.raises(ConfigError, match="gives other outputs than onnxruntime"):
        load(write(tmp_path / "net.onnx", [("Relu", "x", "y", {})], ("n", 3)))


def test_an_operator_that_is_wrong_far_from_0_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, ("", "Relu"), Operator(lambda x: torch.clamp(x, 0, 60)))
    with pytest.raises(ConfigError, match="gives other outputs than onnxruntime"):
        load(write(tmp_path / "a.onnx", [("Relu", "x", "y", {})], ("n", 3)))


def test_a_file_that_onnxruntime_opens_and_cannot_run_is_refused(tmp_path: Path) -> None:
    same = {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}  # its convolutions know no such padding with gaps
    path = write(tmp_path / "a.onnx", [("Conv", "x,w", "y", same)], ("n", 1, 6, 6), {"w": numbers(1, 1, 2, 2)})
    with pytest.raises(ConfigError, match=r"onnxruntime cannot run it on .*Dilation"):
        load(path)


def test_constants_in_another_precision_than_the_input(tmp_path: Path) -> None:
    nodes: list[Node] = [("CastLike", "c,x", "d", {}), ("Mul", "d,x", "y", {})]
    constants = {"c": numbers(3).astype(np.float64) + 1e-12}
    assert load(write(tmp_path / "a.onnx", nodes, ("n", 3), constants, opset=17))(torch.ones(1, 3)).shape == (1, 3)


def test_constants_are_rounded_as_the_file_rounds_them(tmp_path: Path) -> None:
    half = numbers(3, 2).astype(np.float16)
    nodes: list[Node] = [("Cast", "h", "w", {"to": 1}), ("MatMul", "x,w", "y", {})]
    opened = load(write(tmp_path / "a.onnx", nodes, ("n", 3), {"h": half}))
    assert torch.equal(opened(torch.eye(3)), torch.from_numpy(half.astype(np.float32)))
    nodes = [("Cast", "x", "d", {"to": 11}), ("MatMul", "d,w", "e", {}), ("Cast", "e", "y", {"to": 1})]
    opened = load(write(tmp_path / "b.onnx", nodes, ("n", 3), {"w": half.astype(np.float64) + 1e-12}))
    assert torch.equal(opened(torch.eye(3).double()), torch.from_numpy(half.astype(np.float64) + 1e-12))


def test_inputs_that_mix_only_where_numbers_are_large_are_run_one_by_one(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Sub", "x,c", "s", {}),
        ("Relu", "s", "r", {}),
        ("ReduceMax", "r", "m", {"axes": [0]}),
        ("Add", "x,m", "y", {}),
    ]
    opened = load(write(tmp_path / "a.onnx", nodes, ("n", 2), {"c": np.float32([5e3])}))
    x = torch.tensor([[1.0, 2.0], [9e3, 9e3]])
    assert torch.equal(opened(x)[:1], x[:1])


def test_a_classifier_in_float64_keeps_its_precision(tmp_path: Path) -> None:
    constants = {"w": numbers(6, 3).astype(np.float64) / 3}
    module = load(write(tmp_path / "net.onnx", [("MatMul", "x,w", "y", {})], ("n", 6), constants, kind=11))
    x = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), x @ torch.from_numpy(constants["w"]))


def test_functions_of_the_model_and_branches_by_constants_are_followed(tmp_path: Path) -> None:
    body = [onnx.helper.make_node("Relu", ["a"], ["b"]), onnx.helper.make_node("Add", ["b", "b"], ["c"])]
    function = onnx.helper.make_function("mine", "Twice", ["a"], ["c"], body, [onnx.helper.make_opsetid("", 17)])
    branches = {}
    for key, operator in (("then_branch", "Neg"), ("else_branch", "Exp")):
        end = onnx.helper.make_tensor_value_info(f"{key}_y", 1, ["n", 3])
        node = onnx.helper.make_node(operator, ["z"], [f"{key}_y"])
        branches[key] = onnx.helper.make_graph([node], key, [], [end])
    nodes: list[Node] = [("Twice", "x", "z", {}, "mine"), ("If", "yes", "y", branches)]
    constants = {"yes": np.bool_(True)}
    path = write(tmp_path / "net.onnx", nodes, ("n", 3), constants, domains=["mine"], functions=[function])
    assert load(path)(torch.tensor([[1.0, -1.0, 2.0]])).tolist() == [[-2, 0, -4]]


def learner(folder: Path, **attributes: Any) -> Path:
    """A perceptron as exporters of scikit-learn write it: a label, and probabilities by label."""
    outputs = [
        onnx.helper.make_tensor_value_info("label", 7, ["n"]),
        onnx.helper.make_value_info(
            "probability", onnx.helper.make_sequence_type_proto(
                onnx.helper.make_map_type_proto(7, onnx.helper.make_tensor_type_proto(1, []))
            )
        ),
    ]  # fmt: skip
    nodes: list[Node] = [
        ("Cast", "x", "c", {"to": 1}),
        ("MatMul", "c,w1", "m1", {}),
        ("Add", "m1,b1", "a1", {}),
        ("Relu", "a1", "r", {}),
        ("MatMul", "r,w2", "m2", {}),
        ("Add", "m2,b2", "a2", {}),
        ("Softmax", "a2", "p", {"axis": 1}),
        ("ArgMax", "p", "best", {"axis": 1, "keepdims": 0}),
        ("ArrayFeatureExtractor", "classes,best", "taken", {}, "ai.onnx.ml"),
        ("Reshape", "taken,flat", "label", {}),
        ("ZipMap", "p", "probability", {"classlabels_int64s": [0, 1, 2]}, "ai.onnx.ml"),
    ]
    constants = {
        "w1": numbers(4, 8), "b1": numbers(8), "w2": numbers(8, 3), "b2": numbers(3, seed=1),
        "classes": np.int64([0, 1, 2]), "flat": np.int64([-1]),
    }  # fmt: skip
    return write(
        folder / "learner.onnx", nodes, ("n", 4), constants, domains=["ai.onnx.ml"], outputs=outputs, **attributes
    )


def test_of_labels_and_probabilities_the_probabilities_are_taken(tmp_path: Path) -> None:
    module = load(learner(tmp_path))
    assert torch.allclose(module(torch.rand(2, 4)).sum(1), torch.ones(2))
    with pytest.raises(ConfigError, match="the output 'label' has no real numbers; export scores or logits"):
        load(learner(tmp_path), output="label")
    with pytest.raises(ConfigError, match=r"unknown output 'lable'; did you mean 'label'"):
        load(learner(tmp_path), output="lable")


def test_shapes_are_the_files_or_fit_it(tmp_path: Path) -> None:
    column = write(tmp_path / "column.onnx", [("Flatten", "x", "y", {})], (1, 784, 1))
    assert load(column, input_shape=(1, 28, 28)).input_shape == (784, 1)
    with pytest.raises(ConfigError, match=r"takes inputs of shape \(784, 1\), which \(1, 27, 28\) does not fit"):
        load(column, input_shape=(1, 27, 28))
    last = write(tmp_path / "last.onnx", [("Flatten", "x", "y", {})], (1, 4, 4, 3))
    with pytest.raises(ConfigError, match=r"\(3, 4, 4\) does not fit"):  # channels last are another order of entries
        load(last, input_shape=(3, 4, 4))
    free = write(tmp_path / "free.onnx", [("GlobalAveragePool", "x", "y", {})], ("n", 3, "h", "w"))
    with pytest.raises(ConfigError, match=r"leaves the shape of an input open: \(3, \?, \?\); give"):
        load(free)
    assert load(free, input_shape=(3, 4, 4)).input_shape == (3, 4, 4)


def plain(folder: Path, shape: Any = ("n", 3)) -> Path:
    return write(
        folder / "net.onnx", [("Add", "x,b", "z", {}), ("Relu", "z", "y", {})], shape, {"b": numbers(64, 3)[:1]}
    )


def changed(change: Callable[[bytes], bytes], suffix: str = ".onnx") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"bad{suffix}").write_bytes(change(plain(folder).read_bytes()))
        return folder / f"bad{suffix}"

    return make


def outside(folder: Path) -> Path:
    model = onnx.load(plain(folder))
    onnx.save_model(model, folder / "out.onnx", save_as_external_data=True, location="data", size_threshold=0)
    (folder / "data").unlink()
    return folder / "out.onnx"


def unknown(folder: Path) -> Path:
    node: Node = ("Odd", "x", "y", {}, "org.users")
    return write(folder / "net.onnx", [node], ("n", 3), domains=["org.users"])


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no.onnx", "there is no file"),
    "empty": (changed(lambda raw: b""), "no ONNX file, or damaged"),
    "cut": (changed(lambda raw: raw[: len(raw) // 2]), "no ONNX file, or damaged"),
    "text": (changed(lambda raw: b"weights: 3\n" * 9), "no ONNX file, or damaged"),
    "pickle": (changed(lambda raw: b"\x80\x02}q\x00."), "no ONNX file, or damaged"),
    "cut gz": (changed(lambda raw: gzip.compress(raw)[:-20], ".onnx.gz"), "cannot be read, or is truncated"),
    "no gz": (changed(lambda raw: raw, ".onnx.gz"), "cannot be read, or is truncated"),
    "tensors elsewhere": (outside, "keeps its tensors in other files"),
    "unknown operator": (unknown, r"the ONNX operator Odd \(node 'y', domain 'org.users'\) is not known here"),
    "whole numbers": (
        lambda folder: write(folder / "net.onnx", [("Identity", "x", "y", {})], ("n", 3), kind=7), "is int64; export it"
    ),
    "two inputs": (
        lambda folder: write(folder / "net.onnx", [("Add", "x,other", "y", {})], ("n", 3)),
        "takes 'other', which nothing makes",
    ),
    "a negative axis": (
        lambda folder: write(folder / "net.onnx", [("Relu", "x", "y", {})], ("n", -1)),
        "leaves the shape of an input open",
    ),
    "no use of the input": (
        lambda folder: write(folder / "net.onnx", [("Relu", "c", "y", {})], ("n", 3), {"c": numbers(3)}),
        "does not depend on the input",
    ),
    "labels alone": (
        lambda folder: write(
            folder / "net.onnx", [("ArgMax", "x", "y", {"axis": 1})], ("n", 3),
            outputs=[onnx.helper.make_tensor_value_info("y", 7, ["n", 1])],
        ),
        "no output with real numbers",
    ),
    "shapes that depend on values": (
        lambda folder: write(
            folder / "net.onnx", [("Cast", "x", "i", {"to": 7}), ("Reshape", "x,i", "y", {})], (3,)
        ),
        "depends on the values of the input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        load(make(tmp_path))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = plain(tmp_path).read_bytes()
    for end in range(0, len(raw), 7):
        (tmp_path / "cut.onnx").write_bytes(raw[:end])
        with pytest.raises(ConfigError):
            load(tmp_path / "cut.onnx")


def test_missing_packages_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingBackendError, match=r"pip install \"certbench\[onnx\]\""):
        load(plain(tmp_path))
    assert files.INSTALL


def test_a_fingerprint_is_that_of_the_network_and_not_of_the_file(tmp_path: Path) -> None:
    one = Classifier(load(plain(tmp_path)), (3,), 3).fingerprint()
    (tmp_path / "net.onnx").rename(tmp_path / "other.onnx.x")
    (tmp_path / "again.onnx").write_bytes((tmp_path / "other.onnx.x").read_bytes())
    assert Classifier(load(tmp_path / "again.onnx"), (3,), 3).fingerprint() == one
    changed = write(
        tmp_path / "c.onnx", [("Add", "x,b", "z", {}), ("Abs", "z", "y", {})], ("n", 3), {"b": numbers(64, 3)[:1]}
    )
    assert Classifier(load(changed), (3,), 3).fingerprint() != one
