"""Descriptions of data sets say where they are, and how their numbers are meant."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from certbench.core.registry import unknown
from certbench.errors import ConfigError
from certbench.files.numbers import Number, Whole

NORMALISED = (
    "is the model's business, because a radius is in the units of its input: put "
    "certbench.networks.normalise.Normalise(mean, std) in front of the network"
)
"""Advice for those who want the data standardised."""


def _listed(value: object) -> object:
    """Read one or several of something as several, except for a number of rows."""
    return tuple(value) if isinstance(value, list | tuple) else value


class Source(BaseModel):
    """A data set as it is written in a suite: `data: {path: test.npz, layout: NHWC, scale: 1/255}`.

    Attributes:
        path: the name of a data set, a file, a folder of pictures, `torchvision:NAME:FOLDER` or `hf:FOLDER`.
        split: which part, of sources that have several.
        layout: order of the axes of images in the file; they become channels first. HW: no axis of channels.
        scale: factor for every input; a whole number under 1 (1/255) divides. None: floats stay as they are, and
            integers are refused.
        dtype: precision in which inputs are kept.
        shape: shape of one input, if it is to be another than the file's; numbers keep their order.
        features: name of the array or column of inputs, if it is not a usual one; of a table, the columns that count.
        labels: name or place of the array or column of labels, if it is not a usual one; a file of labels, where inputs
            have a file of their own.
        take: largest number of inputs, from the first on, or a list of places, counted from 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    split: str = "test"
    layout: Literal["NCHW", "NHWC", "HW"] | None = None
    scale: Number | None = Field(default=None, gt=0, lt=math.inf)
    dtype: Literal["float32", "float64"] = "float32"
    shape: Annotated[tuple[Annotated[Whole, Field(gt=0)], ...] | None, BeforeValidator(_listed)] = None
    features: Annotated[str | tuple[str, ...] | None, BeforeValidator(_listed)] = None
    labels: int | str | None = None
    take: Annotated[
        Annotated[Whole, Field(gt=0)] | tuple[Annotated[Whole, Field(ge=0)], ...] | None, BeforeValidator(_listed)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _no_normalisation(cls, values: Any) -> Any:
        for name in ("mean", "std"):
            if isinstance(values, Mapping) and name in values:
                raise ValueError(f"{name} {NORMALISED}")
        return values

    @property
    def said(self) -> tuple[str, ...]:
        """Names of the settings that say how a file is read."""
        names = self.model_fields_set - {"path", "split"}
        return tuple(sorted(name for name in names if getattr(self, name) is not None))


def source(**values: Any) -> Source:
    """Make a source from values; those that are None are left out.

    Raises:
        ConfigError: one of them is no such setting, or has no such value.
    """
    try:
        return Source(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(unknown("setting of data", name, Source.model_fields)) from error
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {said}" if name else said) from error
