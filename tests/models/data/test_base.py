from dataclasses import replace

import pytest

from certbench.errors import ConfigError
from certbench.models import data


def test_a_fingerprint_is_over_content_never_over_the_name() -> None:
    digits = data.load("digits")
    same = replace(digits, name="other")
    others = [
        replace(digits, inputs=digits.inputs + 1e-3),
        replace(digits, inputs=digits.inputs.flatten(1)),
        replace(digits, labels=digits.labels.flip(0)),
        replace(digits, num_classes=11),
    ]
    assert same.fingerprint() == digits.fingerprint()
    assert len({other.fingerprint() for other in [digits, *others]}) == 5


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("minst", "test", "write digits, mnist, or the path of a .npz, .npy"),
        ("mine.mat", "test", "write digits, mnist, or the path"),
        ("nowhere.npz", "test", "there is no file nowhere.npz"),
        ("digits", "validation", "write train or test"),
        ("mine.npz", "train", "leave split out"),
    ],
)
def test_a_set_that_is_not_there_is_refused(spec: str, split: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(spec, split)
