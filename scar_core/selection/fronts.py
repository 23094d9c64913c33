"""Pareto fronts of two numbers: first the rows that no row beats in both, then those of the rest.

A row beats another if it is at least as high in both numbers and higher in one. Rows are ordered by
front; within one by score, if that is one of the two, else by the first of them; then as ever by
content hash and place. Fronts are found on the driver, from the distinct pairs of numbers.

Array suffixes: N rows of a sidecar, D distinct pairs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scar_core.errors import InputError
from scar_core.selection.combine import SCORE, Term, values_of_term

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scar_core.selection.order import SidecarColumns

MOST_PAIRS = 2**21
"""Distinct pairs at most: the driver and every worker hold them, in 25 MB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fronts:
    """Rows ordered by front; before `fitted` by nothing."""

    names: tuple[str, str]
    pairs_D: NDArray[np.uint64] | None = None
    """Distinct pairs, ascending, as `pair_keys` gives them."""
    worth_D: NDArray[np.float32] | None = None
    """Of each, a whole number: higher is earlier."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All but the score."""
        return tuple(name for name in self.names if name != SCORE)

    def of(self, rows: SidecarColumns) -> NDArray[np.float32]:
        """[N] worth of each row; NaN where a value is missing or the score is not finite."""
        keys_N, fit_N = self.pair_keys(rows)
        worth_N = np.full(len(rows), np.nan, np.float32)
        if self.pairs_D is None or self.worth_D is None:
            worth_N[fit_N] = 0
        else:
            found_N = np.searchsorted(self.pairs_D, keys_N)
            fit_N &= found_N < len(self.pairs_D)  # beyond are rows without a score alone
            worth_N[fit_N] = self.worth_D[found_N[fit_N]]
        return worth_N

    def pair_keys(self, rows: SidecarColumns) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """[N] both numbers as one, and whether a row has both; ascending keys, ascending first."""
        first_N, second_N = (
            values_of_term(rows, Term(name=name, weight=1.0)) for name in self.names
        )
        fit_N = np.isfinite(first_N) & np.isfinite(second_N) & np.isfinite(rows.scores_N)
        return ascending(first_N) << np.uint64(32) | ascending(second_N), fit_N


def ascending(values_N: NDArray[np.float32]) -> NDArray[np.uint64]:
    """[N] 32 bits that are ordered as the values; equal for both zeros."""
    bits_N = (values_N + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    negative_N = bits_N >> 31 == 1
    return np.where(negative_N, ~bits_N, bits_N | np.uint32(2**31)).astype(np.uint64)


def distinct_pairs(sidecars: Iterable[SidecarColumns], fronts: Fronts) -> NDArray[np.uint64]:
    """[D] distinct pairs of rows that have both numbers, ascending.

    Raises:
        InputError: there are more than MOST_PAIRS.
    """
    found = np.zeros(0, np.uint64)
    for columns in sidecars:
        keys_N, _ = fronts.pair_keys(columns)
        found = merge_pairs([found, np.unique(keys_N[columns.eligible_N])])
    return found


def merge_pairs(parts: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """[D] those of all parts; a part at a time.

    Raises:
        InputError: there are more than MOST_PAIRS.
    """
    found = np.zeros(0, np.uint64)
    for part in parts:
        found = np.union1d(found, part)
        if len(found) > MOST_PAIRS:
            raise InputError(
                f"--pareto: more than {MOST_PAIRS:,} different pairs of numbers, the limit. Select "
                "from a smaller pool, round the column, or use --combine."
            )
    return found


def front_numbers(seconds: Iterable[int]) -> list[int]:
    """The front, from 0, of each of some distinct pairs, from their second numbers.

    The pairs come descending.

    In that order a pair is beaten by a front if and only if the front's largest second number is at
    least its own; from front to front that number falls, so the first front that does not beat it
    is found by bisection.
    """
    largest: list[int] = []  # of each front, negated: ascending
    numbers = []
    for second in seconds:
        front = bisect_left(largest, -second + 1)
        if front == len(largest):
            largest.append(-second)
        else:
            largest[front] = -second
        numbers.append(front)
    return numbers


def fitted(fronts: Fronts, pairs_D: NDArray[np.uint64]) -> Fronts:
    """The same with the fronts of these pairs."""
    first_D, second_D = pairs_D >> np.uint64(32), pairs_D & np.uint64(2**32 - 1)
    numbers_D = np.array(front_numbers(second_D[::-1].tolist()), np.uint64)[::-1]
    within_D = second_D if fronts.names[1] == SCORE else first_D
    # Dense ranks of (front, within it higher first): below 2**21, so exact as float32.
    places_D = numbers_D << np.uint64(32) | np.uint64(2**32 - 1) - within_D
    _, ranks_D = np.unique(places_D, return_inverse=True)
    return Fronts(names=fronts.names, pairs_D=pairs_D, worth_D=-ranks_D.astype(np.float32))
