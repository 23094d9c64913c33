"""Processes of this machine: named so that no other ever has the name, and known to be gone."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def own_process() -> str:
    """A name of this process that no other has, here or elsewhere; "" where /proc gives none."""
    try:
        return " ".join((*_system(), str(os.getpid()), _start_of(os.getpid())))
    except OSError:
        return ""


def is_gone(process: str) -> bool:
    """Whether a process that `own_process` named is known to have ended.

    False says nothing: it may live, or have run on another machine or in another container.
    """
    try:
        boot, namespace, pid, start = process.split()
        return (boot, namespace) == _system() and _start_of(int(pid)) != start
    except (OSError, ValueError):
        return False


def _system() -> tuple[str, str]:
    """This boot of this machine, and the namespace in which its process ids count."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return boot, str((_PROC / "self/ns/pid").readlink())


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the boot; `ended` where none of this id runs.

    Raises:
        OSError: it is not told; a /proc may hide the processes of others.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "ended"
        raise
    # The second field is the command's name in parentheses, and may hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[0] in "ZX" else fields[19]
