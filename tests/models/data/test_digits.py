import numpy as np
import pytest
import torch

from certbench.models import data

SPLITS = {
    "train": (1297, "ebf62371dfb7a5b41e0b47431b544d053f56fcb48bb2ce4d55990b0f5c5b61f5"),
    "test": (500, "a7210d0b0f568f4ff4e57eda05d58d99c732e40edfae0c18ae9bf4887ad1dacb"),
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_frozen(split: str) -> None:
    digits = data.load("digits", split)
    assert (len(digits), digits.fingerprint()) == SPLITS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_images_in_the_unit_box(split: str) -> None:
    digits = data.load("digits", split)
    assert digits.input_shape == (1, 8, 8) and digits.num_classes == 10
    assert digits.inputs.dtype == torch.float32 and digits.labels.dtype == torch.int64
    assert digits.inputs.min() == 0 and digits.inputs.max() == 1


def test_train_and_test_are_disjoint_and_make_all_digits() -> None:
    images = torch.cat([data.load("digits", split).inputs for split in SPLITS]).flatten(1)
    assert len({image.numpy().tobytes() for image in images}) == 1797


@pytest.mark.parametrize("n", [10, 50, 100, 500])
def test_every_class_has_its_share_of_the_first_test_inputs(n: int) -> None:
    counts = data.load("digits").labels[:n].bincount(minlength=10)
    assert counts.min() >= n / 10 - 2 and counts.max() <= n / 10 + 1


def test_the_split_does_not_depend_on_the_order_in_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    digits.images, digits.target = digits.images[order], digits.target[order]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    assert data.load("digits").fingerprint() == SPLITS["test"][1]
