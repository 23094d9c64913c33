"""Whether scores are spread as they were: two standard measures, from histograms on one grid.

KS is the two-sample Kolmogorov-Smirnov statistic (Smirnov, 1948): the largest difference between
the two distribution functions; here at the edges of the grid, so at most one bin's share too low.

PSI is the population stability index (Lewis, An Introduction to Credit Scoring, 1994; Siddiqi,
Credit Risk Scorecards, 2006): the sum over ten bins of (now - before) * ln(now / before), the bins
being the deciles of the run before. Half a row is added to each bin, so that an empty one does not
make it infinite. By the usual rule of thumb 0.1 is a shift to look at and 0.25 a large one. Of a
few rows it is large by chance alone, which is why `Drift.is_large` asks the KS test as well.

Array suffixes: N rows, E edges of the grid, B = E + 1 bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GRID_BINS = 1024
LARGE_PSI = 0.25
DECILES = 10
CRITICAL_KS = 1.949
"""c of the asymptotic two-sample test at 0.1 %: KS > c * sqrt((n + m) / (n * m))."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far scores are from those of the run before."""

    psi: float
    """At least 0."""
    ks: float
    """In [0, 1]."""
    rows_before: int
    rows_now: int

    @property
    def is_large(self) -> bool:
        """Whether the shift is large, and too large to be chance among so many rows."""
        n, m = self.rows_before, self.rows_now
        return self.psi >= LARGE_PSI and self.ks > CRITICAL_KS * math.sqrt((n + m) / (n * m))


def grid(quantiles: Sequence[float]) -> NDArray[np.float64]:
    """[E] edges, ascending, for scores of these quantiles, which ascend from the 0 % one.

    The quantiles themselves, and equal steps over the span of all but the first and the last:
    those may be outliers. At least one edge.
    """
    finite = [value for value in quantiles if math.isfinite(value)]
    inner = finite[1:-1] or finite
    if not inner:
        return np.zeros(1)
    return np.unique([*finite, *np.linspace(inner[0], inner[-1], GRID_BINS + 1)])


def histogram(scores_N: NDArray[np.float32], edges_E: NDArray[np.float64]) -> NDArray[np.int64]:
    """[B] scores below the first edge, from there to below the next, …, from the last on."""
    bins_N = np.searchsorted(edges_E, scores_N, side="right")
    return np.bincount(bins_N, minlength=len(edges_E) + 1).astype(np.int64)


def drift(before_B: NDArray[np.int64], now_B: NDArray[np.int64]) -> Drift | None:
    """The drift between two histograms on one grid; None where one of them is empty."""
    n, m = int(before_B.sum()), int(now_B.sum())
    if not n or not m:
        return None
    below_before_B, below_now_B = np.cumsum(before_B), np.cumsum(now_B)
    return Drift(
        psi=_psi(before_B, now_B),
        ks=float(np.abs(below_before_B / n - below_now_B / m).max()),
        rows_before=n,
        rows_now=m,
    )


def _psi(before_B: NDArray[np.int64], now_B: NDArray[np.int64]) -> float:
    below_B = np.cumsum(before_B)
    positions = below_B[-1] * np.arange(1, DECILES) / DECILES
    # Bins of the grid that end a decile; ties may end several at once.
    starts = np.unique([0, *(np.searchsorted(below_B, positions) + 1)])
    starts = starts[starts < len(before_B)]
    shares = []
    for counts_B in (before_B, now_B):
        counts = np.add.reduceat(counts_B, starts) + 0.5
        shares.append(counts / counts.sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
