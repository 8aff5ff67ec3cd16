import pytest
import torch
from torch import Tensor, nn

from certbench import Classifier
from certbench.attacks.occlusion import occlude
from certbench.verifiers.smoothing.patches import PatchSmoothing

pytestmark = pytest.mark.machine


# rectangles


def corner() -> Classifier:
    """Class 1 where the four pixels of the lower right corner are bright together."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        weight = torch.zeros(6, 6)
        weight[4:, 4:] = 1.0
        module[1].weight.copy_(torch.stack([torch.zeros(36), weight.flatten()]))
        module[1].bias.copy_(torch.tensor([0.0, -3.5]))
    return Classifier(module.eval(), (1, 6, 6), 2)


def test_rectangles_find_the_place_that_counts() -> None:
    classifier, x = corner(), 0.1 * torch.ones(3, 1, 6, 6)
    found = occlude(classifier, x, 2, 2)
    assert found.found.all()
    assert found.place.tolist() == [[4, 4]] * 3
    changed = found.point != x.double()
    assert changed[:, :, 4:, 4:].all()
    assert changed.sum() == 12
    assert found.point.min() >= 0 and found.point.max() <= 1
    assert not occlude(classifier, x, 2, 1).found.any()  # two pixels are not enough
    assert not occlude(classifier, x, 7, 7).found.any()  # larger than the image


def test_patch_certificates_are_audited_by_rectangles() -> None:
    """Inside what `PatchSmoothing` certifies no rectangle changes the vote; beyond it some do."""
    smoothing = PatchSmoothing(kind="band", size=2, encode="zero", threshold=0.5)
    classifier = corner()
    x = torch.cat([torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)])
    certificate = smoothing.certify(classifier, x)
    assert (certificate.radius >= 1).all()

    def judge(points: Tensor) -> Tensor:
        return smoothing.certify(classifier, points).prediction

    for side in (1, 2, 3, 4, 5):
        inside = certificate.radius >= side
        found = occlude(
            classifier, x[inside], side, side, label=certificate.prediction[inside], judge=judge, places=25, steps=5
        )
        assert not found.found.any()
    wide = PatchSmoothing(kind="band", size=5, encode="zero", threshold=0.5)  # four of six positions see the corner
    claimed = wide.certify(classifier, x[:1])
    assert claimed.radius.tolist() == [0.0]
    beyond = occlude(
        classifier,
        x[:1],
        2,
        2,
        label=claimed.prediction,
        judge=lambda points: wide.certify(classifier, points).prediction,
    )
    assert beyond.found.all()
    assert beyond.place.tolist() == [[4, 4]]
