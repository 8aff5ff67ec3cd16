"""Threat models: the norm of the perturbation, the scales of the coordinates, and the box that inputs live in."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from certbench.errors import ConfigError, UnsupportedError

NAME = re.compile(r"l?[_-]?(0|1|2|inf|infinity)(?:\.0)?", re.IGNORECASE)
"""Names of the norms, as people write them: `L2`, `l_inf`, `inf`, `2`."""

Numbers = tuple[float, ...]
"""One number per coordinate of a flat input."""

Domain = tuple[float, float] | tuple[Numbers, Numbers]
"""The lower and the upper end of a box: a number for every coordinate, or one per coordinate."""


@dataclass(frozen=True)
class ThreatModel:
    """Perturbations of bounded Lp norm.

    Attributes:
        p: 0, 1, 2 or `math.inf`. L0 is no norm: it counts the coordinates that change, and a radius of r there says
            that r changes are tolerated, so the closest counterexample is at least r + 1 away.
        domain: `(low, high)` if only perturbed inputs inside this box count, else None:
            then the claim holds in all of R^d, which is stronger. An end is a number, or one number per coordinate.
        scale: one number s_i >= 0 per coordinate of the flat input, or None. Coordinates with s_i = 0 do not move, and
            the size of a perturbation d is the norm of the d_i / s_i of the others. So radii are multiples of the
            scales: with standard deviations as scales they are in standardised units. A mask is a scale of zeros
            and ones.

    The norm may be given by its name (`"L2"`, `"inf"`). Ends and scales may be any sequence, array or tensor, in the
    shape of an input or flat.

    Raises:
        ConfigError: for another norm; a domain that is no pair, or empty; scales that are negative, infinite or NaN, or
            all zero; in L0, scales other than 0 and 1.
    """

    p: float
    domain: Domain | None = None
    scale: Numbers | None = None

    def __post_init__(self) -> None:
        """Read the norm, the domain and the scales, and remember the shapes in which they were given."""
        object.__setattr__(self, "p", _norm(self.p))
        object.__setattr__(self, "_shapes", _shapes(self.domain) | _shapes((self.scale,)))
        if self.domain is not None:
            object.__setattr__(self, "domain", _pair(self.domain))
        if self.scale is not None:
            object.__setattr__(self, "scale", _scales(self.scale, self.p))

    @staticmethod
    def of(given: Any) -> "ThreatModel":
        """Return a threat model as it is, or make one without a domain from a norm: `2`, `"L2"`, `"inf"`.

        Raises:
            ConfigError: it is neither.
        """
        return given if isinstance(given, ThreatModel) else ThreatModel(_norm(given))

    def within(self, low: Any, high: Any = None) -> "ThreatModel":
        """Return the same norm for inputs that lie in `[low, high]`, coordinate by coordinate; a pair will do, too."""
        given = low if high is None else (low, high)
        return self._with(given, domain=_pair(given))

    def scaled(self, scale: Any) -> "ThreatModel":
        """Return the same norm of the perturbation divided by these scales; a mask will do, too."""
        return self._with((scale,), scale=_scales(scale, self.p))

    def _with(self, given: Any, **read: Any) -> "ThreatModel":
        made = replace(self, **read)
        object.__setattr__(made, "_shapes", self.shapes | _shapes(given))
        return made

    @property
    def shapes(self) -> frozenset[tuple[int, ...]]:
        """Shapes of the arrays with several axes in which ends and scales were given, as far as that is known."""
        return getattr(self, "_shapes", frozenset())

    @property
    def q(self) -> float:
        """The dual exponent, 1/p + 1/q = 1.

        Raises:
            UnsupportedError: L0 has none.
        """
        if self.p == 0.0:
            raise UnsupportedError("L0 counts coordinates and has no dual norm")
        return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[self.p]

    @property
    def name(self) -> str:
        """`L0`, `L1`, `L2` or `Linf`."""
        return f"L{self.p:g}"

    @property
    def mask(self) -> bool:
        """Whether the scales only say which coordinates move: all are 0 or 1."""
        return self.scale is not None and set(self.scale) <= {0.0, 1.0}

    @property
    def units(self) -> str:
        """The units of radii and distances, in words."""
        if self.p == 0:
            return "coordinates"
        return "units of the input" if self.scale is None or self.mask else "units of the scale"

    @property
    def coordinates(self) -> int | None:
        """The number of coordinates for which scales or ends of the domain are given; None if there are none."""
        if self.scale is not None:
            return len(self.scale)
        low = None if self.domain is None else self.domain[0]
        return len(low) if isinstance(low, tuple) else None

    def ends(self, x: Any) -> tuple[Any, Any]:
        """Return the ends of the domain for the inputs in a tensor `x`, infinities if there is no domain.

        They are numbers, or tensors like `x` of the shape of one input: of the last axes of `x`.
        """
        low, high = (-math.inf, math.inf) if self.domain is None else self.domain
        if not (isinstance(low, tuple) and isinstance(high, tuple)):
            return low, high
        sizes, axes = list(x.shape), 0
        while math.prod(sizes[len(sizes) - axes :]) < len(low) and axes < len(sizes):
            axes += 1
        shape = sizes[len(sizes) - axes :]
        return x.new_tensor(low).view(shape), x.new_tensor(high).view(shape)

    def clamp(self, x: Any) -> Any:
        """Move the points in a tensor into the domain."""
        return x if self.domain is None else x.clamp(*self.ends(x))

    def __str__(self) -> str:
        """Name, domain and units, as reports print them."""
        text = self.name
        if self.domain is not None:
            low, high = self.domain
            if isinstance(low, tuple) and isinstance(high, tuple):
                text += f" in a box of {len(low)} ranges within [{min(low):g}, {max(high):g}]"
            else:
                text += f" in [{low:g}, {high:g}]"
        if self.scale is None:
            return text
        moving = [one for one in self.scale if one]
        some = "" if len(moving) == len(self.scale) else f"{len(moving)} of {len(self.scale)} coordinates move"
        if not self.mask:
            spread = f"{min(moving):g}" if min(moving) == max(moving) else f"{min(moving):g} to {max(moving):g}"
            text += f", in units of the scale ({spread})"
        return f"{text}, {some}" if some else text


@lru_cache(maxsize=64)
def threat_of(p: float, domain: Domain | None, scale: Numbers | None) -> ThreatModel:
    """Return a threat model; for many rows it is made once."""
    return ThreatModel(p, domain, scale)


def written(domain: Domain | None, scale: Numbers | None) -> Any:
    """Return what files have under "domain": the domain alone, or an object if there are scales."""
    return domain if scale is None else {"domain": domain, "scale": scale}


def read(values: Any) -> tuple[Domain | None, Numbers | None]:
    """Read what `written` wrote.

    Raises:
        ConfigError: it is something else.
    """
    domain, scale = values, None
    if isinstance(values, dict):
        if values.keys() != {"domain", "scale"}:
            raise ConfigError(f"{_short(values)} is no domain with scales", ("domain",))
        domain, scale = values["domain"], values["scale"]
    return None if domain is None else _pair(domain), None if scale is None else _scales(scale, 1.0)


def holds(outer: Domain | None, inner: Domain | None) -> bool:
    """Say whether a box holds another one; None is all of R^d."""
    if outer is None or inner is None:
        return outer is None
    count = max(len(end) if isinstance(end, tuple) else 1 for end in (*outer, *inner))
    (low, high), (least, most) = ([_each(end, count) for end in box] for box in (outer, inner))
    return all(a <= b for a, b in zip((*low, *most), (*least, *high), strict=True))


def _each(end: float | Numbers, count: int) -> Numbers:
    return end if isinstance(end, tuple) else (end,) * count


def _norm(given: Any) -> float:
    """Read a norm."""
    text = NAME.fullmatch(given.strip()) if isinstance(given, str) else None
    try:
        p = float(text[1]) if text else math.nan if isinstance(given, str | bool) else float(given)
    except (TypeError, ValueError):
        p = math.nan
    if p not in (0.0, 1.0, 2.0, math.inf):
        raise ConfigError(f"norm {given!r} is unknown; write 1, 2 or inf, or 0 to count coordinates", ("p",))
    return p


def _pair(given: Any) -> Domain:
    """Read a domain."""
    try:
        low, high = (_numbers(end) for end in given)
    except (TypeError, ValueError):
        low = high = (math.nan,)
    if any(map(math.isnan, (*low, *high))):
        problem = "is no pair of numbers; write (low, high), the same for every coordinate or one number for each"
        raise ConfigError(f"domain {_short(given)} {problem}", ("domain",))
    count = max(len(low), len(high))
    if not low or not high:
        raise ConfigError("the domain has no numbers; write (low, high)", ("domain",))
    if len(low) == len(high) == 1 and not any(map(_many, given)):
        if not low < high:
            raise ConfigError(f"domain {given!r} is empty; write [low, high], low < high", ("domain",))
        return low[0], high[0]
    low, high = (end * count if len(end) == 1 else end for end in (low, high))
    if len(low) != len(high):
        raise ConfigError(f"the domain has {len(low)} lower and {len(high)} upper ends; write as many", ("domain",))
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        if not (least <= most and least < math.inf and most > -math.inf):
            raise ConfigError(f"the domain of coordinate {i}, [{least:g}, {most:g}], is empty", ("domain",))
    return low, high


def _shapes(parts: Any) -> frozenset[tuple[int, ...]]:
    """Return the shapes of arrays and tensors with several axes."""
    shapes = (getattr(part, "shape", ()) for part in (() if parts is None else parts))
    return frozenset(tuple(map(int, shape)) for shape in shapes if len(shape) > 1)


def _scales(given: Any, p: float) -> Numbers:
    """Read scales, or a mask."""
    try:
        scale = _numbers(given, truth=True) if _many(given) else (math.nan,)
    except (TypeError, ValueError):
        scale = (math.nan,)
    if not all(0 <= one < math.inf for one in scale):
        problem = "is no list of finite numbers >= 0; write one per coordinate, 0 where it does not move"
        raise ConfigError(f"scale {_short(given)} {problem}", ("scale",))
    if not any(scale):
        raise ConfigError("no scale is positive, so no coordinate moves; there is nothing to certify", ("scale",))
    if p == 0 and not set(scale) <= {0.0, 1.0}:
        raise ConfigError("L0 counts coordinates; write a scale of 0 or 1 for each", ("scale",))
    return scale


def _many(given: Any) -> bool:
    """Say whether something is a sequence, an array or a tensor with axes."""
    return len(getattr(given, "shape", (1,))) > 0 and hasattr(given, "__iter__") and not isinstance(given, str | dict)


def _numbers(given: Any, truth: bool = False) -> Numbers:
    """Read a number, or the numbers of a sequence, an array or a tensor of any shape; `truth`: True and False count."""

    def each(part: Any) -> Iterator[float]:
        if isinstance(part, list | tuple):
            for entry in part:
                yield from each(entry)
        elif isinstance(part, str) or (isinstance(part, bool) and not truth):
            raise TypeError("not a number")
        else:
            yield float(part)

    return tuple(each(given.tolist() if hasattr(given, "tolist") else list(given) if _many(given) else given))


def _short(given: Any) -> str:
    text = " ".join(repr(given).split())
    return text if len(text) < 80 else f"{text[:76]} ..."


L0 = ThreatModel(0.0)
L1 = ThreatModel(1.0)
L2 = ThreatModel(2.0)
Linf = ThreatModel(math.inf)
