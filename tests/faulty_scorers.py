"""Scorers that break on marked rows, for the tests of what happens then; pickled by name."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scar_core.ranker.encoding import TokenRows

RAISES, EXITS, KILLED, HANGS = 901, 902, 903, 904
"""Token ids on which a PlainScorer breaks."""


def break_on(mark: int) -> None:
    """What a faulty row does to the process that scores it."""
    if mark == RAISES:
        raise ValueError("this row is not liked\nmore about it")
    if mark == EXITS:
        os._exit(7)
    if mark == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if mark == HANGS:
        time.sleep(600)


class PlainScorer:
    """A score is the sum of a row's tokens and, so that it shows, of the rows beside it."""

    def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Scores of texts: their lengths."""
        return [float(len(head) + len(tail)) for head, tail in pairs]

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores of tokenized texts, unless a token is one of the marks."""
        for mark in (RAISES, EXITS, KILLED, HANGS):
            if mark in responses.ids_T:
                break_on(mark)
        sums = np.add.reduceat(responses.ids_T, responses.offsets_N1[:-1])
        return (sums + len(instructions) / 1024).astype(np.float32)


class Slow(PlainScorer):
    """Finishes a batch every half a second, ten of them."""

    def __init__(self) -> None:
        self.stats = SimpleNamespace(batches=0)

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores, in the end."""
        for _ in range(10):
            time.sleep(0.5)
            self.stats.batches += 1
        return super().score_tokens(instructions, responses)


class Forgetful(PlainScorer):
    """Breaks on the first call of all, as a machine may once; after that it is sound."""

    def __init__(self, memory: str) -> None:
        self.memory = Path(memory)

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores, but not the first time."""
        if not self.memory.exists():
            self.memory.touch()
            os._exit(1)
        return super().score_tokens(instructions, responses)


class Broken(PlainScorer):
    """Scores nothing, not even a good row."""

    def score(self, pairs: list[tuple[str, str]]) -> list[float]:  # noqa: ARG002 - the protocol's
        """No scores."""
        raise RuntimeError("CUDA error: device-side assert triggered")

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:  # noqa: ARG002
        """No scores."""
        raise RuntimeError("CUDA error: device-side assert triggered")


class OnGpu(PlainScorer):
    """As on a GPU: after one error every further call fails."""

    device = SimpleNamespace(type="cuda")
    spoiled = False

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores until the first error."""
        if self.spoiled:
            raise RuntimeError("CUDA error")
        self.spoiled = bool(np.isin(responses.ids_T, [RAISES]).any())
        return super().score_tokens(instructions, responses)


def dies_at_load() -> PlainScorer:
    """A ranker that does not fit into memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


MARKED = {"Please raise.": RAISES, "Please exit.": EXITS, "Please hang.": HANGS}
"""Responses on which a MarkedScorer breaks."""


class MarkedScorer(PlainScorer):
    """Breaks on marked responses."""

    def __init__(self, marks: dict[bytes, int]) -> None:
        self.marks = marks

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Plain scores, unless a response is marked."""
        for start, end in pairwise(responses.offsets_N1):
            break_on(self.marks.get(responses.ids_T[start:end].tobytes(), 0))
        return super().score_tokens(instructions, responses)


def load_marked(*, marks: dict[bytes, int], **_: Any) -> MarkedScorer:  # noqa: ANN401 - load_scorer's
    """A MarkedScorer in place of the ranker's; no torch, so that it starts at once."""
    return MarkedScorer(marks)
