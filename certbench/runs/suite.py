"""Suites: short YAML files that say what to run, validated before anything runs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from certbench.core import registry
from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.options import build, choose
from certbench.core.search import RadiusSearch
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.files.numbers import Number, Size, Whole, number, whole
from certbench.files.reading import read_text
from certbench.files.yaml_lines import Lines, at, read
from certbench.formats import is_whole, stem_of
from certbench.models.cards import cards
from certbench.models.data.source import Source
from certbench.runs.selection import Selection, chosen, swept
from certbench.runs.shipped import suites

Made = TypeVar("Made")

THREAT_FILES = (".npy", ".csv")
"""Suffixes of files with scales or masks: a number per feature, in the shape of an input or flat."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _as_model(value: object) -> object:
    """Read a model: a name of the zoo, the path of a file, or a mapping; a file that has no name gets its own."""
    if isinstance(value, str):
        value = {"path": value} if is_whole(value) else {"name": value}
    if isinstance(value, dict) and "name" not in value and isinstance(value.get("path"), str):
        value = {"name": stem_of(Path(value["path"])), **value}
    return value


def _as_domain(value: object) -> object:
    """Read a domain: a pair of numbers or of lists, or `data`."""
    if value is None or value == "data":
        return value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a domain is [low, high], two lists with an end per feature, or data")
    return tuple(tuple(map(number, end)) if isinstance(end, list | tuple) else number(end) for end in value)


def _as_scale(value: object) -> object:
    """Read scales: a number per feature, `std`, or the path of a file."""
    if isinstance(value, list | tuple):
        return tuple(map(number, value))
    if value is None or (isinstance(value, str) and (value == "std" or Path(value).suffix in THREAT_FILES)):
        return value
    raise ValueError(
        f"scale is a list with a number per feature, std, or the path of a {' or '.join(THREAT_FILES)} file"
    )


def _as_places(value: object) -> object:
    """Read places of features, counted from 0, or the path of a file with a mask."""
    if isinstance(value, list | tuple):
        return tuple(map(whole, value))
    if value is None or (isinstance(value, str) and Path(value).suffix in THREAT_FILES):
        return value
    raise ValueError(f"write a list of features, counted from 0, or the path of a {' or '.join(THREAT_FILES)} file")


def _as_source(value: object) -> object:
    """Read a data set: its path, or a mapping that says how it is read."""
    return {"path": value} if isinstance(value, str) else value


class ModelSpec(_Strict):
    """A model of the zoo by its name, or a user's own: a file of a whole model (`path`), or a factory and weights.

    `trust` allows a file to run code when it is opened, `download` a library to fetch weights. `output` and `threshold`
    are those of `Classifier`, for a user's own: which of several outputs has the logits, and the threshold of a single
    logit.
    """

    name: str
    path: str | None = None
    factory: str | None = None
    weights: str | None = None
    trust: bool = False
    download: bool = False
    output: int | str | None = None
    threshold: Number | None = None


class Attacks(_Strict):
    """The effort of the audit: steps of each attack. 0 turns the audit off, and the run then says so."""

    steps: Whole = Field(default=100, ge=0)


class Clever(_Strict):
    """Settings of estimates beside the attacks, which prove nothing: the `radius` to sample in each norm, and how."""

    radius: dict[Number, Number] = Field(min_length=1)
    batches: Whole = Field(default=50, gt=0)
    samples: Whole = Field(default=100, gt=0)


class Limits(_Strict):
    """Limits for each (model, norm, certifier). Whoever exceeds one is stopped, if processes compute.

    A certifier that is predicted to need far more for one input does not start.

    Attributes:
        seconds: time of all inputs together, with the preparation.
        prepare_seconds: time of the preparation.
        input_seconds: time of each input. If there is such a limit, inputs are computed one by one.
        memory: bytes that may be used beyond what a process uses at its start, like "8 GB"; by default, three quarters
            of what is free are used for plans, and nobody is stopped before the machine has no more.
    """

    seconds: Number = Field(default=math.inf, gt=0)
    prepare_seconds: Number = Field(default=math.inf, gt=0)
    input_seconds: Number = Field(default=math.inf, gt=0)
    memory: Size | None = None


class SuiteFile(_Strict):
    """A suite as it is written in its file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    data: Annotated[Source, BeforeValidator(_as_source, json_schema_input_type=Source | str)] = Source(path="digits")
    inputs: Whole = Field(gt=0)
    models: list[Annotated[ModelSpec, BeforeValidator(_as_model, json_schema_input_type=ModelSpec | str)]] = Field(
        min_length=1
    )
    norms: list[Number] = Field(min_length=1)
    domain: Annotated[Any, BeforeValidator(_as_domain)] = None
    scale: Annotated[Any, BeforeValidator(_as_scale)] = None
    move: Annotated[Any, BeforeValidator(_as_places)] = None
    fixed: Annotated[Any, BeforeValidator(_as_places)] = None
    certifiers: list[Any] = Field(min_length=1)
    radii: dict[Number, list[Number]] = Field(default_factory=dict)
    search: Any = None
    batch: Whole = Field(default=64, gt=0)
    seed: Whole = 0
    attacks: Attacks = Attacks()
    clever: Clever | None = None
    limits: Limits = Limits()
    executor: str = "process"
    workers: Whole = Field(default=0, ge=0)


@dataclass(frozen=True, eq=False)
class Suite:
    """A suite that has been validated: its settings, its threat models and its certifiers.

    Attributes:
        settings: the file's values.
        threats: threat models, one per norm; scales and a domain that depend on the data come in `runs.threats`.
        certifiers: the certifiers; those with a `search` have the suite's, unless they give their own.
        usual: option values that every certifier of the suite has, unless it gives its own.
        source: path of the file.
        lines: lines of the values in the file.
    """

    settings: SuiteFile
    threats: tuple[ThreatModel, ...]
    certifiers: tuple[Certifier[Any], ...]
    usual: Mapping[str, Any]
    source: Path
    lines: Lines = field(default_factory=dict)

    def error(self, where: tuple[str | int, ...], message: str) -> ConfigError:
        """Make an error that names the file and the line of the value at `where`."""
        return ConfigError(at(self.source, self.lines, where, message), where)

    def located(self, where: tuple[str | int, ...], make: Callable[[], Made]) -> Made:
        """Return what `make` returns; a `ConfigError` from it gets file and line.

        Args:
            where: path of a value in the suite; that of the error goes on from there.
            make: function without arguments.
        """
        try:
            return make()
        except ConfigError as error:
            raise self.error((*where, *error.path), str(error)) from error
        except OSError as error:  # a path that no file can have, say
            raise self.error(where, f"{error!s:.300}") from error


def load(name: str, selection: Selection | None = None) -> Suite:
    """Load a shipped suite by its name, or any suite by the path of its file.

    Args:
        name: its name or path.
        selection: changes by the command line.

    Raises:
        ConfigError: there is no such suite, or it asks for something that cannot be run; the message
            names file and line.
        MissingBackendError: a certifier's module needs a package that is not installed.
    """
    path = suites().get(name) or Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(registry.unknown("suite", name, suites()) + "; or write the path of a .yaml file")
    values, lines = read(read_text(path, "the suite"), path)
    if selection is not None and isinstance(values, dict):
        values, lines = chosen(values, lines, selection)
    try:
        return _validate(values, path, lines)
    except ConfigError as error:
        raise ConfigError(at(path, lines, error.path, str(error)), error.path) from error


def _validate(values: Any, path: Path, lines: Lines) -> Suite:
    if not isinstance(values, dict):
        raise ConfigError("a suite is a mapping: name, data, inputs, models, norms, certifiers, ...")
    try:
        settings = SuiteFile.model_validate(values)
    except ValidationError as error:
        # A misspelt setting comes first: the one it was meant for is missing too.
        first = min(error.errors(), key=lambda found: found["type"] not in ("extra_forbidden", "invalid_key"))
        where = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        if first["type"] == "extra_forbidden":
            inner: dict[str, type[BaseModel]] = {"attacks": Attacks, "clever": Clever, "limits": Limits}
            inner["models"], inner["data"] = ModelSpec, Source
            place = inner.get(str(where[0]), SuiteFile) if len(where) > 1 else SuiteFile
            raise ConfigError(registry.unknown("setting", str(where[-1]), place.model_fields), where) from error
        raise ConfigError(first["msg"].removeprefix("Value error, "), where) from error

    for i, model in enumerate(settings.models):
        if model.factory is None and model.path is None and model.name not in cards():
            raise ConfigError(registry.unknown("model", model.name, cards()), ("models", i))
    if settings.move is not None and settings.fixed is not None:
        raise ConfigError("write move or fixed, not both: the other features are the rest", ("fixed",))
    box = None if settings.domain == "data" else settings.domain
    plain = ThreatModel(1.0, box)  # so that an empty domain is not reported as a mistake of the norms
    ends = (number for end in plain.domain or () for number in (end if isinstance(end, tuple) else (end,)))
    if not all(map(math.isfinite, ends)):
        raise ConfigError("a domain has finite ends; leave it out if inputs have no bounds", ("domain",))
    if isinstance(settings.scale, tuple):
        plain.scaled(settings.scale)
    threats = tuple(_located(("norms", i), lambda p=p: ThreatModel(p, box)) for i, p in enumerate(settings.norms))
    usual = {} if settings.search is None else {"search": choose(RadiusSearch, settings.search, ("search",))}
    specs = list(swept(settings.certifiers, lambda i, make: _located(("certifiers", i), make)))
    certifiers = tuple(_located(("certifiers", i), lambda spec=spec: _certifier(spec, usual)) for i, spec in specs)
    places = {"norms": range(len(threats)), "certifiers": [i for i, _ in specs]}
    for name, parts in (("norms", threats), ("certifiers", certifiers)):
        for i, part in enumerate(parts):
            if part in parts[:i]:
                raise ConfigError("this is given twice", (name, places[name][i]))
    for i, threat in enumerate(threats):
        if not any(threat.p in certifier.norms for certifier in certifiers):
            raise ConfigError(f"no certifier of this suite offers {threat.name}", ("norms", i))
    for p in settings.radii:
        if p not in settings.norms:
            where = ("radii", *(key for key in values["radii"] if number(key) == p))
            raise ConfigError(f"radii are given for norm {p:g}, which is not among the norms", where)
        if not all(eps > 0 for eps in settings.radii[p]):
            raise ConfigError(f"radii must be positive, not {min(settings.radii[p]):g}", ("radii",))
    for p, radius in settings.clever.radius.items() if settings.clever else ():
        if p not in settings.norms:
            raise ConfigError(f"a radius is given for norm {p:g}, which is not among the norms", ("clever", "radius"))
        if not 0 < radius < math.inf:
            raise ConfigError(f"a radius to sample is positive and finite, not {radius:g}", ("clever", "radius"))
    return Suite(settings, threats, certifiers, usual, path, lines)


def _certifier(spec: Any, usual: Mapping[str, Any]) -> Certifier[Any]:
    if not isinstance(spec, str | dict):
        raise ConfigError("write a name, or a mapping with a `name` and options")
    given = {"name": spec} if isinstance(spec, str) else spec
    if isinstance(given.get("name"), str) and issubclass(registry.find(given["name"]), MarginCertifier):
        given = {**usual, **given}
    return build(given)


def _located(where: tuple[str | int, ...], make: Any) -> Any:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(str(error), (*where, *error.path)) from error
