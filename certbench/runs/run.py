"""Run a suite: every certifier on every model, norm and input; rows are stored as they come, and runs resume."""

import hashlib
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from certbench.attacks.battery import VERSION as ATTACK_VERSION
from certbench.attacks.battery import attack
from certbench.attacks.clever import VERSION as CLEVER_VERSION
from certbench.attacks.clever import clever
from certbench.core.certificate import Certificate
from certbench.core.certification import certify, out_of_memory
from certbench.core.certifier import Certifier
from certbench.core.claims import Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.options import describe, label, versions
from certbench.core.threat import ThreatModel
from certbench.errors import CertificationError, ConfigError, MissingBackendError, StoreError, UnsupportedError
from certbench.models import zoo
from certbench.models.data import digits
from certbench.results.rows import Estimate, Row
from certbench.results.store import Counterexample, Planned, PlannedEstimate, Result, Store, content_key, plain
from certbench.runs.suite import ModelSpec, Suite

_ERRORS = frozenset({Outcome.FAILED, Outcome.OUT_OF_MEMORY})
RERUN = {
    "errors": _ERRORS,
    "timeouts": _ERRORS | {Outcome.TIMED_OUT},
    "unsupported": _ERRORS | {Outcome.UNSUPPORTED},
    "all": frozenset(Outcome),
    "none": frozenset[Outcome](),
}
"""Which stored outcomes a choice of `rerun` computes again. `errors` is the default: a failure is never an answer."""

ATTACK_BATCH = 256
"""Inputs attacked at once."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, honoured after the batch at hand was stored."""


@runtime_checkable
class Watcher(Protocol):
    """Who wants to see how a run comes along."""

    def begin(self, total: int, done: int) -> None:
        """So many rows, attacks and estimates are planned, of which so many are stored already."""

    def now(self, text: str) -> None:
        """This is being computed."""

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """So many rows of each outcome were stored."""

    def note(self, text: str) -> None:
        """Something went wrong that does not stop the run."""


@dataclass(frozen=True)
class Finished:
    """A run that came to its end.

    Attributes:
        rows: in the order of the suite.
        manifest: what was run, with which versions, on what.
        computed: rows, attacks and estimates computed this time; 0 if everything was stored already.
        unaudited: correctly classified inputs of base classifiers on which the attacks failed with an error.
        folder: where the run is stored.
        estimates: guesses beside the attacks, if the suite asks for some; they prove nothing.
    """

    rows: list[Row]
    manifest: dict[str, Any]
    computed: int
    unaudited: int
    folder: Path
    estimates: list[Estimate]


@dataclass(frozen=True, eq=False)
class _Pair:
    """All rows of one (model, norm, certifier)."""

    classifier: Classifier
    certifier: Certifier[Any]
    threat: ThreatModel
    planned: list[Planned]


def run(suite: Suite, folder: Path, watcher: Watcher, *, rerun: str = "errors", threads: int = 1) -> Finished:
    """Compute what the folder does not hold yet, and nothing else.

    Args:
        suite: what to run.
        folder: of the run; made if need be. Holds `results.db`, `manifest.json` and, after trouble, `errors.log`.
        watcher: told what happens.
        rerun: a key of `RERUN`.
        threads: of torch.

    Raises:
        ConfigError: a model or the data cannot be loaded; nothing has run.
        StoreError: the folder cannot be written; what was stored stays.
        Interrupted: Ctrl-C; what was computed is stored.
    """
    torch.set_num_threads(threads)
    dataset, models = load(suite)
    inputs = dataset.inputs[: suite.settings.inputs].double()
    labels = dataset.labels[: suite.settings.inputs]

    store = Store(folder / "results.db")
    try:
        manifest = _manifest(suite, dataset, models, threads)
        write(folder / "manifest.json", json.dumps(manifest, indent=2))
        pairs = list(_pairs(suite, models, inputs, labels))
        asked = suite.settings.attacks.steps or suite.settings.clever
        correct = _wanted_attacks(models, inputs, labels, pairs) if asked else {}
        guesses = _wanted_estimates(suite, inputs, correct)
        store.plan([planned for pair in pairs for planned in pair.planned], [e for _, _, part in guesses for e in part])
        stored, attacked, estimated = store.outcomes(), store.attacked(), store.estimated()
        fresh = {key for key, outcome in stored.items() if outcome not in RERUN[rerun]}
        wanted = correct if suite.settings.attacks.steps else {}
        total = sum(len(pair.planned) for pair in pairs) + sum(len(indices) for indices in wanted.values())
        total += sum(len(part) for _, _, part in guesses)
        done = sum(p.key in fresh for pair in pairs for p in pair.planned)
        done += sum(attacked.keys() >= set(keys.values()) for model in wanted for _, keys in wanted[model])
        done += sum(e.key in estimated for _, _, part in guesses for e in part)
        watcher.begin(total, done)

        computed = 0
        with _gently() as stop:
            for model in wanted:
                computed += _attack(suite, store, model, inputs, wanted[model], attacked, watcher, folder)
                stop()
            for pair in pairs:
                stop()
                computed += _certify(suite, store, pair, inputs, fresh, watcher, stop, folder)
            for model, threat, part in guesses:
                computed += _estimate(suite, store, model, threat, inputs, part, estimated, watcher, stop, folder)
        attacked = store.attacked()
        unaudited = sum(not attacked.keys() >= set(keys.values()) for model in wanted for _, keys in wanted[model])
        manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        write(folder / "manifest.json", json.dumps(manifest, indent=2))
        return Finished(store.rows(), manifest, computed, unaudited, folder, store.estimates())
    finally:
        store.close()


def plan(suite: Suite) -> int:
    """Load the suite's data and models, and count its (model, norm, certifier) pairs.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    _, models = load(suite)
    return len(models) * len(suite.threats) * len(suite.certifiers)


def load(suite: Suite) -> tuple[digits.Dataset, list[Classifier]]:
    """The suite's data and models.

    Raises:
        ConfigError: one of them cannot be loaded, or they do not fit.
    """
    dataset = suite.located(("data",), partial(digits.load, suite.settings.data))
    if len(dataset) < suite.settings.inputs:
        wanted = suite.settings.inputs
        raise suite.error(("inputs",), f"{wanted} inputs are wanted, but {dataset.name} has {len(dataset)}")
    models = [
        suite.located(("models", i), partial(_model, spec, dataset)) for i, spec in enumerate(suite.settings.models)
    ]
    if len({model.name for model in models}) < len(models):
        raise suite.error(("models",), "two models of the suite have the same name; give one another `name`")
    box, inputs = suite.settings.domain, dataset.inputs[: suite.settings.inputs].double()
    if box is not None and (inputs.min() < box[0] or inputs.max() > box[1]):
        values = f"{inputs.min():g} to {inputs.max():g}"
        raise suite.error(("domain",), f"{dataset.name} has values from {values}, outside domain {box}")
    return dataset, models


def _model(spec: ModelSpec, dataset: digits.Dataset) -> Classifier:
    if spec.factory is None:
        if spec.weights is not None:
            raise ConfigError(f"model {spec.name!r} has weights but no factory; write factory: module:function")
        model = zoo.load(spec.name)
        if model.input_shape != dataset.input_shape or model.num_classes != dataset.num_classes:
            raise ConfigError(
                f"model {spec.name!r} takes {model.input_shape} and knows {model.num_classes} classes; "
                f"{dataset.name} has {dataset.input_shape} and {dataset.num_classes}"
            )
        return model
    if spec.weights is None:
        raise ConfigError(f"model {spec.name!r} has a factory but no weights; write weights: file.safetensors")
    external = zoo.load_external(
        spec.factory, spec.weights, input_shape=dataset.input_shape, num_classes=dataset.num_classes
    )
    return replace(external, name=spec.name)


def _pairs(suite: Suite, models: list[Classifier], inputs: torch.Tensor, labels: torch.Tensor) -> Iterator[_Pair]:
    digests = hashes(inputs)
    seed = suite.settings.seed
    for model in models:
        fingerprint = model.fingerprint()
        for threat in suite.threats:
            steps = suite.settings.attacks.steps
            attack_keys = [attack_key(fingerprint, h, threat, seed, steps) for h in digests]
            for certifier in suite.certifiers:
                spec = describe(certifier)
                keys = [row_key(fingerprint, h, threat, seed, spec, versions(certifier)) for h in digests]
                yield _Pair(
                    model,
                    certifier,
                    threat,
                    [
                        Planned(
                            key=key,
                            attack=attack_keys[i],
                            model=model.name,
                            certifier=label(certifier, suite.usual),
                            spec=spec,
                            guarantee=certifier.guarantee,
                            subject=certifier.subject,
                            norm=threat.p,
                            domain=threat.domain,
                            input=i,
                            label=int(labels[i]),
                        )
                        for i, key in enumerate(keys)
                    ],
                )


def attack_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, steps: int, version: int = ATTACK_VERSION
) -> str:
    """Under which a counterexample is stored: of a classifier and an input, in a norm, found by so many steps."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, domain=threat.domain, seed=seed, steps=steps,
        version=version,
    )  # fmt: skip


def row_key(
    fingerprint: str, digest: str, threat: ThreatModel, seed: int, spec: Mapping[str, Any], version: int | list[Any]
) -> str:
    """Under which an answer is stored: of a certifier with its options and version, on a classifier and an input."""
    return content_key(
        classifier=fingerprint, input=digest, norm=threat.p, domain=threat.domain, seed=seed, certifier=spec,
        version=version,
    )  # fmt: skip


def hashes(inputs: torch.Tensor) -> list[str]:
    """What keys know of each input: its shape and its content."""
    return [hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest() for x in inputs]


def _wanted_attacks(
    models: list[Classifier], inputs: torch.Tensor, labels: torch.Tensor, pairs: list[_Pair]
) -> dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]]:
    """Of each model: its correctly classified inputs, with the key of the counterexample in each norm."""
    wanted: dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]] = {}
    for model in models:
        of_model = [pair for pair in pairs if pair.classifier is model and pair.certifier.subject is Subject.BASE]
        if of_model:
            correct = (model.double()(inputs).argmax(dim=1).cpu() == labels).tolist()
            wanted[model] = [
                (i, {pair.threat: pair.planned[i].attack for pair in of_model})
                for i, right in enumerate(correct)
                if right
            ]
    return wanted


def _wanted_estimates(
    suite: Suite, inputs: torch.Tensor, correct: dict[Classifier, list[tuple[int, dict[ThreatModel, str]]]]
) -> list[tuple[Classifier, ThreatModel, list[PlannedEstimate]]]:
    """For each model, and each norm in which the suite wants estimates: those of its correctly classified inputs."""
    asked = suite.settings.clever
    if asked is None:
        return []
    digests, wanted = hashes(inputs), []
    for model, of_model in correct.items():
        fingerprint = model.fingerprint()
        for threat in suite.threats:
            if threat.p in asked.radius:
                options = {"batches": asked.batches, "samples": asked.samples, "radius": asked.radius[threat.p]}
                method = f"clever({', '.join(f'{name}={value:g}' for name, value in options.items())})"
                part = [
                    PlannedEstimate(
                        key=content_key(
                            classifier=fingerprint, input=digests[i], norm=threat.p, domain=threat.domain,
                            seed=suite.settings.seed, clever=options, version=CLEVER_VERSION,
                        ),
                        attack=keys.get(threat, ""), model=model.name, method=method, norm=threat.p,
                        domain=threat.domain, input=i, cap=asked.radius[threat.p],
                    )
                    for i, keys in of_model
                ]  # fmt: skip
                wanted.append((model, threat, part))
    return wanted


def _attack(
    suite: Suite,
    store: Store,
    model: Classifier,
    inputs: torch.Tensor,
    wanted: list[tuple[int, dict[ThreatModel, str]]],
    attacked: Mapping[str, float],
    watcher: Watcher,
    folder: Path,
) -> int:
    """Attack the inputs whose counterexamples are not stored; returns how many points were stored."""
    todo = [(i, keys) for i, keys in wanted if any(key not in attacked for key in keys.values())]
    count = 0
    box = suite.settings.domain or (float(inputs.min()), float(inputs.max()))
    for start in range(0, len(todo), ATTACK_BATCH):
        part = todo[start : start + ATTACK_BATCH]
        watcher.now(f"attacks on {model.name}")
        x = inputs[[i for i, _ in part]]
        try:
            found = attack(model, x, suite.threats, box, steps=suite.settings.attacks.steps, seed=suite.settings.seed)
        except Exception as error:  # these stay unaudited, which the run's result says; the next run tries again
            _log(folder, f"attacks on {model.name}")
            watcher.note(f"attacks on {model.name} failed: {type(error).__name__}: {error} (traceback in errors.log)")
            continue
        new = []
        for threat, examples in found.items():
            for row, (_, keys) in enumerate(part):
                distance = float(examples.distance[row])
                point = examples.point[row].contiguous().numpy().tobytes() if math.isfinite(distance) else None
                new.append(Counterexample(keys[threat], distance, examples.attack[row], point))
        store.put_attacks(new)
        count += len(part)
        watcher.advance({"attacked": len(part)})
    return count


def _estimate(
    suite: Suite,
    store: Store,
    model: Classifier,
    threat: ThreatModel,
    inputs: torch.Tensor,
    planned: list[PlannedEstimate],
    estimated: set[str],
    watcher: Watcher,
    stop: Callable[[], None],
    folder: Path,
) -> int:
    """Estimate the inputs whose estimates are not stored; returns how many were. A failure only lacks in the report."""
    asked, count = suite.settings.clever, 0
    todo = [estimate for estimate in planned if estimate.key not in estimated]
    assert asked is not None
    for start in range(0, len(todo), suite.settings.batch):
        stop()
        part = todo[start : start + suite.settings.batch]
        name = f"estimates of {model.name}, {threat.name}"
        watcher.now(name)
        try:
            values = clever(
                model, inputs[[estimate.input for estimate in part]], threat, radius=part[0].cap,
                batches=asked.batches, samples=asked.samples, seed=suite.settings.seed,
            )  # fmt: skip
        except Exception as error:
            _log(folder, name)
            watcher.note(f"{name} failed: {type(error).__name__}: {error} (traceback in errors.log)")
            continue
        store.put_estimates({e.key: value for e, value in zip(part, values.tolist(), strict=True)})
        count += len(part)
        watcher.advance({"estimated": len(part)})
    return count


def _certify(
    suite: Suite,
    store: Store,
    pair: _Pair,
    inputs: torch.Tensor,
    fresh: set[str],
    watcher: Watcher,
    stop: Callable[[], None],
    folder: Path,
) -> int:
    """Certify the inputs of a pair that are not stored; returns how many rows were."""
    todo = [i for i, planned in enumerate(pair.planned) if planned.key not in fresh]
    if not todo:
        return 0
    name = f"{pair.planned[0].certifier} on {pair.classifier.name}, {pair.threat.name}"
    watcher.now(name)

    def put(indices: list[int], certificate: Certificate) -> None:
        store.put(_results([pair.planned[i].key for i in indices], certificate, prepared))
        watcher.advance(Counter(outcome.value for outcome in certificate.outcome))

    def fail(outcome: Outcome, reason: str) -> None:
        put(left, Certificate.nothing(len(left), outcome, reason))
        if outcome is not Outcome.UNSUPPORTED:
            watcher.note(f"{name}: {reason}")

    left, prepared = todo, 0.0  # left: not stored yet
    start = time.perf_counter()
    limit = suite.settings.limits.seconds
    try:
        reason = pair.certifier.unsupported(pair.classifier, pair.threat)
        if reason is not None:
            raise UnsupportedError(reason)
        state = pair.certifier.prepare(pair.classifier, pair.threat)
        prepared = time.perf_counter() - start
        stop()
        while left:
            if time.perf_counter() - start > limit:
                fail(Outcome.TIMED_OUT, f"the limit of {limit:g} s was spent with {len(left)} inputs left")
                break
            part = left[: suite.settings.batch]
            certificate = certify(
                pair.certifier, pair.classifier, inputs[part], pair.threat,
                state=state, batch_size=suite.settings.batch, seed=suite.settings.seed, throw=False,
            )  # fmt: skip
            put(part, certificate)
            left = left[len(part) :]
            stop()
    except UnsupportedError as error:
        fail(Outcome.UNSUPPORTED, str(error))
    except (MissingBackendError, CertificationError, ConfigError) as error:
        fail(Outcome.FAILED, str(error))
    except StoreError:
        raise
    except Exception as error:
        if out_of_memory(error):
            fail(Outcome.OUT_OF_MEMORY, f"out of memory in the preparation: {error}")
        else:  # a bug, here or in a backend: this pair is lost, the others are not
            _log(folder, name)
            fail(Outcome.FAILED, f"{type(error).__name__}: {error} (a bug; the traceback is in errors.log)")
    return len(todo)


def _log(folder: Path, name: str) -> None:
    """Append the traceback of the exception at hand to the folder's log."""
    with _writing(folder / "errors.log"), open(folder / "errors.log", "a", encoding="utf-8") as file:
        file.write(f"{name}\n{traceback.format_exc()}\n")


def _results(keys: list[str], certificate: Certificate, prepared: float) -> Iterator[Result]:
    for i, key in enumerate(keys):
        evidence = certificate.evidence[i]
        yield Result(
            key=key,
            prediction=int(certificate.prediction[i]),
            radius=float(certificate.radius[i]),
            upper=float(certificate.upper[i]),
            seconds=float(certificate.seconds[i]),
            prepare_seconds=prepared,
            outcome=certificate.outcome[i],
            reason="" if certificate.outcome[i].answered else str(evidence.get("reason", "")),
            evidence=evidence,
        )


@contextmanager
def _gently() -> Iterator[Callable[[], None]]:
    """The first Ctrl-C waits for the batch at hand to be stored; a second one does not."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def stop() -> None:
        if asked:
            raise Interrupted

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _manifest(suite: Suite, dataset: digits.Dataset, models: list[Classifier], threads: int) -> dict[str, Any]:
    packages = ["certbench", "torch", "auto-LiRPA", "foolbox", "highspy", "cvxpy", "scs", "numpy", "scipy"]
    return {
        "suite": plain(suite.settings.model_dump()),
        "certifiers": [describe(certifier) for certifier in suite.certifiers],
        "data": {"name": dataset.name, "sha256": dataset.fingerprint(), "inputs": suite.settings.inputs},
        "models": {model.name: model.fingerprint() for model in models},
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "device": str(models[0].device)},
        "threads": threads,
        "command": shlex.join(["certbench", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _commit() -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"


def write(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader meets half of it."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; what was stored before is intact") from error
