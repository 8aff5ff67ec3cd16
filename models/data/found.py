"""What a reader finds in a source, and how it becomes a data set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from certbench.core.inputs import cure_of_labels
from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.models.data.source import Source

INPUTS = ("inputs", "x", "images")
"""Usual names of an array of inputs. Without a name that is said, a source must have exactly one of them."""

LABELS = ("labels", "y")
"""Usual names of an array of labels; likewise."""

MOST = 2**31
"""Largest number of classes. A larger label is no class, and may not fit into 64 bits with a sign."""

LAYOUTS = {"NCHW": 4, "NHWC": 4, "HW": 3}
"""Number of axes of images in each layout, the batch included."""


@dataclass(frozen=True, eq=False)
class Found:
    """Inputs and labels as a source has them, all of them or those that are taken.

    Attributes:
        name: name of the data set in tables.
        inputs: numbers `(n, ...)`.
        labels: numbers of classes.
        num_classes: number of classes, if the source says it.
        classes: names of the classes.
        features: names of the features.
        pictures: whether inputs are decoded pictures, channels first.
        taken: whether the reader has left out what is not taken.
        notes: what the reader did.
    """

    name: str
    inputs: NDArray[Any]
    labels: NDArray[Any]
    num_classes: int | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    pictures: bool = False
    taken: bool = False
    notes: tuple[str, ...] = ()


def one_of(usual: tuple[str, ...], said: str | None, names: list[str], where: object) -> str:
    """Return the name of the array that is meant.

    Raises:
        ConfigError: there is none, or several.
    """
    wanted = usual if said is None else (said,)
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        kind = "features" if usual is INPUTS else "labels"
        cure = f"; or write {kind}: NAME" if names and said is None else ""
        raise ConfigError(
            f"{where} needs one array called {' or '.join(wanted)}; it has {', '.join(names) or 'none'}{cure}"
        )
    return found[0]


def rows(source: Source, n: int) -> list[int] | slice:
    """Return which of n rows are taken.

    Raises:
        ConfigError: one of them is not there.
    """
    take = source.take
    if take is None or isinstance(take, int):
        return slice(take)
    if not take or max(take) >= n:
        raise ConfigError(f"{source.path} has {n} inputs, counted from 0; take: {[*take]} needs others")
    return list(take)


def dataset(found: Found, source: Source) -> Dataset:
    """Make a data set: check the labels, take rows, put channels first, scale, and round to the precision.

    Raises:
        ConfigError: inputs or labels are none, or do not fit together or what is said about them.
    """
    path, inputs, labels = source.path, found.inputs, found.labels
    if inputs.dtype.kind not in "fiub":
        raise ConfigError(f"{path}: inputs are {inputs.dtype}, not numbers; store floats")
    if inputs.ndim < 2 or inputs.size == 0:
        raise ConfigError(f"{path}: inputs have shape {inputs.shape}; store (n, ...), with n at least 1")
    labels, num_classes = _labels(found, path)
    if len(inputs) != len(labels):
        raise ConfigError(f"{path}: {len(inputs)} inputs, but {len(labels)} labels")
    before, notes = len(inputs), [*found.notes]
    if not found.taken:
        chosen = rows(source, before)
        inputs, labels = inputs[chosen], labels[chosen]
    taken = "all" if source.take is None else f"{len(inputs)}" if found.taken else f"{len(inputs)} of {before}"
    notes.insert(0, f"{taken} inputs of shape {inputs.shape[1:]}, {inputs.dtype}")
    inputs = _laid_out(inputs, source, found.pictures, notes)
    made = _scaled(inputs, source, notes)
    if not np.isfinite(made).all():
        raise ConfigError(f"{path}: inputs hold NaN, or numbers too large for {source.dtype}")
    notes.append(f"{source.dtype}, values from {made.min():g} to {made.max():g}")
    return Dataset(
        found.name,
        torch.from_numpy(made),
        torch.from_numpy(labels.astype(np.int64)),
        num_classes,
        found.classes,
        found.features,
        tuple(notes),
    )


def chosen(found: Dataset, source: Source) -> Dataset:
    """Return the rows of a data set that are taken, each in the shape that is asked for.

    Raises:
        ConfigError: there are no such rows, or inputs have no such shape.
    """
    same = Found(found.name, found.inputs.numpy(), found.labels.numpy(), found.num_classes, notes=found.done)
    return dataset(same, source)


def _labels(found: Found, path: str) -> tuple[NDArray[Any], int]:
    """Check labels, and count the classes."""
    labels = found.labels
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        cure = cure_of_labels(labels, len(found.inputs))
        raise ConfigError(f"{path}: labels are {labels.dtype} of shape {labels.shape}; store {cure}")
    if len(labels) == 0:
        raise ConfigError(f"{path} has no labels; store one integer per input")
    low, high = int(labels.min()), int(labels.max())
    num_classes = high + 1 if found.num_classes is None else found.num_classes
    num_classes = min(num_classes, MOST)
    if low < 0 or high >= num_classes:
        cure = (
            "; if -1 and 1 are the two classes, store (labels > 0).astype(int)"
            if set(labels.tolist()) == {-1, 1}
            else ""
        )
        raise ConfigError(f"{path}: labels lie in {low}..{high}, not in 0..{num_classes - 1}{cure}")
    return labels, num_classes


def _laid_out(inputs: NDArray[Any], source: Source, pictures: bool, notes: list[str]) -> NDArray[Any]:
    """Return images with their channels first, and every input in the shape that is asked for."""
    layout = source.layout
    if pictures and layout not in (None, "NCHW"):
        raise ConfigError(f"{source.path} has pictures, whose layout is known; leave layout out: channels come first")
    if layout is not None and not pictures:
        if inputs.ndim != LAYOUTS[layout]:
            there = " and ".join(name for name, axes in LAYOUTS.items() if axes == inputs.ndim)
            cure = f"; layouts of such inputs are {there}" if there else "; leave layout out"
            raise ConfigError(
                f"{source.path}: inputs of layout {layout} have {LAYOUTS[layout]} axes with the batch; "
                f"these have shape {inputs.shape}{cure}"
            )
        if layout == "NHWC":
            inputs = np.moveaxis(inputs, 3, 1)
        elif layout == "HW":
            inputs = inputs[:, None]
        notes.append(f"layout {layout}" if layout == "NCHW" else f"layout {layout} made {inputs.shape[1:]}")
    if source.shape is not None:
        if int(np.prod(source.shape, dtype=object)) != int(np.prod(inputs.shape[1:])):
            raise ConfigError(
                f"{source.path}: inputs of shape {inputs.shape[1:]} have another number of numbers "
                f"than shape {source.shape}"
            )
        inputs = inputs.reshape(len(inputs), *source.shape)
        notes.append(f"in shape {source.shape}")
    return inputs


def _scaled(inputs: NDArray[Any], source: Source, notes: list[str]) -> NDArray[Any]:
    """Return inputs in the units and the precision that are asked for, in memory of their own.

    An integer without a scale is refused: the unit of every radius hangs on it, and a guess may be wrong by 255.
    """
    if source.scale is None and inputs.dtype.kind != "f":
        raise ConfigError(
            f"{source.path}: inputs are {inputs.dtype} and no scale is said, on which the unit of a radius hangs; "
            "write scale: 1/255 (or --scale 1/255) for bytes that become [0, 1], or scale: 1 for numbers as they are"
        )
    scale = 1.0 if source.scale is None else source.scale
    under = round(1 / scale) if 1 / scale < 2**53 else 0
    with np.errstate(over="ignore", invalid="ignore"):
        if scale == 1.0:
            notes.append("not scaled")
            made = inputs
        elif under > 1 and abs(scale * under - 1) < 1e-12:
            notes.append(f"divided by {under}")
            made = inputs.astype(np.float64) / under  # the quotient, rounded once more, is that of float32
        else:
            notes.append(f"multiplied by {scale:.17g}")
            made = inputs.astype(np.float64) * scale
        return np.array(made, dtype=source.dtype, order="C")
