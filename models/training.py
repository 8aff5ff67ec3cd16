"""Training recipes: plain, under noise, under attack, by interval bounds, and by a Lipschitz margin.

A recipe says how long to train and for which objective; an objective is one loss. To add one, write a frozen dataclass
with a `loss` in `recipes`, whose first docstring line says what it does (cards repeat it), and use it in `zoo.TABLE`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class Recipe:
    """AdamW on shuffled batches, the learning rate falling to zero along a cosine.

    Attributes:
        objective: the loss that is minimised.
        epochs: number of passes over the training split.
        batch_size: inputs per step; an incomplete batch at the end of an epoch is dropped.
        learning_rate: learning rate of the first step.
        weight_decay: weight decay, decoupled from the gradient (Loshchilov and Hutter, 2019).
    """

    objective: Objective
    epochs: int
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2


def train(build: Callable[[], nn.Sequential], recipe: Recipe, data: Dataset, seed: int) -> nn.Sequential:
    """Train a network from scratch, on one core of the CPU; global settings and random state are left unchanged.

    Networks of this size train faster on one core than on several, and the order of sums does not depend on the number
    of cores. Steps are taken in float64 and the result is rounded to float32, so machines with other instructions reach
    the same accuracies. In float32 two machines differed by up to 0.6 points.

    Args:
        build: function that makes the network; its parameters are drawn from torch's global generator.
        recipe: the training recipe.
        data: the training split.
        seed: seed of every random draw. On one machine it determines every bit of the result.

    Returns:
        The network in eval mode, its parameters fixed.

    Raises:
        ConfigError: there are fewer inputs than in a batch, or the objective cannot handle a layer.
    """
    if len(data) < recipe.batch_size:
        raise ConfigError(f"{data.name} has {len(data)} inputs, less than a batch of {recipe.batch_size}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
            module = build().double()
        _optimise(module, recipe, data, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)
    return module.float().eval().requires_grad_(False)


def _optimise(module: nn.Sequential, recipe: Recipe, data: Dataset, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    inputs, batches = data.inputs.double(), len(data) // recipe.batch_size
    steps = recipe.epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data), generator=generator)
        for number, batch in enumerate(order[: batches * recipe.batch_size].view(-1, recipe.batch_size)):
            progress = (epoch * batches + number) / steps
            step = Step(inputs[batch], data.labels[batch], progress, generator)
            optimizer.zero_grad()
            recipe.objective.loss(module, step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
