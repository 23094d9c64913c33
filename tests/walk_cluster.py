"""A Ray cluster of processes of this machine, as raycluster.yaml has it: `ray start`, a token."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests import manifests
from tests.s3_server import die_with_parent, free_ports
from tests.walk_processes import RAY, TMP, Submission, end_marked, own_environment, own_tmp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

OBJECT_STORE_BYTES = 150 * 2**20
STARTS_WITHIN_SECONDS = 180.0


@dataclass(kw_only=True)
class Cluster:
    """A head without work, and workers with resources, ports and folders of their own."""

    folder: Path
    """A short path: the names of Ray's sockets lie below it."""
    mark: str
    token: str
    storage: Mapping[str, str]
    """What the secret `scar-curate-storage` puts into the pods' environment."""
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0
    dashboard: str = ""

    def start(self) -> None:
        """Let the head start; it takes jobs when this returns."""
        self.port, dashboard, client = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        flags = {
            "port": self.port,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
        }
        self._ray_start("head", "head", ["--head", *_words(flags)])
        # It answers some seconds before it can take jobs.
        self._until("head", lambda: self.ask("/api/jobs/", send={"entrypoint": "true"}))

    def join(self, name: str, *, group: str, cpus: int, gpus: int = 0) -> None:
        """Let a worker of a group of raycluster.yaml join; it is alive when this returns."""
        flags = {
            "address": f"127.0.0.1:{self.port}",
            "num-cpus": cpus,
            "num-gpus": gpus,
            "resources": json.dumps({name: 1}),
        }
        self._ray_start(name, group, _words(flags))
        self._until(name, lambda: name in self.alive())

    def lose(self, name: str) -> None:
        """End a node's processes with SIGKILL, as when a spot machine is taken away."""
        end_marked(f"{self.mark}.{name}")
        self.nodes.pop(name).wait()

    def alive(self) -> set[str]:
        """The names of the workers that the head takes to be there."""
        answer = self.ask("/api/v0/nodes") or {"data": {"result": {"result": []}}}
        nodes = answer["data"]["result"]["result"]
        there = [node for node in nodes if node["state"] == "ALIVE"]
        return {name for node in there for name in node["resources_total"] if name in self.nodes}

    def ask(self, path: str, *, send: object = None, token: str | None = None) -> Any:  # noqa: ANN401 - JSON
        """What the head's API answers; None where it does not, yet."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            self.dashboard + path,
            data=None if send is None else json.dumps(send).encode(),
            headers={"Authorization": f"Bearer {token or self.token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
                return json.load(answer)
        except (urllib.error.URLError, OSError):
            return None

    def exit_code(self, submission: Submission) -> int:
        """Of the job itself, which `ray job submit` does not pass on."""
        code: int = self.ask(f"/api/jobs/{submission.job}")["driver_exit_code"]
        return code

    def end(self) -> None:
        """End every node."""
        for name in list(self.nodes):
            self.lose(name)

    def _ray_start(self, name: str, group: str, flags: Sequence[str]) -> None:
        """`ray start` with the parameters that raycluster.yaml gives to a group."""
        [manifest] = manifests.read(manifests.CLUSTER / "raycluster.yaml")
        given: dict[str, Any] = manifests.groups(manifest)[group]["rayStartParams"]
        environment = own_environment(f"{self.mark}.{name}", self.folder / name)
        tmp, before = self.folder / name, own_tmp(self.folder / name) if group != "head" else []
        if before:
            tmp = TMP
            environment |= {"HOME": str(TMP), "TMPDIR": str(TMP)}
        given = given | {
            "object-store-memory": OBJECT_STORE_BYTES,
            # Fixed by default, and taken by the first node of this machine.
            "dashboard-agent-listen-port": free_ports(1)[0],
            "temp-dir": tmp / "ray",
        }
        mode: str = manifest["spec"]["authOptions"]["mode"]
        environment |= {**self.storage, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": self.token}
        with (self.folder / name / "log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [*before, RAY, "start", "--block", *_words(given), *flags],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )

    def _until(self, name: str, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not happened():
            if self.nodes[name].poll() is not None or time.monotonic() > deadline:
                log = (self.folder / name / "log").read_text("utf-8", errors="replace")
                raise RuntimeError(f"{name} did not start:\n{log[-3000:]}")
            time.sleep(0.5)


def _words(flags: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]
