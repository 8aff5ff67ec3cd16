"""Work that executors do: certificates, attacks and estimates of one model, each for many inputs.

A piece of work is sent to another process by pickle. What comes back is plain: one JSON value per input, or a failure.
"""

import base64
import copy
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from certbench.attacks.battery import attack
from certbench.attacks.clever import clever
from certbench.attacks.walk import Bounds
from certbench.core.certificate import Certificate
from certbench.core.certification import certify, prepare
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.memory import Limits, limits, out_of_memory
from certbench.core.resources import Resources
from certbench.core.threat import ThreatModel
from certbench.errors import (
    CertificationError,
    ConfigError,
    CrashError,
    MissingBackendError,
    NumericalError,
    UnsupportedError,
)
from certbench.files.json_text import clean, plain
from certbench.runs.guarding import Snapshot
from certbench.runs.load import load_again
from certbench.runs.suite import ModelSpec

Made = TypeVar("Made")

TIE = 1e-9
"""Share of the largest logit by which two logits may differ and still count as equal: rounding of another batch."""


@dataclass(frozen=True)
class ModelSource:
    """A model of the suite, and how another process loads it again.

    Attributes:
        spec: the suite's entry.
        input_shape: shape of one input.
        fingerprint: fingerprint that the model must have, wherever it is loaded.
        loaded: the model itself, in the process of the run; it is never sent.
    """

    spec: ModelSpec
    input_shape: tuple[int, ...]
    fingerprint: str
    loaded: Classifier | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out."""
        return {**vars(self), "loaded": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take the state of another process."""
        vars(self).update(state)

    def open(self) -> Classifier:
        """Return the model; load it if this is not the process of the run.

        Raises:
            ConfigError: it cannot be loaded, or is not the run's.
        """
        if self.loaded is not None:
            return self.loaded
        model = load_again(self.spec, self.input_shape)
        if model.fingerprint() != self.fingerprint:
            raise ConfigError(
                f"model {self.spec.name!r} is another one each time it is loaded; a factory must make the same network "
                "each time, and its files must stay as they are while a run goes on"
            )
        return model


@dataclass(frozen=True)
class Failure:
    """The reason why inputs have no results.

    Attributes:
        outcome: the outcome of their rows.
        reason: the reason, in words.
        trace: a traceback, if there is one.
        spoilt: whether the process may be in a state that nobody knows, so that nothing else should run in it.
    """

    outcome: Outcome
    reason: str
    trace: str = ""
    spoilt: bool = False


@runtime_checkable
class Work(Protocol):
    """Computations for many inputs that share a model and a preparation."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def source(self) -> ModelSource:
        """The model."""

    @property
    def foreign(self) -> bool:
        """Whether code of other packages runs that may change what all code of its process shares."""

    @property
    def resources(self) -> Resources:
        """What a process that computes it reserves on a cluster."""

    def prepare(self, classifier: Classifier) -> Any:
        """Do what is done once; the result is the `state` of `compute`."""

    def compute(self, classifier: Classifier, state: Any, x: Tensor) -> list[Any]:
        """Return a JSON value for each input."""


@dataclass(frozen=True)
class Certifying:
    """Certificates of a (model, norm, certifier)."""

    name: str
    source: ModelSource
    certifier: Certifier[Any]
    threat: ThreatModel
    seed: int
    batch: int
    limits: Limits = field(default_factory=Limits)

    @property
    def foreign(self) -> bool:
        """Whether the certifier, or one that it is made of, belongs to another package."""
        return _foreign(self.certifier)

    @property
    def resources(self) -> Resources:
        """What the certifier needs."""
        return self.certifier.resources

    def prepare(self, classifier: Classifier) -> Any:
        """Prepare the certifier."""
        with limits(self.limits.memory, self.limits.seconds):
            return prepare(self.certifier, classifier, self.threat)

    def compute(self, classifier: Classifier, state: Any, x: Tensor) -> list[Any]:
        """Certify, and return a row for each input."""
        before = time.process_time()
        with limits(self.limits.memory, self.limits.seconds):
            certificate = certify(
                self.certifier, classifier, x, self.threat, state=state, batch_size=self.batch, seed=self.seed,
                throw=False,
            )  # fmt: skip
        return rows_of(certificate, (time.process_time() - before) / max(len(x), 1))

    def check(self, pristine: Classifier, x: Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows that cannot be right.

        Args:
            pristine: the classifier in float64, which no certifier has seen.
            x: the inputs.
            rows: what came out.

        Raises:
            NumericalError: the classifier contradicts itself, or the rows contradict the classifier.
        """
        logits, again = pristine(x).cpu(), pristine(x).cpu()
        if not bool(((logits == again) | (logits.isnan() & again.isnan())).all()):
            raise NumericalError(
                f"{pristine.name} gives other logits on a second pass over the same inputs (a counter, or random "
                "numbers, in its forward?); there is no certificate for what is no function"
            )
        if self.certifier.subject is not Subject.BASE:
            return
        top = logits.amax(dim=1)
        for row, values, best in zip(rows, logits, top.tolist(), strict=True):
            label = row["prediction"]
            if label == ABSTAIN:
                continue
            if not 0 <= label < pristine.num_classes:
                raise NumericalError(f"class {label} is certified, but {pristine.name} has {pristine.num_classes}")
            own = float(values[label])
            near = own == best or best - own <= TIE * float(values.abs().amax())  # NaN is not near
            if row["radius"] > 0 and not near:
                said = "NaN" if values.isnan().any() else int(values.argmax())
                raise NumericalError(f"class {label} is certified, but {pristine.name} says {said}")
            if math.isinf(row["radius"]):
                raise NumericalError("an infinite radius is certified for a base classifier; a radius is finite")


def _foreign(certifier: Certifier[Any]) -> bool:
    own = type(certifier).__module__.partition(".")[0] == "certbench"
    return not own or any(map(_foreign, certifier.members))


def rows_of(certificate: Certificate, cpu: float) -> list[Any]:
    """Return a certificate's rows as JSON values.

    Raises:
        TypeError, ValueError: evidence is no JSON object.
    """
    rows = []
    for i, evidence in enumerate(certificate.evidence):
        if not isinstance(evidence, Mapping):
            raise TypeError(f"evidence must be a JSON object, not a {type(evidence).__name__}")
        if not isinstance(certificate.outcome[i], Outcome):
            raise TypeError(f"an outcome must be an Outcome, not a {type(certificate.outcome[i]).__name__}")
        rows.append({
            "prediction": int(certificate.prediction[i]), "radius": float(certificate.radius[i]),
            "upper": float(certificate.upper[i]), "seconds": float(certificate.seconds[i]), "cpu_seconds": cpu,
            "outcome": certificate.outcome[i].value, "evidence": clean(plain(evidence)),
        })  # fmt: skip
    return rows


@dataclass(frozen=True)
class Attacking:
    """Attacks on a model, in all norms at once."""

    name: str
    source: ModelSource
    threats: tuple[ThreatModel, ...]
    box: Bounds
    steps: int
    seed: int
    foreign: ClassVar[bool] = False
    resources: ClassVar[Resources] = Resources()

    def prepare(self, classifier: Classifier) -> Any:
        """Prepare nothing."""

    def compute(self, classifier: Classifier, state: Any, x: Tensor) -> list[Any]:
        """Attack, and return for each input and each norm the distance, the attack, and the point as base64."""
        found = attack(classifier, x, self.threats, self.box, steps=self.steps, seed=self.seed)
        return [[_example(found[threat], i) for threat in self.threats] for i in range(len(x))]


def _example(found: Any, i: int) -> list[Any]:
    distance = float(found.distance[i])
    point = found.point[i].contiguous().numpy().tobytes() if math.isfinite(distance) else None
    return [distance, found.attack[i], None if point is None else base64.b64encode(point).decode()]


@dataclass(frozen=True)
class Estimating:
    """Estimates of a model in a norm."""

    name: str
    source: ModelSource
    threat: ThreatModel
    radius: float
    batches: int
    samples: int
    seed: int
    foreign: ClassVar[bool] = False
    resources: ClassVar[Resources] = Resources()

    def prepare(self, classifier: Classifier) -> Any:
        """Prepare nothing."""

    def compute(self, classifier: Classifier, state: Any, x: Tensor) -> list[Any]:
        """Estimate, and return a number for each input."""
        found: list[Any] = clever(
            classifier, x, self.threat, radius=self.radius, batches=self.batches, samples=self.samples, seed=self.seed
        ).tolist()
        return found


class Session:
    """A piece of work in progress, in any process: it has its own copy of the classifier, and its state.

    What a job changes is found after it: then its results are not returned.

    Attributes:
        seconds: time that the work took so far, without copies and checks.
    """

    def __init__(self, work: Work, model: Classifier, passing: tuple[type[BaseException], ...] = ()) -> None:
        """Copy the model. For `passing`, see `attempt`.

        Raises:
            ConfigError: the model cannot be copied or read.
        """
        self.work = work
        self.passing = passing
        self.pristine = model.double()
        self.classifier = replace(model, module=copy.deepcopy(model.module))
        self.before = Snapshot.of(self.classifier, fingerprint=work.source.fingerprint)
        self.state: Any = None
        self.seconds = 0.0

    def prepare(self) -> Failure | None:
        """Prepare; return the failure, if it fails."""

        def begin() -> None:
            self.state = self._timed(lambda: self.work.prepare(self.classifier))

        return attempt(begin, "in the preparation", self.passing) or self._altered("the preparation")

    def compute(self, x: Tensor) -> list[Any] | Failure:
        """Return a JSON value for each input, or the failure."""
        results: list[Any] = []

        def step() -> None:
            results.extend(self._timed(lambda: self.work.compute(self.classifier, self.state, x.clone())))
            if isinstance(self.work, Certifying):
                self.work.check(self.pristine, x, results)
            json.dumps(results)  # what has no JSON text is found here, and blamed on whoever made it

        return attempt(step, f"with {len(x)} inputs at once", self.passing) or self._altered("the job") or results

    def _timed(self, step: Callable[[], Made]) -> Made:
        start = time.perf_counter()
        try:
            return step()
        finally:
            self.seconds += time.perf_counter() - start

    def _altered(self, what: str) -> Failure | None:
        try:
            changed = self.before.changed(Snapshot.of(self.classifier, self.before))
        except Exception as error:
            changed = f"the classifier, so that it cannot be read ({error})"
        if changed is None:
            return None
        return Failure(Outcome.FAILED, f"{what} changed {changed}; nothing of it was kept", spoilt=True)


def attempt(step: Callable[[], None], when: str, passing: tuple[type[BaseException], ...] = ()) -> Failure | None:
    """Call a function; return its failure, if it fails.

    Args:
        step: the function.
        when: time of the call, in words.
        passing: exceptions that are no failure of the function: Ctrl-C, in the process of the run.
    """
    try:
        step()
    except UnsupportedError as error:
        return Failure(Outcome.UNSUPPORTED, clean(str(error)))
    except CrashError as error:  # a bug, here or in a backend: this work is lost, the others are not
        return Failure(Outcome.FAILED, clean(f"{error}; the traceback is in errors.log"), clean(error.trace))
    except (MissingBackendError, CertificationError, ConfigError) as error:
        return Failure(Outcome.FAILED, clean(str(error)))
    except passing:
        raise
    except BaseException as error:
        if out_of_memory(error):
            return Failure(Outcome.OUT_OF_MEMORY, clean(f"out of memory {when}: {error}"))
        reason = f"{type(error).__name__}: {error} (a bug; the traceback is in errors.log)"
        spoilt = not isinstance(error, Exception)
        return Failure(Outcome.FAILED, clean(reason), clean(traceback.format_exc()), spoilt)
    return None
