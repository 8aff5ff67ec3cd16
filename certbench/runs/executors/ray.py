"""An executor on a cluster of Ray: https://docs.ray.io.

Each worker is an actor, which keeps the prepared certifier while jobs of its work come. What it does is decided by
`certbench.runs.executors.foreman`, as for processes: the same limits, the same second try, the same blame. At a limit
an actor is killed, by `ray.kill`: `ray.cancel` does not force actors.

Work and the files of models go through the object store, once to each node. What is no file must be on every node: the
same certbench and torch, which is checked, and modules of certifiers and of factories.
"""

import hashlib
import importlib.metadata
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import certbench
from certbench.core.claims import Outcome
from certbench.core.classifier import Classifier
from certbench.core.resources import Resources
from certbench.errors import ConfigError, MissingBackendError
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, Settings
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.foreman import TICK, Foreman
from certbench.runs.executors.process import cores
from certbench.runs.work import Failure, ModelSource, Work

INSTALL = 'pip install "certbench[ray]"'

LOOK = 1.0
"""Seconds between two looks at the nodes of the cluster."""


class Ray:
    """Computes jobs in actors."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing starts yet.

        Raises:
            MissingBackendError: Ray is not installed.
        """
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise MissingBackendError(f"the executor ray needs the package ray ({error}): {INSTALL}") from error
        self.settings = settings

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield answers as they come.

        Raises:
            ConfigError: there is no cluster at the address, or its nodes have another certbench.
        """
        if assignments:
            memory = min((one.limits.memory for one in assignments if one.limits.memory is not None), default=None)
            with _connected(self.settings):
                yield from Foreman(Cluster(self.settings, memory)).answers(assignments, stop)


@contextmanager
def _connected(settings: Settings) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; who is connected already stays so."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    many = (settings.workers or cores()) * settings.threads
    local: dict[str, Any] = {"address": "local", "num_cpus": many, "include_dashboard": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **({"address": address} if address else local))
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ConfigError(f"there is no cluster of Ray {where}: {error}") from error
    finally:
        with suppress(ValueError):  # in a thread, Ray has not changed it either
            signal.signal(signal.SIGTERM, before)
    node = ray._private.worker
    talking = getattr(node, "_worker_logs_enabled", True)
    node._worker_logs_enabled = False  # else it prints, into the table, that actors were killed
    try:
        yield
    finally:
        ray.shutdown()
        node._worker_logs_enabled = talking


@dataclass(eq=False)
class Remote:
    """An actor.

    Attributes:
        actor: its handle.
        pending: calls whose answers were not heard yet, in their order.
        nodes: nodes that there were when it was asked for.
        how: words for how it ended.
    """

    actor: Any
    pending: deque[Any]
    nodes: frozenset[str]
    how: str = "without a word"

    def send(self, kind: str, content: Any) -> None:
        """Call the actor; if it has ended, its end is noticed elsewhere."""
        if kind == "work":
            self.pending += [self.actor.load.remote(*content), self.actor.prepare.remote()]
        else:
            self.pending.append(self.actor.compute.remote(content))

    def kill(self) -> None:
        """End the actor, and its process."""
        import ray

        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor)

    def end(self) -> str:
        """End the actor, and say how it ended."""
        self.kill()
        self.pending.clear()
        return self.how


@dataclass(eq=False)
class Cluster:
    """The cluster, where actors start.

    Attributes:
        settings: the settings.
        memory: bytes that an actor may use beyond those at its start.
        sent: files of models in the object store.
        nodes: resources of the nodes by their names, and when they were looked up.
    """

    settings: Settings
    memory: float | None
    sent: list[tuple[ModelSource, Any]] = field(default_factory=list)
    nodes: tuple[float, dict[str, dict[str, float]]] = (0.0, {})

    def __post_init__(self) -> None:
        import ray

        self.code = code()
        self.seat: Any = ray.remote(max_restarts=0, max_task_retries=0)(Seat)

    def alive(self) -> dict[str, dict[str, float]]:
        """Return the resources of each node."""
        import ray

        if time.monotonic() - self.nodes[0] > LOOK:
            found = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
            self.nodes = time.monotonic(), found
        return self.nodes[1]

    def most(self) -> int:
        """Return the number of workers that was asked for, or that of cores of the cluster."""
        total = sum(node.get("CPU", 0.0) for node in self.alive().values())
        return self.settings.workers or max(1, int(total / self.settings.threads))

    def needs(self, work: Work) -> Resources | None:
        """Return what the certifier declares; each thread needs a core."""
        return replace(work.resources, cpus=max(work.resources.cpus, self.settings.threads))

    def lacks(self, needs: Resources | None) -> str | None:
        """Say that no node has what is needed."""
        assert needs is not None
        wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory}
        for node in self.alive().values():
            if all(node.get(name, 0.0) >= value for name, value in wanted.items()):
                return None
        return f"no node of the cluster has {needs}; add one, or use fewer threads"

    def pack(self, work: Work) -> Any:
        """Put work and the files of its model into the object store."""
        import ray

        files = next((found for source, found in self.sent if source == work.source), None)
        if files is None:
            files = ray.put(packed(work.source))
            self.sent.append((work.source, files))
        return ray.put(pickle.dumps(work)), files

    def start(self, needs: Resources | None) -> Worker:
        """Ask for an actor; it starts where and when there is room."""
        assert needs is not None
        wanted = self.seat.options(num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory or None)
        actor = wanted.remote(self.settings.threads, self.memory, os.getcwd(), sys.path)
        return Worker(Remote(actor, deque([actor.ready.remote()]), frozenset(self.alive())), needs)

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Wait a moment for answers of actors."""
        import ray

        first = {_remote(worker).pending[0]: worker for worker in crew if _remote(worker).pending}
        if not first:
            time.sleep(TICK)
            return
        heard, _ = ray.wait(list(first), num_returns=1, timeout=TICK)
        if heard and len(first) > 1:
            heard, _ = ray.wait(list(first), num_returns=len(first), timeout=0)
        for ref in heard:
            worker, remote = first[ref], _remote(first[ref])
            if not remote.pending:
                continue  # it was killed meanwhile
            remote.pending.popleft()
            message = None
            try:
                message = json.loads(ray.get(ref))
            except (ray.exceptions.RayError, ValueError) as error:
                remote.how, text = _ending(error), str(error).lower()
                if "running low on memory" in text or "out of memory" in text:
                    worker.verdict = Failure(Outcome.OUT_OF_MEMORY, "out of memory: a node of the cluster had no more")
            yield worker, message if isinstance(message, dict) else None

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None:
        """Refuse an actor that has other code."""
        if message["ready"] != self.code:
            raise ConfigError(
                f"the node {message['node']} of the cluster has {', '.join(message['ready'])}, but this process has "
                f"{', '.join(self.code)}; install the same certbench, torch and numpy on every node"
            )

    def watch(self, crew: Sequence[Worker]) -> None:
        """Do nothing: Ray watches the memory of its nodes, and actors limit their own."""

    def pardons(self, worker: Worker) -> bool:
        """Pardon a worker if a node was lost since it was asked for."""
        self.nodes = (0.0, {})
        return not _remote(worker).nodes <= frozenset(self.alive())


def _remote(worker: Worker) -> Remote:
    assert isinstance(worker.body, Remote)
    return worker.body


def _ending(error: Exception) -> str:
    """Return a few words for how an actor ended, from Ray's many."""
    import ray

    text = str(error)
    code = re.search(r"exit code (\d+)", text)
    if isinstance(error, ray.exceptions.ActorUnavailableError) or "its node has died" in text:
        return "with its node, which is not reached any more"
    if code:
        return f"with exit code {code[1]}"
    if isinstance(error, ray.exceptions.RayTaskError) or "creation task" in text:
        return f"by {text.strip().splitlines()[-1]}"
    return "at once, as by a signal"


def code() -> list[str]:
    """Return what must be the same on every node: versions, and a hash of the code of certbench."""
    digest = hashlib.sha256()
    root = Path(certbench.__file__).parent
    for folder, _, names in sorted(os.walk(root, followlinks=True)):
        for path in sorted(Path(folder, name) for name in names if name.endswith(".py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    return [f"certbench {certbench.__version__} ({digest.hexdigest()[:12]})", *versions]


def packed(source: ModelSource) -> dict[str, dict[str, Any]]:
    """Return the files of a model, by the field of its entry in the suite and by their names.

    A file of ONNX may have its weights in files beside it; they come along.

    Raises:
        OSError: one cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in ("path", "weights"):
        given = getattr(source.spec, name)
        if given is not None and Path(given).is_file():
            files = [Path(given), *_beside(Path(given))]
            found[name] = {file.relative_to(Path(given).parent).as_posix(): _bytes(file) for file in files}
    return found


def _bytes(path: Path) -> Any:
    return np.frombuffer(path.read_bytes(), dtype=np.uint8)


def _beside(path: Path) -> list[Path]:
    """Return the files of weights that a file of ONNX refers to."""
    if path.suffix != ".onnx":
        return []
    import onnx

    tensors = onnx.load(path, load_external_data=False).graph.initializer
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(names)]


def unpacked(source: ModelSource, given: Mapping[str, Mapping[str, Any]]) -> Classifier:
    """Load a model from files that `packed` read, wherever they were.

    Raises:
        ConfigError: it cannot be loaded, or is not the run's.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = {}
        for name, files in given.items():
            for file, content in files.items():
                place = Path(folder, name, file)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            here[name] = str(Path(folder, name, next(iter(files))))
        return replace(source, spec=source.spec.model_copy(update=here)).open()


class Seat:
    """What runs in an actor. Its methods return JSON."""

    def __init__(self, threads: int, memory: float | None, folder: str, path: list[str]) -> None:
        """Import all that a worker needs, and settle.

        Args:
            threads: number of threads.
            memory: bytes that this process may use.
            folder: folder that relative paths start from, where this node has it.
            path: folders of modules.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.path += [one for one in path if one not in sys.path]
        with suppress(OSError):
            os.chdir(folder)
        from certbench.runs.executors import preloaded  # noqa: F401
        from certbench.runs.executors.worker import Station, limit_memory
        from certbench.runs.guarding import settle

        settle(threads)
        if memory is not None:
            limit_memory(memory)
        self.files: dict[str, dict[str, Any]] = {}
        self.station = Station(lambda source: unpacked(source, self.files))

    def ready(self) -> str:
        """Say which code this is, and where."""
        import ray

        return json.dumps({"ready": code(), "node": ray.util.get_node_ip_address()})

    def load(self, content: bytes, files: dict[str, dict[str, Any]]) -> str:
        """Take a piece of work, and load its model from these files."""
        self.files = files
        answer = json.dumps(self.station.load(content))
        self.files = {}
        return answer

    def prepare(self) -> str:
        """Prepare the work."""
        return json.dumps(self.station.prepare())

    def compute(self, content: bytes) -> str:
        """Compute a job."""
        return json.dumps(self.station.compute(content))
