"""Data sets of torchvision that are on this machine."""

import inspect
from typing import Any

from certbench.errors import ConfigError, MissingBackendError
from certbench.models.data.found import Found
from certbench.models.data.items import collected
from certbench.models.data.source import Source


def read_torchvision(given: str, source: Source) -> Found:
    """Read a split of `NAME:FOLDER`, for example `CIFAR10:data`; nothing is downloaded.

    Raises:
        ConfigError: torchvision has no such data set, or it is not in the folder.
        MissingBackendError: torchvision is not installed.
    """
    name, _, folder = given.partition(":")
    if not folder:
        raise ConfigError(f"write torchvision:{name}:FOLDER, with the folder in which the data set is")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingBackendError(
            f"{source.path} needs the package torchvision; install it: pip install torchvision"
        ) from error
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        raise ConfigError(f"torchvision has no data set {name!r}; its names are written as in torchvision.datasets")
    options: dict[str, Any] = {}
    known = inspect.signature(kind).parameters
    if "train" in known:
        if source.split not in ("train", "test"):
            raise ConfigError(f"split {source.split!r} is unknown; write train or test")
        options["train"] = source.split == "train"
    elif "split" in known:
        options["split"] = source.split
    if "download" in known:
        options["download"] = False
    try:
        found = kind(folder, **options)
    except Exception as error:  # of the library, whatever it is
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{source.path} cannot be read: {type(error).__name__}: {said}; nothing is downloaded"
        ) from error
    classes = tuple(map(str, getattr(found, "classes", ()) or ()))
    return collected(f"{name}/{source.split}", lambda i: found[i], len(found), classes, source)
