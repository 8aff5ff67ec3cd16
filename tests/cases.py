"""One row per certifier: what the contract suite needs to know to hold it to the laws, see `certbench.testing`."""

import math
from typing import Any

from certbench.testing import Case

FINE = {"search": {"name": "secant", "relative": 1e-8}}
"""Options with which a search meets the closed form to 1e-6."""


def lirpa(name: str, **options: Any) -> Case:
    """A margin certifier through auto-LiRPA."""
    return Case({"name": name, "engine": "auto-lirpa", **options}, FINE, backend="lirpa", batch=1e-3)


def own(name: str, **options: Any) -> Case:
    """A margin certifier on our own engine."""
    return Case({"name": name, **options}, FINE, batch=1e-3)


PROGRAM: dict[str, Any] = {
    "tight": frozenset({1.0, math.inf}),
    "norms": frozenset({1.0, math.inf}),
    "attacked": frozenset({"mlp", "residual"}),
    "backend": "solvers",
}
ALPHA = {"name": "alpha-crown", "engine": "auto-lirpa"}
SAFE = {"name": "alpha-crown", "rounding_safe": True}

CASES = [
    Case({"name": "lipschitz"}, FINE),
    Case({"name": "lipschitz", "rounding_safe": True}, FINE, tight=frozenset()),
    *(own(name) for name in ("ibp", "crown-ibp", "fast-lin", "crown")),
    *(lirpa(name) for name in ("ibp", "crown-ibp", "fast-lin", "crown", "forward", "forward-backward")),
    Case({"name": "ibp", "rounding_safe": True}, FINE, tight=frozenset(), batch=1e-3),
    Case({"name": "crown", "rounding_safe": True}, FINE, tight=frozenset(), batch=1e-3),
    Case({"name": "alpha-crown", "iterations": 3}, FINE, batch=1e-3, rounding=1e-4, scaling=1e-2),
    Case({"name": "alpha-crown", "iterations": 3, "layers": 2}, FINE, batch=1e-3, rounding=1e-4, scaling=1e-2),
    Case({**ALPHA, "iterations": 3}, FINE, backend="lirpa", batch=1e-3, scaling=1e-2),
    Case({**ALPHA, "iterations": 3, "layers": 1}, FINE, backend="lirpa", batch=1e-3, scaling=1e-2),
    Case({**SAFE, "iterations": 1}, FINE, tight=frozenset(), batch=1e-3, rounding=1e-4, scaling=1e-2),
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
    Case({"name": "branch-and-bound", "iterations": 5}, attacked=frozenset({"mlp"}), inputs=3, batch=1e-5),
    Case({"name": "milp"}, **{**PROGRAM, "attacked": frozenset({"mlp"})}, inputs=3, batch=1e-5),
    Case(
        {"name": "sdp", "search": {"name": "secant", "relative": 0.1}},
        FINE,
        norms=frozenset({2.0, math.inf}),
        attacked=frozenset({"mlp"}),
        inputs=3,
        backend="solvers",
        batch=0.2,
    ),
    Case({"name": "smoothing", "n": 1000}, tight=frozenset()),
    Case({"name": "smoothing", "n": 1000, "rule": "one-vs-rest", "share": 0}, tight=frozenset(), seeded=False),
    Case({"name": "smoothing", "n": 1000, "noise": {"name": "laplace", "sigma": 0.25}}, tight=frozenset()),
    Case({"name": "smoothing", "n": 1000, "precision": "bfloat16"}, tight=frozenset()),
    Case({"name": "soft-smoothing", "n": 1000}, tight=frozenset(), scale_free=False),
    Case({"name": "soft-smoothing", "n": 1000, "bound": "bernstein", "beta": 4}, tight=frozenset(), scale_free=False),
    Case({"name": "soft-smoothing", "n": 1000, "bound": "sampled"}, tight=frozenset(), scale_free=False),
    Case({"name": "adaptive-smoothing", "n": 1000, "radius": 0.05}, tight=frozenset()),
    Case({"name": "splitting", "n": 1000}, tight=frozenset(), norms=frozenset({1.0}), symmetric=False),
    Case(
        {"name": "deterministic-splitting", "points": "all"}, tight=frozenset(), norms=frozenset({1.0}), symmetric=False
    ),
    Case(
        {"name": "discrete", "keep": 0.5, "grid": 16, "n": 1000},
        tight=frozenset(),
        norms=frozenset({0.0}),
        symmetric=False,
    ),
    Case({"name": "ablation", "keep": 4, "n": 1000}, tight=frozenset(), norms=frozenset({0.0}), symmetric=False),
]
