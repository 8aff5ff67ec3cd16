"""The threat models of a suite, once its data are known: scales, features that move, and the domain."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certbench.core.inputs import check_domain
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.runs.suite import Suite

DIGITS = 12
"""Digits of computed standard deviations: the last ones depend on the machine, and keys of answers must not."""


def with_threats(suite: Suite, dataset: Dataset) -> Suite:
    """Return the suite with its threat models.

    `std` is the standard deviation of each feature over all inputs of the data set (divided by their number), and
    `data` is the range of each feature over them. A feature whose standard deviation is 0 does not move.

    Raises:
        ConfigError: scales or features do not fit the data, or inputs lie outside the domain.
    """
    settings = suite.settings
    inputs = dataset.inputs.flatten(1).double().numpy()
    domain: Any = settings.domain
    if domain == "data":
        domain = tuple(inputs.min(axis=0).tolist()), tuple(inputs.max(axis=0).tolist())
    scale = suite.located(("scale",), lambda: _scale(settings.scale, inputs))
    for name, wanted in (("move", settings.move), ("fixed", settings.fixed)):
        if wanted is not None:
            chosen = suite.located((name,), lambda wanted=wanted: _chosen(wanted, inputs.shape[1]))  # type: ignore[misc]
            kept = chosen if name == "move" else ~chosen
            scale = np.where(kept, 1.0 if scale is None else scale, 0.0)
    given = next((name for name in ("move", "fixed", "scale") if getattr(settings, name) is not None), "domain")

    def made(threat: ThreatModel) -> ThreatModel:
        whole = threat if domain is None else threat.within(domain)
        whole = whole if scale is None else whole.scaled(scale)
        if whole.coordinates not in (None, inputs.shape[1]):
            raise ConfigError(f"{dataset.name} has {inputs.shape[1]} features, not {whole.coordinates}")
        return whole

    threats = tuple(suite.located((given,), lambda threat=threat: made(threat)) for threat in suite.threats)  # type: ignore[misc]
    if threats:
        suite.located(("domain",), lambda: check_domain(dataset.inputs[: settings.inputs].double(), threats[0]))
    return replace(suite, threats=threats)


def _scale(given: Any, inputs: NDArray[Any]) -> NDArray[Any] | None:
    if given == "std":
        found = [float(f"{one:.{DIGITS}g}") for one in inputs.std(axis=0).tolist()]
        return np.array(found)
    if isinstance(given, str):
        return _numbers(given)
    if given is not None and len(given) != inputs.shape[1]:
        raise ConfigError(f"the data have {inputs.shape[1]} features, but there are {len(given)} scales")
    return None if given is None else np.array(given)


def _chosen(given: Any, features: int) -> NDArray[np.bool_]:
    """Return a mask of features from their places or from a file."""
    if isinstance(given, str):
        values = _numbers(given)
        if values.shape != (features,) or not np.isin(values, (0, 1)).all():
            raise ConfigError(f"{given} must hold {features} zeros and ones, one per feature")
        return values.astype(bool)
    outside = [place for place in given if not 0 <= place < features]
    if outside:
        raise ConfigError(f"there is no feature {outside[0]}; the data have {features}, counted from 0")
    mask = np.zeros(features, dtype=bool)
    mask[list(given)] = True
    return mask


def _numbers(path: str) -> NDArray[Any]:
    """Read a file of numbers, flat."""
    try:
        if Path(path).suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64).ravel()
        return np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=1).ravel()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as numbers, one per feature: {error}") from error
