"""Suites: what to run, as a short YAML file that is validated before anything runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from certbench import registry
from certbench.certifier import Certifier, MarginCertifier
from certbench.errors import ConfigError
from certbench.options import Number, Whole, build, choose
from certbench.search import RadiusSearch
from certbench.threat import ThreatModel

Lines = Mapping[tuple[str | int, ...], int]
"""The line, from 1, on which each value of a file stands, by the path that leads to it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _as_model(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class ModelSpec(_Strict):
    """A model of the zoo by its name; or one's own, by `module:factory` and a safetensors file."""

    name: str
    factory: str | None = None
    weights: str | None = None


class Attacks(_Strict):
    """How hard the audit tries: steps of each attack; 0 turns it off, and the run then says so."""

    steps: Whole = Field(default=100, ge=0)


class Limits(_Strict):
    """What one (model, norm, certifier) may take; it is checked between batches."""

    seconds: Number = Field(default=math.inf, gt=0)


class SuiteFile(_Strict):
    """A suite as it is written."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    data: str = "digits"
    inputs: Whole = Field(gt=0)
    models: list[Annotated[ModelSpec, BeforeValidator(_as_model)]] = Field(min_length=1)
    norms: list[Number] = Field(min_length=1)
    domain: tuple[Number, Number] | None = None
    certifiers: list[str | dict[str, Any]] = Field(min_length=1)
    radii: dict[Number, list[Number]] = Field(default_factory=dict)
    search: str | dict[str, Any] | None = None
    batch: Whole = Field(default=64, gt=0)
    seed: Whole = 0
    attacks: Attacks = Attacks()
    limits: Limits = Limits()


@dataclass(frozen=True, eq=False)
class Suite:
    """A suite that has been validated: its settings, its threat models and its certifiers.

    Attributes:
        settings: the file's values.
        threats: one per norm.
        certifiers: built, with the suite's `search` where they have one and do not say otherwise.
        usual: option values that every certifier of the suite has, unless it says otherwise.
        source: where it was read.
    """

    settings: SuiteFile
    threats: tuple[ThreatModel, ...]
    certifiers: tuple[Certifier[Any], ...]
    usual: Mapping[str, Any]
    source: Path


def load(name: str) -> Suite:
    """A shipped suite by its name, or any by the path of its file.

    Raises:
        ConfigError: there is no such suite, or it asks for something that cannot be run; the message
            names file and line.
        MissingBackendError: a certifier's module needs a package that is not installed.
    """
    path = registry.suites().get(name) or Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(registry.unknown("suite", name, registry.suites()) + "; or write the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the suite {path}: {error}") from error
    values, lines = read_yaml(text, path)
    try:
        return _validate(values, path)
    except ConfigError as error:
        raise ConfigError(_at(path, lines, error.path, str(error)), error.path) from error


def read_yaml(text: str, path: Path) -> tuple[Any, Lines]:
    """Values of a YAML text, and the line of each; a key given twice is refused.

    Raises:
        ConfigError: the text is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[tuple[str | int, ...], int] = {}
        if node is not None:
            _note_lines(node, (), lines, path)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def _note_lines(node: yaml.Node, here: tuple[str | int, ...], lines: dict[Any, int], path: Path) -> None:
    lines[here] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*here, key.value)
            if inner in lines:
                raise ConfigError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice")
            _note_lines(value, inner, lines, path)
            lines[inner] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*here, index), lines, path)


def _at(path: Path, lines: Lines, where: tuple[str | int, ...], message: str) -> str:
    """The message with file, line and place, as far as the place was found in the file."""
    place = ".".join(str(part) for part in where)
    for end in range(len(where), -1, -1):
        if tuple(where[:end]) in lines:
            return f"{path}, line {lines[tuple(where[:end])]}: " + (f"{place}: " if place else "") + message
    return f"{path}: {message}"


def _validate(values: Any, path: Path) -> Suite:
    if not isinstance(values, dict):
        raise ConfigError("a suite is a mapping: name, data, inputs, models, norms, certifiers, ...")
    try:
        settings = SuiteFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        if first["type"] == "extra_forbidden":
            model = {"attacks": Attacks, "limits": Limits, "models": ModelSpec}.get(str(where[0]), SuiteFile)
            known = model.model_fields if len(where) > 1 else SuiteFile.model_fields
            raise ConfigError(registry.unknown("setting", str(where[-1]), known), where) from error
        raise ConfigError(first["msg"].removeprefix("Value error, "), where) from error

    threats = tuple(
        _located(("norms", i), lambda p=p: ThreatModel(p, settings.domain)) for i, p in enumerate(settings.norms)
    )
    usual = {} if settings.search is None else {"search": choose(RadiusSearch, settings.search, ("search",))}
    certifiers = tuple(
        _located(("certifiers", i), lambda spec=spec: _certifier(spec, usual))
        for i, spec in enumerate(settings.certifiers)
    )
    for i, threat in enumerate(threats):
        if not any(threat.p in certifier.norms for certifier in certifiers):
            raise ConfigError(f"no certifier of this suite offers {threat.name}", ("norms", i))
    for p in settings.radii:
        if p not in settings.norms:
            raise ConfigError(f"radii are given for norm {p:g}, which is not among the norms", ("radii",))
    return Suite(settings, threats, certifiers, usual, path)


def _certifier(spec: str | dict[str, Any], usual: Mapping[str, Any]) -> Certifier[Any]:
    given = {"name": spec} if isinstance(spec, str) else spec
    if isinstance(given.get("name"), str) and issubclass(registry.find(given["name"]), MarginCertifier):
        given = {**usual, **given}
    return build(given)


def _located(where: tuple[str | int, ...], make: Any) -> Any:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(str(error), (*where, *error.path)) from error
