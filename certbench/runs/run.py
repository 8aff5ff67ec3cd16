"""Run a suite: every certifier on every model, norm and input; rows are stored as they come, and runs resume."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from certbench.core.claims import Outcome
from certbench.errors import ConfigError
from certbench.files.locking import FolderLock
from certbench.files.writing import write
from certbench.results.folder import MANIFEST, RESULTS
from certbench.results.rows import Estimate, Row
from certbench.results.store import Store
from certbench.runs import executors
from certbench.runs.events import Watcher, gently
from certbench.runs.keys import hashes
from certbench.runs.load import load
from certbench.runs.manifest import history_of, manifest_of
from certbench.runs.plan import correct, pairs_of, wanted_attacks, wanted_estimates
from certbench.runs.stages import Desk, Stage, attacks, certificates, estimates, perform, source_of
from certbench.runs.suite import Suite
from certbench.runs.threats import with_threats

_ERRORS = frozenset({Outcome.FAILED, Outcome.OUT_OF_MEMORY})

RERUN = {
    "errors": _ERRORS,
    "timeouts": _ERRORS | {Outcome.TIMED_OUT},
    "unsupported": _ERRORS | {Outcome.UNSUPPORTED},
    "all": frozenset(Outcome),
    "none": frozenset[Outcome](),
}
"""Stored outcomes that each choice of `rerun` computes again. `errors` is the default: a failure is never an answer.
What is computed again and not answered leaves a stored answer as it is."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        rows: the rows, in the order of the suite.
        manifest: what was run, with which versions, on which machine.
        computed: number of rows, attacks and estimates computed this time; 0 if everything was already stored.
        unaudited: number of inputs of base classifiers on which the attacks failed.
        folder: folder in which the run is stored.
        estimates: guesses beside the attacks, if the suite asks for some; they prove nothing.
        missing: number of rows that have not been computed: those of other shards.
    """

    rows: list[Row]
    manifest: dict[str, Any]
    computed: int
    unaudited: int
    folder: Path
    estimates: list[Estimate]
    missing: int = 0


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run, on machines of their own. Inputs belong to parts by their hashes.

    Attributes:
        number: number of the part, from 1.
        of: number of parts.

    Raises:
        ConfigError: there is no such part.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(
                f"there is no shard {self}; write 1/{max(self.of, 1)} to {max(self.of, 1)}/{max(self.of, 1)}"
            )

    def __str__(self) -> str:
        """Write it as the command line does."""
        return f"{self.number}/{self.of}"

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Read a shard as the command line has it: `2/8`.

        Raises:
            ConfigError: it is none.
        """
        number, _, of = text.partition("/")
        if not (number.isascii() and number.isdecimal() and of.isascii() and of.isdecimal()):
            raise ConfigError(f"{text!r} is no shard; write the number of the part and of all parts, as 2/8")
        return cls(int(number), int(of))

    def places(self, digests: Sequence[str]) -> frozenset[int]:
        """Return the places of its inputs."""
        return frozenset(i for i, digest in enumerate(digests) if int(digest[:15], 16) % self.of == self.number - 1)


def run(
    suite: Suite,
    folder: Path,
    watcher: Watcher,
    *,
    rerun: str = "errors",
    threads: int = 1,
    executor: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    shard: Shard | None = None,
) -> Finished:
    """Compute what the folder does not hold yet, and nothing else.

    Args:
        suite: what to run.
        folder: folder of the run, created if it is missing. It holds `results.db`, `manifest.json` with the history of
            all calls, and, after errors, `errors.log`.
        watcher: observer of the run's progress.
        rerun: a key of `RERUN`.
        threads: number of torch's threads, in each process.
        executor: key of `certbench.runs.executors.TABLE` of the executor that computes; None: the suite's.
        workers: largest number of processes, 0: as many as there are cores; None: the suite's.
        address: address of the cluster, for the executor `ray`; None: that of the environment, or this machine.
        shard: part of the inputs that is computed; None: all of them.

    Raises:
        ConfigError: a model or the data cannot be loaded; nothing has run.
        MissingBackendError: a package that is needed is not installed.
        StoreError: the folder cannot be written, or another run is writing it; stored results stay.
        Interrupted: Ctrl-C was pressed; computed results are stored.
    """
    torch.set_num_threads(threads)
    workers = suite.settings.workers if workers is None else workers
    executor = suite.settings.executor if executor is None else executor
    computer = executors.find(executor, executors.Settings(workers, threads, address))
    dataset, models = load(suite)
    suite = with_threats(suite, dataset)
    inputs = dataset.inputs[: suite.settings.inputs].double()
    labels = dataset.labels[: suite.settings.inputs]

    lock = FolderLock(folder)
    try:
        store = Store(folder / RESULTS)
    except BaseException:
        lock.close()
        raise
    try:
        manifest = manifest_of(suite, dataset, models, threads) | {"executor": {"name": executor, "workers": workers}}
        manifest |= {} if shard is None else {"shard": str(shard)}
        call = {"started": manifest["started"], "command": manifest["command"], "executor": executor}
        manifest["history"] = [*history_of(folder), call]
        start = time.perf_counter()
        mine = (shard or Shard()).places(hashes(inputs))
        pairs = list(pairs_of(suite, models, inputs, labels))
        asked = suite.settings.attacks.steps or suite.settings.clever
        claimed = wanted_attacks(models, inputs, pairs) if asked else {}
        guesses = wanted_estimates(suite, inputs, correct(claimed, inputs, labels) if suite.settings.clever else {})
        store.plan([planned for pair in pairs for planned in pair.planned], [e for _, _, part in guesses for e in part])
        # right after the plan, so that no table has the name of another suite
        write(folder / MANIFEST, json.dumps(manifest, indent=2))
        stored, attacked, estimated = store.times(), store.attacked(), store.estimated()
        fresh = {key: seconds for key, (outcome, seconds) in stored.items() if outcome not in RERUN[rerun]}
        wanted = claimed if suite.settings.attacks.steps else {}
        wanted = {model: [(i, keys) for i, keys in entries if i in mine] for model, entries in wanted.items()}
        guesses = [(model, threat, [e for e in part if e.input in mine]) for model, threat, part in guesses]
        total = len(pairs) * len(mine) + sum(len(indices) for indices in wanted.values())
        total += sum(len(part) for _, _, part in guesses)
        done = sum(p.key in fresh for pair in pairs for p in pair.planned if p.input in mine)
        done += sum(attacked.keys() >= set(keys.values()) for model in wanted for _, keys in wanted[model])
        done += sum(e.key in estimated for _, _, part in guesses for e in part)
        watcher.data(f"data {dataset.name}: {'; '.join(dataset.done)}")
        watcher.begin(total, done)

        desk = Desk(store, watcher, folder)
        sources = {model: source_of(suite, model, manifest["models"][model.name]) for model in models}
        stages: list[Stage] = []
        for model in wanted:
            stages += attacks(suite, desk, sources[model], inputs, wanted[model], attacked)
        for pair in pairs:
            stages += certificates(suite, desk, sources[pair.classifier], pair, inputs, fresh, mine)
        for model, threat, part in guesses:
            stages += estimates(suite, desk, sources[model], threat, inputs, part, estimated) if part else []

        def ended(how: str) -> None:
            time_spent = round(time.perf_counter() - start, 1)
            manifest[how] = datetime.now(UTC).isoformat(timespec="seconds")
            call.update({how: manifest[how], "seconds": time_spent})
            write(folder / MANIFEST, json.dumps(manifest, indent=2))

        try:
            with gently(watcher.now, watcher.left) as stop:
                computed = perform(stages, desk, computer, stop)
        except KeyboardInterrupt:
            ended("interrupted")
            raise
        attacked = store.attacked()
        unaudited = sum(not attacked.keys() >= set(keys.values()) for model in wanted for _, keys in wanted[model])
        ended("finished")
        missing = store.missing()
        return Finished(store.rows(), manifest, computed, unaudited, folder, store.estimates(), missing)
    finally:
        store.close()
        lock.close()
