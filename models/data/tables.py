"""Data sets in a user's table: text with a row per input and a column per feature, separated by commas or the like."""

import csv
import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certbench.errors import ConfigError
from certbench.files.numbers import is_decimal, is_number
from certbench.models.data.found import Found
from certbench.models.data.source import Source

SEPARATORS = ",;\t"
"""Characters that may separate cells; the one that the first line has most of does."""


def read_table(path: Path, source: Source) -> Found:
    """Read a table: numbers, and labels in the last column or in the one that `labels` names.

    The first row has names if none of its cells is a number. Labels are whole numbers, or names of classes, which are
    then counted in their alphabetical order.

    Raises:
        ConfigError: the file cannot be read, has rows of different lengths, cells that are no numbers, or columns of
            which it is not clear whether they are features.
    """
    lines = _lines(path)
    try:
        first_at, first = next(lines)
    except StopIteration:
        raise ConfigError(f"{path} is empty") from None
    named = not any(map(is_number, first))
    if len(set(first)) < len(first) and named:
        twice = next(name for name in first if first.count(name) > 1)
        raise ConfigError(f"{path}: two columns are called {twice!r}")
    if len(first) < 2:
        raise ConfigError(f"{path}, line {first_at}: one column; write features, then a label, separated by commas")
    at = _place(source.labels, first if named else [], len(first), path)
    columns = _columns(source, first if named else [], len(first), at, path)
    if named and source.features is None and not all(map(str.strip, first)):
        raise ConfigError(
            f"{path}: the column in place {[*map(str.strip, first)].index('')} has no name, as the numbers of rows "
            "that pandas writes; leave it out (index=False), give it a name, or choose columns by features: [...]"
        )
    if not named and len(first) > 2 and first == [f"{i}" for i in range(len(first))]:
        raise ConfigError(
            f"{path}, line {first_at}: the cells are 0, 1, .., which pandas writes where columns have no names; leave "
            "them out (header=False), or give all columns a name"
        )
    if not named:
        wrong = next((first[i] for i in columns if not is_number(first[i])), None)
        if wrong is not None:
            raise ConfigError(
                f"{path}, line {first_at}: {wrong!r} is no number, but other cells are, so that these are no names of "
                "columns; give all columns a name, or choose columns by features: [...]"
            )
    numbers, words = array("d"), list[str]()
    for line, cells in lines if named else _again(first_at, first, lines):
        if len(cells) != len(first):
            raise ConfigError(f"{path}, line {line}: {len(cells)} cells, but {len(first)} in the first row")
        for i in columns:
            value = float(cells[i]) if is_decimal(cells[i].strip()) else math.nan
            if not math.isfinite(value):
                name = first[i] if named else f"{i + 1}"
                raise ConfigError(f"{path}, line {line}, column {name}: {cells[i]!r} is no finite number")
            numbers.append(value)
        words.append(cells[at].strip())
    if not words:
        raise ConfigError(f"{path} has names of columns alone")
    labels, classes = _labels(words, path)
    column = first[at] if named else f"in place {at}"
    notes = (f"label: column {column}", *((f"classes {', '.join(classes)}",) if classes else ()))
    return Found(
        path.stem,
        np.frombuffer(numbers, dtype=np.float64).reshape(len(words), len(columns)),
        labels,
        classes=classes,
        num_classes=len(classes) or None,
        features=tuple(first[i].strip() for i in columns) if named else (),
        notes=notes,
    )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table that are not empty, each with its line in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline(1 << 20)
            file.seek(0)
            separator = max(SEPARATORS, key=start.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    raise csv.Error(f"line {reader.line_num} has a zero byte, so this is no text")
                if any(map(str.strip, cells)):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a table in UTF-8: {error}") from error


def _again(at: int, first: list[str], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield at, first
    yield from rest


def _place(labels: int | str | None, names: list[str], columns: int, path: Path) -> int:
    """Return the place of the column of labels."""
    if labels is None:
        return columns - 1
    if labels in names:
        return names.index(str(labels))
    try:
        place = int(labels)
    except ValueError:
        there = f"it has {', '.join(names)}" if names else "its first row has no names, so give a place, from 0 on"
        raise ConfigError(f"{path} has no column {labels!r}; {there}") from None
    if not -columns <= place < columns:
        raise ConfigError(f"{path} has no column in place {place}; there are {columns}, counted from 0")
    return place % columns


def _columns(source: Source, names: list[str], columns: int, at: int, path: Path) -> list[int]:
    """Return the places of the columns of features."""
    if source.features is None:
        return [i for i in range(columns) if i != at]
    wanted = (source.features,) if isinstance(source.features, str) else source.features
    found = [_place(name, names, columns, path) for name in wanted]
    if at in found:
        raise ConfigError(f"{path}: column {wanted[found.index(at)]!r} has the labels, so it is no feature")
    if len(set(found)) < len(found) or not found:
        raise ConfigError(f"{path}: features has a column twice, or none")
    return found


def _labels(words: list[str], path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels as integers, and the names of the classes, if these are words."""
    numbers = [float(word) if is_number(word) else None for word in words]
    if all(number is None for number in numbers):
        if "" in words:
            raise ConfigError(f"{path}: row {words.index('') + 1} has no label")
        classes = tuple(sorted(set(words)))
        return np.array([classes.index(word) for word in words]), classes
    for row, number in enumerate(numbers):
        if number is None or not number.is_integer() or abs(number) > 2**31:
            raise ConfigError(
                f"{path}: the label of row {row + 1} is {words[row]!r}; labels are whole numbers, the classes counted "
                "from 0, or names; say which column has them: labels: NAME"
            )
    return np.array([int(number) for number in numbers if number is not None]), ()
