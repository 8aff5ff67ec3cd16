r"""How often each class is predicted under noise: the counts that every certificate of smoothing is a function of.

Draws come in chunks, and the random stream of a chunk depends on a seed, the phase and the chunk's number alone. So
counts do not depend on the order of inputs, on how they are batched, or on where a run was interrupted; more draws
extend fewer; and what was counted once, for whatever norm, rule or confidence, is not counted again.

If inputs share their noise, the first affine layers see it once: with h their composition,
$h(x + \epsilon) = h(x) + (h(\epsilon) - h(0))$ in real arithmetic, and the rest of the network runs on the sum. Every
input still sees independent draws, so each certificate holds with its own confidence; but failures of different inputs
are no longer independent.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench.classifier import Classifier
from certbench.errors import ConfigError
from certbench.models.architectures import Normalise
from certbench.verifiers.noise import Noise

SELECTION, ESTIMATION, PREDICTION = range(3)
"""Phases of the sampling; each has random streams of its own."""

ROWS, ENTRIES = 1000, 2**22
"""Draws in a chunk: so many rows, fewer where they would have more entries than that. Fixed for an input shape, because
logits differ in the last bits between batch shapes. A judgement: on two networks of MNIST and CIFAR 128 to 1000 rows
were equally fast, 4000 a third slower."""

REMEMBERED = 2**16
"""How many inputs' counts are kept, those counted last; some hundred bytes each."""

_COUNTED: "OrderedDict[Hashable, tuple[int, Tensor]]" = OrderedDict()
"""Chunks that are complete, and their counts."""


@dataclass(frozen=True, eq=False)
class Counter:
    """Counts a classifier's predictions under noise.

    Attributes:
        classifier: that votes.
        noise: of the draws.
        share: the seed of noise that all inputs share; None: each input has noise of its own.
        key: of what was counted before; None: nothing is remembered.
    """

    classifier: Classifier
    noise: Noise
    share: int | None
    key: str | None

    @staticmethod
    def of(classifier: Classifier, noise: Noise, share: int | None = None) -> "Counter":
        """A counter that remembers by content, unless a classifier's cannot be read."""
        try:
            return Counter(classifier, noise, share, classifier.fingerprint())
        except ConfigError:
            return Counter(classifier, noise, share, None)

    def count(
        self, x: Float[Tensor, "n ..."], draws: int, seeds: Sequence[int], phase: int
    ) -> Int[Tensor, "n classes"]:
        """Counts of so many draws at each input, on the CPU.

        A draw whose logits are not all finite votes for no class, so that a row's sum may fall short of `draws`.
        """
        size = rows_of(x[0].numel()) if len(x) else ROWS
        points = [hashlib.sha256(row.detach().cpu().contiguous().numpy().tobytes()).digest() for row in x]
        keys = [(self.key, self.noise, self.share, seed, phase, at) for seed, at in zip(seeds, points, strict=True)]
        known = [_COUNTED.get(key, (0, None)) if self.key is not None else (0, None) for key in keys]
        total = torch.zeros(len(x), self.classifier.num_classes, dtype=torch.int64)
        starts = []
        for i, (chunks, votes) in enumerate(known):
            usable = votes is not None and chunks * size <= draws
            starts.append(chunks if usable else 0)
            if usable and votes is not None:
                total[i] = votes
        if self.share is None:
            for i, (point, seed) in enumerate(zip(x, seeds, strict=True)):
                for chunk, logits in enumerate(self.logits(point, draws, seed, phase, size, starts[i]), starts[i]):
                    self._add(total, i, logits, chunk, size, draws, keys[i])
            return total
        head, tail = split(self.classifier)
        rectified = len(tail) > 0 and type(tail[0]) is nn.ReLU
        tail = nn.Sequential(*list(tail)[1:]) if rectified else tail
        with torch.no_grad():
            rows = x.to(self.classifier.device, self.classifier.dtype)
            images = (
                torch.cat([head(row[None]) for row in rows]) if len(rows) else rows
            )  # one by one, for the last bits
            origin = head(torch.zeros_like(x[:1]).to(images))
            for chunk in range(min(starts, default=0), -(-draws // size)):
                drawn = torch.from_numpy(self.noise.sample(_stream(self.share, phase, chunk), size, x[0].numel()))
                moved = head(drawn.view(size, *x.shape[1:]).to(images)) - origin
                both = torch.empty_like(moved)
                for i, image in enumerate(images):
                    if chunk >= starts[i]:
                        torch.add(image, moved, out=both)
                        logits = tail(both.relu_() if rectified else both)
                        self._add(total, i, logits, chunk, size, draws, keys[i])
        return total

    def logits(
        self, point: Float[Tensor, " ..."], draws: int, seed: int, phase: int, size: int, start: int = 0
    ) -> Iterator[Float[Tensor, "rows classes"]]:
        """Logits of so many draws at an input, by chunks of `size` from number `start` on, with noise of its own.

        Draws depend on `size`. Every chunk is computed in full, also the last, of which only the draws wanted come out.
        """
        flat = point.flatten().to("cpu", self.classifier.dtype)
        for chunk in range(start, -(-draws // size)):
            noisy = self.noise.perturb(flat, _stream(seed, phase, chunk), size)
            rows = noisy.view(size, *point.shape).to(self.classifier.device)
            yield self.classifier(rows)[: draws - chunk * size]

    def _add(self, total: Tensor, i: int, logits: Tensor, chunk: int, size: int, draws: int, key: Hashable) -> None:
        """The votes of a chunk; what is complete is remembered."""
        wanted = min(size, draws - chunk * size)
        total[i] += tally(logits[:wanted])
        if wanted == size and self.key is not None and _COUNTED.get(key, (0, None))[0] <= chunk:
            _COUNTED[key] = (chunk + 1, total[i].clone())
            _COUNTED.move_to_end(key)
            while len(_COUNTED) > REMEMBERED:
                _COUNTED.popitem(last=False)


def tally(logits: Float[Tensor, "n classes"]) -> Int[Tensor, " classes"]:
    """How many rows are for each class, on the CPU; one that is not finite is for none."""
    labels = logits.argmax(dim=1)[logits.isfinite().all(dim=1)]
    return torch.bincount(labels, minlength=logits.shape[1]).cpu()


def rows_of(entries: int) -> int:
    """Draws in a chunk, for inputs of so many entries."""
    return max(1, min(ROWS, ENTRIES // entries))


def split(classifier: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """A classifier as an affine function, then the rest: the identity and all of it, where its layers do not tell."""
    layers = _layers(classifier.module) if classifier.hidden_code() is None else [classifier.module]
    count = 0
    while count < len(layers) and type(layers[count]) in _AFFINE and not _by_batch(layers[count]):
        count += 1
    return nn.Sequential(*layers[:count]), nn.Sequential(*layers[count:])


_SHAPES: tuple[Any, ...] = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)
_AFFINE = frozenset((Normalise, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, *_SHAPES))
"""Affine in eval mode."""


def _by_batch(layer: nn.Module) -> bool:
    """Whether a normalisation has no statistics of its own and takes the batch's."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None


def _layers(module: nn.Module) -> list[nn.Module]:
    """The parts of a sequence, and of the sequences in it."""
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for part in module for layer in _layers(part)]


def _stream(seed: int, phase: int, chunk: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(phase, chunk))))
