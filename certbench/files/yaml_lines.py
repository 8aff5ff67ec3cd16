"""YAML files that people write: values, and the line on which each stands, for errors that lead there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from certbench.errors import ConfigError

Lines = Mapping[tuple[str, ...], int]
"""The line, from 1, on which each value of a file stands, by the path that leads to it, all as text."""

DEEPEST = 20
"""Levels of nesting followed, so that an alias inside its own anchor ends."""


def read(text: str, path: Path) -> tuple[Any, Lines]:
    """Values of a YAML text, and the line of each; a key given twice is refused.

    Raises:
        ConfigError: the text is no YAML.
    """
    try:
        values = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 31st of February, say
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    lines: dict[tuple[str, ...], int] = {}
    if node is not None:
        _note_lines(node, (), lines, path)
    return values, lines


def _note_lines(node: yaml.Node, here: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    lines[here] = node.start_mark.line + 1
    if len(here) > DEEPEST:
        raise ConfigError(f"{path}, line {lines[here]}: nested deeper than any suite")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*here, str(key.value))
            if inner in lines:
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice")
            _note_lines(value, inner, lines, path)
            lines[inner] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*here, str(index)), lines, path)


def at(path: Path, lines: Lines, where: tuple[str | int, ...], message: str) -> str:
    """The message with file, line and place, as far as the place was found in the file."""
    parts = tuple(str(part) for part in where)
    place = ".".join(parts)
    for end in range(len(parts), -1, -1):
        if parts[:end] in lines:
            return f"{path}, line {lines[parts[:end]]}: " + (f"{place}: " if place else "") + message
    return f"{path}: {message}"
