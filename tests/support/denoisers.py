"""Denoisers of the zoo, and what they are for."""

from dataclasses import replace

from certbench.models import zoo
from certbench.models.architectures.denoisers import (
    DiffusionDenoiser,
    Preprocessor,
)
from certbench.models.data.base import Dataset
from certbench.models.recipes import denoising
from certbench.models.recipes.stability import Stability
from tests.support import mnist

MODELS = [name for name in zoo.names() if zoo.TABLE[name].preprocessor is not None]


def made(name: str) -> tuple[Preprocessor, float]:
    """The pre-processor of a model, and the noise it is for."""
    preprocessor, objective = zoo.TABLE[name].preprocessor, zoo.TABLE[name].recipe.objective
    assert preprocessor is not None
    if isinstance(preprocessor, DiffusionDenoiser):
        return preprocessor, preprocessor.sigma
    assert isinstance(objective, denoising.Denoising | Stability)
    return preprocessor, objective.sigma


def seen(name: str) -> Dataset:
    """The first 500 test inputs of a model."""
    test = mnist.load(zoo.TABLE[name].data)
    return replace(test, inputs=test.inputs[:500], labels=test.labels[:500])
