"""The laws of every linear map, for tests of its members."""

from fractions import Fraction

import torch
from torch import Tensor

from certbench.networks.maps import Map


def gauss(*shape: int, seed: int = 0) -> Tensor:
    """Draw normal numbers that float32 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def is_its_matrix(part: Map, matrix: Tensor | None = None) -> None:
    """Assert that a map is one matrix in all that it does, and this one if it is given."""
    given, matrix = matrix, part.matrix()
    assert matrix.shape == (part.outputs, part.inputs) and matrix.dtype == torch.float64
    if given is not None:
        torch.testing.assert_close(matrix, given, rtol=1e-13, atol=1e-13)
    h, a = gauss(3, part.inputs, seed=2), gauss(3, part.outputs, seed=3)
    torch.testing.assert_close(part.forward(h), h @ matrix.T)
    torch.testing.assert_close(part.transpose(a), a @ matrix)
    torch.testing.assert_close(part.forward(torch.eye(part.inputs).double()).T, matrix, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(part.transpose(torch.eye(part.outputs).double()), matrix, rtol=1e-13, atol=1e-13)
    assert bool((part.absolute().matrix() >= matrix.abs() * (1 - 1e-15)).all())
    assert (part.sparse().toarray() == matrix.numpy()).all()
    fast = part.to(torch.float32)
    assert fast.forward(h.float()).dtype == fast.transpose(a.float()).dtype == torch.float32
    torch.testing.assert_close(fast.forward(h.float()), part.forward(h).float())
    torch.testing.assert_close(fast.transpose(a.float()), part.transpose(a).float())


def rounds_no_more_than_it_says(part: Map) -> None:
    """Assert that float32 is within the claimed roundings of exact fractions. Entries must be exact in float32."""
    matrix, fast = part.matrix(), part.to(torch.float32)
    for by, act, roundings in (
        (matrix, fast.forward, part.roundings),
        (matrix.T, fast.transpose, part.transposed_roundings),
    ):
        h = gauss(2, by.shape[1], seed=4)
        relative = Fraction(roundings, 2**24 - roundings)
        for given, found in zip(h.tolist(), act(h.float()).tolist(), strict=True):
            for row, value in zip(by.tolist(), found, strict=True):
                terms = [Fraction(w) * Fraction(x) for w, x in zip(row, given, strict=True) if w != 0]
                assert abs(Fraction(value) - sum(terms)) <= relative * sum(map(abs, terms))
