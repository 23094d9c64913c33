"""What a process sees around it: software, disks, shared memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from scar_core.manifest import software

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system below a folder of a node."""

    folder: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Software:
    """What a process runs on."""

    python: str
    packages: Mapping[str, str]
    """Versions of those that are installed."""
    code: str
    """A digest of the sources of this project."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a process of a node sees around it."""

    software: Software
    spill: Disk
    """Where Ray puts what its object store cannot hold."""
    temporary: Disk
    """Where files are made before they go to a store."""
    shared_memory_bytes: int | None


def software_here() -> Software:
    """What this process runs on."""
    packages = software()
    return Software(python=packages.pop("python"), packages=packages, code=_code())


def facts_here() -> Facts:
    """What this process of a node sees around it."""
    shared = Path("/dev/shm")  # noqa: S108 - where Ray's object store lies
    return Facts(
        software=software_here(),
        spill=_disk(_spill_folder()),
        temporary=_disk(tempfile.gettempdir()),
        shared_memory_bytes=shutil.disk_usage(shared).total if shared.is_dir() else None,
    )


def _code() -> str:
    """Two checkouts of one version may differ, and then so may what is pickled between them."""
    top = Path(__file__).parents[2]
    total = blake2b(digest_size=8)
    for package in ("jobs", "scar_core"):
        for path in sorted((top / package).rglob("*.py")):
            total.update(f"{path.relative_to(top)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _disk(folder: str) -> Disk:
    usage = shutil.disk_usage(folder)
    return Disk(folder=folder, total_bytes=usage.total, free_bytes=usage.free)


def _spill_folder() -> str:
    """Where this node's Ray spills to: no public call tells it."""
    import ray  # noqa: PLC0415 - `--help` must not wait for Ray

    node = ray._private.worker._global_node  # noqa: SLF001 - as above
    session = tempfile.gettempdir() if node is None else node.get_session_dir_path()
    config = ray._private.state.state.get_system_config().get("object_spilling_config")  # noqa: SLF001
    chosen = json.loads(config).get("params", {}).get("directory_path") if config else None
    chosen = chosen[0] if isinstance(chosen, list) else chosen
    return chosen if isinstance(chosen, str) and Path(chosen).is_dir() else session
