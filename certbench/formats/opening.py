"""Opening of files that hold a whole model: its code as a graph of operators, and its parameters."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from certbench.core import heads
from certbench.core.classifier import Classifier
from certbench.errors import ConfigError
from certbench.formats import WHOLE, stem_of, suffix_of


def open_model(
    path: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    name: str | None = None,
    output: int | str | None = None,
    threshold: float | None = None,
    trust: bool = False,
) -> Classifier:
    """Open a file of a whole model as a classifier.

    Args:
        path: a file with a suffix in `certbench.formats.WHOLE`.
        input_shape: shape of one input; None: the file says it.
        num_classes: number of logits, 1 for a classifier of two classes with one logit; None: as many as there are.
        name: name in tables; None: the file's, without its suffix.
        output: which output has the logits, if there are several: its name or its place.
        threshold: threshold of a single logit; see `Classifier`.
        trust: whether a file that runs code when it is opened, as a pickled module does, may do so.

    Raises:
        ConfigError: the file is damaged, or holds something else; the message says what.
        MissingBackendError: a package that the format needs is not installed.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in WHOLE:
        raise ConfigError(f"{path} is no file of a whole model ({', '.join(WHOLE)})")
    where, _, function = WHOLE[suffix].partition(":")
    module: nn.Module
    shape: tuple[int, ...]
    found: Any = getattr(importlib.import_module(where), function)(path, input_shape, output, trust)
    module, shape, output = found
    name = name or stem_of(path)
    if num_classes is None:
        num_classes = heads.logits(module, shape, output, name)
    return Classifier(module, shape, num_classes, name, output=output, threshold=threshold)
