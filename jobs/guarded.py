"""A scorer in a process of its own, so that a row that breaks it costs that row and no other.

A scorer may raise, its process may die (out of memory, a fault in a library), or a batch may never
end. Ray retries a dead actor for ever, aborts all for a raised error and waits for a stalled one,
so none of that is left to Ray: the actor lives, the scorer is its child.

A unit that breaks the child is scored in halves, halves of halves, down to single rows; a single
row that breaks it twice is at fault. That ends and is complete, because a piece either has scores,
or is one row with a fault, or becomes two smaller pieces that cover it. A dead or stalled child is
replaced before the next piece. Rows are found at fault only between two proofs that the child
scores a known good row: a machine that cannot score at all breaks the run, and no row is blamed.
Last, the good rows are scored once more together, so that their scores do not depend on how they
were split.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from scar_core import stores
from scar_core.errors import RunError, ScarError
from scar_core.ranker.encoding import TokenRows, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Load = Callable[[], "TokenScorer"]
    Texts = tuple[TokenRows, TokenRows]

logger = logging.getLogger("scar_curate")

GOOD_PAIR = ("Name a prime number.", "Seven is a prime number.")
SECONDS_BETWEEN_BEATS = 1.0
MESSAGE_CHARACTERS = 300

# A fork would copy the locks of a Ray worker's threads, and CUDA does not survive one;
# multiprocessing's spawn would run the worker's main module again, and with it import Ray.
CHILD = "import sys; from jobs.guarded import serve; serve(int(sys.argv[1]))"


class TokenScorer(Protocol):
    """What a `Scorer` is to this room."""

    def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Score texts."""

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Score tokenized texts."""


class Fault(NamedTuple):
    """Why a row has no score."""

    reason: str
    """failed: the scorer raised. crashed: its process died. timed_out: a batch did not end."""
    message: str


class Guarded(NamedTuple):
    """Scores of K rows."""

    scores_K: NDArray[np.float32]
    """NaN where a row is at fault."""
    faults: dict[int, Fault]
    """By position, ascending."""


class Work(NamedTuple):
    """What a scorer's encoder has done; zeros where the scorer does not count it."""

    encoded_tokens: int
    """Real tokens; equal texts that were scored together count once."""
    computed_tokens: int
    """Those and padding."""


class GuardedScorer:
    """A scorer in a child process, for one caller at a time."""

    def __init__(self, load: Load, *, stall_seconds: float) -> None:
        """Start the child and wait until the scorer is loaded.

        Args:
            load: gives the scorer; called in the child, so it travels by pickle.
            stall_seconds: a child that finishes no batch for so long is stalled.

        Raises:
            ScarError: the scorer cannot be loaded.
        """
        self._load = load
        self._stall_seconds = stall_seconds
        self._child, self._connection = _start(load)
        self.work = Work(0, 0)
        """Of the pieces that were scored so far, by all children."""

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> Guarded:
        """Scores of all rows that can be scored, and what is wrong with the others.

        Raises:
            RunError: not even a known good row is scored any more.
        """
        texts = (instructions, responses)
        rows_K = np.arange(len(instructions))
        if not len(rows_K):
            return Guarded(np.empty(0, np.float32), {})
        outcome = self._try(texts)
        if not isinstance(outcome, Fault):
            return Guarded(outcome, {})
        logger.warning(
            "%s rows could not be scored together (%s: %s); looking for those at fault",
            f"{len(rows_K):,}",
            *outcome,
        )
        self._prove(outcome)
        found = self._split(texts, rows_K)
        self._prove(outcome)
        good_K = np.setdiff1d(rows_K, list(found.faults))
        together = self._try(_take(texts, good_K)) if len(good_K) else found.scores_K[:0]
        if not isinstance(together, Fault):
            found.scores_K[good_K] = together
        return found

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait()
        self._connection.close()

    def _split(self, texts: Texts, rows_K: NDArray[np.int64]) -> Guarded:
        """Score rows in ever smaller pieces."""
        scores_K = np.full(len(rows_K), np.nan, np.float32)
        faults: dict[int, Fault] = {}
        waiting = _halves(rows_K)
        while waiting:
            piece = waiting.pop()
            outcome = self._try(_take(texts, piece))
            if isinstance(outcome, Fault) and len(piece) == 1:
                outcome = self._try(_take(texts, piece))  # once may be the machine's fault
            if not isinstance(outcome, Fault):
                scores_K[piece] = outcome
            elif len(piece) == 1:
                faults[int(piece[0])] = outcome
            else:
                waiting += _halves(piece)
        return Guarded(scores_K, faults)

    def _prove(self, cause: Fault) -> None:
        """Raise RunError unless the child scores a known good row."""
        outcome = self._try(None)
        if isinstance(outcome, Fault):
            raise RunError(
                f"the scorer does not score a known good row any more ({outcome.reason}: "
                f"{outcome.message}), after: {cause.reason}: {cause.message}. No row is blamed; "
                "mend the machine and start again: finished units are kept."
            )

    def _try(self, texts: Texts | None) -> NDArray[np.float32] | Fault:
        """What the child makes of these texts, or of the known good pair; it is ready after."""
        kind, value = self._ask(texts)
        if kind == "scores":
            scores_K, work = value
            self.work = Work(*(one + more for one, more in zip(self.work, work, strict=True)))
            return np.asarray(scores_K)
        if kind != "failed":
            self.close()
            self._child, self._connection = _start(self._load)
        return Fault("failed" if kind == "broken" else kind, value)

    def _ask(self, texts: Texts | None) -> tuple[str, Any]:
        """The child's answer, or what became of it."""
        try:
            self._connection.send(texts)
            while self._connection.poll(self._stall_seconds):
                kind, value = self._connection.recv()
                if kind != "batch":
                    return kind, value
        except (EOFError, OSError):
            return "crashed", f"the scoring process ended by {_how(self._child.wait())}"
        return "timed_out", f"no batch was finished within {self._stall_seconds:g} s"


def _take(texts: Texts, rows: NDArray[np.int64]) -> Texts:
    return texts[0].take(rows), texts[1].take(rows)


def _halves(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A piece in two, the first half last, as a stack wants it; a single row as it is."""
    return [rows] if len(rows) == 1 else np.array_split(rows, 2)[::-1]


def _how(code: int) -> str:
    """A process's end in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _start(load: Load) -> tuple[subprocess.Popen[bytes], Connection]:
    """A child whose scorer is loaded, and the way to it."""
    ours, theirs = Pipe()
    with theirs:
        child = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-c", CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        # The ranker may lie in a store that only the driver's options reach.
        ours.send((load, stores.carried()))
        kind, value = ours.recv()
    except (EOFError, OSError):
        raise RunError(
            f"the scoring process ended by {_how(child.wait())} while it loaded the ranker. "
            "Most often the memory is too small: use fewer actors."
        ) from None
    if kind == "failed":
        child.wait()
        raise value if isinstance(value, ScarError) else RunError(value)
    return child, ours


def serve(descriptor: int) -> None:
    """The child: load what is sent first, then score what is sent until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    parent = os.getppid()
    connection = Connection(descriptor)
    try:
        load, access = connection.recv()
        stores.carry(access)
        scorer = load()
    except ScarError as error:
        connection.send(("failed", error))
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells it
        connection.send(("failed", _told(error)))
        return
    connection.send(("ready", None))
    lock = threading.Lock()
    watching = (connection, lock, scorer, parent)
    threading.Thread(target=_watch, args=watching, daemon=True).start()
    while True:
        try:
            texts = connection.recv()
        except EOFError:
            return
        kind, value = _answer(scorer, texts)
        if kind == "failed" and _is_on_gpu(scorer):
            kind = "broken"  # after some CUDA errors every further call fails
        with lock:
            connection.send((kind, value))


def _answer(scorer: TokenScorer, texts: Texts | None) -> tuple[str, Any]:
    before = _work_of(scorer)
    try:
        if texts is None:
            scores_K = np.array(scorer.score([GOOD_PAIR]), np.float32)
        else:
            scores_K = scorer.score_tokens(*texts)
        after = _work_of(scorer)
        return "scores", (scores_K, Work(*(b - a for a, b in zip(before, after, strict=True))))
    except Exception as error:  # noqa: BLE001 - whatever a row sets off is that row's message
        return "failed", _told(error)


def _work_of(scorer: TokenScorer) -> Work:
    stats = getattr(scorer, "stats", None)
    return Work(getattr(stats, "real_tokens", 0), getattr(stats, "computed_tokens", 0))


def _watch(connection: Connection, lock: threading.Lock, scorer: TokenScorer, parent: int) -> None:
    """Tell the parent of finished batches, and end when it is gone."""
    seen = 0
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_BEATS)
        done = getattr(getattr(scorer, "stats", None), "batches", 0)
        if done != seen:
            seen = done
            with lock:
                connection.send(("batch", None))
    os._exit(1)


def _is_on_gpu(scorer: TokenScorer) -> bool:
    return getattr(getattr(scorer, "device", None), "type", "cpu") != "cpu"


def _told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {first_line(error)}"[:MESSAGE_CHARACTERS]
