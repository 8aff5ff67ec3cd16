r"""Derandomised smoothing against patches: votes of bands or blocks of the image (Levine and Feizi, 2020).

A patch is a square of m x m pixels, with any values, anywhere in the image. It is no ball of a norm and has no place
among threat models. So this is a function of its own, no certifier of the table. Its certificates are ordinary ones,
where the radius is the largest m that is tolerated.

The classifier sees one band of columns, or one block, at a time, wrapped around the borders, and may vote for several
classes or none. All positions are tried: counts are exact, and the claim, which is about the smoothed classifier, is
sound.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.core.certificate import Certificate
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import PatchEvidence
from certbench.core.inputs import check_inputs
from certbench.core.ranges import Options, PositiveInt, between
from certbench.core.threat import L0
from certbench.errors import UnsupportedError
from certbench.verifiers.smoothing.ablation import readable
from certbench.verifiers.smoothing.counting import rows_of
from certbench.verifiers.smoothing.splitting import ranking


@dataclass(frozen=True)
class PatchSmoothing(Options):
    """Band or block smoothing.

    Attributes:
        kind: `band`, made of whole columns, or `block`, a square.
        size: width of the band, or side of the block.
        threshold: softmax from which on a position votes for a class.
        rule: `uniform`, as published: each position that meets a patch may take a vote from the winner and give one to
            its rival. `located` looks at each place of the patch, and at how those positions voted; its radius is never
            smaller.
        encode: what hides the rest: NaN, for a classifier that begins with `ablation.TwoChannel`, or zero.
    """

    kind: Literal["band", "block"] = "band"
    size: PositiveInt = 4
    threshold: Annotated[float, between(0, 1, "right")] = 0.3
    rule: Literal["located", "uniform"] = "located"
    encode: Literal["two-channel", "zero"] = "two-channel"

    guarantee = Guarantee.SOUND
    subject = Subject.SMOOTHED

    def certify(self, classifier: Classifier, x: Float[Tensor, "n ..."]) -> Certificate:
        """Return the class of each image, and the side of the largest square patch that cannot change it.

        The class is known even if this side is 0, unless no position voted.

        Raises:
            ConfigError: inputs of another shape, or not finite.
            UnsupportedError: the classifier takes no images, images smaller than a band or block, or no NaN.
        """
        x, _ = check_inputs(classifier, x, L0)
        if len(classifier.input_shape) != 3:
            raise UnsupportedError(f"{classifier.name} takes no images (channels, height, width)")
        if self.size > min(classifier.input_shape[1:] if self.kind == "block" else classifier.input_shape[2:]):
            raise UnsupportedError(f"a {self.kind} of size {self.size} is larger than the image")
        if self.encode == "two-channel":
            readable(classifier)
        predictions, sides, evidence = [], [], []
        for image in x:
            votes = self.votes(classifier, image)
            counts = [int(count) for count in votes.sum(dim=(0, 1))]
            top, side = self.side(votes, *image.shape[1:])
            predictions.append(top if any(counts) else ABSTAIN)
            sides.append(side)
            evidence.append(
                PatchEvidence(
                    counts=tuple(counts),
                    n=votes.shape[0] * votes.shape[1],
                    kind=self.kind,
                    size=self.size,
                    threshold=self.threshold,
                    rule=self.rule,
                    encode=self.encode,
                    claim="square patches of radius x radius pixels",
                )
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(sides, dtype=torch.float64), evidence=evidence)

    def votes(
        self, classifier: Classifier, image: Float[Tensor, "channels height width"]
    ) -> Bool[Tensor, "rows columns classes"]:
        """Return the classes that each position votes for, by its first row (one of them, for bands) and column."""
        _, height, width = image.shape
        down, across = _shown(height, self.size), _shown(width, self.size)
        if self.kind == "band":
            down = torch.ones(1, height, dtype=torch.bool)
        masks = (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)
        hidden, size = (torch.nan if self.encode == "two-channel" else 0.0), rows_of(image.numel())
        found = []
        for start in range(0, len(masks), size):
            index = torch.arange(start, start + size) % len(masks)  # full batches, by repetition
            seen = torch.where(masks[index][:, None].to(image.device), image, hidden)
            votes = classifier(seen).double().softmax(dim=1) >= self.threshold  # NaN votes for nothing
            found.append(votes[: len(masks) - start].cpu())
        return torch.cat(found).view(len(down), width, -1)

    def side(self, votes: Bool[Tensor, "rows columns classes"], height: int, width: int) -> tuple[int, int]:
        """Return the winner, ties to the first class, and the side of the largest patch that leaves it the winner."""
        counts = votes.long().sum(dim=(0, 1))
        top = ranking(counts.tolist(), 1)[0]
        side = 0
        while side < min(height, width) and bool((self._rooms(votes.long(), top, side + 1, height, width) > 0).all()):
            side += 1
        return top, side

    def _rooms(
        self, votes: Int[Tensor, "rows columns classes"], top: int, side: int, height: int, width: int
    ) -> Int[Tensor, "places rivals"]:
        """Return the lead of the winner over each rival, ties to the first class, for each place of a patch."""
        touched = _touched(height, side, self.size) if self.kind == "block" else torch.ones(1, 1, dtype=torch.int64)
        across = _touched(width, side, self.size)
        total = votes.sum(dim=(0, 1))
        most = touched.sum(dim=1)[:, None] * across.sum(dim=1)  # number of positions that see the patch
        rivals = torch.arange(len(total)) != top
        ties = (torch.arange(len(total)) > top).long()[rivals]
        if self.rule == "uniform":
            return (total[top] - total[rivals] - 2 * most.max() + ties)[None]
        inside = torch.einsum("ar,bc,rck->abk", touched, across, votes)
        own = total[top] - inside[..., top]
        others = total[rivals] - inside[..., rivals] + most[..., None]
        return (own[..., None] - others + ties).flatten(0, 1)


def _shown(length: int, size: int) -> Bool[Tensor, "positions length"]:
    """Say which of `length` entries a window of that size shows, wrapped around; one row for each first entry."""
    return (torch.arange(length) - torch.arange(length)[:, None]) % length < size


def _touched(length: int, side: int, size: int) -> Int[Tensor, "places positions"]:
    """Say which windows, by their first entry, meet a patch of that side, for each place of the patch inside."""
    places, positions = torch.arange(length - side + 1)[:, None], torch.arange(length)
    return ((positions - places + size - 1) % length < side + size - 1).long()
