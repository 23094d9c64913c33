"""Processes that the walk-through starts: marked, so that each is found and ended by its id."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.jobs_harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RAY = str(Path(sys.executable).parent / "ray")
TMP = Path("/tmp")  # noqa: S108 - each worker has one of its own
ENDS_WITHIN_SECONDS = 900.0
MARK = "SCAR_WALKTHROUGH"
"""In the environment of everything that is started, and so of what that starts."""


def marked(mark: str) -> list[int]:
    """Processes that bear a mark, or one that begins so; none on systems without /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if f"{MARK}={mark}".encode() in environment:
            found.append(int(path.parent.name))
    return found


def end_marked(mark: str) -> None:
    """SIGKILL to every process that bears a mark, by its id, until there is none."""
    deadline = time.monotonic() + 30
    while pids := marked(mark):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} do not end")
        time.sleep(0.1)


def own_environment(mark: str, home: Path) -> dict[str, str]:
    """This process's environment without what leads to a Ray or a store, and a home of its own.

    `python` is that of the tests, as in a pod it is that of the image.
    """
    home.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    return {
        **kept,
        "PATH": f"{Path(RAY).parent}{os.pathsep}{kept['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: mark,
    }


def own_tmp(folder: Path) -> list[str]:
    """What before a command gives it this folder as its /tmp, as a machine of its own has one.

    Nothing where the system does not let a user do so, or where the project itself lies in /tmp.
    """
    binds = ["unshare", "--map-root-user", "--mount"]
    possible = shutil.which("unshare") and not any(
        Path(place).resolve().is_relative_to(TMP) for place in (ROOT, sys.prefix)
    )
    if (
        not possible
        or subprocess.run([*binds, "true"], check=False, capture_output=True).returncode
    ):
        return []
    return [*binds, "sh", "-c", f'mount --bind {folder} {TMP} && exec "$@"', "sh"]


class Submission:
    """A command that runs beside the walk; what it says goes to a file."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=environment["HOME"],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def job(self) -> str:
        """The name that Ray gave to the job it submitted."""
        found = re.search(r"raysubmit_\w+", self.told())
        if found is None:
            raise RuntimeError(f"nothing was submitted:\n{self.told()[-3000:]}")
        return found[0]

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self._process.wait(ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it does not end:\n{self.told()[-3000:]}") from None

    def wait_until(self, happened: Callable[[], bool], *, what: str) -> None:
        """Return as soon as something has happened; an error if this ends before."""
        while not happened():
            if not self.running:
                raise RuntimeError(f"it ended before {what}:\n{self.told()[-3000:]}")
            time.sleep(0.2)

    def told(self) -> str:
        """What it has written so far."""
        return self.log.read_text("utf-8", errors="replace")
