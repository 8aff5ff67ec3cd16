"""Data sets of libraries, which give one pair of input and label at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certbench.errors import ConfigError
from certbench.models.data.found import Found, rows
from certbench.models.data.pictures import pixels, stacked
from certbench.models.data.source import Source


def collected(
    name: str,
    item: Callable[[int], tuple[Any, Any]],
    n: int,
    classes: tuple[str, ...],
    source: Source,
    features: tuple[str, ...] = (),
) -> Found:
    """Collect the items that are taken: pictures of Pillow, tensors, arrays or lists of numbers, with their labels.

    Raises:
        ConfigError: an item cannot be read, or is something else, or they have several shapes.
    """
    chosen = rows(source, n)
    places = list(range(n))[chosen] if isinstance(chosen, slice) else chosen
    inputs, labels, pictures = [], [], 0
    for i in places:
        try:
            x, y = item(i)
            pictured = hasattr(x, "convert") and hasattr(x, "mode")
            found = pixels(x, f"{source.path}, item {i}") if pictured else _numbers(x)
            labels.append(int(y))
        except ConfigError:
            raise
        except Exception as error:  # of the library, whatever it is
            raise ConfigError(
                f"{source.path}: item {i} is no input with a label: {type(error).__name__}: {error}"
            ) from error
        pictures += pictured
        inputs.append(found)
    if not inputs:
        raise ConfigError(f"{source.path} is empty")
    return Found(
        name,
        stacked(inputs, [f"item {i} of {source.path}" for i in places]),
        np.array(labels),
        num_classes=len(classes) or None,
        classes=classes,
        features=features,
        pictures=pictures > 0,
        taken=True,
        notes=(f"classes {', '.join(classes)}",) if classes else (),
    )


def _numbers(x: Any) -> NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
