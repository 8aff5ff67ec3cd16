"""The threat models of a suite, once its data are known: scales, features that move, and the domain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certbench.core.inputs import check_domain
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.files.arrays import open_npy
from certbench.models.data.base import Dataset
from certbench.runs.suite import Suite

Made = TypeVar("Made")

DIGITS = 12
"""Digits of computed standard deviations: the last ones depend on the machine, and keys of answers must not."""


@dataclass(frozen=True)
class Wishes:
    """A suite or a command line says this of its threat models, beyond their norms.

    Attributes:
        domain: pair of ends, numbers or one per feature; `data`, the range of each feature; None.
        scale: a number per feature; `std`, the standard deviation of each feature; the path of a file; None.
        move: places of the features that move, or the path of a file with a mask; None: all.
        fixed: places of the features that do not move, or the path of a file with a mask; None: none.
    """

    domain: Any = None
    scale: Any = None
    move: Any = None
    fixed: Any = None


def made(threats: Sequence[ThreatModel], wishes: Wishes, dataset: Dataset, taken: Tensor) -> tuple[ThreatModel, ...]:
    """Return the threat models, with their scales and domains.

    A standard deviation is that of all inputs of the data set (divided by their number). A feature whose standard
    deviation is 0 does not move.

    Args:
        threats: threat models of the norms.
        wishes: what is said of them.
        dataset: the data.
        taken: the inputs that are certified; they must lie in the domain.

    Raises:
        ConfigError: scales or features do not fit the data, or inputs lie outside the domain; its path begins with the
            name of the wish that does not fit.
    """
    inputs = dataset.inputs.flatten(1).double().numpy()
    domain = wishes.domain
    if domain == "data":
        domain = tuple(inputs.min(axis=0).tolist()), tuple(inputs.max(axis=0).tolist())
    scale = located("scale", lambda: _scale(wishes.scale, inputs, dataset.input_shape))
    for name, wanted in (("move", wishes.move), ("fixed", wishes.fixed)):
        if wanted is not None:
            chosen = located(name, lambda wanted=wanted: _chosen(wanted, dataset.input_shape))
            kept = chosen if name == "move" else ~chosen
            scale = np.where(kept, 1.0 if scale is None else scale, 0.0)
    given = next((name for name in ("move", "fixed", "scale") if getattr(wishes, name) is not None), "domain")

    def one(threat: ThreatModel) -> ThreatModel:
        whole = threat if domain is None else threat.within(domain)
        whole = whole if scale is None else whole.scaled(scale)
        if whole.coordinates not in (None, inputs.shape[1]):
            raise ConfigError(f"{dataset.name} has {inputs.shape[1]} features, not {whole.coordinates}")
        return whole

    found = tuple(located(given, lambda threat=threat: one(threat)) for threat in threats)
    if found:
        located("domain", lambda: check_domain(taken.double(), found[0]))
    return found


def located(name: str, make: Callable[..., Made]) -> Made:
    """Return what `make` returns; its error names the wish."""
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(str(error), (name,)) from error


def with_threats(suite: Suite, dataset: Dataset) -> Suite:
    """Return the suite with its threat models.

    Raises:
        ConfigError: scales or features do not fit the data, or inputs lie outside the domain.
    """
    settings = suite.settings
    wishes = Wishes(settings.domain, settings.scale, settings.move, settings.fixed)
    threats = suite.located((), lambda: made(suite.threats, wishes, dataset, dataset.inputs[: settings.inputs]))
    return replace(suite, threats=threats)


def _scale(given: Any, inputs: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    if given == "std":
        found = [float(f"{one:.{DIGITS}g}") for one in inputs.std(axis=0).tolist()]
        return np.array(found)
    if isinstance(given, str):
        return _numbers(given, shape)
    if given is not None and len(given) != inputs.shape[1]:
        raise ConfigError(f"the data have {inputs.shape[1]} features, but there are {len(given)} scales")
    return None if given is None else np.array(given)


def _chosen(given: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask of features from their places or from a file."""
    features = math.prod(shape)
    if isinstance(given, str):
        values = _numbers(given, shape)
        if values.shape != (features,) or not np.isin(values, (0, 1)).all():
            raise ConfigError(f"{given} must hold {features} zeros and ones, one per feature")
        return values.astype(bool)
    outside = [place for place in given if not 0 <= place < features]
    if outside:
        raise ConfigError(f"there is no feature {outside[0]}; the data have {features}, counted from 0")
    mask = np.zeros(features, dtype=bool)
    mask[list(given)] = True
    return mask


def _numbers(path: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a file of numbers, flat; an array of several axes must have those of an input of this shape."""
    try:
        if Path(path).suffix == ".npy":
            found = np.asarray(open_npy(Path(path)), dtype=np.float64)
            if found.ndim > 1 and [n for n in found.shape if n != 1] != [n for n in shape if n != 1]:
                problem = "bring its axes into the order of the input's, or store it flat"
                raise ConfigError(f"{path} has shape {found.shape}, inputs {shape}; {problem}")
            return found.ravel()
        return np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=1).ravel()
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read as numbers, one per feature: {error}") from error
