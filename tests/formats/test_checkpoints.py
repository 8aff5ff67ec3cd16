"""Checkpoints as they are published: where the state dict is found, and what is said where none fits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certbench import formats
from certbench.errors import ConfigError
from certbench.formats.checkpoints import states


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(net().state_dict())


def with_prefix(prefix: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in given.items()}


SHAPES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "accuracy": torch.tensor(0.9)},
    "list": lambda s: {"state_dict": [s], "sampler_indices": [[1, 2]]},
    "nested": lambda s: {"checkpoint": {"model_state_dict": s}, "args": {"lr": 0.1}},
    "optimiser": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}},
    "parallel": lambda s: {"net": with_prefix("module.", s)},
    "compiled and parallel": lambda s: with_prefix("_orig_mod.module.", s),
    "held": lambda s: with_prefix("module.model.", s),
    "no counters": lambda s: {key: value for key, value in s.items() if not key.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_state_dict_is_found(tmp_path: Path, name: str) -> None:
    torch.save(SHAPES[name](state()), tmp_path / "w.pth")
    module = net()
    formats.fill(module, tmp_path / "w.pth")
    assert all(torch.equal(value, state()[key]) for key, value in module.state_dict().items())


def test_weights_of_a_network_fill_the_one_inside_a_wrapper(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pth")
    outer = nn.Sequential(net())
    formats.fill(outer, tmp_path / "w.pth")
    assert torch.equal(outer[0][0].weight, state()["0.weight"])


def test_of_several_that_fit_one_has_to_be_named(tmp_path: Path) -> None:
    torch.save({"model": state(0), "ema": state(1), "list": [state(2)]}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"3 state dicts that fit: model, ema, list\.0; write w\.pth#model"):
        formats.fill(net(), tmp_path / "w.pth")
    for entry, seed in (("ema", 1), ("list.0", 2)):
        module = net()
        formats.fill(module, f"{tmp_path / 'w.pth'}#{entry}")
        assert torch.equal(module[0].weight, state(seed)["0.weight"])
    with pytest.raises(ConfigError, match="has no state dict 'emma'; it has model, ema"):
        formats.fill(net(), f"{tmp_path / 'w.pth'}#emma")


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def renamed(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"0": "fc1", "1": "bn", "2": "fc2"}
    return {names[key[0]] + key[1:]: value for key, value in given.items()}


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "another": (lambda: nn.Linear(7, 2).state_dict(), r"missing: 0\.weight.*and 4 more; unexpected: weight, bias"),
    "one more layer": (lambda: state() | {"3.weight": torch.zeros(2, 2)}, r"unexpected: 3\.weight\. Let the factory"),
    "one buffer less": (
        lambda: {key: value for key, value in state().items() if key != "1.running_mean"},
        r"missing: 1\.running_mean\. Buffers that the factory sets itself.*persistent=False",
    ),
    "other names": (
        lambda: renamed(state()),
        r"All shapes agree in their order.*rename them \(fc1\.weight -> 0\.weight",
    ),
    "another shape": (lambda: state() | {"0.bias": torch.zeros(9)}, r"0\.bias has shape \(9,\) in the file, \(3,\)"),
    "whole numbers": (
        lambda: {key: value.int() + 2**24 + 1 for key, value in state().items()},
        "would be rounded to torch.float32",
    ),
    "the largest whole numbers": (
        lambda: {key: torch.full_like(value, 2**31 - 1, dtype=torch.int32) for key, value in state().items()},
        "would be rounded to torch.float32",
    ),
    "finer": (lambda: {key: value.double() for key, value in state().items()}, "would be rounded to torch.float32"),
    "nothing": (lambda: {"epoch": 3}, "holds no state dict"),
    "module": (net, r"holds more than tensors.*trust: true.*state_dict"),
    "code": (Attack, "holds more than tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[name]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"(?s)w\.pt.*{message}"):
        formats.fill(net(), tmp_path / "w.pt")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_damaged_files_are_refused(tmp_path: Path, share: float) -> None:
    torch.save(state(), tmp_path / "w.pth")
    raw = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ConfigError, match=r"cannot be read, or is no file of torch\.save"):
        formats.fill(net(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w.mat", "scipy.io.loadmat"), ("w.npy", "numpy.load"), ("w.npz", "numpy.load"), ("w.onnx", "write path: FILE"),
        ("w.pkl", "pickle"), ("w.h5", "tf2onnx"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ConfigError, match=rf"cannot be loaded as weights.*{words}"):
        formats.fill(net(), tmp_path / name)


def test_tensors_of_an_optimiser_are_no_candidates() -> None:
    assert [where for where, _ in states({"model": state(), "optimizer": {"x": torch.zeros(1)}})] == ["model"]


def test_what_would_be_lost_in_loading_is_refused(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    def loaded(module: nn.Module, given: Any) -> None:
        torch.save(given, tmp_path / "w.pt")
        formats.fill(module, tmp_path / "w.pt")

    tied = dict(Tied().state_dict())
    loaded(Tied(), tied)
    with pytest.raises(ConfigError, match="one parameter under two names"):
        loaded(Tied(), tied | {"b.weight": tied["b.weight"] + 1})
    whole = torch.full((3, 4), 2**24)
    loaded(net(), state() | {"0.weight": whole})
    with pytest.raises(ConfigError, match="would be rounded"):
        loaded(net(), state() | {"0.weight": whole + 1})
    for odd in (
        whole.float().to_sparse(),
        whole.to("meta"),
        torch.quantize_per_tensor(whole.float(), 1, 0, torch.qint8),
    ):
        with pytest.raises(ConfigError, match="no dense tensor"):
            loaded(net(), state() | {"0.weight": odd})
    around: list[Any] = [state()]
    around.append(around)
    with pytest.raises(ConfigError, match="holds itself"):
        loaded(net(), around)
