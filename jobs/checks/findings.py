"""One finding a check, and work that is given up after a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from scar_core.errors import ScarError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

Status = Literal["ok", "warning", "failed", "skipped"]
Result = TypeVar("Result")

TOLD_LETTERS = 400
"""Of an error that is not ours; some fill a page."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    """What was looked at; one finding has the name."""
    status: Status
    """`failed`: the run would fail or hang. `warning`: it would run, but not as one might think."""
    found: str
    """One sentence."""
    next: str = ""
    """What to do about it; empty where nothing is to be done, or `found` says it."""

    def __str__(self) -> str:
        """One line."""
        words = f"{self.found.rstrip('.')}. {self.next}".split()
        return f"{self.status:<7}  {self.check:<20}  {' '.join(words)}"


class Limited(Generic[Result]):
    """Work in a thread of its own, from now on; one that hangs is left behind when time is up."""

    def __init__(self, work: Callable[[], Result], *, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._work = work
        self._result = Future[Result]()
        # A daemon: what hangs must not keep the process from ending.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._result.set_exception(error)

    def ended(self, *, until: float) -> bool:
        """Whether the work has ended, well or not, by a time of `time.monotonic`."""
        return _ended(self._result, seconds=until - time.monotonic())

    def result(self) -> Result:
        """What the work gave, or raised; TimeoutError when its time is up."""
        if not self.ended(until=self._until):
            raise TimeoutError(_no_answer(self._seconds))
        return self._result.result()


class Held:
    """A context that is entered, and left, in a thread of its own, which lives as long as it does.

    Linux ends what a thread has started with this thread: a Ray of this machine, too.
    """

    def __init__(self, context: AbstractContextManager[object]) -> None:
        self._context = context
        self._leave = threading.Event()
        self._entered = Future[None]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._context:
                self._entered.set_result(None)
                self._leave.wait()
        except BaseException as error:
            if self._entered.done():
                raise
            self._entered.set_exception(error)

    def entered(self, *, seconds: float) -> None:
        """Wait until it is entered, or raise why not; TimeoutError after so long."""
        if not _ended(self._entered, seconds=seconds):
            raise TimeoutError(_no_answer(seconds))
        self._entered.result()

    def leave(self) -> None:
        """Leave it, and wait for that; what is entered only later is left at once."""
        self._leave.set()
        if self._entered.done():
            self._thread.join()


def _ended(work: Future[Any], *, seconds: float) -> bool:
    """Whether work has ended, well or not, after so long."""
    return bool(wait([work], timeout=max(0.0, seconds)).done)


def _no_answer(seconds: float) -> str:
    return f"no answer within {seconds:g} s"


def finding_of(check: str, give: Callable[[], Finding], *, then: str = "") -> Finding:
    """What `give` finds; an error is a finding too, with `then` as what to do next."""
    try:
        return give()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        mine = isinstance(error, ScarError)  # these say themselves what to do
        return Finding(check=check, status="failed", found=told(error), next="" if mine else then)


def told(error: BaseException) -> str:
    """An error in one line, without the traceback that Ray puts into those of workers."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return told(cause)
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ScarError):
        return " ".join(lines)
    text = " ".join(lines)
    if len(text) > TOLD_LETTERS:  # of a traceback the end says what it was
        text = " … ".join(line[: TOLD_LETTERS // 2] for line in (lines[0], lines[-1]))
    known = isinstance(error, TimeoutError) and text
    return text if known else f"{type(error).__name__}: {text}"
