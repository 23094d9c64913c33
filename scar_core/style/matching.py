"""Rows drawn by chance that are as long as other rows: a fair set to compare a selection with.

Form changes with length, so a selection of long responses differs from a random one for that
alone. Shape suffixes: W wanted rows, P rows to draw from, L lengths at which bins begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

BINS = 50


class MatchedSample(NamedTuple):
    """Rows with the lengths of others."""

    rows: NDArray[np.int64]
    """Positions among the rows to draw from, ascending, none twice."""
    short_rows: int
    """Wanted rows for whose length there was no further row: 0, or the lengths are not the same."""


def length_matched_sample(
    wanted_lengths: ArrayLike, pool_lengths: ArrayLike, *, seed: int = 0, bins: int = BINS
) -> MatchedSample:
    """Draw from a pool, without replacement, as many rows of each length as are wanted.

    A bin reaches from its shortest to its longest wanted row, and lengths within it count as equal.
    Each distinct length is a bin; where there are more, so many with about as many wanted rows
    each. The same seed and lengths give the same rows.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    wanted_W, pool_P = np.asarray(wanted_lengths, float), np.asarray(pool_lengths, float)
    if np.isnan(wanted_W).any() or np.isnan(pool_P).any():
        raise ValueError("a length is not a number")
    if not len(wanted_W):
        return MatchedSample(np.empty(0, np.int64), 0)
    starts_L = np.unique(wanted_W)
    if len(starts_L) > bins:
        quantiles = np.quantile(wanted_W, np.linspace(0, 1, bins + 1), method="lower")
        starts_L = np.unique(quantiles[:-1])
    sorted_W = np.sort(wanted_W)
    first_L = np.searchsorted(sorted_W, starts_L)
    need_L = np.diff(first_L, append=len(sorted_W))
    last_L = sorted_W[first_L + need_L - 1]
    # Shuffled, then sorted by bin and stably: the first of each bin are a draw without replacement.
    order_P = np.random.default_rng(seed).permutation(len(pool_P))
    bin_P = np.searchsorted(starts_L, pool_P[order_P], side="right") - 1
    inside_P = (bin_P >= 0) & (pool_P[order_P] <= last_L[bin_P])
    order_P, bin_P = order_P[inside_P], bin_P[inside_P]
    sorted_P = np.argsort(bin_P, kind="stable")
    have_L = np.bincount(bin_P, minlength=len(need_L))
    rank_P = np.arange(len(sorted_P)) - (have_L.cumsum() - have_L).repeat(have_L)
    drawn_P = rank_P < need_L.repeat(have_L)
    rows = np.sort(order_P[sorted_P][drawn_P]).astype(np.int64)
    return MatchedSample(rows, int(np.maximum(need_L - have_L, 0).sum()))
