"""Pictures without Pillow: PNG files written by hand, and a stand-in for Pillow that decodes them."""

import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

START = b"\x89PNG\r\n\x1a\n"

MODES = {0: "L", 2: "RGB", 6: "RGBA"}
"""Modes of Pillow by the type of colours in a PNG file."""


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the bytes of a PNG file of `(height, width)` grey or `(height, width, channels)` coloured bytes."""
    height, width, channels = (*pixels.shape, 1)[:3]
    kind = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.reshape(height, -1))
    return START + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


class Picture:
    """What certbench asks of a picture of Pillow."""

    def __init__(self, content: bytes) -> None:
        if not content.startswith(START):
            raise ValueError("cannot identify image file")
        at, self.packed, self.info = len(START), b"", dict[str, Any]()
        while at < len(content):
            size, kind = struct.unpack_from(">I4s", content, at)
            body = content[at + 8 : at + 8 + size]
            if kind == b"IHDR":
                *self.size, _, colours = struct.unpack_from(">IIBB", body)
                self.mode = MODES[colours]
            elif kind == b"IDAT":
                self.packed += body
            at += 12 + size
        self.size = tuple(self.size)

    def __enter__(self) -> "Picture":
        return self

    def __exit__(self, *_: object) -> None: ...

    def convert(self, mode: str) -> "Picture":
        assert mode == self.mode
        return self

    @property
    def __array_interface__(self) -> dict[str, Any]:
        width, height = self.size
        channels = len(self.mode)
        lines = np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8).reshape(height, 1 + width * channels)
        pixels = np.ascontiguousarray(lines[:, 1:].reshape((height, width, channels)[: 3 if channels > 1 else 2]))
        self.kept = pixels
        return dict(pixels.__array_interface__)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in the place of Pillow."""
    module, image = ModuleType("PIL"), ModuleType("PIL.Image")
    image.open = lambda path: Picture(Path(path).read_bytes())  # type: ignore[attr-defined]
    module.Image = image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL", module)
    monkeypatch.setitem(sys.modules, "PIL.Image", image)
