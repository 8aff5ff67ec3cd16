"""Devices on which noise is drawn, and generators there."""

import pytest
import torch

CPU = torch.device("cpu")
GPU = pytest.param(
    torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"), id="cuda"
)
devices = pytest.mark.parametrize("device", [pytest.param(CPU, id="cpu"), GPU])


def generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
