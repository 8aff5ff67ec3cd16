"""An independent checker of certificate files: numpy and the standard library; no torch, no solver, no certbench.

`check` re-derives what a file claims from the evidence in it; nothing in the file is believed. It reads a certificate
(`reading`), the network that the claim is about (`network`), and hands both to the rule for the kind of evidence:
`relaxation` (interval arithmetic and linear relaxations), `lipschitz`, `semidefinite` or `counts`. Every bound is
computed with its rounding errors enclosed (`rounding`), and is about the network in exact real arithmetic.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from certbench.checker import network, reading
from certbench.checker.reading import Claim, Refused, Unreadable

KINDS = {
    "interval": "relaxation",
    "relaxation": "relaxation",
    "lipschitz": "lipschitz",
    "semidefinite": "semidefinite",
    "counts": "counts",
}
EXITS = {"accepted": 0, "unreadable": 2, "refused": 3}


@dataclass(frozen=True)
class Verdict:
    """What became of a file.

    Attributes:
        status: "accepted", "refused" (it does not prove what it claims) or "unreadable".
        reason: why it is not accepted; of an accepted file, what it proves.
    """

    status: str
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether the claim is proved."""
        return self.status == "accepted"


def check(path: Path | str) -> Verdict:
    """Read a certificate file and prove its claim, or say why not. Its network file lies beside it."""
    try:
        with np.errstate(all="ignore"):  # what overflows ends as a refusal
            claim, reason = _check(Path(path))
    except Unreadable as error:
        return Verdict("unreadable", str(error))
    except Refused as error:
        return Verdict("refused", str(error))
    except (MemoryError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return Verdict("refused", f"{type(error).__name__}: {error}")  # no reason that was foreseen
    return Verdict("accepted", reading.statement(claim)) if reason is None else Verdict("refused", reason)


def run(files: Sequence[Path | str], out: Any) -> int:
    """Check files, and those in folders, and print a line for each; the exit code is that of the worst one."""
    worst, count, total = 0 if files else 2, 0, 0
    for path in map(Path, files):
        found = sorted(part for part in path.glob("*.json") if not part.name.startswith("network-"))
        for file in found if path.is_dir() else [path]:
            verdict = check(file)
            out.print(_one_line(f"{file}: {verdict.status}: {verdict.reason}"))
            worst, count, total = max(worst, EXITS[verdict.status]), count + verdict.accepted, total + 1
        if path.is_dir() and not found:
            out.print(_one_line(f"{path}: unreadable: a folder without certificates"))
            worst = max(worst, EXITS["unreadable"])
    out.print(f"{count} of {total} accepted")
    return worst


def _one_line(words: str) -> str:
    """Text without what a terminal acts upon: a file that is read must not write lines of its own."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def _check(path: Path) -> tuple[Claim, str | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot read it: {error}") from error
    content = reading.parse(data)
    names = ("format", "version", "claim", "made_by", "evidence", "seal")
    format_, version, claimed, made_by, evidence, sealed = reading.fields(content, names, "certificate")
    if (format_, repr(version)) != ("certbench-certificate", "1"):
        raise Unreadable("no certificate of version 1")
    if sealed != reading.seal(content):
        raise Refused("the seal is not that of the content: something was changed")
    reading.fields(made_by, ("certifier", "certbench", "versions", "stored_radius"), "made_by")
    claim = reading.claim(claimed)
    if not isinstance(evidence, dict):
        raise Unreadable("evidence must be an object")
    kind = reading.text(evidence.get("kind"), "evidence.kind", KINDS)
    read = None if claim.network is None else _network(path.parent, claim)
    rule = importlib.import_module(f"certbench.checker.{KINDS[kind]}")
    return claim, rule.check(claim, evidence, read)


def _network(folder: Path, claim: Claim) -> network.Network:
    """The network of a claim about a network, which has to take its input and give its logits."""
    digest = str(claim.network)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Unreadable("claim.classifier.network is no sha256")
    found = _read(folder / f"network-{digest[:16]}.json", digest)
    if (claim.subject, claim.guarantee) != ("base", "sound"):
        raise Refused("what is proved about a network is sound, and of no smoothed one")
    if claim.shape != found.shape:
        raise Refused(f"the network takes inputs of shape {found.shape}, not {claim.shape}")
    if not claim.prediction < found.outputs or found.outputs < 2:
        raise Refused(
            f"the network has {found.outputs} outputs, of which {claim.prediction} cannot be the largest of several"
        )
    logits = found.evaluate(claim.input)
    if claim.logits is None or claim.logits.shape != logits.shape:
        raise Unreadable("claim.logits must have a number for each output")
    if not (np.abs(claim.logits - logits) <= 1e-9 * np.abs(logits).max()).all():
        raise Refused("claim.logits are not those of the network at the input")
    if int(np.argmax(claim.logits)) != claim.prediction:
        raise Refused("claim.prediction is not the largest of claim.logits")
    return found


@lru_cache(maxsize=2)
def _read(path: Path, digest: str) -> network.Network:
    return network.read(path, digest)


def main() -> int:
    """Check the files named on the command line."""

    class Out:
        print = staticmethod(print)

    return run(sys.argv[1:], Out())
