"""What runs on the workers of a comparison of two runs.

meet          what both selected of some rows  →  by file, rows selected before, and now too
spread_chunk  sidecars of this run             →  their scores on the grid of the run before

Array suffixes: M selected rows, E edges and B bins of the grid.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from jobs.select_stages import columns_of, spread
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.selection.picked import read_picked, rows_by_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A file of rows selected before, and what there may be of them now."""

    before: str
    now: tuple[str, ...]
    """Files of rows selected now, among which the same rows are, if they are selected."""
    same: dict[str, str]
    """Of pool files that are the same, by path before the path now."""


class Met(NamedTuple):
    """What became of the selected rows of a file."""

    before: int
    """Selected before."""
    stayed: int
    """Selected now too."""


def read_before(url: str, columns: Sequence[str]) -> pa.Table:
    """Rows that the run before selected.

    Raises:
        InputError: they cannot be read.
    """
    try:
        return read_picked(url, columns)
    except (AccessError, StoreError):  # the store's fault, not that of the run before
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: cannot be read: {error}") from error


def meet(meeting: Meeting) -> dict[str, Met]:
    """What became of the rows, by path before."""
    now: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for url in meeting.now:
        for path, rows_M in rows_by_path(read_picked(url, ["path", "row"])):
            now[path].append(rows_M)
    met = {}
    for path, rows_M in rows_by_path(read_before(meeting.before, ["path", "row"])):
        there = now.get(meeting.same.get(path, ""), [])
        stayed = sum(np.isin(rows_M, some, assume_unique=True).sum() for some in there)
        met[path] = Met(len(rows_M), int(stayed))
    return met


def spread_chunk(
    chunk: Sequence[tuple[ScoredUnit, bool]], *, edges_E: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[2, B] scores of units of files that are the same, and of those that are not."""
    counts_2B = np.zeros((2, len(edges_E) + 1), np.int64)
    for (_, fresh), columns in zip(chunk, columns_of(unit for unit, _ in chunk), strict=True):
        counts_2B[int(fresh)] += spread(columns, edges_E)
    return counts_2B
