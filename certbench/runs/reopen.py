"""Stored runs, opened again: their rows, and the models and data, which the run's keys prove to be the same."""

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
from certbench.models.data.npz import scale_of_before
from certbench.results.folder import MANIFEST, RunFolder
from certbench.results.rows import Row
from certbench.runs.keys import attack_key, hashes, row_key
from certbench.runs.load import load as load_suite
from certbench.runs.suite import Suite, SuiteFile


@dataclass(frozen=True)
class StoredRow:
    """A row of the run, and the keys of the row and of its counterexample."""

    row: Row
    key: str
    attack: str

    @property
    def threat(self) -> ThreatModel:
        """The row's threat model."""
        return self.row.threat


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A stored run with its models and data; its keys prove that they are the run's.

    Attributes:
        folder: the run's folder.
        settings: the settings of the run's suite.
        models: the run's models by name.
        inputs: the run's inputs, float64.
        entries: the run's rows, in the order of the suite.
    """

    folder: Path
    settings: SuiteFile
    models: Mapping[str, Classifier]
    inputs: Float[Tensor, "n ..."]
    entries: list[StoredRow]

    @cached_property
    def _parts(self) -> tuple[dict[str, str], list[str]]:
        """Fingerprints of the models and hashes of the inputs, which keys are made of."""
        return {name: model.fingerprint() for name, model in self.models.items()}, hashes(self.inputs)

    def _common(self, entry: StoredRow) -> tuple[str, str, ThreatModel, int]:
        prints, digests = self._parts
        row = entry.row
        if row.model not in prints or not 0 <= row.input < len(digests):
            raise ConfigError(f"the manifest in {self.folder} does not know model {row.model!r} or input {row.input}")
        return prints[row.model], digests[row.input], entry.threat, self.settings.seed

    def check(self, entry: StoredRow) -> None:
        """Refuse a row whose counterexample, by its key, belongs to another model or to other data.

        Raises:
            ConfigError: it does.
        """
        steps = self.settings.attacks.steps
        keys = [attack_key(*self._common(entry), steps, version) for version in range(1, VERSION + 1)]
        if entry.attack not in keys:
            raise ConfigError(
                f"by their keys, the results in {self.folder} were not computed on this model and these data "
                f"({entry.row.model}, input {entry.row.input}); run the suite again"
            )

    def proves(self, entry: StoredRow) -> bool:
        """Say whether a row's key is that of this model, input and certifier, in the current or an earlier version.

        The row's guarantee and subject, which the key does not contain, must be the certifier's.
        """
        with suppress(CertbenchError):
            certifier = options.build(entry.row.spec)
            if (certifier.guarantee, certifier.subject) != (entry.row.guarantee, entry.row.subject):
                return False
        common = self._common(entry)
        return entry.key in (row_key(*common, entry.row.spec, v) for v in _versions(entry.row.spec))

    def certifier(self, entry: StoredRow) -> Certifier[Any]:
        """Return the certifier of a row, if its current version gave the row's answer for this model and input.

        Raises:
            ConfigError: another version gave the answer, or it is for another model or input.
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
        ConfigError: there is no run, or its models or data have changed.
        StoreError: the run cannot be read.
    """
    run = RunFolder(folder)

    def content(manifest: Any) -> tuple[SuiteFile, dict[str, str], str]:
        settings = SuiteFile.model_validate(manifest["suite"])
        return settings, dict(manifest["models"]), str(manifest["data"]["sha256"])

    settings, known, sha256 = run.manifest(content)
    if run.manifest(lambda manifest: isinstance(manifest["suite"]["data"], str)):  # a run of before
        scale = scale_of_before(Path(settings.data.path))
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"scale": scale})})
    dataset, models = load_suite(Suite(settings, (), (), {}, folder / MANIFEST))
    for model in models:
        fingerprint = model.fingerprint()
        if known.get(model.name) != fingerprint:
            raise ConfigError(
                f"model {model.name!r} is not the one of this run: its fingerprint is {fingerprint[:12]}, the run's "
                f"was {str(known.get(model.name))[:12]}; run the suite again, or bring the old weights and code back"
            )
    if dataset.fingerprint() != sha256:
        raise ConfigError(f"the data {settings.data.path!r} are not those of this run; run the suite again")
    with run.store() as store:
        entries = [StoredRow(*found) for found in store.keyed_rows()]
    inputs = dataset.inputs[: settings.inputs].double()
    return StoredRun(folder, settings, {model.name: model for model in models}, inputs, entries)


def _versions(spec: Mapping[str, Any]) -> Iterator[int | list[Any]]:
    """List versions that a certifier may have had: the current one, if it still exists, and small numbers."""
    with suppress(CertbenchError):
        yield options.versions(options.build(spec))
    yield from range(32)
