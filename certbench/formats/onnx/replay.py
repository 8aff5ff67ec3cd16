"""The ONNX file itself, run by onnxruntime: the program that counterexamples must hold in."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import ConfigError
from certbench.formats.onnx.files import content, run, session

PRECISIONS = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}
"""Precision of a file's input, by its name in onnxruntime."""


class Replay:
    """Runs the file on flat inputs, one after the other: `(n, inputs) -> (n, outputs)`.

    Attributes:
        dtype: precision of its input.
    """

    def __init__(self, path: Path, input_shape: Sequence[int], output: str | None = None) -> None:
        """Open the file.

        Args:
            path: the file, `.onnx` or `.onnx.gz`.
            input_shape: shape of one input, as the loaded module has it.
            output: name of the output; None: the only one of real numbers.

        Raises:
            ConfigError: onnxruntime refuses the file, or it has several inputs or outputs.
            MissingBackendError: onnx or onnxruntime is not installed.
        """
        self.path, self.session = path, session(path, content(path) if path.suffix == ".gz" else str(path))
        entries = self.session.get_inputs()
        if len(entries) != 1 or entries[0].type not in PRECISIONS:
            raise ConfigError(f"{path}: a network with one input of real numbers is replayed")
        self.name, self.dtype = entries[0].name, PRECISIONS[entries[0].type]
        real = [part.name for part in self.session.get_outputs() if part.type in PRECISIONS]
        if output is None and len(real) != 1:
            raise ConfigError(f"{path} has {len(real)} outputs of real numbers; a network with one is replayed")
        self.output = real[0] if output is None else output
        self.shape, axes = tuple(input_shape), entries[0].shape
        first = axes[0] if len(axes) > len(self.shape) else 0
        self.batch = first if isinstance(first, int) else 1
        self.has_batch = len(axes) > len(self.shape)

    def __call__(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """Run the file.

        Raises:
            ConfigError: onnxruntime cannot run it on such inputs.
        """
        found = []
        for row in x.to(self.dtype):
            one = row.reshape(self.shape)
            given = one.expand(self.batch, *self.shape) if self.has_batch else one
            result = run(self.session, self.path, self.output, {self.name: given.contiguous().numpy()})
            found.append(torch.from_numpy(result).reshape(self.batch if self.has_batch else 1, -1)[0])
        return torch.stack(found)
