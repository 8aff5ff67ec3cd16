"""Errors that mean that memory ran out."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out; torch reports a failed CPU allocation as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
