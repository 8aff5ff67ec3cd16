import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from certbench.models import training, zoo
from certbench.models.data.base import Dataset
from certbench.models.recipes.base import Step
from tests.support.denoisers import MODELS, made, seen


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("multistep")])  # trained like one step
def test_a_recipe_learns_by_its_seed_alone_and_leaves_the_classifier(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor, whole = made(name)[0], seen(name)
    behind = zoo.load(preprocessor.classifier)
    few = Dataset("few", whole.inputs[:256], whole.labels[:256], 10)

    def build() -> nn.Sequential:
        return nn.Sequential(preprocessor.build(few.input_shape), *copy.deepcopy(behind.module).children())

    recipe = replace(zoo.TABLE[name].recipe, epochs=10)
    first, again, other = (training.train(build, recipe, few, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first[0].parameters(), other[0].parameters(), strict=True))
    for own, shipped in zip(first[1:].parameters(), behind.module.parameters(), strict=True):
        assert torch.equal(own, shipped)

    def loss(module: nn.Sequential) -> float:
        step = Step(few.inputs.double(), few.labels, 0.0, torch.Generator().manual_seed(0))
        return float(recipe.objective.loss(module.double(), step).detach())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = build()
    assert loss(first) < 0.95 * loss(untrained)


def test_the_card_of_a_new_training_is_like_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.TABLE["cnn-denoised"]
    short = replace(entry, recipe=replace(entry.recipe, epochs=2))
    monkeypatch.setattr(zoo, "TABLE", {**zoo.TABLE, "cnn-denoised": short})
    card = zoo.train("cnn-denoised", tmp_path)
    assert card.keys() == zoo.card("cnn-denoised", zoo.WEIGHTS).keys() and card["parameters"] == 33088 + 22406
    assert card["preprocessor"] == {"name": "Denoiser", "classifier": "cnn-plain", "width": 128}
    assert zoo.load("cnn-denoised", tmp_path).name == "cnn-denoised"
