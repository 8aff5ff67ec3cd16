r"""Margins over a global Lipschitz constant per pair of classes (Leino et al., 2021; Tsuzuku et al., 2018).

If $K_{cj}$ bounds the Lipschitz constant of $f_c - f_j$ from the p-norm, class c is predicted wherever
$\|\delta\|_p < \min_{j \neq c} (f_c - f_j)(x) / K_{cj}$. The constants follow the module's graph from the input to
the logits, in the p-norm and in the 2-norm side by side. Each layer starts from the one that gives the smaller bound.
Constants hold between any two points of the threat model's domain, which is convex; without one, in all of R^d.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.evidence import LipschitzEvidence
from certbench.core.margins import Bounds, MarginState
from certbench.core.ranges import one_of
from certbench.core.search import RadiusSearch, Secant, Start
from certbench.core.threat import ThreatModel
from certbench.errors import NumericalError
from certbench.networks.layers import Network
from certbench.networks.reading import logits_of, relu_network
from certbench.numerics.spectral import spectral
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.rounding import bound_errors, program_error
from certbench.verifiers.lipschitz.operator_norms import column_scales
from certbench.verifiers.lipschitz.propagation import constants_of, on_cpu


@dataclass(frozen=True, eq=False)
class LipschitzState(MarginState):
    """Constants of one classifier under one threat model.

    Attributes:
        constants: `constants[c, j]` bounds the Lipschitz constant of f_c - f_j; the last row and column stand for the
            function 0, so that `constants[c, -1]` bounds that of f_c alone. Symmetric.
        facts: facts that re-check the constants.
        given: the classifier as it was given, with a last function that keeps the order of the classes.
        network: the network that bounds the float program's errors, if those are counted.
        program: precision in which the user runs the classifier.
        proof: multipliers that prove the constants, if some do.
    """

    constants: Float[Tensor, "rows rows"]
    facts: Mapping[str, Any]
    given: Classifier
    network: Network | None = None
    program: torch.dtype = torch.float32
    proof: Any = None


class GlobalLipschitz(MarginCertifier[LipschitzState]):
    """A certifier with one constant per pair of classes that holds for all inputs; a radius is a quotient.

    Subclasses have the options `rounding_safe`, whether the float program's errors are counted (for ReLU networks), and
    `search`.
    """

    rounding_safe: bool

    @abstractmethod
    def constants(
        self, classifier: Classifier, threat: ThreatModel
    ) -> tuple[Float[Tensor, "rows rows"], Mapping[str, Any]]:
        """Return the table of `LipschitzState` and its facts for a classifier in float64; "proof" is kept apart.

        The constants hold between any two inputs of the threat model's domain. They are those of the logits: a last
        function that keeps the order of the classes is left out.

        Raises:
            UnsupportedError: a layer has no bound here; the message names it.
            NumericalError: a parameter is NaN or infinite.
        """

    @final
    def prepare(self, classifier: Classifier, threat: ThreatModel) -> LipschitzState:
        """Bound the constants, once per classifier."""
        exact = logits_of(classifier)
        network = relu_network(classifier) if self.rounding_safe else None
        constants, facts = self.constants(classifier, threat)
        if bool(constants.isnan().any()):
            raise NumericalError("a Lipschitz constant is NaN")
        facts = dict(facts)
        proof = facts.pop("proof", None)
        device = exact.device
        return LipschitzState(exact, threat, constants.to(device), facts, classifier, network, classifier.dtype, proof)

    @final
    def start(self, state: LipschitzState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """Return the radius itself, up to the float program's errors."""
        logits = state.classifier(x)
        constants = state.constants[label, :-1]
        radius = (logits.gather(1, label[:, None]) - logits) / constants
        own = functional.one_hot(label, logits.shape[1]).bool()
        guess = torch.where(own, torch.inf, radius).amin(dim=1)
        return Start(torch.where(guess.isinf(), 1.0, guess), torch.full_like(guess, torch.nan))

    @final
    def arithmetic(self, state: LipschitzState) -> str:
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    @final
    def evidence(self, state: LipschitzState, label: Int[Tensor, " n"]) -> list[dict[str, Any]]:
        """Return the constants of the label's margins, and the facts behind them."""
        rows = state.constants[label, :-1].tolist()
        return [LipschitzEvidence(constants=tuple(row), more=state.facts).to_json() for row in rows]

    @final
    @torch.no_grad()
    def lower(
        self,
        state: LipschitzState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Subtract from the value at the centre the constant times the distance.

        A row that is no difference of two outputs is bounded by the outputs' own constants.
        """
        centre = (rows @ state.classifier(x)[..., None]).squeeze(-1)
        alone, nothing = state.constants[:-1, -1], rows.shape[-1]
        most, least = rows.max(dim=-1), rows.min(dim=-1)
        plus = torch.where(most.values == 1, most.indices, nothing)
        minus = torch.where(least.values == -1, least.indices, nothing)
        simple = (rows != 0).sum(dim=-1) == (plus < nothing).to(torch.int64) + (minus < nothing)
        general = torch.where(rows == 0, 0.0, rows.abs() * alone).sum(dim=-1) * (1 + 1e-12)
        bounds = Bounds.steep(centre, torch.where(simple, state.constants[plus, minus], general), eps)
        if state.network is None:
            return bounds
        region = Region(state.threat, x.flatten(1), eps)
        layers = layer_bounds(state.network, region, "ibp", errors=bound_errors(state.network, region))
        return bounds.less(program_error(state.network, region, layers, rows, state.program))


@dataclass(frozen=True)
class LayerwiseLipschitz(GlobalLipschitz):
    """Margins over a global Lipschitz constant per pair of classes (Leino et al., 2021; Tsuzuku et al., 2018).

    Claims concern the real-arithmetic network with exactly the classifier's parameters. Constants are proved in
    float64, margins have the rounding allowance `SLACK`. A function that is not piecewise linear counts with its
    steepest slope over a proved range of its argument, for all inputs of the domain; so does each factor of a product
    with its size. Where such a range is infinite a constant may be, too: then the radius is 0, and the evidence says
    why ("reason").

    Attributes:
        rule: how the layers' norms become a constant of a pair of classes. "pairwise": the product for all layers but
            the last affine one, times the length of the difference of its rows (GloRo, Leino et al., 2021); "absolute":
            moduli of weights multiplied along every path; "best": the smaller of these two. For comparison "tsuzuku",
            sqrt(2) times the whole network's constant; "centred", the same after the mean of the logits is subtracted
            from them; and "naive", twice the largest constant of a logit.
        rounding_safe: whether the errors of the float program are counted, so that the claim is about what it computes;
            for ReLU networks.
    """

    rule: Annotated[str, one_of("best", "pairwise", "absolute", "tsuzuku", "centred", "naive")] = "best"
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})
    version: ClassVar[int] = 3

    def dominates(self, other: Certifier[Any]) -> str | None:
        r"""Return the theorem that orders the rules: each constant of the better rule is at most that of the other.

        Let $w_c$ be the rows of the last affine layers W, and $L_s$ the constant into the s-norm of the part before.
        All rules share both. A rule's constant of f_c - f_j is the least over s, so it is enough to compare for each s.
        `pairwise` has $L_s \|w_c - w_j\|_{s^*}$, where $s^*$ is the dual exponent.

        - `best` <= `pairwise` and `best` <= `absolute`: it takes the smaller of these two. Where the moduli are too
          many for `best`, the certifier refuses `absolute`.
        - `pairwise` <= `naive`, which has $2 L_s \|W\|_{s \to \infty}$: that norm is the largest $\|w_i\|_{s^*}$.
        - `pairwise` <= `tsuzuku`, which has $\sqrt 2 L_s \|W\|_{s \to 2}$: by Cauchy-Schwarz
          $|(w_c - w_j) \cdot v| = |(e_c - e_j) \cdot W v| \leq \sqrt 2 \|W v\|_2$.
        - `pairwise` <= `centred`, which has $\sqrt 2 L_s \|M W\|_{s \to 2}$, where M subtracts the mean: M is symmetric
          and $M (e_c - e_j) = e_c - e_j$, so $(e_c - e_j) \cdot W v = (e_c - e_j) \cdot M W v$.

        Norms of `naive`, `tsuzuku` and `centred` are upper bounds, which makes their constants only larger. A margin
        less its constant times the radius falls as the radius grows. It also falls if the float program's errors are
        subtracted: they grow with the ball, and are the same for all rules. Hence the radii are in the order of the
        constants, up to rounding and to what the search leaves.

        There is no order between `naive` and `tsuzuku`. If k rows are equal, the constant of `tsuzuku` is
        $\sqrt{k / 2}$ times that of `naive`; if they are orthogonal and of one length, that of `naive` is $\sqrt 2$
        times that of `tsuzuku`.
        """
        if not type(self) is type(other) is LayerwiseLipschitz or self.rounding_safe != other.rounding_safe:
            return None
        if self.rule == "best":
            return "`best` takes the least of all constants"
        least = self.rule == "pairwise" and other.rule in ("pairwise", "tsuzuku", "centred", "naive")
        return "a pair's own constant is at most one made for all pairs" if least else None

    def constants(
        self, classifier: Classifier, threat: ThreatModel
    ) -> tuple[Float[Tensor, "rows rows"], Mapping[str, Any]]:
        """Read the module and carry constants from the input to the logits."""
        return constants_of(classifier, threat.p, self.rule, threat.domain)

    def witness(
        self, state: LipschitzState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> dict[str, Any]:
        """Return bounds of the 2-norms of the maps between two ReLUs, and in Linf of the same with scaled columns.

        Raises:
            UnsupportedError: the classifier is no chain of affine layers and ReLUs.
        """
        del x, label, eps
        return {**proved_norms(state), "multipliers": [None] * (state.classifier.num_classes - 1)}


@lru_cache(maxsize=4)
@torch.no_grad()
def proved_norms(state: LipschitzState) -> dict[str, Any]:
    """Return evidence for `certbench.checker`: bounds of the 2-norms of all layers but the last, in Linf also scaled.

    Raises:
        UnsupportedError: the classifier is no chain of affine layers and ReLUs.
    """
    network = relu_network(on_cpu(state.given))
    matrices = [part.matrix() for part in network.chain()[:-1]]
    scaled = []
    if state.threat.p == math.inf:
        scaled = [matrix / column_scales(matrix) for matrix in matrices]
    norms, box = ([spectral(m[None]) for m in part] for part in (matrices, scaled))
    return {"kind": "lipschitz", "spectral": norms, "box": box}
