"""Rows drawn by chance from a pool's units, and intervals for what they say of all rows.

The rows of all units, end to end, are cut into strata of equal length. In each some rows are drawn;
the unit that holds one gives some of its rows that lie in the stratum. So longer units are drawn
more often, and few are read. The mean over a draw's rows is an unbiased estimate of the stratum's
mean, and the draws of a stratum are independent, so their spread tells the error, whatever the pool
is sorted by and however alike the rows of a unit are.

Shape suffixes: H strata, D draws of each, R rows of a draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scar_core.pool.units import Unit

ROWS_PER_DRAW = 16
"""More of one unit say little new of the pool; fewer read more units for the same rows."""
DRAWS_PER_STRATUM = 8
"""Fewer, in more strata, tell too little of a stratum with rare long rows: of rows sorted by a
lognormal length, intervals of 2 draws in each of 32 strata held the truth in 64 % of 400 samples,
those of 8 draws in 16 strata in 90 %."""
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate, and between what the truth lies with CONFIDENCE."""

    estimate: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """The interval of so many times the quantity; the factor is at least 0."""
        return Interval(*(factor * value for value in self))

    def plus(self, known: float) -> Interval:
        """The interval of the quantity and one that is known."""
        return Interval(*(known + value for value in self))


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Some rows of one unit."""

    unit: Unit
    offsets_R: NDArray[np.int64]
    """Within the unit, ascending."""


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """Drawn rows, and what they stand for."""

    draws: list[Draw]
    """Those of the first stratum, those of the second, and so on; of `whole`, all units."""
    rows_H: NDArray[np.int64]
    """Rows of each stratum; of `whole`, of each unit."""
    whole: bool
    """Whether every row is drawn."""

    @property
    def rows(self) -> int:
        """Rows drawn."""
        return sum(len(draw.offsets_R) for draw in self.draws)

    def total(self, means: Sequence[float] | NDArray[np.float64]) -> Interval:
        """The sum over all rows of something of which the mean over each draw's rows is given.

        It is taken to be at least 0, for each row.
        """
        values = np.asarray(means, np.float64)
        if self.whole:
            total = float(np.dot(self.rows_H, values))
            return Interval(total, total, total)
        values_HD = values.reshape(len(self.rows_H), DRAWS_PER_STRATUM)
        total = float(np.dot(self.rows_H, values_HD.mean(axis=1)))
        variance_H = self.rows_H**2 * values_HD.var(axis=1, ddof=1) / DRAWS_PER_STRATUM
        quantile = float(stdtrit(_freedom(variance_H), (1 + CONFIDENCE) / 2))
        error = quantile * math.sqrt(variance_H.sum())
        return Interval(total, max(0.0, total - error), total + error)

    def share(self, means: Sequence[float] | NDArray[np.float64]) -> Interval:
        """The share of all rows that have something; the share of each draw's rows is given.

        Where none of the drawn rows has it, the upper end is that of the rule of three.
        """
        rows = int(self.rows_H.sum())
        found = self.total(means).times(1 / max(rows, 1))
        if not found.estimate and not self.whole:
            return found._replace(high=min(1.0, -math.log(1 - CONFIDENCE) / self.rows))
        return found._replace(high=min(1.0, found.high))


def draw_rows(units: Sequence[Unit], *, rows: int, seed: int) -> RowSample:
    """Draw about so many rows, those of one stratum at least; all where there are no more.

    The same units and the same seed give the same rows.
    """
    stops = np.cumsum([unit.rows for unit in units], dtype=np.int64)
    total = int(stops[-1]) if len(stops) else 0
    if total <= rows:
        draws = [Draw(unit=unit, offsets_R=np.arange(unit.rows)) for unit in units]
        return RowSample(draws=draws, rows_H=np.diff(stops, prepend=0), whole=True)
    rng = np.random.default_rng(seed)
    strata = max(1, rows // (DRAWS_PER_STRATUM * ROWS_PER_DRAW))
    edges = np.array([total * number // strata for number in range(strata + 1)])
    draws = []
    for low, high in pairwise(edges):
        for position in rng.integers(low, high, size=DRAWS_PER_STRATUM):
            index = int(np.searchsorted(stops, position, side="right"))
            unit, start = units[index], stops[index] - units[index].rows
            first, after = max(low, start) - start, min(high, stops[index]) - start
            count = min(ROWS_PER_DRAW, int(after - first))
            offsets_R = first + np.sort(rng.choice(after - first, count, replace=False))
            draws.append(Draw(unit=unit, offsets_R=offsets_R))
    return RowSample(draws=draws, rows_H=np.diff(edges), whole=False)


def _freedom(variance_H: NDArray[np.float64]) -> float:
    """Degrees of freedom of a sum of estimated variances (Satterthwaite)."""
    squares = float(np.square(variance_H).sum())
    if not squares:
        return math.inf
    return (DRAWS_PER_STRATUM - 1) * float(variance_H.sum()) ** 2 / squares
