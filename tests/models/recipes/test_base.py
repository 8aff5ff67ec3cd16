import torch

from certbench.models.recipes.base import Step


def test_a_ball_grows_after_the_warmup_and_then_stays() -> None:
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    steps = [Step(x, y, progress, torch.Generator()) for progress in (0.0, 0.1, 0.35, 0.6, 1.0)]
    assert [round(step.grown(0.1, 0.5), 9) for step in steps] == [0, 0, 0.5, 1, 1]
