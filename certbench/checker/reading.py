"""The format of certificate files, read strictly: unknown, missing and repeated fields and NaN are refused."""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = 1
NORMS = {"1": 1.0, "2": 2.0, "inf": math.inf}
GUARANTEES = ("sound", "complete", "probabilistic")
SUBJECTS = ("base", "smoothed")


class Unreadable(Exception):
    """The file is no certificate, or not one of this version; the message says why."""


class Refused(Exception):
    """The file is a certificate, but does not prove what it claims; the message says why."""


@dataclass(frozen=True, eq=False)
class Claim:
    """The claim of a certificate; `statement` says it in words.

    Attributes:
        input: the flat input.
        norm: 1, 2 or inf.
        domain: the box that perturbed inputs stay in, or None for all of R^d.
        prediction: the class.
        radius: radius of the ball in which the class stays the same.
        subject: "base" or "smoothed".
        guarantee: "sound", "complete" or "probabilistic".
        network: sha256 of the network file; None for a smoothed classifier.
        logits: the logits at the input, up to rounding; None for a smoothed classifier.
        shape: shape of the input.
    """

    input: np.ndarray
    norm: float
    domain: tuple[float, float] | None
    prediction: int
    radius: float
    subject: str
    guarantee: str
    network: str | None = None
    logits: np.ndarray | None = None
    shape: tuple[int, ...] = ()


def parse(data: bytes) -> dict[str, Any]:
    """Read JSON; refuse NaN, infinities and repeated names."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise Unreadable(f"a field is given twice, among {sorted(name for name, _ in pairs)}")
        return dict(pairs)

    def real(text: str) -> float:
        if not math.isfinite(float(text)):
            raise Unreadable(f"{text} is no number here")
        return float(text)

    if data.count(b"[") + data.count(b"{") > 5000:  # nested so deep, they could exhaust the stack
        raise Unreadable("it has more lists and objects than a certificate or a network can have")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=real, parse_float=real)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Unreadable("not a JSON object")
    return value


def seal(content: Mapping[str, Any]) -> str:
    """Compute the sha256 of all fields but the seal, in canonical JSON."""
    rest = {name: value for name, value in content.items() if name != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fields(value: Any, names: Iterable[str], where: str) -> list[Any]:
    """Return the fields of these names, in this order; refuse missing and unknown ones."""
    names = list(names)
    if not isinstance(value, dict):
        raise Unreadable(f"{where} must be an object with {', '.join(names)}")
    for kind, odd in (("unknown", set(value) - set(names)), ("missing", set(names) - set(value))):
        if odd:
            raise Unreadable(f"{where}: {kind} field {', '.join(sorted(odd))}")
    return [value[name] for name in names]


def number(value: Any, where: str) -> float:
    """Return a value that must be a finite number."""
    try:
        result = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        result = math.nan
    if not math.isfinite(result) or result != value:
        raise Unreadable(f"{where} must be a finite number")
    return result


def whole(value: Any, where: str, least: int = 0) -> int:
    """Return a value that must be a whole number, at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise Unreadable(f"{where} must be a whole number, at least {least}")
    return value


def text(value: Any, where: str, choices: Iterable[str] | None = None) -> str:
    """Return a value that must be text, and one of `choices` if they are given."""
    if not isinstance(value, str) or (choices is not None and value not in choices):
        raise Unreadable(f"{where} must be {'text' if choices is None else 'one of ' + ', '.join(choices)}")
    return value


def items(value: Any, where: str) -> list[Any]:
    """Return a value that must be a list."""
    if not isinstance(value, list):
        raise Unreadable(f"{where} must be a list")
    return value


def array(value: Any, where: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """Read an array of finite doubles; `shape` is the expected shape, with None for any length."""
    size, data = fields(value, ("shape", "float64"), where)
    found = tuple(whole(n, f"{where}.shape") for n in items(size, f"{where}.shape"))
    fits = shape is None or (
        len(shape) == len(found) and all(a in (None, b) for a, b in zip(shape, found, strict=True))
    )
    if not fits:
        raise Unreadable(f"{where} has the shape {found}, not {shape}")
    try:
        raw = base64.b64decode(text(data, where), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreadable(f"{where}: {error}") from error
    if len(raw) != 8 * math.prod(found) or base64.b64encode(raw).decode() != data:
        raise Unreadable(f"{where} does not hold the numbers that its shape says")
    result = np.frombuffer(raw, dtype="<f8").astype(np.float64).reshape(found)
    if not np.isfinite(result).all():
        raise Unreadable(f"{where} has numbers that are NaN or infinite")
    return result


def written(value: np.ndarray) -> dict[str, Any]:
    """Write an array as `array` reads it."""
    exact = np.ascontiguousarray(value, dtype="<f8")
    return {"shape": list(np.shape(value)), "float64": base64.b64encode(exact.tobytes()).decode()}


def input_hash(shape: tuple[int, ...], values: np.ndarray) -> str:
    """Compute the sha256 of an input, as certbench's stores do."""
    exact = np.ascontiguousarray(values, dtype="<f8")
    return hashlib.sha256(repr(tuple(shape)).encode() + exact.tobytes()).hexdigest()


def claim(value: Any) -> Claim:
    """Read the claim of a certificate; its statement must say what its numbers say."""
    names = ("classifier", "input", "norm", "domain", "prediction", "radius", "guarantee", "subject", "logits")
    *parts, words = fields(value, (*names, "statement"), "claim")
    classifier, point, norm, domain, prediction, radius, guarantee, subject, logits = parts
    fingerprint, network, name = fields(classifier, ("fingerprint", "network", "name"), "claim.classifier")
    text(fingerprint, "claim.classifier.fingerprint")
    text(name, "claim.classifier.name")
    values, digest = fields(point, ("array", "sha256"), "claim.input")
    x = array(values, "claim.input.array")
    if x.size == 0 or text(digest, "claim.input.sha256") != input_hash(x.shape, x):
        raise Unreadable("claim.input.sha256 is not that of claim.input.array")
    box = None
    if domain is not None:
        ends = [number(end, "claim.domain") for end in items(domain, "claim.domain")]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise Unreadable("claim.domain must be null or [low, high], low < high")
        box = ends[0], ends[1]
        if not bool(((x >= box[0]) & (x <= box[1])).all()):
            raise Refused("the input lies outside the domain")
    result = Claim(
        input=x.reshape(-1),
        norm=NORMS[text(norm, "claim.norm", NORMS)],
        domain=box,
        prediction=whole(prediction, "claim.prediction"),
        radius=number(radius, "claim.radius"),
        subject=text(subject, "claim.subject", SUBJECTS),
        guarantee=text(guarantee, "claim.guarantee", GUARANTEES),
        network=None if network is None else text(network, "claim.classifier.network"),
        logits=None if logits is None else array(logits, "claim.logits", (None,)),
        shape=x.shape,
    )
    if not result.radius > 0:
        raise Refused("a radius that is not positive claims nothing")
    if text(words, "claim.statement") != statement(result):
        raise Refused(f"claim.statement does not say what is claimed: {statement(result)}")
    return result


def statement(claim: Claim) -> str:
    """Write the claim in words."""
    ball = f"every point at L{claim.norm:g} distance at most {claim.radius!r} from the input"
    ball += "" if claim.domain is None else f" whose coordinates lie in [{claim.domain[0]!r}, {claim.domain[1]!r}]"
    if claim.subject == "base":
        network = "the network" if claim.network is None else f"the network {claim.network[:16]}"
        return f"At {ball}, in exact real arithmetic, {network} has its largest output at class {claim.prediction}."
    odds = "; over the draws, this is wrong with at most the probability alpha of the evidence"
    odds = odds if claim.guarantee == "probabilistic" else ""
    return f"At {ball}, the smoothed classifier predicts class {claim.prediction}{odds}."
