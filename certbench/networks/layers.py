r"""Networks in the form that relaxations need: $z_i = b_i + \sum_j W_{ij} h_j$, $h_0 = x$, $h_j = f_j(z_j)$.

Everything affine between two activations is folded into the maps $W_{ij}$, so residual sums and any order of layers
have the same form. Small maps are matrices; convolutions on large maps stay convolutions. In a ReLU network all $f_j$
are $\max(z, 0)$.
"""

import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.activations import Activation
from certbench.networks.maps import Chain, Dense, Map, Scale, Sum
from certbench.networks.piecewise_linear import RELU, PiecewiseLinear
from certbench.networks.structured_maps import Along, Select, Sparse


@dataclass(frozen=True)
class Bilinear:
    """The product of the two halves of a vector, entry by entry: the activation of a layer with 2 m outputs."""

    name: str = "product"

    def value(self, z: Float[Tensor, "... both"]) -> Float[Tensor, "... half"]:
        """Multiply the halves."""
        first, second = z.chunk(2, dim=-1)
        return first * second


@dataclass(frozen=True)
class RowSoftmax:
    """The softmax of each row of a vector.

    Attributes:
        row: number of entries of a row.
    """

    row: int

    @property
    def name(self) -> str:
        """Return the function's name, for messages."""
        return "softmax"

    def value(self, z: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return the softmax."""
        return torch.softmax(self.rows(z), dim=-1).flatten(-2)

    def rows(self, z: Float[Tensor, "... size"]) -> Float[Tensor, "... rows row"]:
        """Return a vector's rows."""
        return z.reshape(*z.shape[:-1], z.shape[-1] // self.row, self.row)


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer: `bias` plus the `maps` of earlier sources.

    Attributes:
        maps: the maps by source: 0 is the input, i > 0 the activation of `layers[i - 1]`.
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

    def to(self, dtype: torch.dtype) -> "Layer":
        """Convert the layer to another precision."""
        return Layer(
            {source: part.to(dtype) for source, part in self.maps.items()},
            self.bias.to(dtype),
            {source: part.to(dtype) for source, part in self.paths.items()},
            self.height.to(dtype),
        )

    @property
    def roundings(self) -> int:
        """Maximum number of roundings of one output from the sources on, the bias included."""
        return max((part.roundings for part in self.paths.values()), default=0) + len(self.paths) + 4


@dataclass(frozen=True, eq=False)
class Peak:
    """A layer whose outputs are the largest entries of windows of another affine layer, which intervals may use.

    Attributes:
        layer: the other layer.
        windows: places of the members of each window.
    """

    layer: Layer
    windows: Int64[Tensor, "members size"]

    @cached_property
    def absolute(self) -> Mapping[int, Map]:
        """Moduli of the maps of the layer."""
        return {source: part.absolute() for source, part in self.layer.maps.items()}


@dataclass(frozen=True, eq=False)
class Network:
    """Affine layers with an activation after each but the last.

    Attributes:
        layers: `layers[i]` gives the pre-activations of hidden layer i; the last one gives the outputs.
        inputs: number of entries of an input.
        activations: the activation after each hidden layer; empty: ReLU everywhere.
        copied: hidden layers that intervals bound, from bounds of their sources: every entry is an entry of a source,
            so that nothing is lost; or the layer is much wider than its sources (the differences of a large softmax).
        bounded: hidden layers with the identity after them whose bounds are used so.
        unfollowed: why the rounding errors of the program cannot be bounded from these layers; None: they can.
        head: the module's last function, if it was left out because it keeps the order of the classes.
        origins: where each hidden layer's activation comes from, for messages.
        peaks: hidden layers that are maxima, with the identity after them.
    """

    layers: tuple[Layer, ...]
    inputs: int
    activations: tuple[Activation | Bilinear | RowSoftmax, ...] = ()
    copied: frozenset[int] = frozenset()
    bounded: frozenset[int] = frozenset()
    unfollowed: str | None = None
    head: str | None = None
    origins: tuple[str, ...] = ()
    peaks: Mapping[int, Peak] = field(default_factory=dict)
    shared: "OrderedDict[Hashable, Any]" = field(default_factory=OrderedDict, repr=False)
    """Intermediate bounds that were computed last, so that they are not computed twice; see `verifiers.bounds`."""

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """Layers that an activation follows."""
        return self.layers[:-1]

    def activation(self, layer: int) -> Activation | Bilinear | RowSoftmax:
        """Return the activation after a hidden layer."""
        return self.activations[layer] if self.activations else RELU

    @property
    def piecewise_linear(self) -> bool:
        """Whether the network is a piecewise linear function."""
        return all(isinstance(function, PiecewiseLinear) for function in self.activations)

    @cached_property
    def absolute(self) -> "tuple[Mapping[int, Map], ...]":
        """Moduli of all maps, for interval arithmetic."""
        return tuple({source: part.absolute() for source, part in layer.maps.items()} for layer in self.layers)

    @cached_property
    def nonnegative(self) -> tuple[bool, ...]:
        """Whether all entries of all maps of each layer are known to be at least 0."""
        return tuple(all(_is_nonnegative(part) for part in layer.maps.values()) for layer in self.layers)

    def chain(self) -> list[Map]:
        """Return the maps of a chain, where each layer reads the one before it alone.

        Raises:
            UnsupportedError: a layer reads another one: a sum skips an activation, or there are branches.
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
        """Compute the output of each layer at the inputs; the last entry holds the network's outputs."""
        sources, results = [x], []
        for i, layer in enumerate(self.layers):
            z = layer.bias.expand(len(x), -1)
            for source, part in layer.maps.items():
                z = z + part.forward(sources[source])
            results.append(z)
            if i < len(self.hidden):
                sources.append(self.activation(i).value(z))
        return results

    def to(self, dtype: torch.dtype) -> "Network":
        """Convert the network to another precision: for searching, never for bounds."""
        layers = tuple(layer.to(dtype) for layer in self.layers)
        peaks = {i: replace(peak, layer=peak.layer.to(dtype)) for i, peak in self.peaks.items()}
        return replace(self, layers=layers, peaks=peaks, shared=OrderedDict())


def _is_nonnegative(part: Map) -> bool:
    """Say whether all entries of a map are known to be at least 0; those of some kinds are not looked at."""
    if isinstance(part, Select):
        return True
    if isinstance(part, Chain | Sum):
        return all(_is_nonnegative(one) for one in part.maps)
    if isinstance(part, Dense | Along):
        return bool((part.weight >= 0).all())
    if isinstance(part, Sparse):
        return bool((part.weight.values() >= 0).all())
    return isinstance(part, Scale) and bool((part.diagonal >= 0).all())
