"""What happens in a run, as JSON lines for machines; people read the log.

A line is one event: `time` (ISO 8601, UTC), `run`, `job` and `event`, then the event's own fields:

run_started         version
plan_made           files, rows, units, units_done (scored by earlier runs); twice where the run
                    waited for another one. Of synthesize and judge: files, rows, requests
scoring_started     units, rows: what this run has to score; where there is anything
progress            rows_done, rows_total, rows_per_second, tokens_per_second, seconds_left; at most
                    one in ten seconds. Of synthesize and judge: requests, not rows
scoring_finished    of this run: rows, tokens, seconds, rows_per_second, tokens_per_second,
                    computed_per_encoded_token, actor_wait_ratio, encoded_tokens, actor_seconds
rows_quarantined    reasons: rows of the whole pool by reason; only where there are any
rows_rescored       rows: scored again in fp32, in one round
rows_selected       eligible, selected, threshold, files: how many are written
compared            before: as in report.json; only where there was a run before
run_published       kind, folder, counts
pointer_written     latest: what latest.json names now
run_finished        seconds
run_failed          error: its class; message, seconds, exit_code

The last event of a run is run_finished or run_failed; without either it was killed, or still runs.
Events are logging records of a logger of their own, so `tell` may be called anywhere in a job and
costs nothing where nobody records. One kind, unit_scored, is for metrics alone: a line for each of
a million units would help nobody.

A place that cannot be written when a run starts is an error of the flags. Later it never fails the
run, whose rows matter more: one warning, another try with each later write, and at the end an
error that says how many events are missing.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.metrics import RayMetrics
from scar_core import storage
from scar_core.errors import InputError, ScarError
from scar_core.manifest import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("scar_curate")

events = logging.getLogger("scar_curate.events")
events.propagate = False
events.addHandler(logging.NullHandler())

ENVELOPE = {"time", "run", "job", "event"}
SECONDS_BETWEEN_PUTS = 60.0
# An object is put whole each time: the longer it gets, the rarer, so that a run of weeks stays
# below 20 kB/s.
BYTES_THAT_DOUBLE_IT = 2**20


@dataclass(frozen=True, kw_only=True)
class EventsConfig:
    """Where events go."""

    events: str | None = None
    """Folder for <run>.jsonl, the events of the run as JSON lines; `none` for no such file.
    By default events/ in --out; select_rows then writes none."""


def tell(event: str, *, level: int = logging.INFO, **fields: Any) -> None:  # noqa: ANN401 - JSON
    """Record an event, where somebody does."""
    assert not fields.keys() & ENVELOPE, f"{event}: a field of every event"  # noqa: S101
    events.log(level, event, extra={"fields": fields})


def tell_published(folder: str, *, kind: str, counts: dict[str, Any]) -> None:
    """Record that this run has published a directory."""
    tell("run_published", kind=kind, folder=folder, counts=counts)


@contextmanager
def recording(
    config: EventsConfig, *, job: str, run: str, default: str | None = None
) -> Iterator[None]:
    """Record the events of a block, in a file and as Ray metrics.

    Args:
        config: where the file goes.
        job: that runs.
        run: names the file; no run has had it before.
        default: folder of the job's results, for a file that was not asked for. It is made no
            sooner than a sound plan is: a wrong flag leaves nothing behind.

    Raises:
        InputError: the file was asked for and cannot be written.
    """
    folder = config.events
    if folder is None and default is not None:
        folder = storage.join(storage.absolute(default), "events")
    handlers: list[logging.Handler] = [RayMetrics(run)]
    if folder not in (None, "none"):
        path = storage.join(storage.absolute(str(folder)), f"{run}.jsonl")
        asked = config.events is not None
        handlers.append(EventFile(path, job=job, run=run, asked=asked))
    before = events.level
    events.setLevel(logging.DEBUG)
    for handler in handlers:
        events.addHandler(handler)
    started = time.monotonic()
    try:
        tell("run_started", version=version("scar-curate"))
        yield
        tell("run_finished", seconds=round(time.monotonic() - started, 3))
    except BaseException as error:
        tell(
            "run_failed",
            error=type(error).__name__,
            message=str(error),
            seconds=round(time.monotonic() - started, 3),
            exit_code=error.exit_code if isinstance(error, ScarError) else 1,
        )
        raise
    finally:
        for handler in handlers:
            events.removeHandler(handler)
            handler.close()
        events.setLevel(before)


class EventFile(logging.Handler):
    """One file of JSON lines: appended to where it is local, else put whole now and then."""

    def __init__(self, path: str, *, job: str, run: str, asked: bool) -> None:
        super().__init__(logging.INFO)
        self.path = path
        self.job = job
        self.run = run
        self.strict = asked
        """Whether a failure is an error: until something was written."""
        self.holding = not asked
        """Whether nothing is to be written for now."""
        self.local = storage.is_local(path)
        self.waiting = b""
        """What is not written yet."""
        self.put = b""
        """What an object store holds."""
        self.next_put = 0.0
        self.failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take an event, and write what is due."""
        then = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = {
            "time": then.replace("+00:00", "Z"),
            "run": self.run,
            "job": self.job,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        self.waiting += to_json(event, indent=None)
        if event["event"] == "plan_made":
            self.holding = False
        if not self.holding and (self.local or time.monotonic() >= self.next_put):
            self.write()

    def write(self) -> None:
        """Write what waits; a failure is told once, and is an error only at the very start.

        Raises:
            InputError: the place was asked for and nothing could ever be written.
        """
        try:
            self._store()
        except Exception as error:  # each store raises its own; none is worth a run
            if self.strict:
                self.holding = True
                raise InputError(
                    f"--events: {self.path} cannot be written: {error}. Pass another folder, or "
                    "none."
                ) from error
            if not self.failed:
                logger.warning("events cannot be written to %s: %s", self.path, error)
            self.failed = True
        else:
            self.strict, self.failed = False, False
        size = len(self.put) + len(self.waiting)
        wait = SECONDS_BETWEEN_PUTS * (1 + size / BYTES_THAT_DOUBLE_IT)
        self.next_put = time.monotonic() + wait

    def _store(self) -> None:
        if self.local:
            file = Path(self.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab", buffering=0) as opened:
                opened.write(self.waiting)
        else:
            storage.write_bytes(self.path, self.put + self.waiting)
            self.put += self.waiting
        self.waiting = b""

    def close(self) -> None:
        """Write the rest; say what is missing."""
        if self.waiting and not self.holding:
            self.write()
        if self.failed:
            missing = self.waiting.count(b"\n")
            logger.error("%s events are missing in %s", f"{missing:,}", self.path)
        super().close()
