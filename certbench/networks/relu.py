r"""ReLU networks in the form that relaxations need: $z_i = b_i + \sum_j W_{ij} h_j$, $h_0 = x$, $h_j = \max(z_j, 0)$.

Everything affine between two ReLUs is folded into the maps $W_{ij}$, so residual sums and any order of layers have the
same form. Small maps are matrices; convolutions on large maps stay convolutions.
"""

import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.maps import Dense, Map


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer: `bias` plus the `maps` of earlier sources.

    Attributes:
        maps: the maps by source: 0 is the input, i > 0 the ReLU of `layers[i - 1]`.
        bias: one entry per output.
        paths: maps of moduli by source, multiplied along every path of the module itself, before maps are folded.
        height: moduli of all constants, carried along those paths.
    """

    maps: Mapping[int, Map]
    bias: Float[Tensor, " outputs"]
    paths: Mapping[int, Map]
    height: Float[Tensor, " outputs"]

    @staticmethod
    def of(maps: Mapping[int, Map], bias: Float[Tensor, " outputs"]) -> "Layer":
        """Make a layer that is computed as it is written, without folding."""
        return Layer(maps, bias, {source: part.absolute() for source, part in maps.items()}, bias.abs())

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.bias)

    @property
    def roundings(self) -> int:
        """Maximum number of roundings of one output from the sources on, the bias included."""
        return max((part.roundings for part in self.paths.values()), default=0) + len(self.paths) + 4


@dataclass(frozen=True, eq=False)
class ReluNetwork:
    """Affine layers with a ReLU after each but the last.

    Attributes:
        layers: `layers[i]` gives the pre-activations of hidden layer i; the last one gives the logits.
        inputs: number of entries of an input.
        computed: whether the module computes some of its constants when it runs; their rounding is not followed.
    """

    layers: tuple[Layer, ...]
    inputs: int
    computed: bool = False
    shared: "OrderedDict[Hashable, Any]" = field(default_factory=OrderedDict, repr=False)
    """Intermediate bounds that were computed last, so that they are not computed twice; see `verifiers.bounds`."""

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """Layers that a ReLU follows."""
        return self.layers[:-1]

    @cached_property
    def absolute(self) -> "tuple[Mapping[int, Map], ...]":
        """Moduli of all maps, for interval arithmetic."""
        return tuple({source: part.absolute() for source, part in layer.maps.items()} for layer in self.layers)

    def chain(self) -> list[Map]:
        """Return the maps of a chain, where each layer reads the one before it alone.

        Raises:
            UnsupportedError: a layer reads another one: a sum skips a ReLU, or there are branches.
        """
        for i, layer in enumerate(self.layers):
            if set(layer.maps) != {i}:
                raise UnsupportedError(f"layer {i + 1} reads more than the layer before it: a skip connection")
        return [layer.maps[i] for i, layer in enumerate(self.layers)]

    @cached_property
    def first_gram(self) -> Tensor:
        """Moduli of the products of any two rows of the first layer; sparse if it is a convolution."""
        part = self.layers[0].maps[0]
        if isinstance(part, Dense):
            return (part.weight @ part.weight.T).abs()
        rows = part.sparse()
        gram = abs(rows @ rows.T).tocsr()
        rows_at, columns, values = (torch.as_tensor(array) for array in (gram.indptr, gram.indices, gram.data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a new layout, which is 6 times as fast as COO on a processor
            found = torch.sparse_csr_tensor(rows_at, columns, values, gram.shape, check_invariants=True)
        return found.to(self.layers[0].bias.device)

    def preactivations(self, x: Float[Tensor, "n inputs"]) -> list[Float[Tensor, "n _"]]:
        """Compute the output of each layer at the inputs; the last entry holds the logits."""
        sources, results = [x], []
        for layer in self.layers:
            z = layer.bias.expand(len(x), -1)
            for source, part in layer.maps.items():
                z = z + part.forward(sources[source])
            results.append(z)
            sources.append(z.clamp(min=0))
        return results

    def to(self, dtype: torch.dtype) -> "ReluNetwork":
        """Convert the network to another precision: for searching, never for bounds."""
        return ReluNetwork(
            tuple(
                replace(
                    layer,
                    maps={source: part.to(dtype) for source, part in layer.maps.items()},
                    bias=layer.bias.to(dtype),
                    paths={source: part.to(dtype) for source, part in layer.paths.items()},
                    height=layer.height.to(dtype),
                )
                for layer in self.layers
            ),
            self.inputs,
            self.computed,
        )
