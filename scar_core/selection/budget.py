"""A budget of tokens: how long a beginning of the order fits, by histograms of tokens beside rows.

A row's tokens are those of instruction and response as the ranker counts them, special tokens
included, and those too that it cut off: a trainer reads the whole text.

Array suffixes: P prefixes, V the values of a digit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.selection.order import (
    DIGIT_VALUES,
    KEY_DIGITS,
    SCORE_DIGITS,
    Prefix,
    score_key_of,
    score_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scar_core.selection.order import SidecarColumns
    from scar_core.selection.radix import Radix, Scan


class Fitting(NamedTuple):
    """The longest beginning of the order that fits."""

    selected: int
    """Its rows."""
    tokens: int
    """Their tokens."""
    stopped_by: float | None
    """Score, or whatever rows are ordered by, of the first row that does not fit; None: all do."""


def token_histograms(
    sidecars: Iterable[SidecarColumns], prefixes: Sequence[Prefix]
) -> NDArray[np.int64]:
    """[P, V] tokens of the eligible rows whose key starts with each prefix, by their next digit."""
    histograms_PV = np.zeros((len(prefixes), DIGIT_VALUES), np.int64)
    for columns in sidecars:
        for histogram_V, prefix in zip(histograms_PV, prefixes, strict=True):
            rows_M = columns.rows_under(prefix)
            if len(rows_M):
                digits_M = columns.digit(len(prefix), rows_M)
                np.add.at(histogram_V, digits_M, columns.tokens_N[rows_M])
    return histograms_PV


def fitting(radix: Radix, weigh: Scan, budget: int) -> Fitting:
    """Walk to the first row with which the tokens exceed the budget; all before it fit.

    Two passes a digit, one for rows and one for tokens, until one row is under the prefix.
    """
    prefix: Prefix = ()
    rows = tokens = 0
    while True:
        tokens_V, rows_V = weigh([prefix])[0], radix.rows_of(prefix)
        running_V = np.cumsum(tokens_V)
        digit = int(np.searchsorted(running_V, budget - tokens, side="right"))
        rows += int(rows_V[:digit].sum())
        tokens += int(running_V[digit - 1]) if digit else 0
        if digit == DIGIT_VALUES:
            return Fitting(rows, tokens, None)
        prefix = (*prefix, digit)
        scored = len(prefix) >= SCORE_DIGITS
        if scored and (rows_V[digit] == 1 or len(prefix) == KEY_DIGITS):
            return Fitting(rows, tokens, score_of(score_key_of(prefix)))
