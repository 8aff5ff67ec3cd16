"""Data sets in a user's .npy files: inputs in one, labels in another."""

from pathlib import Path

import numpy as np

from certbench.errors import ConfigError
from certbench.files.arrays import open_npy
from certbench.models.data.found import Found, rows
from certbench.models.data.source import Source


def read_npy(path: Path, source: Source) -> Found:
    """Read inputs from a `.npy` file, and labels from the file that `labels` names.

    Raises:
        ConfigError: one of the files is missing or damaged.
    """
    if source.labels is None:
        raise ConfigError(f"{path} has inputs alone; write labels: FILE.npy, with one integer per input")
    if source.features is not None:
        raise ConfigError(f"{path} is one array, which has no names; leave features out")
    inputs, labels = open_npy(path), open_npy(Path(str(source.labels)))
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        raise ConfigError(f"{path} has shape {inputs.shape}, but {source.labels} has shape {labels.shape}")
    chosen = rows(source, len(inputs)) if len(inputs) else slice(0)
    return Found(
        path.stem,
        np.asarray(inputs[chosen]),
        np.asarray(labels[chosen]),
        taken=True,
        num_classes=int(labels.max()) + 1 if labels.dtype.kind in "iu" and labels.size else None,
        notes=(f"labels of {source.labels}",),
    )
