"""Streams of random numbers, one for each input and purpose."""

import numpy as np
import torch

from certbench.verifiers.smoothing.noise.base import Stream


def generator_of(device: torch.device) -> torch.device | None:
    """Return the device where torch draws for a classifier: its GPU, if it is on one; else None, and NumPy draws."""
    return device if device.type == "cuda" else None


def place_of(device: torch.device) -> str:
    """Name torch's stream on a device.

    How the stream's numbers are dealt to threads depends on the kind of GPU.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__} on {name}"


def stream_of(seed: int, phase: int, chunk: int, device: torch.device | None = None) -> Stream:
    """Return the stream of a chunk; for torch (Philox, on a GPU), 64 bits of the same seed sequence are the key."""
    if device is None:
        return numpy_stream(seed, phase, chunk)
    key = np.random.SeedSequence(seed, spawn_key=(phase, chunk)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(key[0]))


def numpy_stream(seed: int, phase: int, chunk: int) -> np.random.Generator:
    """Return NumPy's stream of a chunk."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(phase, chunk))))
