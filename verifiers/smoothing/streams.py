"""Streams of random numbers, one for each input and purpose."""

import numpy as np
import torch

from certbench.verifiers.smoothing.noise.base import Stream


def generator_of(device: torch.device) -> torch.device | None:
    """Where torch draws for a classifier on a device: on a GPU by itself, else nowhere."""
    return device if device.type == "cuda" else None


def place_of(device: torch.device) -> str:
    """Name of torch's stream on a device: how its numbers are dealt to threads depends on the kind of GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__} on {name}"


def stream_of(seed: int, phase: int, chunk: int, device: torch.device | None = None) -> Stream:
    """The stream of a chunk: 64 bits of the same seed sequence are the key of torch's (Philox, on a GPU)."""
    if device is None:
        return numpy_stream(seed, phase, chunk)
    key = np.random.SeedSequence(seed, spawn_key=(phase, chunk)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(key[0]))


def numpy_stream(seed: int, phase: int, chunk: int) -> np.random.Generator:
    """Return NumPy's stream of a chunk."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(phase, chunk))))
