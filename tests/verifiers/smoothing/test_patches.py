import itertools

import pytest
import torch
from torch import Tensor, nn

from certbench import ABSTAIN, Classifier, Outcome
from certbench.verifiers.smoothing.patches import PatchSmoothing, _touched
from tests.support.grids import Shown, scored


@pytest.mark.parametrize(("kind", "size"), [("band", 1), ("band", 2), ("block", 1), ("block", 2)])
@pytest.mark.parametrize("rule", ["located", "uniform"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_patch_of_the_certified_size_changes_the_class(kind: str, size: int, rule: str, seed: int) -> None:
    smoothing = PatchSmoothing(kind, size, 0.4, rule)  # type: ignore[arg-type]
    height, width = 4, 5
    classifier = scored(1, height, width, seed, 1.0)
    images = (torch.rand(6, 1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5).double()
    certificate = smoothing.certify(classifier, images)
    for image, label, radius in zip(images, certificate.prediction.tolist(), certificate.radius.tolist(), strict=True):
        side = min(int(radius), 2)
        contents = torch.tensor(list(itertools.product((0.0, 1.0), repeat=side * side))).double()
        for top, left in itertools.product(range(height - side + 1), range(width - side + 1)) if side else ():
            attacked = image.repeat(len(contents), 1, 1, 1)
            attacked[:, 0, top : top + side, left : left + side] = contents.view(-1, side, side)
            for one in attacked[:: 1 if side == 1 else 5]:
                votes = smoothing.votes(classifier, one).sum(dim=(0, 1)).tolist()
                assert max(range(3), key=lambda c: votes[c]) == label
    if kind == "block":
        assert (certificate.radius > 0).any()


@pytest.mark.parametrize("kind", ["band", "block"])
def test_the_located_certificate_is_that_of_every_patch_and_every_change_of_votes(kind: str) -> None:
    """Votes that see the patch become those that hurt most; the published rule certifies no more, often less."""
    height, width, size, gains = 5, 12 if kind == "band" else 6, 2, 0
    generator = torch.Generator().manual_seed(0)
    located, uniform = (PatchSmoothing(kind, size, rule=rule) for rule in ("located", "uniform"))  # type: ignore[arg-type]
    for _ in range(60):
        rows = 1 if kind == "band" else height
        chances = torch.tensor([0.9, 0.1, 0.05])
        votes = torch.rand(rows, width, 3, generator=generator) < chances
        top, side = located.side(votes, height, width)
        assert uniform.side(votes, height, width)[0] == top
        gains += side - uniform.side(votes, height, width)[1]
        for m in (side, side + 1):
            survived = all(
                survives(votes, top, kind, size, place, m)
                for place in itertools.product(range(height - m + 1), range(width - m + 1))
            )
            assert m == 0 or m > height or survived == (m == side)
    assert gains > 0


def survives(votes: Tensor, top: int, kind: str, size: int, place: tuple[int, int], m: int) -> bool:
    patch = set(itertools.product(range(place[0], place[0] + m), range(place[1], place[1] + m)))
    rows, width, classes = votes.shape
    height = 5
    for rival in range(classes):
        after = votes.clone()
        for r, c in itertools.product(range(rows), range(width)):
            down = range(height) if kind == "band" else [(r + i) % height for i in range(size)]
            if patch & set(itertools.product(down, [(c + i) % width for i in range(size)])):
                after[r, c] = torch.arange(classes) == rival
        total = after.sum(dim=(0, 1)).tolist()
        if rival != top and max(range(classes), key=lambda c: total[c]) != top:
            return False
    return True


@pytest.mark.parametrize("rule", ["located", "uniform"])
def test_a_unanimous_vote_certifies_what_the_published_formula_says(rule: str) -> None:
    votes = torch.zeros(1, 28, 10, dtype=torch.bool)
    votes[..., 3] = True
    smoothing = PatchSmoothing("band", 4, rule=rule)  # type: ignore[arg-type]
    assert smoothing.side(votes, 28, 28) == (3, 10)  # 28 > 2 (m + 3), or as many and the earlier class: 3 is not
    first = votes.roll(-3, dims=2)
    assert smoothing.side(first, 28, 28) == (0, 11)
    assert int(_touched(28, 5, 4).sum(dim=1).max()) == 8


def test_a_voteless_image_has_no_class() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), Shown()).eval(), (1, 3, 3), 2)
    quiet = PatchSmoothing("block", 1, threshold=1.0, encode="zero")
    certificate = quiet.certify(classifier, torch.rand(2, 1, 3, 3, dtype=torch.float64))
    assert certificate.prediction.tolist() == [ABSTAIN, ABSTAIN]
    assert set(certificate.outcome) == {Outcome.ABSTAINED}
