"""A real S3 server for tests: SeaweedFS on loopback, with authentication, stopped by its pid."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import s3fs

if TYPE_CHECKING:
    from collections.abc import Iterator

# Neither is a secret of anybody; tests search files and logs for the second.
ACCESS_KEY = "scar-test-key"
SECRET_KEY = "scar-test-secret-5f1d2c"  # noqa: S105 - made up for a server on loopback
READER_KEY = "scar-reader-key"
READER_SECRET = "scar-reader-secret-77ab90"  # noqa: S105 - as above
BUCKET = "scar"
OPEN_BUCKET = "open"
"""Anybody may do anything there, unsigned: a proxy can change requests that nobody signed."""
START_SECONDS = 90
# Loaded ahead: a child between fork and exec had better only call.
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server with one bucket of its owner's, and one of everybody's."""

    endpoint: str
    """http://127.0.0.1:PORT"""
    pid: int

    @property
    def port(self) -> int:
        """Of the S3 interface."""
        return int(self.endpoint.rpartition(":")[2])

    def environment(self, *, endpoint: str | None = None) -> dict[str, str]:
        """The standard AWS variables that lead here, or to a proxy before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def options(self, *, endpoint: str | None = None) -> dict[str, Any]:
        """The same as fsspec's storage options."""
        return {
            "endpoint_url": endpoint or self.endpoint,
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """A client of its own, so that a test does not look through what it tests."""
        options = {**self.options(), "use_listings_cache": False, "skip_instance_cache": True}
        return s3fs.S3FileSystem(**options)

    def new_folder(self) -> str:
        """A URL below which nothing is stored yet."""
        return f"s3://{BUCKET}/{uuid4().hex}"


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server for the length of a block; its data and its log lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
        "actions": ["Read", "List"],
    }
    anybody = [f"{action}:{OPEN_BUCKET}" for action in ("Read", "Write", "List")]
    anonymous = {"name": "anonymous", "credentials": [], "actions": anybody}
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": [identity, reader, anonymous]}))
    port, *others = free_ports(8)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command(folder, config, port=port, others=others),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
        )
    try:
        server = S3Server(endpoint=f"http://127.0.0.1:{port}", pid=process.pid)
        _wait_until_it_stores(server, process, folder / "log")
        yield server
    finally:
        # A graceful stop takes it half a minute; what it stores survives this one too.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def die_with_parent() -> None:
    """Let no server outlive tests that are killed; Linux alone offers it."""
    if sys.platform == "linux":
        set_death_signal = 1
        LIBC.prctl(set_death_signal, signal.SIGKILL)


def command(folder: Path, config: Path, *, port: int, others: list[int]) -> list[str]:
    """The command line of the server; all of its ports are given, and on loopback alone."""
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    names = ("master.port", "volume.port", "filer.port")
    grpc = ("master.port.grpc", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc")
    flags = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.port": port,
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        **dict(zip((*names, *grpc), others, strict=True)),
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "filer.localSocket": folder / "f.sock",
        "s3.localSocket": folder / "s.sock",
        # On by default: it would report to its makers.
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 0,
        "master.electionTimeout": "1s",
        "master.raftBootstrap": "true",
        "volume.index": "memory",
        "volume.preStopSeconds": 0,
    }
    return [weed, "-logtostderr=true", "server", *(f"-{name}={v}" for name, v in flags.items())]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_until_it_stores(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Make the bucket and put a first object, which takes the server some seconds."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}")
        if socket.socket().connect_ex(("127.0.0.1", server.port)):
            time.sleep(0.1)
            continue
        try:
            filesystem = server.filesystem()
            for bucket in (BUCKET, OPEN_BUCKET):
                if not filesystem.exists(bucket):
                    filesystem.mkdir(bucket)
            filesystem.pipe_file(f"{BUCKET}/first", b"1")
        except OSError:  # it listens before it can store
            time.sleep(0.2)
            continue
        return
