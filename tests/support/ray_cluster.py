"""A cluster of Ray on this machine, in a process of its own, and the processes of runs as `/proc` has them.

Whoever forks must not have Ray's threads: `Nodes` only starts the process, and speaks with it.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

STORE = 80 << 20
"""Bytes of the object store of each node."""

NODE = {"num_cpus": 1, "object_store_memory": STORE}


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def command(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


class Nodes:
    """A head that computes nothing, and two nodes with a core each."""

    def __init__(self) -> None:
        """Start them."""
        words = [sys.executable, "-m", "tests.support.ray_cluster"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._heard()

    def _heard(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the cluster of Ray has ended")
        return line

    def actors(self) -> list[tuple[int, int]]:
        """Return each actor, with the process of its node."""
        nodes = [one for one in children(self.process.pid) if "raylet/raylet" in command(one).partition(" ")[0]]
        return [(node, one) for node in nodes for one in children(node) if command(one).startswith("ray::Seat")]

    def mend(self) -> None:
        """Put a new node in the place of each one that died."""
        assert self.process.stdin is not None
        self.process.stdin.write("mend\n")
        self.process.stdin.flush()
        self._heard()

    def close(self) -> None:
        """End the cluster."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def main() -> None:
    """Be the cluster, until nobody speaks any more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    noticed = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": noticed}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        print(cluster.address, file=answers)
        for _ in sys.stdin:
            for node in [*cluster.worker_nodes]:
                if node.dead_processes():
                    cluster.remove_node(node, allow_graceful=False)
                    cluster.add_node(**NODE)
            print("mended", file=answers)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
