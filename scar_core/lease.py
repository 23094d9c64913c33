"""One run at a time on a curation: a lease made of files that are put only where none is.

Nothing is asked of a store but a put-if-absent and a listing that shows what was put. Terms are
never replaced or deleted: to take the lease, to confirm it and to release it is to put the next
term, and of all that try exactly one does. No two clocks are compared: a holder is given up when
its count has stood still for its lease, by the watch of the one that looks on; or at once, when
it was a process of the same machine as that one, and is gone.

What no lease can promise: a put that was sent while the lease was held and arrives after it ran
out, in one piece later than the whole lease, is not called back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scar_core import storage
from scar_core.errors import LeaseError, LeaseLostError
from scar_core.lease_terms import (
    Term,
    alive_path,
    last_after,
    latest_term,
    put_term,
    read_term,
    sign_of_life,
)
from scar_core.processes import is_gone, own_process

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("scar_curate")

BEATS_PER_LEASE = 8
"""Signs of life in the time after which a holder counts as gone; all but one of them may fail."""

LOOKS_PER_LEASE = 16
LONGEST_LOOK_SECONDS = 2.0


@contextmanager
def held(folder: str, *, lease_seconds: float, wait: bool = False) -> Iterator[Lease]:
    """Hold the lease of a folder for the length of a block; `confirm` knows it meanwhile.

    A holder that shows no sign of life for its lease is superseded. One that is alive is left
    alone: with `wait` until it is done, else it is told by an error.

    Raises:
        LeaseError: another run holds it and is alive.
    """
    lease = _acquire(folder, lease_seconds=lease_seconds, wait=wait)
    outer = _HELD.set(lease)
    lease.start()
    try:
        yield lease
    finally:
        _HELD.reset(outer)
        lease.release()


def confirm() -> None:
    """Make sure, right before publishing, that the lease around this call is still held.

    Afterwards nobody can take it over for its whole length. Without a lease nothing is done.

    Raises:
        LeaseLostError: another run took it over, or the store could not be asked.
    """
    lease = _HELD.get()
    if lease is not None:
        lease.confirm()


class Lease:
    """A lease that is held, with a thread that shows it; made by `held`."""

    def __init__(self, folder: str, term: Term, *, waited: bool) -> None:
        self.folder = folder
        self.waited = waited
        """Whether another run held it when it was first asked for."""
        self._term = term
        self._lost = ""
        self._advancing = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="lease", daemon=True)

    def start(self) -> None:
        """Show signs of life from now on."""
        self._thread.start()

    def confirm(self) -> None:
        """Put the next term, so that the lease runs its full length from now.

        Raises:
            LeaseLostError: another run took it over, or the store could not be asked.
        """
        try:
            self._advance(free=False)
        except LeaseLostError:
            raise
        except Exception as error:
            raise LeaseLostError(
                f"{self.folder}: the lease of this curation could not be renewed "
                f"({type(error).__name__}: {error}), so another run may hold it by now. "
                "Nothing was published; start again, finished work is kept."
            ) from error

    def release(self) -> None:
        """Let the next run start at once. A release that fails only makes it wait."""
        self._done.set()
        try:
            self._advance(free=True)
        except LeaseLostError as error:
            logger.warning("%s", error)
        except Exception as error:  # noqa: BLE001 - must not hide how the run itself ended
            logger.warning(
                "%s: the lease could not be released (%s); the next run starts %g s later",
                self.folder,
                error,
                self._term.lease_seconds,
            )

    def _advance(self, *, free: bool) -> None:
        """Put the term after ours, which only the holder or a successor can do first."""
        with self._advancing:
            while not self._lost:
                following = replace(self._term, number=self._term.number + 1, free=free)
                if put_term(self.folder, following):
                    self._term = following
                    return
                found = read_term(self.folder, following.number)
                if found is not None and found.holder == following.holder:
                    self._term = found  # an earlier put of ours, whose answer was lost
                else:
                    self._lose(found)
            raise LeaseLostError(self._lost)

    def _lose(self, successor: Term | None) -> None:
        by = f"{successor.who} took the curation over" if successor else "another run did"
        self._lost = (
            f"{self.folder}: this run showed no sign of life for {self._term.lease_seconds:g} s, "
            f"and {by}. Nothing more is published by this one; start it again if it is still "
            "wanted, finished work is kept."
        )

    def _show_life(self) -> None:
        """Raise the count until released; failures are told, `confirm` draws the conclusion."""
        beat = 0
        path = alive_path(self.folder, self._term)
        while not self._lost and not self._done.wait(self._term.lease_seconds / BEATS_PER_LEASE):
            beat += 1
            try:
                storage.write_bytes(path, json.dumps({"beat": beat}).encode())
                found = read_term(self.folder, self._term.number + 1)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next beat tries again
                logger.warning("%s: no sign of life was stored (%s); trying again", path, error)
                continue
            if found is not None and found.holder != self._term.holder:
                self._lose(found)
                logger.error("%s", self._lost)


_HELD: ContextVar[Lease | None] = ContextVar("held lease", default=None)


def _acquire(folder: str, *, lease_seconds: float, wait: bool) -> Lease:
    """Take a lease that is free, or whose holder is gone."""
    own = Term(
        number=1,
        holder=secrets.token_hex(8),
        who=f"process {os.getpid()} on {socket.gethostname()}",
        process=own_process(),
        since="",
        lease_seconds=lease_seconds,
    )
    waited = False
    last = latest_term(folder)
    while True:
        if last is not None and not last.free:
            waited = True
            last = _until_gone(folder, last, wait=wait)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        taken = replace(own, number=last.number + 1 if last else 1, since=since)
        if put_term(folder, taken):
            return Lease(folder, taken, waited=waited)
        last = latest_term(folder)


def _until_gone(folder: str, last: Term, *, wait: bool) -> Term:
    """Watch whoever holds a lease until nobody does; the term after which the next may be put.

    Raises:
        LeaseError: the holder is alive and `wait` is not asked for.
    """
    seen: tuple[Term, bytes] | None = None
    still_since = 0.0
    signs_of_life = 0
    while True:
        looked = time.monotonic()
        last = last_after(folder, last)
        state = (last, sign_of_life(folder, last))
        held_by = f"{folder}: held by {last.who} since {last.since}"
        if last.free:
            return last
        if is_gone(last.process):
            logger.warning("%s, and its process is gone; taking over", held_by)
            return last
        if state != seen:
            if seen is None:
                logger.info("%s; looking %g s for a sign of life", held_by, last.lease_seconds)
            elif not wait:
                raise LeaseError(
                    f"{held_by}, and it is alive. Start again when it is done, or pass --wait."
                )
            elif signs_of_life == 0:
                logger.info("%s, and it is alive; waiting for it", held_by)
            signs_of_life += seen is not None
            # The watch starts after the look, and is read before the next one: never too short.
            seen, still_since = state, time.monotonic()
        elif looked - still_since >= last.lease_seconds:
            logger.warning("%s, and gone without releasing it; taking over", held_by)
            return last
        time.sleep(min(LONGEST_LOOK_SECONDS, last.lease_seconds / LOOKS_PER_LEASE))
