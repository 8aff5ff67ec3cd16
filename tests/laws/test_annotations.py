"""Annotations are checked in every call of the tests that looks new, whatever was called before."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from certbench.core.ball import size
from tests.support.shapes import check


@jaxtyping.jaxtyped(typechecker=check)
def widen(x: Float[Tensor, "n d"], times: int, like: "list[str] | None" = None) -> Float[Tensor, "n d"]:
    return x.repeat(1, times) if like is None else x.half().to(getattr(torch, like[0]))


def test_a_call_that_looks_new_is_checked_and_so_is_its_result() -> None:
    x = torch.rand(2, 3)
    for _ in range(2):
        assert widen(x, 1).shape == (2, 3)
        with pytest.raises(TypeCheckError):
            widen(x, 2)  # looks like the call before, but not its result
        with pytest.raises(TypeCheckError):
            widen(x[0], 1)
        with pytest.raises(TypeCheckError):
            widen(x.long(), 1)
        with pytest.raises(TypeCheckError):
            widen(x, 1.0)  # type: ignore[arg-type]
        assert widen(x, 1, ["float64"]).dtype == torch.float64
        with pytest.raises(TypeCheckError):
            widen(x, 1, ["int64"])


def test_functions_of_certbench_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        size(torch.zeros(2, 3, dtype=torch.int64))
