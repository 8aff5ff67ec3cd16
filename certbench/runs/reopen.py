"""Stored runs, opened again: rows, and the model and data at hand, which the run's keys prove to be its own."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from certbench.attacks.battery import VERSION
from certbench.core import options
from certbench.core.certifier import Certifier
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import CertbenchError, ConfigError
from certbench.results.folder import MANIFEST, RunFolder
from certbench.results.rows import Row
from certbench.runs.keys import attack_key, hashes, row_key
from certbench.runs.load import load as load_suite
from certbench.runs.suite import Suite, SuiteFile


@dataclass(frozen=True)
class StoredRow:
    """A row of the run, and the keys under which it and its counterexample are stored."""

    row: Row
    key: str
    attack: str

    @property
    def threat(self) -> ThreatModel:
        """The row's threat model."""
        return ThreatModel(self.row.norm, self.row.domain)


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run whose models and data are at hand, which its keys prove.

    Attributes:
        folder: where it lies.
        settings: of its suite.
        models: by name.
        inputs: of the data, float64.
        entries: its rows, in the order of the suite.
    """

    folder: Path
    settings: SuiteFile
    models: Mapping[str, Classifier]
    inputs: Float[Tensor, "n ..."]
    entries: list[StoredRow]

    @cached_property
    def _parts(self) -> tuple[dict[str, str], list[str]]:
        """What keys know of the models and of the inputs."""
        return {name: model.fingerprint() for name, model in self.models.items()}, hashes(self.inputs)

    def _common(self, entry: StoredRow) -> tuple[str, str, ThreatModel, int]:
        prints, digests = self._parts
        row = entry.row
        if row.model not in prints or not 0 <= row.input < len(digests):
            raise ConfigError(f"the manifest in {self.folder} does not know model {row.model!r} or input {row.input}")
        return prints[row.model], digests[row.input], entry.threat, self.settings.seed

    def check(self, entry: StoredRow) -> None:
        """Refuse a row whose counterexample is, by its key, one of another model or other data.

        Raises:
            ConfigError: it is.
        """
        steps = self.settings.attacks.steps
        keys = [attack_key(*self._common(entry), steps, version) for version in range(1, VERSION + 1)]
        if entry.attack not in keys:
            raise ConfigError(
                f"the results in {self.folder} were not computed on this model and these data, by their keys "
                f"({entry.row.model}, input {entry.row.input}); run the suite again"
            )

    def proves(self, entry: StoredRow) -> bool:
        """Whether a row's own key is that of this model, input and certifier, today's version or an earlier one.

        What the row says of the certifier beside its options, which the key does not know, has to be so.
        """
        with suppress(CertbenchError):
            certifier = options.build(entry.row.spec)
            if (certifier.guarantee, certifier.subject) != (entry.row.guarantee, entry.row.subject):
                return False
        common = self._common(entry)
        return entry.key in (row_key(*common, entry.row.spec, v) for v in _versions(entry.row.spec))

    def certifier(self, entry: StoredRow) -> Certifier[Any]:
        """The certifier of a row, if the row is an answer of today's version for this model and input.

        Raises:
            ConfigError: it is not.
        """
        certifier = options.build(entry.row.spec)
        if entry.key != row_key(*self._common(entry), dict(entry.row.spec), options.versions(certifier)):
            raise ConfigError(
                f"the answer of {entry.row.certifier} on {entry.row.model}, input {entry.row.input}, was given by "
                "another version of the certifier, or for another model or input; run the suite again"
            )
        return certifier


def reopen(folder: Path) -> StoredRun:
    """Open a run, with its models and data.

    Raises:
        ConfigError: there is no run, or the model or data at hand are not those of the run.
        StoreError: it cannot be read.
    """
    run = RunFolder(folder)

    def content(manifest: Any) -> tuple[SuiteFile, dict[str, str], str]:
        settings = SuiteFile.model_validate(manifest["suite"])
        return settings, dict(manifest["models"]), str(manifest["data"]["sha256"])

    settings, known, sha256 = run.manifest(content)
    dataset, models = load_suite(Suite(settings, (), (), {}, folder / MANIFEST))
    for model in models:
        fingerprint = model.fingerprint()
        if known.get(model.name) != fingerprint:
            raise ConfigError(
                f"model {model.name!r} is not the one of this run: its fingerprint is {fingerprint[:12]}, the run's "
                f"was {str(known.get(model.name))[:12]}; run the suite again, or bring the old weights and code back"
            )
    if dataset.fingerprint() != sha256:
        raise ConfigError(f"the data {settings.data!r} are not those of this run; run the suite again")
    with run.store() as store:
        entries = [StoredRow(*found) for found in store.keyed_rows()]
    inputs = dataset.inputs[: settings.inputs].double()
    return StoredRun(folder, settings, {model.name: model for model in models}, inputs, entries)


def _versions(spec: Mapping[str, Any]) -> Iterator[int | list[Any]]:
    """Versions that a certifier may have had: today's, if it still exists, and small numbers."""
    with suppress(CertbenchError):
        yield options.versions(options.build(spec))
    yield from range(32)
