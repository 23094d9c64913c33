"""The rows that show what a selection does: both ends of the order, both sides of the cut.

Array suffixes: N rows of a sidecar, M of them.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scar_core.selection.groups import GroupCuts
    from scar_core.selection.order import Placed, SidecarColumns
    from scar_core.selection.radix import Cut


class Extremes(NamedTuple):
    """The rows that show what a selection does; each list in selection order."""

    best: list[Placed]
    """First of all eligible rows."""
    above: list[Placed]
    """Last of the selected."""
    below: list[Placed]
    """First of those not selected."""
    worst: list[Placed]
    """Last of all eligible rows."""


def extremes(sidecars: Iterable[SidecarColumns], cut: Cut | GroupCuts, *, n: int = 3) -> Extremes:
    """The `n` rows, at least 1, at both ends and on both sides of the cut; fewer where there are.

    Reads hashes only of sidecars with a row that may, by its score, be one of them.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    found = Extremes([], [], [], [])
    for columns in sidecars:
        selected_N = cut.mask(columns)
        every_M = np.flatnonzero(columns.eligible_N)
        inside_M = np.flatnonzero(selected_N)
        outside_M = np.flatnonzero(columns.eligible_N & ~selected_N)
        candidates = Extremes(
            best=_candidates(columns, every_M, selected_N, n=n, held=found.best, end="first"),
            above=_candidates(columns, inside_M, selected_N, n=n, held=found.above, end="last"),
            below=_candidates(columns, outside_M, selected_N, n=n, held=found.below, end="first"),
            worst=_candidates(columns, every_M, selected_N, n=n, held=found.worst, end="last"),
        )
        found = merge_extremes([found, candidates], n=n)
    return found


def merge_extremes(parts: Iterable[Extremes], *, n: int = 3) -> Extremes:
    """Those of all the sidecars, whatever their order and grouping."""
    lists = zip(Extremes([], [], [], []), *parts, strict=True)
    best, above, below, worst = (sorted(chain.from_iterable(rows)) for rows in lists)
    return Extremes(best[:n], above[-n:], below[:n], worst[-n:])


def _candidates(
    columns: SidecarColumns,
    rows_M: NDArray[np.intp],
    selected_N: NDArray[np.bool_],
    *,
    n: int,
    held: list[Placed],
    end: Literal["first", "last"],
) -> list[Placed]:
    """The first or last n of some rows, less those whose score loses against the n held."""
    sign = 1 if end == "first" else -1
    keys_M = sign * columns.score_keys_N[rows_M].astype(np.int64)
    bounds = [np.partition(keys_M, n - 1)[n - 1]] if len(rows_M) > n else []
    if len(held) == n:
        bounds.append(max(sign * row.score_key for row in held))
    if bounds:
        rows_M = rows_M[keys_M <= min(bounds)]
    if not len(rows_M):
        return []
    ordered_M = columns.in_order(rows_M)
    return [
        columns.placed(row, selected=bool(selected_N[row]))
        for row in (ordered_M[:n] if sign == 1 else ordered_M[-n:])
    ]
