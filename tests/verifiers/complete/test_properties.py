import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from certbench import ConfigError
from certbench.core.properties import Disjunct, Property
from certbench.verifiers.complete.properties import Decision, Program, decide


def disjunct(box: Sequence[tuple[float, float]], conditions: Sequence[Sequence[float]]) -> Disjunct:
    """A box, and conditions as their coefficients and their constant."""
    low, high = torch.tensor(box, dtype=torch.float64).T
    table = torch.tensor(conditions, dtype=torch.float64)
    return Disjunct(low.clone(), high.clone(), table[:, :-1], table[:, -1], (False,) * len(table))


def answered(module: nn.Module, disjuncts: Sequence[Disjunct], seconds: float = 60.0) -> Decision:
    """The answer; a counterexample is checked by hand, in float32 and in the box."""
    module = module.eval().requires_grad_(False)
    inputs, outputs = len(disjuncts[0].lower), disjuncts[0].rows.shape[1]
    wanted = Property(inputs, outputs, tuple(disjuncts))
    found = decide(module, (inputs,), wanted, Program(module, torch.float32), seconds)
    if found.verdict == "sat":
        assert found.witness is not None and found.witness.dtype == torch.float32
        y = module(found.witness[None])[0]
        assert any(one.holds(y) for one in disjuncts)
        assert found.reason or any(one.outside(found.witness) == 0 and one.holds(y) for one in disjuncts)
    return found


def affine(weight: Sequence[Sequence[float]], bias: Sequence[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def test_a_linear_network_is_decided_at_its_exact_maximum() -> None:
    box, weight, bias = [(-1.0, 3.0), (0.25, 0.5)], [[2.0, -4.0], [0.0, 1.0]], [0.5, 0.0]
    most = 2 * 3 - 4 * 0.25 + 0.5
    for gap, verdict in ((1e-4, "unsat"), (-1e-4, "sat")):
        found = answered(affine(weight, bias), [disjunct(box, [[1, 0, -most - gap]])])
        assert found.verdict == verdict


def test_conditions_hold_together_or_not_at_all() -> None:
    network = affine([[1.0], [-1.0], [1.0]], [0.0, 0.0, 0.0])
    box, alone = [(-1.0, 1.0)], [1, 0, 0, -0.25]
    assert answered(network, [disjunct(box, [alone])]).verdict == "sat"
    assert answered(network, [disjunct(box, [alone, [0, 1, 0, -0.25]])]).verdict == "unsat"
    assert answered(network, [disjunct(box, [alone, [0, 0, 1, -0.25], [0, 0, -1, 0.75]])]).verdict == "sat"
    assert answered(network, [disjunct(box, [alone, [0, 0, 1, -0.25], [0, 0, -1, 0.125]])]).verdict == "unsat"


def test_one_box_of_several_decides() -> None:
    network = nn.Sequential(affine([[1.0], [-1.0]], [0.0, 0.0]), nn.ReLU(), affine([[1.0, 1.0]], [0.0]))  # |x|
    near, far = disjunct([(-0.5, 0.5)], [[1, -0.6]]), disjunct([(-0.75, -0.5)], [[1, -0.6]])
    assert answered(network, [near]).verdict == "unsat"
    assert answered(network, [near, far]).verdict == "sat"
    empty = disjunct([(0.5, -0.5)], [[1, 0]])
    assert answered(network, [empty]).verdict == "unsat" and answered(network, [near, empty]).verdict == "unsat"


def test_splits_prove_what_lines_cannot() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    ends = torch.linspace(-1, 1, 401)
    most = float(network(torch.cartesian_prod(ends, ends)).detach().max())
    room = 0.02  # more than the network can rise between the points: its slope times their distance
    gain = torch.linalg.multi_dot([layer.weight.detach().abs() for layer in reversed(network) if isinstance(layer, nn.Linear)])  # fmt: skip  # noqa: E501
    assert float(gain.sum()) * 2 / 400 < room
    box = [(-1.0, 1.0)] * 2
    assert answered(network, [disjunct(box, [[1, -most - room]])]).verdict == "unsat"
    assert answered(network, [disjunct(box, [[1, -most + 1e-4]])]).verdict in ("sat", "unknown")


def test_other_activations_are_bounded() -> None:
    network = nn.Sequential(affine([[1.0], [-1.0]], [0.0, 0.0]), nn.Sigmoid(), affine([[1.0, 1.0]], [0.0]))  # always 1
    found = answered(network, [disjunct([(-0.5, 0.5)], [[1, -1.25]])])
    assert found.verdict == "unsat"


class Lossy(nn.Module):
    """x, through numbers at which float32 knows even ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(3e7))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.large) - self.large


def test_a_counterexample_of_float32_alone_says_so() -> None:
    found = answered(Lossy(), [disjunct([(0.25, 0.75)], [[-1, 0]])])  # x <= 0, which is never so
    assert found.verdict == "sat" and not found.exact and "float32 alone" in found.reason


def test_a_box_without_a_float32_number() -> None:
    found = answered(affine([[1.0]], [0.0]), [disjunct([(0.1, 0.1)], [[1, 0]])])
    assert found.verdict == "sat" and "the nearest is used" in found.reason and found.exact
    assert answered(affine([[1.0]], [0.0]), [disjunct([(0.1, 0.1)], [[1, -0.11]])]).verdict == "unsat"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_large_coefficients_that_cancel(order: tuple[int, ...]) -> None:
    """1e16 y0 + y1 - 1e16 y2 - 0.5 of outputs (1, x, 1) is x - 0.5, in whatever order the terms are added."""
    network = affine([[0.0], [1.0], [0.0]], [1.0, 0.0, 1.0])
    network.weight.data, network.bias.data = network.weight.data[[*order]], network.bias.data[[*order]]
    conditions = [[[1e16, 1.0, -1e16][j] for j in order] + [-0.5]]
    assert answered(network, [disjunct([(0.625, 0.75)], conditions)], seconds=1.0).verdict != "unsat"
    assert answered(network, [disjunct([(0.25, 0.375)], conditions)], seconds=1.0).verdict != "sat"
    assert disjunct([(0, 1)], conditions).holds(network(torch.tensor([[0.625]]))[0])
    assert not disjunct([(0, 1)], conditions).holds(network(torch.tensor([[0.375]]))[0])


def test_no_witness_lies_outside_its_box_by_chance() -> None:
    """Float32 has no 16777217. Its neighbour 16777216 gives another output, at which the condition holds."""
    found = answered(affine([[1.0]], [-16777216.0]), [disjunct([(16777217.0, 16777217.0)], [[-1, 0.5]])])
    assert found.verdict == "unsat"


def test_many_disjuncts_of_one_box_are_decided_in_parts() -> None:
    network = affine([[1.0]], [0.0])
    many = [disjunct([(0.0, 1.0)], [[1, -2.0 - i]]) for i in range(600)]
    assert answered(network, many).verdict == "unsat"
    assert answered(network, [*many, disjunct([(0.0, 1.0)], [[1, -0.5]])]).verdict == "sat"
    assert answered(network, many, seconds=1e-9).verdict == "timeout"


def test_other_shapes_are_refused_and_time_ends() -> None:
    network = affine([[1.0]], [0.0])
    one = disjunct([(0.0, 1.0)], [[1, -2]])
    with pytest.raises(ConfigError, match="1 inputs, the network 2"):
        decide(network, (2,), Property(1, 1, (one,)), Program(network, torch.float32), 1.0)
    with pytest.raises(ConfigError, match="2 outputs, the network 1"):
        decide(network, (1,), Property(1, 2, (one,)), Program(network, torch.float32), 1.0)
    assert answered(network, [one], seconds=1e-9).verdict == "timeout"


def test_splits_decide_where_lines_are_too_loose() -> None:
    network = nn.Sequential(affine([[3.0], [3.0]], [0.0, 0.5]), nn.Tanh(), affine([[1.0, -1.0]], [0.0]))  # below 0
    box = [(-2.0, 2.0)]
    found = answered(network, [disjunct(box, [[1, -0.05]])])
    assert found.verdict == "unsat"
    assert answered(network, [disjunct(box, [[1, 0.05]])]).verdict == "sat"
    # no single box decides: each condition holds somewhere, but not both at once
    both = [[1, 0.01], [-1, -0.02]]
    assert answered(network, [disjunct(box, [both[0]])]).verdict == "sat"
    assert answered(network, [disjunct(box, [both[1]])]).verdict == "sat"
    assert answered(network, [disjunct(box, both)]).verdict == "unsat"
