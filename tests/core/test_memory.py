"""Limits of memory and time: what is said, and where they hold."""

import re

import pytest
import torch

import certbench
from certbench import ConfigError, UnsupportedError
from certbench.core import memory
from certbench.core.memory import CPU, Cost, allowed, limits, written
from certbench.files.numbers import size


@pytest.mark.parametrize("text, value", [("8 GB", 8e9), ("1.5gb", 1.5e9), ("2 GiB", 2.0**31), (1e6, 1e6), ("12", 12.0)])
def test_amounts_of_memory_are_read(text: object, value: float) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["8 XB", "", "-1 GB", 0, None, True, "nan"])
def test_other_amounts_are_refused(text: object) -> None:
    with pytest.raises(ValueError):
        size(text)


def test_limits_hold_inside_and_nest() -> None:
    outside = allowed(CPU)
    assert 0 < outside <= memory.SHARE * memory.free(CPU) * 1.5
    with limits(memory="8 GB"):
        assert allowed(CPU) == 8e9
        with limits(seconds=1.0), pytest.raises(UnsupportedError, match="minutes"):
            Cost(work=1e9 * 600).check("it")
        Cost(work=1e9 * 600).check("it")
        with limits(memory=1e6):
            assert allowed(CPU) == 1e6
        assert allowed(CPU) == 8e9
    with pytest.raises(ConfigError, match="memory"), limits(memory="much"):
        pass
    with pytest.raises(ConfigError, match="seconds"), limits(seconds=0.0):
        pass


def test_a_batch_is_what_fits() -> None:
    with limits(memory=1e9):
        assert Cost(fixed=2e8, each=1e8).batch(64) == 8
        assert Cost(fixed=2e8, each=1e8).batch(3) == 3
        assert Cost(fixed=2e9, each=1e8).batch(64) == 1
        assert Cost().batch(64) == 64


def test_a_refusal_has_the_numbers_and_the_cure() -> None:
    with limits(memory="1 GB", seconds=100):
        with pytest.raises(UnsupportedError) as large:
            Cost(fixed=1e9, each=4e10, work=1e9 * 7200, advice="do less").check("Crown")
        expected = "41 GB of memory and 2 hours for one input, where 1 GB and 100 s may be used; do less"
        assert expected in str(large.value) and "limits(memory=..., seconds=...)" in str(large.value)
        with pytest.raises(UnsupportedError, match="a larger option `seconds`") as own:
            Cost(work=memory.SLOW * (memory.patience(1.0) + 1), seconds=1.0).check("MILP")
        Cost(work=memory.SLOW * (memory.patience(1.0) - 1), seconds=1.0).check("MILP")
        assert "limits(" not in str(own.value)


def test_the_machine_is_measured_only_where_a_slow_one_would_not_do() -> None:
    def pace() -> float:
        raise AssertionError("measured")

    with limits(seconds=100):
        Cost(work=memory.SLOW * 99, pace=pace).check("it")
        Cost(work=memory.SLOW * 500, pace=lambda: 10 * memory.SLOW).check("it")
        with pytest.raises(AssertionError, match="measured"):
            Cost(work=memory.SLOW * 101, pace=pace).check("it")


def test_bytes_are_written_for_people() -> None:
    assert [written(one) for one in (1.5e12, 4.1e10, 2e6, 900.0)] == ["1.5 TB", "41 GB", "2 MB", "0.9 kB"]


def test_the_limits_are_part_of_the_face() -> None:
    assert certbench.limits is limits


def test_a_suite_sets_the_limits(tmp_path: object) -> None:
    from certbench.runs.suite import Limits

    assert Limits.model_validate({"memory": "8 GB", "seconds": 10}).memory == 8e9
    with pytest.raises(ValueError, match=re.escape("8 apples")):
        Limits.model_validate({"memory": "8 apples"})


def test_a_device_that_says_nothing_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda: float("inf"))
    monkeypatch.setattr(memory, "_of_group", lambda *_: float("inf"))
    assert allowed(torch.device("cpu")) == float("inf")
    Cost(each=1e30).check("it")
