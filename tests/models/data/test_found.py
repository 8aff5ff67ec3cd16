"""How the numbers of a source become a data set: layout, scale, precision, rows, and labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
"""Four images, channels first, of two channels."""

Load = Callable[..., data.Dataset]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(images: Any = IMAGES, labels: Any = (0, 1, 2, 0), **said: Any) -> data.Dataset:
        np.savez(tmp_path / "mine.npz", x=images, y=np.array(labels))
        return data.load(data.source(path=str(tmp_path / "mine.npz"), **said))

    return load


def test_every_layout_gives_the_same_images(load: Load) -> None:
    first = load(layout="NCHW", scale="1/255")
    assert first.input_shape == (2, 3, 3)
    assert load(np.moveaxis(IMAGES, 1, 3), layout="NHWC", scale=1 / 255).fingerprint() == first.fingerprint()
    grey = load(IMAGES[:, :1], scale="1/255")
    assert load(IMAGES[:, 0], layout="HW", scale="1/255").fingerprint() == grey.fingerprint()
    assert load(IMAGES[:, 0].reshape(4, 9), shape=[1, 3, 3], scale="1/255").fingerprint() == grey.fingerprint()
    assert load(np.moveaxis(IMAGES, 1, 3), scale=1).input_shape == (3, 3, 2), "nothing moves unless it is said"


def test_a_scale_divides_or_multiplies_and_is_never_assumed(load: Load) -> None:
    assert torch.equal(load(scale="1/255").inputs, torch.from_numpy(IMAGES).float() / 255)
    floats = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    assert torch.equal(load(floats).inputs, torch.from_numpy(floats))
    assert torch.equal(load(floats, scale="1/255").inputs, torch.from_numpy(floats) / 255)
    doubled = load(floats.astype(np.float64), scale=0.3, dtype="float64")
    assert torch.equal(doubled.inputs, torch.from_numpy(floats.astype(np.float64) * 0.3))
    for integers in (IMAGES, IMAGES.astype(np.int64), IMAGES > 9):
        with pytest.raises(ConfigError, match=r"no scale is said.*write scale: 1/255"):
            load(integers)


def test_what_was_done_is_said_in_its_order(load: Load) -> None:
    done = load(np.moveaxis(IMAGES, 1, 3), layout="NHWC", scale="1/255", take=3).done
    assert done[:3] == ("3 of 4 inputs of shape (3, 3, 2), uint8", "layout NHWC made (2, 3, 3)", "divided by 255")
    assert done[3].startswith("float32, values from ")


def test_rows_are_the_first_or_listed_and_classes_are_those_of_all(load: Load) -> None:
    listed = load(scale=1, take=[3, 1])
    assert listed.labels.tolist() == [0, 1] and listed.num_classes == 3
    assert torch.equal(listed.inputs, torch.from_numpy(IMAGES[[3, 1]]).float())
    assert len(load(scale=1, take=2)) == 2 and len(load(scale=1, take=9)) == 4
    with pytest.raises(ConfigError, match="has 4 inputs, counted from 0"):
        load(scale=1, take=[4])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layout": "HW", "scale": 1}, r"layout HW have 3 axes.*layouts of such inputs are NCHW and NHWC"),
        ({"layout": "CHW"}, "layout: Input should be 'NCHW', 'NHWC' or 'HW'"),
        ({"scale": 0}, "scale: .*greater than 0"),
        ({"scale": "255th"}, "not a number; write it like 0.1"),
        ({"shape": [5], "scale": 1}, r"another number of numbers than shape \(5,\)"),
        ({"dtype": "uint8"}, "dtype: Input should be 'float32' or 'float64'"),
        ({"mean": 0.5}, r"mean is the model's business.*Normalise"),
        ({"scael": 1}, "did you mean 'scale'"),
        ({"take": [], "scale": 1}, "needs others"),
    ],
)
def test_what_cannot_be_is_refused(load: Load, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**said)


def test_two_classes_of_opposite_sign_have_a_cure(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"labels lie in -1\.\.1.*store \(labels > 0\)"):
        load(scale=1, labels=[-1, 1, 1, -1])


def test_named_sets_have_a_form_of_their_own() -> None:
    digits = data.load("digits")
    part = data.load(data.source(path="digits", take=5, shape=[64]))
    assert torch.equal(part.inputs, digits.inputs[:5].flatten(1)) and part.num_classes == 10
    with pytest.raises(ConfigError, match="digits has a form of its own; leave layout and scale out"):
        data.load(data.source(path="digits", scale=1, layout="NHWC"))
