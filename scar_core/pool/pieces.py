"""Pieces: what a row is scored in, its turns and their windows, and the way back to one score.

Shape suffixes: P pieces, T turns, K rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scar_core.pool.rows import Turns


class Pieces(NamedTuple):
    """What each of P pieces is a piece of; ascending by row, then turn."""

    rows_P: NDArray[np.int32]
    """Which of the K rows; each has at least one piece."""
    turns_P: NDArray[np.int32]
    """Which of the turns of its row that are scored, from 0."""
    weights_P: NDArray[np.int32]
    """Tokens of the response that it holds, at least 1."""


class Reduced(NamedTuple):
    """Scores of K rows, and of the T turns that they were made from."""

    scores_K: NDArray[np.float32]
    turn_scores_T: NDArray[np.float32]
    turns_K: NDArray[np.int64]
    """Turns of each row."""


def reduce_pieces(scores_P: ArrayLike, pieces: Pieces, *, turns: Turns) -> Reduced:
    """Scores of rows from those of their pieces.

    The score of a turn is the mean of its windows, weighted by their tokens. The score of a row is
    that of its one turn (`first`, `last`), the plain mean of its turns (`mean`), their mean
    weighted by tokens (`all`: each token of the responses counts alike), or the least of them
    (`min`). What is not finite in a piece is not finite in its row. A row of one piece has that
    piece's score, to the bit.
    """
    scores = np.asarray(scores_P, np.float32)
    if not len(scores):
        return Reduced(scores, scores, np.empty(0, np.int64))
    new_row = np.diff(pieces.rows_P, prepend=-1) != 0
    new_turn = new_row | (np.diff(pieces.turns_P, prepend=-1) != 0)
    weights_P = pieces.weights_P.astype(np.float64)
    turn_starts, weights_T = _totals(weights_P, new_turn)
    # Products of a float32 and a whole number below 2**29 are exact in float64.
    turn_scores_T = (np.add.reduceat(weights_P * scores, turn_starts) / weights_T).astype(
        np.float32
    )
    # From the stored turn scores, so that a sidecar's score can be told from its turns.
    row_starts, counts_K = _totals(np.ones(len(turn_starts)), new_row[turn_starts])
    exact_T = turn_scores_T.astype(np.float64)
    if turns == "min":
        scores_K = np.minimum.reduceat(exact_T, row_starts)
    elif turns == "all":
        scores_K = np.add.reduceat(weights_T * exact_T, row_starts)
        scores_K /= np.add.reduceat(weights_T, row_starts)
    else:
        scores_K = np.add.reduceat(exact_T, row_starts) / counts_K
    return Reduced(scores_K.astype(np.float32), turn_scores_T, counts_K.astype(np.int64))


def _totals(
    values: NDArray[np.float64], begins: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where groups begin, and the sums of their values."""
    starts = np.flatnonzero(begins)
    return starts, np.add.reduceat(values, starts)
