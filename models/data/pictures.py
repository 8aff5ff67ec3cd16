"""Pictures that Pillow has decoded, as arrays with their channels first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from certbench.errors import ConfigError

MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB"}
"""Modes of Pillow that are taken, each with the one into which it converts without loss."""


def pixels(picture: Any, where: str) -> NDArray[np.uint8]:
    """Return the bytes of a picture: `(1, height, width)` if it is grey, `(3, height, width)` if it has colours.

    Raises:
        ConfigError: it has transparency, more than eight bits per channel, or several frames.
    """
    mode = str(picture.mode)
    if getattr(picture, "n_frames", 1) > 1:
        raise ConfigError(f"{where} has {picture.n_frames} frames; store the one that is meant")
    if _deep(picture):
        raise ConfigError(f"{where} has 16 bits per channel; store arrays, in .npz, or convert it to eight bits")
    if mode not in MODES or "transparency" in picture.info:
        raise ConfigError(
            f"{where} is of mode {mode}; convert it as the network was trained: image.convert('RGB') or 'L'"
        )
    found = np.asarray(picture.convert(MODES[mode]), dtype=np.uint8)
    return found[None] if found.ndim == 2 else np.moveaxis(found, 2, 0)


def _deep(picture: Any) -> bool:
    """Say whether a file that is not decoded yet has more than eight bits per channel, which Pillow would cut."""
    for tile in getattr(picture, "tile", None) or ():  # (decoder, extent, offset, arguments)
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(";16" in str(part) or (tile[0].startswith("ppm") and part == 65535) for part in arguments):
            return True
    return False


def stacked(found: list[NDArray[Any]], names: list[str]) -> NDArray[Any]:
    """Return inputs of one shape as an array.

    Raises:
        ConfigError: they have several shapes.
    """
    for one, name in zip(found, names, strict=True):
        if one.shape != found[0].shape:
            shapes = f"{one.shape}, but {names[0]} has {found[0].shape}"
            raise ConfigError(f"{name} has shape {shapes}; resize and convert all of them as the network was trained")
    return np.stack(found)
