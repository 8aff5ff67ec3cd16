"""Data sets of Hugging Face that `save_to_disk` has written."""

from typing import Any

from certbench.errors import ConfigError, MissingBackendError
from certbench.models.data.found import INPUTS, LABELS, Found, one_of
from certbench.models.data.items import collected
from certbench.models.data.source import Source

IMAGE = (*INPUTS, "image", "img", "pixel_values", "features")
"""Usual names of a column of inputs."""

LABEL = (*LABELS, "label")
"""Usual names of a column of labels."""


def read_hugging_face(given: str, source: Source) -> Found:
    """Read a split of a folder of `save_to_disk`; several columns of `features` are those of a table.

    Raises:
        ConfigError: there is no such folder, split or column.
        MissingBackendError: the package datasets is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingBackendError(
            f"{source.path} needs the package datasets; install it: pip install datasets"
        ) from error
    try:
        found = datasets.load_from_disk(given)
    except Exception as error:  # of the library, whatever it is
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{source.path} cannot be read: {type(error).__name__}: {said}; write the data set once by "
            "data.save_to_disk(FOLDER)"
        ) from error
    if isinstance(found, dict):
        if source.split not in found:
            raise ConfigError(f"{source.path} has no split {source.split!r}; it has {', '.join(found)}")
        found = found[source.split]
    names = list(found.column_names)
    label = one_of(LABEL, None if source.labels is None else str(source.labels), names, source.path)
    columns = source.features if isinstance(source.features, tuple) else ()
    for name in columns:
        one_of(INPUTS, name, names, source.path)
    image = (
        ""
        if columns
        else one_of(IMAGE, source.features if isinstance(source.features, str) else None, names, source.path)
    )
    classes = tuple(map(str, getattr(found.features[label], "names", None) or ()))

    def item(i: int) -> tuple[Any, Any]:
        row = found[i]
        return ([row[name] for name in columns] if columns else row[image]), row[label]

    return collected(
        f"{given.rstrip('/').rpartition('/')[2]}/{source.split}", item, len(found), classes, source, columns
    )
