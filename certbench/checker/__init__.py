"""An independent checker of certificate files: numpy and the standard library; no torch, no solver, no certbench.

`check_file` re-derives what a file claims from the evidence in it; nothing in the file is believed. It reads a
certificate (`reading`), the network that the claim is about (`network`), and hands both to the rule for the kind of
evidence: `relaxation` (interval arithmetic and linear relaxations), `lipschitz`, `semidefinite` or `counts`. Every
bound is computed with its rounding errors enclosed (`rounding`), and is about the network in exact real arithmetic.
`check` does so for several files.
"""

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from certbench.checker import network, reading
from certbench.checker.reading import Claim, Refused, Unreadable

KINDS = {  # the module of the rule for each kind of evidence
    "interval": "relaxation",
    "relaxation": "relaxation",
    "lipschitz": "lipschitz",
    "semidefinite": "semidefinite",
    "counts": "counts",
}
EXITS = {"accepted": 0, "unreadable": 2, "refused": 3}
"""Exit code for each status. The codes are those of `certbench.exit_codes`, written again, so that this folder and
numpy suffice to check a file; a test compares the numbers."""


@dataclass(frozen=True)
class Verdict:
    """The result of checking a file.

    Attributes:
        status: "accepted", "refused" (it does not prove what it claims) or "unreadable".
        reason: why it is not accepted; for an accepted file, what it proves.
    """

    status: str
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether the claim is proved."""
        return self.status == "accepted"


@dataclass(frozen=True)
class Checked:
    """The result of checking several files.

    Attributes:
        verdicts: each file with its verdict, in the given order; files of a folder are sorted by name.
        empty: folders without a certificate.
    """

    verdicts: tuple[tuple[Path, Verdict], ...]
    empty: tuple[Path, ...] = ()

    @property
    def accepted(self) -> int:
        """Number of files whose claim is proved."""
        return sum(verdict.accepted for _, verdict in self.verdicts)

    @property
    def exit_code(self) -> int:
        """Exit code of the worst file; that of "unreadable" if there is no file or a folder is empty."""
        codes = [EXITS[verdict.status] for _, verdict in self.verdicts]
        return max([*codes, EXITS["unreadable"]] if self.empty or not codes else codes)

    @property
    def summary(self) -> str:
        """Number of accepted files, as a line of text."""
        return f"{self.accepted} of {len(self.verdicts)} accepted"


def check(
    files: Path | str | Iterable[Path | str], watch: Callable[[Path, Verdict], None] = lambda file, verdict: None
) -> Checked:
    """Check certificate files with numpy alone; nothing in a file is believed.

    Args:
        files: paths of files, or of folders of them.
        watch: function that is called with each file, and each folder without certificates, as soon as it is done.

    Returns:
        A verdict for each file, also if it cannot be read: whether it proves its claim, and why not.
    """
    verdicts, empty = list[tuple[Path, Verdict]](), list[Path]()
    for path in map(Path, [files] if isinstance(files, str | Path) else files):
        found = sorted(part for part in path.glob("*.json") if not part.name.startswith("network-"))
        for file in found if path.is_dir() else [path]:
            verdicts.append((file, check_file(file)))
            watch(*verdicts[-1])
        if path.is_dir() and not found:
            empty.append(path)
            watch(path, Verdict("unreadable", "a folder without certificates"))
    return Checked(tuple(verdicts), tuple(empty))


def check_file(path: Path | str) -> Verdict:
    """Read a certificate file and prove its claim, or say why not. Its network file must lie in the same folder."""
    try:
        with np.errstate(all="ignore"):  # what overflows ends as a refusal
            claim, reason = _check(Path(path))
    except Unreadable as error:
        return Verdict("unreadable", str(error))
    except Refused as error:
        return Verdict("refused", str(error))
    except (MemoryError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return Verdict("refused", f"{type(error).__name__}: {error}")  # an unforeseen reason
    return Verdict("accepted", reading.statement(claim)) if reason is None else Verdict("refused", reason)


def told(file: Path, verdict: Verdict) -> str:
    """Write a verdict as a line; escape what a terminal would act upon, so that a file cannot print its own lines."""
    words = f"{file}: {verdict.status}: {verdict.reason}"
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
    """Read the network of a claim. It must take the claim's input and give the claim's logits."""
    digest = str(claim.network)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Unreadable("claim.classifier.network is no sha256")
    found = _read(folder / f"network-{digest[:16]}.json", digest)
    if (claim.subject, claim.guarantee) != ("base", "sound"):
        raise Refused("a claim about a network must be sound, and about the base classifier")
    if claim.shape != found.shape:
        raise Refused(f"the network takes inputs of shape {found.shape}, not {claim.shape}")
    if not claim.prediction < found.outputs or found.outputs < 2:
        raise Refused(
            f"the network has {found.outputs} outputs: class {claim.prediction} cannot be the largest of several"
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
    checked = check(sys.argv[1:], lambda file, verdict: print(told(file, verdict)))
    print(checked.summary)
    return checked.exit_code
