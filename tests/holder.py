"""A process that holds a lease and does what it is told: run by test_lease.py.

    python -m tests.holder FOLDER LEASE_SECONDS CLOCK_SHIFT_HOURS here|elsewhere

It prints `held`, then reads words from its standard input: `publish` publishes a ranker of no
files below FOLDER, `end` ends. Its exit code is that of a job.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from jobs import cli
from scar_core import lease, storage
from scar_core.manifest import publish

if TYPE_CHECKING:
    from collections.abc import Sequence


def shifted(hours: float) -> type[datetime]:
    """A clock that is wrong by so much."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            wrong = datetime.now(tz) + timedelta(hours=hours)
            return cls.fromtimestamp(wrong.timestamp(), tz)

    return Clock


def job(argv: Sequence[str]) -> None:
    """Hold, and obey."""
    folder, seconds, hours, where = argv
    if where == "elsewhere":  # as if its machine were not that of the test
        lease.own_process = lambda: ""  # type: ignore[attr-defined]
    lease.datetime = shifted(float(hours))  # type: ignore[attr-defined]
    with lease.held(storage.join(folder, "lease"), lease_seconds=float(seconds)):
        print("held", flush=True)
        for line in sys.stdin:
            if line.strip() == "publish":
                publish(
                    storage.join(folder, "run"),
                    kind="ranker",
                    config={},
                    inputs=[],
                    counts={},
                    files=[],
                )
                print("published", flush=True)
            else:
                break


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
