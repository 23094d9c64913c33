"""A Ray cluster of three nodes on this machine, jobs that run on it, and what befalls both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.jobs_harness import ROOT
from tests.s3_server import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

WORKERS = 2
CPUS_PER_NODE = 2
OBJECT_STORE_BYTES = 100 * 2**20
# A dead node is noticed in seconds, not in half a minute.
FAST_HEALTH_CHECKS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
ENDS_WITHIN_SECONDS = 240.0
# All that Ray wants to be told; it has no defaults for nodes that are processes of one machine.
AUTOSCALER = {
    "cluster_name": "tested",
    "max_workers": 8,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # they share one
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    "docker": {},
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{
        f"{what}_commands": []
        for what in (
            *("initialization", "setup", "head_setup", "worker_setup"),
            *("head_start_ray", "worker_start_ray"),
        )
    },
}
RAY_START = (str(Path(sys.executable).parent / "ray"), "start")


class RayCluster:
    """A head that takes drivers but no work, and workers that come and go."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - only who asks for one pays

        # No work on the head: drivers connect to it, so any other node may be lost.
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "temp_dir": str(folder),
                "_system_config": FAST_HEALTH_CHECKS,
            },
        )
        self.address: str = self._cluster.address

    @property
    def workers(self) -> list[Any]:
        """The nodes that work, in no order."""
        return list(self._cluster.worker_nodes)

    def join(
        self,
        *,
        cpus: int = CPUS_PER_NODE,
        gpus: int = 0,
        store_bytes: int = OBJECT_STORE_BYTES,
    ) -> None:
        """Let a node join; it is alive when this returns. Ray takes our word for its GPUs."""
        self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=store_bytes)

    def kill_node(self, node: Any) -> None:  # noqa: ANN401 - Ray's Node, which has no types
        """End a node's processes with SIGKILL, as when a spot machine is taken away."""
        self._cluster.remove_node(node, allow_graceful=False)

    def restore(self) -> None:
        """Bring the cluster back to its workers."""
        while len(self.workers) < WORKERS:
            self.join()

    def scorers(self) -> dict[int, Any]:
        """The nodes of the scoring actors that are alive, by the actors' pids."""
        nodes = {node.node_id: node for node in self.workers}
        table = self._cluster.global_state.actor_table(None, None, "ALIVE")
        return {
            actor["Pid"]: nodes[actor["Address"]["NodeID"]]
            for actor in table.values()
            if "ScoreUnits" in actor["ActorClassName"] and actor["Address"]["NodeID"] in nodes
        }

    def shutdown(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()


@contextmanager
def three_nodes() -> Iterator[RayCluster]:
    """A cluster for the length of a block; its files go with it."""
    # A short path: the names of Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="scar-", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        cluster.restore()
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def head_with_autoscaler(folder: Path, *, cpus: int, group: Mapping[str, Any]) -> Iterator[str]:
    """A head with Ray's own autoscaler, whose nodes would be processes here; its address.

    Not `AutoscalingCluster`: that one ends every other Ray of the machine.
    """
    head = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
    config = {
        **AUTOSCALER,
        "head_node_type": "ray.head.default",  # the only name that these know
        "available_node_types": {"ray.head.default": head, "group": dict(group)},
    }
    file = folder / "autoscaler.yaml"
    file.write_text(json.dumps(config))
    flags = {
        "num-cpus": cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        "autoscaling-config": file,
        "temp-dir": folder / "ray",
    }
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with head_node(flags, environment) as (address, _):
        yield address


@contextmanager
def head_node(
    flags: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """A Ray head of its own on loopback: its address, and its dashboard's."""
    # Also those that are fixed by default, and taken by any other Ray of this machine: jobs find
    # no agent then.
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    given = {**flags, **ports, "dashboard-host": "127.0.0.1"}
    process = subprocess.Popen(
        [*RAY_START, "--head", "--block", *(f"--{name}={value}" for name, value in given.items())],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    dashboard = ("127.0.0.1", ports["dashboard-port"])
    try:
        deadline = time.monotonic() + ENDS_WITHIN_SECONDS
        while socket.socket().connect_ex(dashboard):
            assert process.poll() is None, "the head node ended"
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)
        yield f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{dashboard[1]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Job:
    """`jobs.curate` as a process of its own."""

    def __init__(
        self, *argv: str, address: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.curate", *argv],
                cwd=ROOT,
                env={**os.environ, **(environment or {}), "RAY_ADDRESS": address},
                stdout=file,
                stderr=file,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, *, seconds: float = ENDS_WITHIN_SECONDS) -> int:
        """Its exit code; a job that does not end is killed, and an error."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job did not end in {seconds:g} s:\n{self.told()}") from None

    def kill(self) -> None:
        """SIGKILL; nothing is left to say goodbye."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def told(self) -> str:
        """What it has written so far."""
        return self.log.read_text("utf-8", errors="replace")

    def wait_until(self, happened: Callable[[], bool], *, seconds: float = 120.0) -> None:
        """Return as soon as something has happened; an error if the job ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.running, f"the job ended too early:\n{self.told()}"
            assert time.monotonic() < deadline, f"it never happened:\n{self.told()}"
            time.sleep(0.02)


def kill_process(pid: int) -> None:
    """SIGKILL to a process that may have ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
