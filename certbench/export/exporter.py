"""The export of certificates as files that `certbench check` verifies: a stored row's claim and the evidence for it.

The certifier gives a witness at the stored radius. The checker's own functions then find what the witness proves, so
that a bound that the checker cannot reproduce is noticed now. If a witness does not prove the stored radius, because
the search found it in a larger ball, the claim is lowered, to no less than `LEAST` of it; the file says so.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from certbench.checker import check_file, reading
from certbench.checker.network import Network, read
from certbench.checker.reading import Claim, Refused, Unreadable, written
from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.claims import Subject
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, NumericalError, UnsupportedError
from certbench.exit_codes import ExitCode
from certbench.export import network_file
from certbench.export.proof import LEAST, relaxation
from certbench.files.json_text import plain
from certbench.files.writing import write
from certbench.networks.reading import logits_of, relu_network
from certbench.results.rows import Row
from certbench.runs import reopen
from certbench.verifiers.bounds.proof import RelaxationProof
from certbench.verifiers.bounds.state import NetworkState
from certbench.version import __version__

REGIONS = (1.0, 1.001, 1.01, 1.05, 0.9999, LEAST)
"""Relative radii of the balls for which a witness is asked, in this order, until one proves the stored radius."""

NAME_BYTES = 150
"""Maximum length of model and certifier in the name of a file, which may have 255 bytes."""

LOWER = (1.0, 0.9999, LEAST)
"""Relative radii that are claimed with a witness of another kind, in this order, until one is proved."""


@dataclass(frozen=True, eq=False)
class Exporter:
    """A writer of certificates of one classifier.

    Attributes:
        classifier: the classifier.
        folder: folder for the files.
    """

    classifier: Classifier
    folder: Path

    @cached_property
    def network(self) -> tuple[Network, str]:
        """The network from its file, which is written first, and the file's sha256.

        Raises:
            UnsupportedError: there is no network file for this classifier.
        """
        content = network_file.write(self.classifier)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"network-{digest[:16]}.json"
        write(path, content, create_folder=True)
        network = read(path, digest)
        double = logits_of(self.classifier)
        generator = torch.Generator().manual_seed(0)
        for size in (0.1, 1.0, 10.0):
            x = size * torch.randn(1, *double.input_shape, generator=generator, dtype=torch.float64)
            logits = double(x)[0].cpu().numpy()
            if not np.abs(network.evaluate(x.flatten().numpy()) - logits).max() <= 1e-9 * np.abs(logits).max() + 1e-300:
                raise UnsupportedError(f"the network file of {double.name} would compute other logits")
        return network, digest

    def write(self, certifier: Certifier[Any], state: Any, row: Row, x: torch.Tensor) -> tuple[Path, float]:
        """Write the certificate of a row about the input x, and check it.

        Returns:
            The file, and the radius that it claims.

        Raises:
            UnsupportedError: there is no evidence that the checker can verify, or it does not prove the claim.
        """
        if not math.isfinite(row.radius):
            raise UnsupportedError("its radius is infinite; a file claims a number")
        smoothed = row.subject is Subject.SMOOTHED
        low, high = row.domain or (0.0, 1.0)
        if row.scale is not None or isinstance(low, tuple) or isinstance(high, tuple):
            raise UnsupportedError(
                "certificate files have no scales, and one range for all coordinates; export a run with such a threat"
            )
        domain = None if row.domain is None else (float(low), float(high))
        values = x.double().cpu().numpy()
        claim = Claim(
            *(values.reshape(-1), float(row.norm), domain, row.prediction, row.radius),
            *(row.subject.value, row.guarantee.value),
            network=None if smoothed else self.network[1],
            logits=None if smoothed else self.network[0].evaluate(values.reshape(-1)),
            shape=values.shape,
        )
        first = ""
        for lowered, evidence in self.candidates(certifier, state, claim, x, row):
            path = self.put(lowered, evidence, row)
            verdict = check_file(path)
            if verdict.accepted:
                return path, lowered.radius
            path.unlink()
            first = first or verdict.reason
        raise UnsupportedError(f"its evidence does not prove the claim: {first}")

    def candidates(
        self, certifier: Certifier[Any], state: Any, claim: Claim, x: torch.Tensor, row: Row
    ) -> Iterator[tuple[Claim, dict[str, Any]]]:
        """Yield the claim, lowered if its evidence proves less, and that evidence.

        Raises:
            UnsupportedError: there is no evidence.
        """
        if claim.subject == "smoothed":
            yield claim, {"kind": "counts", **row.evidence}
            return
        if not isinstance(certifier, MarginCertifier):
            raise UnsupportedError(f"{row.certifier} has no evidence that certbench check can verify")
        if isinstance(state, NetworkState) and state.network.activations:  # the file has ReLUs alone
            state = replace(state, network=relu_network(self.classifier))
        for factor in LOWER:  # a solver that runs again may miss what it found in the search
            lowered = replace(claim, radius=claim.radius * factor)
            at = torch.tensor([lowered.radius], dtype=torch.float64)
            witness = certifier.witness(state, x[None].double(), torch.tensor([claim.prediction]), at)
            if isinstance(witness, RelaxationProof):
                yield self.proved(certifier, state, claim, x)
                return
            yield lowered, dict(witness)

    def put(self, claim: Claim, evidence: Mapping[str, Any], row: Row) -> Path:
        """Write a file with its seal."""
        values = claim.input.reshape(claim.shape)
        content = {
            "format": "certbench-certificate",
            "version": reading.VERSION,
            "claim": {
                "classifier": {
                    "fingerprint": self.classifier.fingerprint(),
                    "network": claim.network,
                    "name": self.classifier.name,
                },
                "input": {"array": written(values), "sha256": reading.input_hash(values.shape, values)},
                "norm": f"{claim.norm:g}",
                "domain": None if claim.domain is None else list(claim.domain),
                "prediction": claim.prediction,
                "radius": claim.radius,
                "guarantee": claim.guarantee,
                "subject": claim.subject,
                "logits": None if claim.logits is None else written(claim.logits),
                "statement": reading.statement(claim),
            },
            "made_by": {
                "certifier": plain(row.spec),
                "certbench": __version__,
                "versions": {"torch": torch.__version__, "numpy": np.__version__},
                "stored_radius": row.radius,
            },
            "evidence": plain(evidence),
        }
        try:
            content["seal"] = reading.seal(content)
            text = json.dumps(content, indent=1, allow_nan=False)
        except ValueError as error:
            raise UnsupportedError("a number in it is infinite or NaN, which no file may hold") from error
        pair = f"{row.model}-{row.certifier}".encode(errors="replace")[:NAME_BYTES].decode(errors="ignore")
        name = f"{pair}-L{row.norm:g}-{row.input}-{content['seal'][:8]}"
        path = self.folder / ("".join(c if c.isalnum() or c in "-+=.," else "_" for c in name) + ".json")
        write(path, text, create_folder=True)
        return path

    def proved(
        self, certifier: MarginCertifier[Any], state: Any, claim: Claim, x: torch.Tensor
    ) -> tuple[Claim, dict[str, Any]]:
        """Return the claim, lowered if need be, and its evidence.

        Raises:
            UnsupportedError: no witness proves it.
        """
        point, label = x[None].double(), torch.tensor([claim.prediction])
        best: tuple[float, dict[str, Any]] = (0.0, {})
        for factor in REGIONS:
            region = claim.radius * factor
            witness = certifier.witness(state, point, label, torch.tensor([region], dtype=torch.float64))
            best = max(best, relaxation(self.network[0], claim, witness, region), key=lambda found: found[0])
            if best[0] == claim.radius:
                break
        if best[0] < LEAST * claim.radius:
            raise UnsupportedError(f"its evidence only proves radius {best[0]:g}, not {claim.radius:g}")
        return replace(claim, radius=best[0]), best[1]


@dataclass(frozen=True)
class Exported:
    """The result of an export of certificates.

    Attributes:
        folder: folder of the files.
        files: paths, one for each certificate that was written.
        lowered: number of files that claim a little less than the run does, at least `LEAST` of it.
        refused: reasons why rows have no file, each with the number of rows.
    """

    folder: Path
    files: tuple[Path, ...]
    lowered: int
    refused: Mapping[str, int]

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command: `INCOMPLETE` if some rows have no file."""
        return ExitCode.INCOMPLETE if self.refused else ExitCode.OK


def export_certificates(
    run: Path | str,
    into: Path | str,
    *,
    certifier: str | None = None,
    model: str | None = None,
    norm: float | str | None = None,
    inputs: Collection[int] | None = None,
) -> Exported:
    """Write the certificates of a run as files that `certbench.check` verifies, each with its evidence.

    A row without a radius has no certificate. The files are checked as they are written.

    Args:
        run: folder of the run.
        into: folder for the files; made if need be.
        certifier: export this certifier's certificates only; a name, or a label with options.
        model: export this model's certificates only.
        norm: export certificates in this norm only: 1, 2 or inf.
        inputs: export certificates of these inputs only, by their index in the data set.

    Returns:
        The files, and the rows that have none.

    Raises:
        ConfigError: this is no run, no chosen row has a radius, or the model, the data or the version of a certifier
            is not that of the run.
        StoreError: the run cannot be read, or a file cannot be written.
    """
    opened, folder = reopen.reopen(Path(run)), Path(into)
    p = None if norm is None else ThreatModel.of(norm).p
    entries = [
        entry
        for entry in opened.entries
        if entry.row.radius > 0
        and certifier in (None, entry.row.certifier, entry.row.spec.get("name"))
        and model in (None, entry.row.model)
        and p in (None, entry.row.norm)
        and (inputs is None or entry.row.input in inputs)
    ]
    if not entries:
        raise ConfigError(f"{run} has no row with a radius for these options")
    exporters = {name: Exporter(classifier, folder) for name, classifier in opened.models.items()}
    states: dict[tuple[str, str, ThreatModel], Any] = {}
    files, lowered, refused = list[Path](), 0, Counter[str]()
    for entry in entries:
        row, made = entry.row, opened.certifier(entry)
        key = row.model, row.certifier, entry.threat
        try:
            if row.subject is Subject.BASE and row.scale is None and key not in states:
                states = {key: made.prepare(opened.models[row.model], key[2])}  # one at a time: they can be large
            file, radius = exporters[row.model].write(made, states.get(key), row, opened.inputs[row.input])
        except (UnsupportedError, NumericalError, Refused, Unreadable) as error:
            refused[f"{row.certifier} on {row.model}, L{row.norm:g}: {error}"] += 1
            continue
        files.append(file)
        lowered += radius < row.radius
    return Exported(folder, tuple(files), lowered, refused)
