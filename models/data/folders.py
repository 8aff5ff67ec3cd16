"""Data sets in folders of pictures, `folder/class/picture.png`."""

from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from certbench.errors import ConfigError, MissingBackendError
from certbench.models.data.found import Found, rows
from certbench.models.data.pictures import pixels, stacked
from certbench.models.data.source import Source

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""Suffixes of pictures; other files are left out."""


def read_folder(path: Path, source: Source) -> Found:
    """Read pictures, one folder per class; classes are counted in the order of their names.

    The first picture of every class comes first, then the second of every class, and so on, so that the first inputs
    have all classes. Within a class, pictures are in the order of their names.

    Raises:
        ConfigError: there are no such folders, or pictures that cannot be read or have several shapes.
        MissingBackendError: Pillow is not installed.
    """
    if source.labels is not None or source.features is not None:
        raise ConfigError(
            f"{path} is a folder, whose labels are the names of its folders; leave labels and features out"
        )
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        raise ConfigError(f"{path} is a data set of Hugging Face; write hf:{path}")
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        each = [sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES) for folder in folders]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    empty = [folder.name for folder, files in zip(folders, each, strict=True) if not files]
    if not folders or empty:
        there = f"{empty[0]} has none" if empty else "it has no folders"
        raise ConfigError(f"{path} needs one folder of pictures ({', '.join(sorted(SUFFIXES))}) per class; {there}")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingBackendError(
            'pictures need the package Pillow; install it: pip install "certbench[images]"'
        ) from error
    labelled = [[(file, label) for file in files] for label, files in enumerate(each)]
    order = [pair for pair in chain.from_iterable(zip_longest(*labelled)) if pair is not None]
    chosen = rows(source, len(order))
    kept = order[chosen] if isinstance(chosen, slice) else [order[i] for i in chosen]
    found, size = [], None
    for file, _ in kept:
        try:
            with Image.open(file) as picture:
                size = picture.size if size is None else size
                if picture.size != size:  # before it is decoded
                    raise ConfigError(
                        f"{file} is of size {picture.size}, but {kept[0][0]} of {size}; "
                        "resize them as the network was trained"
                    )
                found.append(pixels(picture, str(file)))
        except ConfigError:
            raise
        except Exception as error:  # a damaged picture may end in any exception of its decoder
            raise ConfigError(f"{file} cannot be read as a picture ({type(error).__name__}: {error})") from error
    return Found(
        path.resolve().name,
        stacked(found, [str(file) for file, _ in kept]),
        np.array([label for _, label in kept]),
        num_classes=len(folders),
        classes=tuple(folder.name for folder in folders),
        pictures=True,
        taken=True,
        notes=(f"classes {', '.join(folder.name for folder in folders)}",),
    )
