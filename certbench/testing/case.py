"""A row of the contract suite: all that the laws have to know about a certifier."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certbench.errors import ConfigError

KINDS = ("linear", "mlp", "cnn", "residual")
"""Names of the networks of the laws, see `network`."""


@dataclass(frozen=True)
class Case:
    """A certifier under the contract. The defaults are the strictest demands; each field that is given relaxes one.

    Attributes:
        spec: name and options, as a suite file has them; quick enough for many networks.
        fine: options to add for laws that need precision.
        tight: norms, from `norms`, in which the radius on a linear classifier equals the closed form to 1e-6.
        norms: norms that the certifier offers; it must refuse the others.
        domain: whether it accepts a domain; if not, it must refuse one.
        attacked: kinds of networks on which attacks are tried; fewer if a certificate takes seconds.
        inputs: largest number of inputs of a law on networks; fewer if a certificate takes seconds, but 2 at least.
        backend: name of a pytest fixture that skips the tests if a package is missing.
        layers: kinds of networks from `KINDS` that the certifier must certify; it must refuse the others.
        batch: largest relative difference of radii between batch sizes. With a search, this is the search's tolerance,
            because float64 rounding decides on which side of the crossing its last point falls.
        rounding: largest relative difference of margins; larger if slopes are chosen in float32.
        scale_free: whether radii ignore the scale of the logits.
        scaling: largest relative difference of radii when the logits are scaled; None: that of `batch`, plus 1e-6.
        seeded: whether another seed means other draws; it need not if all inputs share their draws.
        symmetric: whether the noise is symmetric, so that smoothing does not move the boundary of a half-space.
        alpha: largest probability that the certificate of an input is wrong, if the certifier is probabilistic.

    Raises:
        ConfigError: the specification has no name, no norm or kind of network is left, or one is unknown.
    """

    spec: Mapping[str, Any]
    fine: Mapping[str, Any] = field(default_factory=dict)
    tight: frozenset[float] = frozenset({1.0, 2.0, math.inf})
    norms: frozenset[float] = frozenset({1.0, 2.0, math.inf})
    domain: bool = True
    attacked: frozenset[str] = frozenset({"mlp", "cnn", "residual"})
    inputs: int = 12
    backend: str | None = None
    layers: frozenset[str] = frozenset(KINDS)
    batch: float = 1e-7
    rounding: float = 1e-9
    scale_free: bool = True
    scaling: float | None = None
    seeded: bool = True
    symmetric: bool = True
    alpha: float = 0.001

    def __post_init__(self) -> None:
        """Refuse a row that no law can use."""
        if not isinstance(self.spec, Mapping) or not isinstance(self.spec.get("name"), str):
            raise ConfigError('write the name and the options of the certifier: Case({"name": "mine"})', ("spec",))
        if not self.norms or not self.norms <= {0.0, 1.0, 2.0, math.inf}:
            raise ConfigError("write some of the norms 0, 1, 2 and math.inf: frozenset({2.0})", ("norms",))
        for name in ("layers", "attacked"):
            unknown = getattr(self, name) - set(KINDS)
            if unknown:
                raise ConfigError(f"unknown kind of network {min(unknown)!r}; known: {', '.join(KINDS)}", (name,))
        if not self.layers:
            raise ConfigError("a certifier has to certify at least one kind of network", ("layers",))
        if self.inputs < 2:
            raise ConfigError("write 2 inputs or more: laws compare an input with its neighbours", ("inputs",))

    @property
    def name(self) -> str:
        """The certifier's name."""
        return str(self.spec["name"])

    @property
    def usual(self) -> str:
        """Kind of network for laws that need only one network."""
        return "mlp" if "mlp" in self.layers else next(kind for kind in KINDS if kind in self.layers)
