r"""Global Lipschitz constants of feed-forward ReLU networks by semidefinite certificates: LipSDP and ECLipsE-Fast.

LipSDP (Fazlyab et al., 2019) minimises over the multipliers $\Lambda$ of `multipliers.certificate`, here for the
difference of every two logits by itself, which gains most. ECLipsE-Fast (Xu and Sivaranjani, 2024) has them in closed
form. Whoever found the multipliers, the constants are those that `prove` proves: a solver's objective is no bound.

"LipSDP-Network", with multipliers for pairs of neurons, is no bound: the inequality that it adds holds for two values
of one function, but two neurons with different biases are two functions (Pauli et al., 2021). For
relu(x) - relu(0.9 x - 10) it gives 0.1; the slope at x = 1 is 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.checker.reading import written
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier, Regressor
from certbench.core.ranges import NonNegativeInt, one_of
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.networks.layers import Network
from certbench.networks.maps import Dense
from certbench.networks.reading import relu_network
from certbench.verifiers.lipschitz.margin import GlobalLipschitz, LipschitzState, proved_norms
from certbench.verifiers.lipschitz.multipliers.certificate import Multipliers, product_bound, prove, start
from certbench.verifiers.lipschitz.multipliers.search import check, find_multipliers
from certbench.verifiers.lipschitz.operator_norms import spectral_norm
from certbench.verifiers.lipschitz.propagation import on_cpu

SIDE = {"eclipse": 6000, "lipsdp": 2500}
"""Largest number of neurons that two neighbouring layers may have together. Judgements."""


@dataclass(frozen=True, eq=False)
class DenseChain:
    """A network whose layers follow one another.

    Attributes:
        weights: weights of the hidden layers.
        last: weights of the layer without a ReLU.
    """

    weights: tuple[Dense, ...]
    last: Dense

    @staticmethod
    def read(classifier: Classifier, side: int) -> "DenseChain":
        """Read a classifier, on the CPU."""
        return DenseChain.of(relu_network(on_cpu(classifier)), side)

    @staticmethod
    def of(network: Network, side: int) -> "DenseChain":
        """Read a network.

        Raises:
            UnsupportedError: a layer reads more than the one before it, or two layers are larger than `side`.
        """
        sizes, matrices = [network.inputs, *(layer.outputs for layer in network.layers)], []
        for i, (layer, part) in enumerate(zip(network.layers, network.chain(), strict=True)):
            if len(network.layers) > 1 and sizes[i] + sizes[i + 1] > side:
                raise UnsupportedError(
                    f"layer {i + 1} makes a matrix of dimension {sizes[i]} + {sizes[i + 1]}; {side} is the limit"
                )
            path = layer.paths[i]
            roundings = 0 if isinstance(path, Dense) else layer.roundings  # a lone dense layer is stored as it is
            matrices.append(Dense(part.matrix(), path.matrix(), None, roundings))
        return DenseChain(tuple(matrices[:-1]), matrices[-1])

    def rows(self, plus: Tensor, minus: Tensor) -> Dense:
        """Return the rows of f_plus - f_minus; an index one too large stands for the function 0."""
        weight, magnitude = (
            torch.cat([part, part.new_zeros(1, self.last.inputs)]) for part in (self.last.weight, self.last.moduli)
        )
        return Dense(
            weight[plus] - weight[minus], magnitude[plus] + magnitude[minus], None, self.last.entry_roundings + 1
        )

    @property
    def void(self) -> bool:
        """Say whether multipliers can improve nothing: no hidden layer, or one that gives a constant."""
        return any(spectral_norm(weight) == 0 for weight in self.weights) or not self.weights


def table(values: Float[Tensor, " pairs"], outputs: int) -> Float[Tensor, "rows rows"]:
    """Make the symmetric table of `LipschitzState.constants` from its entries above the diagonal, row by row."""
    constants = torch.zeros(outputs + 1, outputs + 1, dtype=torch.float64)
    upper = torch.triu_indices(outputs + 1, outputs + 1, 1)
    constants[upper[0], upper[1]] = values
    return constants + constants.T


@dataclass(frozen=True, eq=False)
class Proof:
    """The constant of every pair of classes, as `table` orders them, and its proof.

    Attributes:
        values: the constants.
        used: whether multipliers prove it; else the layers' norms do.
        multipliers: multipliers of each pair, where used.
    """

    values: Float[Tensor, " pairs"]
    used: Bool[Tensor, " pairs"]
    multipliers: Multipliers

    @staticmethod
    def none(multipliers: Multipliers, values: Float[Tensor, " pairs"]) -> "Proof":
        """Make a proof by norms alone; the multipliers do not matter."""
        return Proof(values, torch.zeros_like(values, dtype=torch.bool), multipliers.expand(len(values)))

    def improved(
        self, found: Float[Tensor, " some"], by: Multipliers, index: Int[Tensor, " some"] | None = None
    ) -> "Proof":
        """Take the smaller constants, of all pairs or of some, by the same multipliers or by those of each."""
        index = torch.arange(len(found)) if index is None else index
        better = found < self.values[index]
        at, by = index[better], (by.expand(len(found)) if len(by.entry) == 1 else by)[better]
        own = self.multipliers
        hidden = [old.index_put((at,), new) for old, new in zip(own.hidden, by.hidden, strict=True)]
        return Proof(
            self.values.index_put((at,), found[better]),
            self.used.index_fill(0, at, True),
            Multipliers(tuple(hidden), own.entry.index_put((at,), by.entry)),
        )

    def evidence(self, label: int, outputs: int) -> list[dict[str, Any] | None]:
        """Write the proof for the differences of a class and each other one, as `certbench.checker` reads it."""
        plus, minus = torch.triu_indices(outputs + 1, outputs + 1, 1).tolist()
        place = {pair: i for i, pair in enumerate(zip(plus, minus, strict=True))}
        found: list[dict[str, Any] | None] = []
        for other in range(outputs):
            i = place.get((min(label, other), max(label, other)), 0)
            diagonals = [written(part[i].exp().numpy()) for part in (self.multipliers.entry, *self.multipliers.hidden)]
            if other != label:
                found.append({"entry": diagonals[0], "layers": diagonals[1:]} if self.used[i] else None)
        return found


def witness(state: LipschitzState, label: int) -> dict[str, Any]:
    """Return evidence for `certbench.checker`: the layers' norms, and multipliers where they prove more."""
    outputs = state.classifier.num_classes
    multipliers = [None] * (outputs - 1) if state.proof is None else state.proof.evidence(label, outputs)
    return {**proved_norms(state), "multipliers": multipliers}


@dataclass(frozen=True)
class Eclipse(GlobalLipschitz):
    """ECLipsE-Fast (Xu and Sivaranjani, 2024), per pair of classes: LipSDP with multipliers in closed form.

    For networks without skip connections, in milliseconds, also for wide ones. The constants are proved in float64.

    Attributes:
        rounding_safe: whether the float program's errors are counted.
        search: strategy for choosing radii.
    """

    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    @torch.no_grad()
    def constants(
        self, classifier: Classifier, threat: ThreatModel
    ) -> tuple[Float[Tensor, "rows rows"], Mapping[str, Any]]:
        """Prove the constants of all pairs by the same multipliers."""
        p = threat.p
        chain, outputs = DenseChain.read(classifier, SIDE["eclipse"]), classifier.num_classes
        rows = chain.rows(*torch.triu_indices(outputs + 1, outputs + 1, 1))
        values = product_bound(chain.weights, rows, p)
        if chain.void:
            return table(values, outputs), {}
        first = start(chain.weights, p)
        proof = Proof.none(first, values).improved(prove(chain.weights, rows, first, p), first)
        return table(proof.values, outputs), {"proof": proof}

    def witness(
        self, state: LipschitzState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> dict[str, Any]:
        """Return the multipliers."""
        del x, eps
        return witness(state, int(label))


NETWORK = "LipSDP-Network is no bound; it gives 0.1 for relu(x) - relu(0.9 x - 10), whose slope at x = 1 is 1"
"""Reason why one of the published forms is refused."""


@dataclass(frozen=True)
class LipSDP(GlobalLipschitz):
    """LipSDP (Fazlyab et al., 2019), one constant per pair of classes, for networks without skip connections.

    Attributes:
        multipliers: "pair" for multipliers of each pair of classes (or each output of a regressor), or "shared".
        form: "neuron", one multiplier per hidden neuron, or "layer", one per layer.
        solver: method that finds the multipliers of each pair. "newton": a barrier method, close to the optimum, up to
            some 500 neurons in good time; "gradient": Adam, for wider networks; "scs" and "clarabel": solvers of
            cvxpy's, for tiny ones. Adam always finds the shared ones.
        iterations: largest number of steps of "newton" and "gradient", for shared multipliers and for those of a pair.
        rounding_safe: whether the float program's errors are counted.
        search: strategy for choosing radii.
    """

    multipliers: Annotated[str, one_of("pair", "shared")] = "pair"
    form: Annotated[str, one_of("neuron", "layer", note=NETWORK)] = "neuron"
    solver: Annotated[str, one_of("newton", "gradient", "scs", "clarabel")] = "newton"
    iterations: NonNegativeInt = 300
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})
    repeatable = False

    @torch.no_grad()
    def constants(
        self, classifier: Classifier, threat: ThreatModel
    ) -> tuple[Float[Tensor, "rows rows"], Mapping[str, Any]]:
        """Prove the constants that matter by the best multipliers, the others by shared ones.

        Raises:
            UnsupportedError: skip connections, or layers that are too wide.
            MissingBackendError: cvxpy or the solver is missing.
        """
        p = threat.p
        chain, outputs = DenseChain.read(classifier, SIDE["lipsdp"]), classifier.num_classes
        if self.multipliers == "pair":
            check(self.solver, chain.weights, p)
        plus, minus = torch.triu_indices(outputs + 1, outputs + 1, 1)
        rows = chain.rows(plus, minus)
        values = product_bound(chain.weights, rows, p)
        proof = None
        wanted = torch.zeros(0, dtype=torch.int64)
        if not chain.void:
            wanted = ((minus == outputs) == isinstance(classifier, Regressor)) & (values > 0)
            wanted = wanted.nonzero().squeeze(1)
        if len(wanted):
            precise = chain.rows(plus[wanted], minus[wanted])
            first = start(chain.weights, p)
            found = self.found(chain, "gradient", precise.weight[None], first, p)
            proof = Proof.none(first, values)
            for multipliers in (first, found):
                proof = proof.improved(prove(chain.weights, rows, multipliers, p), multipliers)
            if self.multipliers == "pair":
                own = found.expand(len(wanted))
                found = self.found(chain, self.solver, precise.weight[:, None], own, p)
                proof = proof.improved(prove(chain.weights, precise, found, p), found, wanted)
            values = proof.values
        return table(values, outputs), {"proof": proof}

    def witness(
        self, state: LipschitzState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> dict[str, Any]:
        """Return the multipliers of each other class."""
        del x, eps
        return witness(state, int(label))

    def found(
        self, chain: DenseChain, solver: str, rows: Float[Tensor, "m r n"], first: Multipliers, p: float
    ) -> Multipliers:
        """Find multipliers for m networks, r rows each."""
        return find_multipliers(
            solver, chain.weights, rows, first, p, iterations=self.iterations, layer=self.form == "layer"
        )


@torch.no_grad()
def whole_constant(
    chain: DenseChain, p: float = 2.0, *, layer: bool = False, solver: str = "newton", iterations: int = 300
) -> float:
    """Prove LipSDP's constant of the whole network from the p-norm to the 2-norm, which the papers report."""
    bound = float(product_bound(chain.weights, chain.last, p, whole=True))
    if chain.void:
        return bound
    first, rows = start(chain.weights, p), chain.last.weight[None]
    found = first
    for name in dict.fromkeys(("gradient", solver)):
        found = find_multipliers(name, chain.weights, rows, found, p, iterations=iterations, layer=layer, whole=True)
    return min(bound, *(float(prove(chain.weights, chain.last, part, p, whole=True)) for part in (first, found)))
