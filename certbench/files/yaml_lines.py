"""YAML files that people write: their values, and the line of each value, for error messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from certbench.errors import ConfigError

Lines = Mapping[tuple[str, ...], int]
"""Line of each value of a file, counted from 1, by the path of keys to the value; keys are text."""

DEEPEST = 20
"""Maximum depth of nesting, so that an alias inside its own anchor cannot go on for ever."""

MOST = 100_000
"""Maximum number of values, so that aliases of aliases cannot stand for billions."""


def read(text: str, path: Path) -> tuple[Any, Lines]:
    """Read the values of a YAML text and the line of each; refuse a key that is given twice.

    Raises:
        ConfigError: the text is no YAML.
    """
    lines: dict[tuple[str, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _note_lines(node, (), lines, path)  # first: reading merges what aliases stand for
        values = yaml.safe_load(text)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: for example, the 31st of February
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return values, lines


def _note_lines(node: yaml.Node, here: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    lines[here] = node.start_mark.line + 1
    if len(lines) > MOST:
        raise ConfigError(f"{path}, line {lines[here]}: more than {MOST} values, those that aliases repeat included")
    if len(here) > DEEPEST:
        raise ConfigError(f"{path}, line {lines[here]}: nested deeper than {DEEPEST} levels")
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
    """Add file, line and place to a message, as far as the place was found in the file."""
    parts = tuple(str(part) for part in where)
    place = ".".join(parts)
    for end in range(len(parts), -1, -1):
        if parts[:end] in lines:
            return f"{path}, line {lines[parts[:end]]}: " + (f"{place}: " if place else "") + message
    return f"{path}: {message}"
