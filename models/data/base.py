"""Labelled inputs."""

import hashlib
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled inputs, on the CPU.

    Attributes:
        name: what tables call it.
        inputs: float32; digits, MNIST and uint8 images lie in [0, 1].
        labels: int64, in `range(num_classes)`.
        num_classes: how many classes there are, also if some have no input here.
    """

    name: str
    inputs: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.inputs.shape[1:])

    def fingerprint(self) -> str:
        """Sha256 over shapes, inputs, labels and the class count. Never over the name."""
        digest = hashlib.sha256(repr((tuple(self.inputs.shape), self.num_classes)).encode())
        for tensor in (self.inputs, self.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
