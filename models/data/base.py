"""Labelled inputs."""

import hashlib
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled inputs, on the CPU.

    Attributes:
        name: name in tables.
        inputs: float32, or float64 where this is asked for; digits and MNIST lie in [0, 1].
        labels: int64, in `range(num_classes)`.
        num_classes: number of classes, including those without an input here.
        classes: names of the classes, in the order of their numbers; empty: they have none.
        features: names of the features of an input; empty: they have none.
        done: what was done to the numbers of the source, in words.
    """

    name: str
    inputs: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
    num_classes: int
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    done: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.inputs.shape[1:])

    def fingerprint(self) -> str:
        """Compute the sha256 of shapes, inputs, labels and the class count, but not of names."""
        digest = hashlib.sha256(repr((tuple(self.inputs.shape), self.num_classes)).encode())
        for tensor in (self.inputs, self.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
