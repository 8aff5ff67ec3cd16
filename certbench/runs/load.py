"""The models and data of a suite."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from certbench.core.classifier import Classifier
from certbench.errors import ConfigError
from certbench.formats import hubs
from certbench.models import data
from certbench.models.data.base import Dataset
from certbench.runs.models import load as load_model
from certbench.runs.suite import ModelSpec, Suite

CHANNELS = (1, 3, 4)
"""Usual numbers of channels of an image."""

LAST = "write layout: NHWC, or --layout NHWC: channels seem to be last"
"""What to do with images whose channels are last."""


def load(suite: Suite) -> tuple[Dataset, list[Classifier]]:
    """Load the suite's data and models.

    Raises:
        ConfigError: one of them cannot be loaded, or they do not fit together.
    """
    dataset = suite.located(("data",), partial(data.load, suite.settings.data))
    if len(dataset) < suite.settings.inputs:
        wanted = suite.settings.inputs
        raise suite.error(("inputs",), f"{wanted} inputs are wanted, but {dataset.name} has {len(dataset)}")
    models = [
        suite.located(("models", i), partial(_model, spec, dataset)) for i, spec in enumerate(suite.settings.models)
    ]
    if len({model.name for model in models}) < len(models):
        raise suite.error(("models",), "two models of the suite have the same name; give one another `name`")
    box, inputs = suite.settings.domain, dataset.inputs[: suite.settings.inputs].double()
    one_range = isinstance(box, tuple) and not any(isinstance(end, tuple) for end in box)
    if one_range and (inputs.min() < box[0] or inputs.max() > box[1]):
        values = f"{inputs.min():g} to {inputs.max():g}"
        raise suite.error(("domain",), f"{dataset.name} has values from {values}, outside domain {box}")
    return dataset, models


def _model(spec: ModelSpec, dataset: Dataset) -> Classifier:
    if spec.path is not None and (spec.factory is not None or spec.weights is not None):
        raise ConfigError(f"model {spec.name!r} has a path, which is a whole model; leave factory and weights out")
    if spec.factory is not None and spec.weights is None and hubs.split(spec.factory) is None:
        raise ConfigError(f"model {spec.name!r} has a factory but no weights; write weights: file.safetensors")
    if spec.factory is None and spec.path is None:
        for given in sorted(spec.model_fields_set - {"name"}):
            if getattr(spec, given) is not None:
                raise ConfigError(f"model {spec.name!r} has {given} but no factory; write factory: module:function")
    model = load_for(dataset, *_place(spec), **_options(spec))
    if model.input_shape != dataset.input_shape:
        shapes = f"{model.input_shape}; {dataset.name} has {dataset.input_shape}"
        raise ConfigError(f"model {spec.name!r} takes {shapes}; {cure_of_shape(model, dataset)}")
    return labelled(replace(model, name=spec.name), dataset)


def load_again(spec: ModelSpec, input_shape: tuple[int, ...]) -> Classifier:
    """Load a model that the run has loaded already, in another process.

    Raises:
        ConfigError: it cannot be loaded.
        MissingBackendError: a package that its format needs is not installed.
    """
    return replace(load_model(*_place(spec), input_shape=input_shape, **_options(spec)), name=spec.name)


def _place(spec: ModelSpec) -> tuple[str, str | None]:
    return spec.path or spec.factory or spec.name, spec.weights


def _options(spec: ModelSpec) -> dict[str, Any]:
    return {
        "output": spec.output, "threshold": spec.threshold, "trust": spec.trust, "download": spec.download,
    }  # fmt: skip


def load_for(
    dataset: Dataset, given: str, weights: str | None, *, input_shape: tuple[int, ...] | None = None, **options: Any
) -> Classifier:
    """Load a model for inputs of a data set, as `certbench.load` does.

    Raises:
        ConfigError: there is no such model, or it does not fit; the message says if the layout may be the reason.
    """
    shape = dataset.input_shape
    try:
        return load_model(given, weights, input_shape=input_shape or shape, **options)
    except ConfigError as error:
        if input_shape is None and len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS:
            raise ConfigError(f"{error}; {LAST} in {dataset.name}") from error
        raise


def same_order(wanted: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Say whether inputs of one shape are those of another, read in the same order: axes of length 1, or one flat."""
    slim = [[size for size in shape if size != 1] for shape in (wanted, there)]
    return slim[0] == slim[1] or (math.prod(wanted) == math.prod(there) and any(len(sizes) < 2 for sizes in slim))


def cure_of_shape(model: Classifier, dataset: Dataset) -> str:
    """Say how data of another shape come to fit a model."""
    wanted, there = model.input_shape, dataset.input_shape
    if len(there) == 3 and wanted == (there[2], *there[:2]):
        return LAST
    if wanted == (1, *there):
        return "images seem to have no axis of channels: write layout: HW, or --layout HW"
    if math.prod(wanted) == math.prod(there):
        return f"if the numbers have the same order, write shape: {[*wanted]}"
    return "give the data of this model"


def labelled(model: Classifier, dataset: Dataset) -> Classifier:
    """Return a model that knows every label of the data; it may know more classes than are there.

    Raises:
        ConfigError: a label is not among its classes; the message says what to write.
    """
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if high < model.num_classes:
        return model
    shifted = low >= 1 and high == model.num_classes
    cure = "they seem to start at 1; store labels - 1" if shifted else "classes are counted from 0"
    there = f"the labels of {dataset.name} lie in {low}..{high}; {cure}"
    raise ConfigError(f"model {model.name!r} knows {model.num_classes} classes, {there}")
