"""One row per certifier: what the contract suite in test_contract.py needs to know to hold it to the laws."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINE = {"search": {"name": "secant", "relative": 1e-8}}
"""Options with which a search meets the closed form to 1e-6."""


@dataclass(frozen=True)
class Case:
    """A certifier under the contract.

    Attributes:
        spec: how it is built, quick enough for many networks.
        fine: options to add where precision is asked for.
        tight: on a linear classifier it equals the closed form to 1e-6, in these norms.
        norms: those that it offers; the others it must refuse.
        attacked: kinds of networks on which attacks are tried, fewer where a certificate takes seconds.
        backend: the fixture that skips its tests where a package is missing.
        layers: kinds of networks of `test_contract.NETWORKS` that it must certify, not refuse.
        batch: how far radii may differ between batch sizes, relatively; where there is a search, by its tolerance,
            because float64 rounding decides on which side of the crossing its last point falls.
        scale_free: whether radii ignore the scale of the logits.
        rounding: how far margins may, relatively; more where slopes are chosen in float32.
    """

    spec: Mapping[str, Any]
    fine: Mapping[str, Any] = field(default_factory=dict)
    tight: frozenset[float] = frozenset({1.0, 2.0, math.inf})
    norms: frozenset[float] = frozenset({1.0, 2.0, math.inf})
    attacked: frozenset[str] = frozenset({"mlp", "cnn", "residual"})
    backend: str | None = None
    layers: frozenset[str] = frozenset({"linear", "mlp", "cnn", "residual"})
    batch: float = 1e-7
    rounding: float = 1e-9
    scale_free: bool = True

    @property
    def name(self) -> str:
        """The certifier's name."""
        return str(self.spec["name"])


def lirpa(name: str, **options: Any) -> Case:
    """A margin certifier through auto-LiRPA."""
    return Case({"name": name, **options}, FINE, backend="lirpa", batch=1e-3)


def own(name: str, **options: Any) -> Case:
    """A margin certifier on our own engine."""
    return Case({"name": name, **options}, FINE, batch=1e-3)


PROGRAM: dict[str, Any] = {
    "tight": frozenset({1.0, math.inf}),
    "norms": frozenset({1.0, math.inf}),
    "attacked": frozenset({"mlp", "residual"}),
    "backend": "solvers",
}
SAFE = {"name": "alpha-crown", "rounding_safe": True}

CASES = [
    Case({"name": "lipschitz"}, FINE),
    Case({"name": "lipschitz", "rounding_safe": True}, FINE, tight=frozenset()),
    lirpa("ibp"),
    lirpa("crown-ibp"),
    lirpa("forward"),
    lirpa("forward-backward"),
    lirpa("fast-lin"),
    own("crown"),
    Case({"name": "ibp", "rounding_safe": True}, FINE, tight=frozenset(), backend="lirpa", batch=1e-3),
    Case({"name": "crown", "rounding_safe": True}, FINE, tight=frozenset(), batch=1e-3),
    lirpa("crown-lirpa"),
    Case({"name": "alpha-crown", "iterations": 3}, FINE, batch=1e-3, rounding=1e-4),
    Case({"name": "alpha-crown", "iterations": 3, "layers": 2}, FINE, batch=1e-3, rounding=1e-4),
    lirpa("alpha-crown-lirpa", iterations=3),
    lirpa("alpha-crown-lirpa", iterations=3, layers=True),
    Case({**SAFE, "iterations": 1}, FINE, tight=frozenset(), batch=1e-3, rounding=1e-4),
    own("wong-kolter"),
    own("deepz"),
    own("hybrid-zonotope"),
    Case({"name": "eclipse"}, FINE),
    Case({"name": "lipsdp", "iterations": 60}, FINE),
    own("masked-product", chords=True),
    own("fast-lip"),
    own("fast-lip", chords=True, gram=True),
    own("recurjac"),
    own("jacobian-zonotope"),
    own("jacobian-zonotope", refine=True),
    Case({"name": "jacobian-zonotope", "rounding_safe": True}, FINE, tight=frozenset(), batch=1e-3),
    own("jacobian-zonotope", chords=False, shells=4),
    Case({"name": "best-of"}, batch=1e-2),
    Case({"name": "lp"}, FINE, **PROGRAM, batch=1e-3),
    Case({"name": "lp", "tighten": True}, FINE, **PROGRAM, batch=1e-3),
    Case({"name": "branch-and-bound"}, attacked=frozenset({"mlp"}), batch=1e-5),
    Case({"name": "milp"}, **{**PROGRAM, "attacked": frozenset({"mlp"})}, batch=1e-5),
    Case(
        {"name": "sdp", "search": {"name": "secant", "relative": 0.1}},
        FINE,
        norms=frozenset({2.0, math.inf}),
        attacked=frozenset({"mlp"}),
        backend="solvers",
        batch=0.2,
    ),
    Case({"name": "smoothing", "n": 1000}, tight=frozenset()),
    Case({"name": "smoothing", "n": 1000, "rule": "one-vs-rest", "share": 0}, tight=frozenset()),
    Case({"name": "smoothing", "n": 1000, "noise": {"name": "laplace", "sigma": 0.25}}, tight=frozenset()),
    Case({"name": "smoothing", "n": 1000, "precision": "bfloat16"}, tight=frozenset()),
    Case({"name": "soft-smoothing", "n": 1000}, tight=frozenset(), scale_free=False),
    Case({"name": "soft-smoothing", "n": 1000, "bound": "bernstein", "beta": 4}, tight=frozenset(), scale_free=False),
    Case({"name": "soft-smoothing", "n": 1000, "bound": "sampled"}, tight=frozenset(), scale_free=False),
    Case({"name": "adaptive-smoothing", "n": 1000, "radius": 0.05}, tight=frozenset()),
    Case({"name": "splitting", "n": 1000}, tight=frozenset(), norms=frozenset({1.0})),
    Case({"name": "deterministic-splitting", "points": "all"}, tight=frozenset(), norms=frozenset({1.0})),
    Case({"name": "discrete", "keep": 0.5, "grid": 16, "n": 1000}, tight=frozenset(), norms=frozenset({0.0})),
    Case({"name": "ablation", "keep": 4, "n": 1000}, tight=frozenset(), norms=frozenset({0.0})),
]
