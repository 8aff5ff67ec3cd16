r"""Counts of how often each class is predicted under noise: every certificate of smoothing is a function of them.

Draws come in chunks, and the random stream of a chunk depends on a seed, the phase and the chunk's number alone. So
counts do not depend on the order of inputs, on how they are batched, or on where a run was interrupted. More draws
extend fewer draws. Counts made for one norm, rule or confidence are not made again for another.

If inputs share their noise, the first affine layers see it once. With h their composition,
$h(x + \epsilon) = h(x) + (h(\epsilon) - h(0))$ in real arithmetic, and the rest of the network runs on the sum. Every
input still sees independent draws, so each certificate holds with its own confidence. But failures of different inputs
are no longer independent.
"""

import contextlib
import copy
import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench.core.classifier import Classifier
from certbench.core.evidence import DrawingEvidence
from certbench.core.memory import Cost
from certbench.errors import ConfigError
from certbench.networks.sequences import split
from certbench.verifiers.smoothing.compiled import compile_module
from certbench.verifiers.smoothing.noise.base import Noise
from certbench.verifiers.smoothing.streams import generator_of, numpy_stream, place_of, stream_of

SELECTION, ESTIMATION, PREDICTION = range(3)
"""Phases of the sampling; each has random streams of its own."""

ROWS, ENTRIES = 1000, 2**22
"""Largest number of rows in a chunk of draws, and of entries. Fixed for an input shape, because logits differ in the
last bits between batch shapes. A judgement: on two networks of MNIST and CIFAR 128 to 1000 rows were equally fast, 4000
a third slower."""

TIMED = 32
"""Number of rows that are run to predict the time of all."""

REMEMBERED = 2**16
"""Number of inputs whose counts are kept, the latest ones; some hundred bytes each."""

Value = TypeVar("Value")

_COUNTED: "OrderedDict[Hashable, tuple[int, Any]]" = OrderedDict()
"""Number of chunks, and their counts, sums or votes. Entries are never changed, only replaced."""

_LOCK = threading.Lock()


@runtime_checkable
class Mechanism(Hashable, Protocol):
    """A mechanism that hides the input from a classifier. It is hashable, so that its counts are found again."""

    def perturb(self, point: Float[Tensor, " d"], stream: np.random.Generator, n: int) -> Float[Tensor, "n d"]:
        """Draw noisy copies of one flat input; they depend on the stream and on the input alone."""


@runtime_checkable
class Shareable(Protocol):
    """Noise that is added, in the classifier's precision or float32, and is the same at every input."""

    def sample(self, stream: np.random.Generator, n: int, d: int) -> Float[np.ndarray, "n d"]:
        """Draw noise; it depends on the stream alone."""


@dataclass(frozen=True, eq=False)
class Counter:
    """A counter of a classifier's predictions under noise.

    Attributes:
        classifier: the classifier that votes.
        noise: noise of the draws.
        share: seed of noise that all inputs share; None: each input has noise of its own.
        key: key of the counts that are remembered; None: nothing is remembered.
        device: the device where torch draws the noise; None: NumPy draws it, on the CPU, as for all other mechanisms.
            Both draw other numbers, and torch's differ between kinds of GPU.
        compiled: whether `torch.compile` runs the classifier, which changes its roundings.
        content: whether the key is the classifier's fingerprint. Then nothing is looked up or remembered while the
            classifier has changed, for example by a training step.
    """

    classifier: Classifier
    noise: Mechanism
    share: int | None
    key: str | None
    device: torch.device | None = None
    compiled: bool = False
    content: bool = False

    @staticmethod
    def of(
        classifier: Classifier,
        noise: Mechanism,
        share: int | None = None,
        *,
        compiled: bool = False,
        key: str | None = None,
    ) -> "Counter":
        """Make a counter that remembers by the classifier's fingerprint, if there is one, and draws on its GPU, if any.

        Args:
            classifier: the classifier that votes.
            noise: noise of the draws.
            share: seed of noise that all inputs share.
            compiled: whether to compile the classifier.
            key: key of a classifier that never changes, in place of the fingerprint.

        Raises:
            UnsupportedError: the classifier is to be compiled, and there is no compiler.
        """
        device = generator_of(classifier.device) if isinstance(noise, Noise) else None
        name = _fingerprint(classifier) if key is None else key
        counter = Counter(classifier, noise, share, name, device, compiled, content=key is None)
        if compiled:
            counter.try_once()
        return counter

    @torch.no_grad()
    def try_once(self) -> None:
        """Run a chunk of zeros, so that it is compiled now or refused."""
        rows = torch.zeros(rows_of(math.prod(self.classifier.input_shape)), *self.classifier.input_shape)
        if self.share is None:
            self._run(rows)
        else:
            head, after = self._halves
            moved = head(rows.to(self.classifier.device, self.precision))
            after(moved[0], moved, torch.empty_like(moved))

    def cost(self, draws: int) -> Cost:
        """Predict so many draws for one input. Each parameter counts at each place of the input, so at most."""
        parameters = sum(part.numel() for part in self.classifier.module.parameters())
        d = math.prod(self.classifier.input_shape)
        each = max(1, parameters) * d
        return Cost(
            work=float(draws) * each,
            pace=lambda: each * self.speed,
            advice="take fewer draws (`n`)",
            device=self.classifier.device,
        )

    @cached_property
    @torch.no_grad()
    def speed(self) -> float:
        """Number of draws per second, measured on a few rows of zeros."""
        rows, seconds = torch.zeros(TIMED, *self.classifier.input_shape), []
        for _ in range(2):
            start = time.perf_counter()
            float(self._run(rows).sum())  # waits for the device
            seconds.append(time.perf_counter() - start)
        return TIMED / max(min(seconds), 1e-9)

    def description(self) -> DrawingEvidence:
        """Return what is unusual: the random stream, the precision, the compiler."""
        dtype = self.classifier.dtype
        short = dtype != torch.promote_types(dtype, torch.float32)
        return DrawingEvidence(
            stream=None if self.device is None else place_of(self.device),
            precision=str(dtype).removeprefix("torch.") if short else None,
            compiled=f"torch {torch.__version__}" if self.compiled else None,
        )

    def count(
        self, x: Float[Tensor, "n ..."], draws: int, seeds: Sequence[int], phase: int
    ) -> Int[Tensor, "n classes"]:
        """Count the votes of `draws` draws at each input; return them on the CPU.

        A draw whose logits are not all finite votes for no class, so that a row's sum may fall short of `draws`.
        """
        where = self.classifier.device
        total = torch.zeros(len(x), self.classifier.num_classes, dtype=torch.int64, device=where)
        if self.share is None:
            settled = self.settled()
            for i, (point, seed) in enumerate(zip(x, seeds, strict=True)):
                size = rows_of(point.numel())
                total[i] = settled.fold(point, draws, seed, phase, size, (), total[i].clone(), add_votes)
            return total.cpu()
        size, now = rows_of(x[0].numel()) if len(x) else ROWS, self._now()
        keys = [_name(now, point, seed, phase, size) for point, seed in zip(x, seeds, strict=True)]
        starts = []
        for i, key in enumerate(keys):
            start, total[i] = _recall(key, size, draws, total[i])
            starts.append(start)
        head, after = self._halves
        with torch.no_grad():
            rows = x.to(where, self.precision)
            images = (
                torch.cat([head(row[None]) for row in rows]) if len(rows) else rows
            )  # one by one, because the last bits depend on the batch
            origin = head(torch.zeros_like(x[:1]).to(images))
            for chunk in range(min(starts, default=0), -(-draws // size)):
                drawn = self._draw(phase, chunk, size, x[0].numel())
                moved = head(drawn.view(size, *x.shape[1:]).to(images)) - origin
                both = torch.empty_like(moved)
                for i, image in enumerate(images):
                    if chunk >= starts[i]:
                        total[i] += _tally(after(image, moved, both)[: draws - chunk * size])
                        _remember(keys[i], size, draws, chunk, total[i].clone())
        return total.cpu()

    @property
    def precision(self) -> torch.dtype:
        """Precision of the sum of input and noise: the classifier's, or float32 if the classifier's is shorter."""
        return torch.promote_types(self.classifier.dtype, torch.float32)

    @cached_property
    def _run(self) -> Callable[[Tensor], Tensor]:
        module, dtype, device = self.classifier.module, self.classifier.dtype, self.classifier.device
        run = compile_module(module) if self.compiled else module
        return lambda rows: run(rows.to(device, dtype))

    @cached_property
    def _halves(self) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
        """The first affine layers, in the sum's precision; and the rest, a function of two summands and a buffer."""
        head, tail = split(self.classifier)
        dtype = self.classifier.dtype
        if dtype != self.precision:
            head = copy.deepcopy(head).to(self.precision)
        rectified = len(tail) > 0 and type(tail[0]) is nn.ReLU
        rest = nn.Sequential(*list(tail)[1:]) if rectified else tail

        def after(image: Tensor, moved: Tensor, both: Tensor) -> Tensor:
            torch.add(image, moved, out=both)
            found: Tensor = rest((both.relu_() if rectified else both).to(dtype))
            return found

        if self.compiled:
            first = nn.ReLU() if rectified else nn.Identity()
            run = compile_module(lambda image, moved: rest(first(image + moved).to(dtype)))
            return head, lambda image, moved, both: run(image, moved)
        return head, after

    def _draw(self, phase: int, chunk: int, size: int, d: int) -> Float[Tensor, "size d"]:
        """Draw noise that all inputs share."""
        assert self.share is not None and isinstance(self.noise, Shareable)
        if isinstance(self.noise, Noise):
            return self.noise.draw(stream_of(self.share, phase, chunk, self.device), size, d)
        return torch.from_numpy(self.noise.sample(numpy_stream(self.share, phase, chunk), size, d))

    def fold(
        self,
        point: Float[Tensor, " ..."],
        draws: int,
        seed: int,
        phase: int,
        size: int,
        what: tuple[Hashable, ...],
        start: Value,
        add: Callable[[Value, Tensor, int], Value],
    ) -> Value:
        """Combine the logits of draws at an input.

        Args:
            point: the input.
            draws: number of draws.
            seed: seed of its noise.
            phase: phase of the sampling.
            size: size of the chunks; the draws depend on it.
            what: name of the sum, under which it is remembered.
            start: value of the empty sum.
            add: function of the sum so far, the logits of a chunk and its number; it returns the new sum.
        """
        key = _name(self._now(), point, seed, phase, size, *what)
        chunks, value = _recall(key, size, draws, start)
        for chunk, logits in enumerate(self.logits(point, draws, seed, phase, size, chunks), chunks):
            value = add(value, logits, chunk)
            _remember(key, size, draws, chunk, value)
        return copy.deepcopy(value)  # so that the remembered value never changes

    def logits(
        self, point: Float[Tensor, " ..."], draws: int, seed: int, phase: int, size: int, start: int = 0
    ) -> Iterator[Float[Tensor, "rows classes"]]:
        """Yield the logits of draws at an input, by chunks of `size` from number `start` on, with noise of its own.

        Draws depend on `size`. Every chunk is computed in full, even if not all of the last one's draws are wanted.
        """
        flat = point.flatten().to(self.device or "cpu")
        flat = flat.to(self.precision) if isinstance(self.noise, Shareable) else flat
        for chunk in range(start, -(-draws // size)):
            if isinstance(self.noise, Noise):
                noisy = self.noise.perturb(flat, stream_of(seed, phase, chunk, self.device), size)
            else:
                noisy = self.noise.perturb(flat, numpy_stream(seed, phase, chunk), size)
            with torch.no_grad():  # never around a yield: it would change the caller's mode
                found = self._run(noisy.view(size, *point.shape))[: draws - chunk * size]
            yield found

    def votes(
        self, point: Float[Tensor, " ..."], draws: int, seed: int, phase: int, size: int, c: int
    ) -> Iterator[int]:
        """Yield the number of votes for class c in each chunk of draws; known chunks are looked up."""
        key = _name(self._now(), point, seed, phase, size, "votes", c)
        found = list(_COUNTED.get(key, (0, ()))[1][: draws // size])
        yield from tuple(found)
        try:
            for logits in self.logits(point, draws, seed, phase, size, len(found)):
                votes = int(tally(logits)[c])
                if len(logits) == size:
                    found.append(votes)
                yield votes
        finally:  # even if the caller stops early
            _keep(key, len(found), tuple(found))

    def settled(self) -> "Counter":
        """Return the counter for one batch: it checks now, in milliseconds, that the key is still the classifier's."""
        found = copy.copy(self)
        if self.content:
            object.__setattr__(found, "key", None if self._now() is None else self.key)
            object.__setattr__(found, "content", False)
        return found

    def _now(self) -> tuple[Hashable, ...] | None:
        """Name what is counted here, under which noise; None: it is unknown, and nothing is remembered."""
        if self.key is None or (self.content and self.key != _fingerprint(self.classifier)):
            return None
        stream = None if self.device is None else place_of(self.device)
        return self.key, self.compiled, place_of(self.classifier.device), stream, self.noise, self.share


Key = tuple[Hashable, ...] | None
"""Name of draws at an input; None: they are not remembered."""


def _fingerprint(classifier: Classifier) -> str | None:
    with contextlib.suppress(ConfigError):
        return classifier.fingerprint()
    return None


def _name(now: Key, point: Tensor, seed: int, phase: int, size: int, *what: Hashable) -> Key:
    content = hashlib.sha256(point.detach().cpu().contiguous().numpy().tobytes()).digest()
    return None if now is None else (*now, seed, phase, content, size, *what)


def _recall(key: Key, size: int, draws: int, start: Value) -> tuple[int, Value]:
    """Look up as many chunks as are known and wanted; return their number and their sum."""
    for known, most in () if key is None else (((*key, draws), draws + size), (key, draws)):
        chunks, value = _COUNTED.get(known, (0, None))
        if value is not None and chunks * size <= most:
            return chunks, value
    return 0, start


def _remember(key: Key, size: int, draws: int, chunk: int, value: Any) -> None:
    """Remember the sum up to a chunk; a sum over a part of a chunk is for this number of draws alone."""
    whole = (chunk + 1) * size <= draws
    _keep(key if whole or key is None else (*key, draws), chunk + 1, value)


def _keep(key: Key, much: int, what: Any) -> None:
    """Keep a value in place of one from fewer chunks; of all values, the last `REMEMBERED` stay."""
    if key is None or much == 0:
        return
    with _LOCK:
        if _COUNTED.get(key, (0, None))[0] <= much:
            _COUNTED[key] = (much, what)
        _COUNTED.move_to_end(key)
        while len(_COUNTED) > REMEMBERED:
            _COUNTED.popitem(last=False)


def add_votes(
    votes: Int[Tensor, " classes"], logits: Float[Tensor, "n classes"], chunk: int
) -> Int[Tensor, " classes"]:
    """Add the votes of a chunk to those so far, for `Counter.fold`."""
    del chunk
    found = _tally(logits)
    return votes.to(found.device) + found


def tally(logits: Float[Tensor, "n classes"]) -> Int[Tensor, " classes"]:
    """Count the rows that vote for each class, on the CPU; a row that is not finite votes for none."""
    return _tally(logits).cpu()


def _tally(logits: Float[Tensor, "n classes"]) -> Int[Tensor, " classes"]:
    """Count like `tally`, on the rows' device, without waiting for it."""
    finite = (logits * 0).sum(dim=1) == 0
    labels = torch.where(finite, logits.argmax(dim=1), logits.shape[1])
    found = torch.zeros(logits.shape[1] + 1, dtype=torch.int64, device=logits.device)
    return found.scatter_add_(0, labels, torch.ones_like(labels))[:-1]


def rows_of(entries: int) -> int:
    """Return the number of draws in a chunk, for inputs of so many entries."""
    return max(1, min(ROWS, ENTRIES // entries))
