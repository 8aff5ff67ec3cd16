"""A cluster of Ray computes the rows that this process would, and loses none when actors, nodes or drivers die."""

import importlib.util
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.core import registry
from certbench.core.resources import Resources
from certbench.errors import ConfigError, MissingBackendError
from certbench.results.store import Store
from certbench.runs import executors
from certbench.runs.events import Interrupted
from certbench.runs.executors import foreman
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.foreman import Foreman
from certbench.runs.executors.ray import Cluster, Remote, code, packed, unpacked
from certbench.runs.load import load_again
from certbench.runs.suite import ModelSpec
from certbench.runs.work import ModelSource
from tests.runs.executors.misbehaving import Misbehaving
from tests.support.runs import DIGITS, SMOOTHING, Bench, bits, points

pytestmark = pytest.mark.machine

INNOCENT = ["lipschitz", SMOOTHING]
STORE = 80 << 20
"""Bytes of the object store of each node."""

NODE = {"num_cpus": 1, "object_store_memory": STORE}


class Hungry(Misbehaving):
    """Needs what no node has."""

    resources = Resources(gpus=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each, and a head that computes nothing."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    from ray.cluster_utils import Cluster as Local

    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    made = Local(initialize_head=True, head_node_args=head)
    try:
        made.add_node(**NODE)
        made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(registry.table(), "misbehaving", f"{Misbehaving.__module__}:Misbehaving")
    monkeypatch.setitem(registry.table(), "hungry", f"{__name__}:Hungry")
    return Bench(tmp_path)


@pytest.fixture
def joined(cluster: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose runs go to the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return bench


def misbehaving(deed: str = "nothing", **options: Any) -> dict[str, Any]:
    return {"name": "misbehaving", "deed": deed, **options}


def fresh(bench: Bench, name: str) -> None:
    """Put the folder of the run aside."""
    (bench.folder / "run").rename(bench.folder / name)


def test_rows_attacks_and_estimates_are_equal_to_the_last_bit(joined: Bench) -> None:
    found = {}
    suite = ["lipschitz", "crown", SMOOTHING]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for executor in ("inline", "ray"):
        finished = joined.run(*suite, executor=executor, **{**DIGITS, "models": ["mlp-ibp"]})
        assert finished.unaudited == 0
        found[executor] = [bits(row) for row in finished.rows], points(joined), finished.estimates
        fresh(joined, executor)
    assert len(found["ray"][0]) == 5 * 3
    assert found["inline"] == found["ray"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_guilty_pair_alone_is_blamed_and_a_worker_that_died_once_is_forgiven(
    joined: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(foreman, "ROOM", 0.0)
    once = misbehaving(once=str(joined.folder / "dead"))
    undisturbed = [bits(row)[3:] for row in joined.run(*INNOCENT, misbehaving(), batch=1, executor="inline").rows]
    fresh(joined, "undisturbed")
    rows = joined.run(
        misbehaving("os._exit", above=0.5), INNOCENT[0], misbehaving("endless in C", preparing=True), INNOCENT[1],
        {"name": "hungry"}, once, misbehaving("allocates"),
        batch=1, limits={"prepare_seconds": 3, "memory": "1 GB"}, executor="ray",
    ).rows  # fmt: skip
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    assert [{row.outcome.value for row in group} for group in groups] == [
        {"failed"}, {"completed"}, {"timed out"}, {"completed"}, {"failed"}, {"completed"}, {"out of memory"},
    ]  # fmt: skip
    assert groups[0][0].reason.startswith("a job of 1 inputs ended its process ")
    assert groups[0][0].reason.endswith(", twice")
    assert groups[2][0].reason == "the limit of 3 s for the preparation was spent"
    assert "no node of the cluster has 1 CPUs, 1 GPUs" in groups[4][0].reason
    assert [bits(row)[3:] for group in (groups[1], groups[3], groups[5]) for row in group] == undisturbed
    assert "raylet" not in capfd.readouterr().out


def test_nodes_that_die_in_the_middle_cost_no_row(joined: Bench, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = [bits(row) for row in joined.run(misbehaving("sleeps"), batch=1, executor="inline").rows]
    fresh(joined, "undisturbed")
    advance, died = type(joined.watcher).advance, Foreman._died
    deaths: list[str] = []

    def lose_all_nodes(watcher: Any, outcomes: Any) -> None:
        advance(watcher, outcomes)
        if watcher.counts.total() == 1:
            for node in [*cluster.worker_nodes]:
                cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(**NODE)

    def count(foreman: Foreman, worker: Worker) -> Iterator[executors.Answer]:
        deaths.append(worker.phase)
        return died(foreman, worker)

    with monkeypatch.context() as patch:
        patch.setattr(type(joined.watcher), "advance", lose_all_nodes)
        patch.setattr(Foreman, "_died", count)
        finished = joined.run(misbehaving("sleeps"), batch=1, executor="ray", workers=1)
    assert deaths == ["computing"]
    assert [bits(row) for row in finished.rows] == undisturbed
    assert joined.watcher.notes == []


DRIVER = """
import sys
from pathlib import Path
from certbench.core import registry
from tests.support.runs import Bench
registry.table()["misbehaving"] = "tests.runs.executors.misbehaving:Misbehaving"
Bench(Path(sys.argv[1])).run({"name": "misbehaving", "deed": "sleeps"}, batch=1, executor="ray")
"""


def test_a_driver_that_is_killed_is_run_again_and_computes_the_rest(joined: Bench) -> None:
    undisturbed = [bits(row) for row in joined.run(misbehaving("sleeps"), batch=1, executor="inline").rows]
    fresh(joined, "undisturbed")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(joined.folder)], cwd=Path(__file__).parents[3])
    stored, end = 0, time.monotonic() + 60
    while not stored and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
        stored = answered(joined.folder / "run" / "results.db")
    driver.kill()
    driver.wait()
    stored = answered(joined.folder / "run" / "results.db")
    assert stored > 0
    finished = joined.run(misbehaving("sleeps"), batch=1, executor="ray")
    assert finished.computed == 3 - stored
    assert [bits(row) for row in finished.rows] == undisturbed


def answered(path: Path) -> int:
    """Return the number of stored answers."""
    if not path.exists():
        return 0
    store = Store(path, create=False)
    try:
        return len(store.outcomes())
    finally:
        store.close()


def test_ctrl_c_waits_for_jobs_that_are_being_computed(joined: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(joined.watcher), "advance", lambda watcher, outcomes: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            joined.run(misbehaving("sleeps"), batch=1, executor="ray", workers=1)
    assert answered(joined.folder / "run" / "results.db") in (1, 2)


def test_nodes_that_have_other_code_are_refused(cluster: Any) -> None:
    here, worker = Cluster(executors.Settings(), None), Worker(Remote(None, deque(), frozenset()))
    here.welcome(worker, {"ready": code(), "node": "10.0.0.2"})
    with pytest.raises(ConfigError, match=r"10\.0\.0\.2 .*certbench 0\.0\.9.*install the same certbench"):
        here.welcome(worker, {"ready": ["certbench 0.0.9", *code()[1:]], "node": "10.0.0.2"})


def test_a_model_comes_with_its_files_where_no_node_has_them(bench: Bench) -> None:
    weights = bench.folder / "linear.safetensors"
    spec = ModelSpec(name="plane", factory="tests.support.runs:make", weights=str(weights))
    model = load_again(spec, (2,))
    source = ModelSource(spec, (2,), model.fingerprint())
    files = packed(source)
    weights.unlink()
    assert unpacked(source, files).fingerprint() == source.fingerprint
    with pytest.raises(ConfigError, match="is another one each time"):
        unpacked(replace(source, fingerprint="0"), files)


def test_a_network_of_onnx_comes_with_the_weights_beside_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    place = tmp_path / "here" / "net.onnx"
    place.parent.mkdir()
    onnx.save_model(model, place, save_as_external_data=True, location="data", size_threshold=0)
    spec = ModelSpec(name="net", path=str(place))
    source = ModelSource(spec, (2,), load_again(spec, (2,)).fingerprint())
    files = packed(source)
    place.parent.rename(tmp_path / "elsewhere")
    assert torch.equal(unpacked(source, files)(torch.eye(2)), torch.eye(2))


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingBackendError, match=r'pip install "certbench\[ray\]"'):
        executors.find("ray", executors.Settings())


def test_only_ray_has_an_address() -> None:
    with pytest.raises(ConfigError, match="no address"):
        executors.find("process", executors.Settings(address="10.0.0.1:6379"))
