"""What runs on the workers to tell which selected rows are new by content: a hash join in tasks.

split_chunk  units of both runs  →  content hashes of selected rows, in shares by first bits
find_new     one share of all    →  the rows selected now whose content was not selected before

Array suffixes: N rows of some units, M selected ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jobs.compare_stages import open_sides
from scar_core.pool.rows import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.compare_stages import Cuts, ScoredRows
    from scar_core.pool.changes import Segment
    from scar_core.selection.order import SidecarColumns

HASH = np.dtype(f"S{HASH_BYTES}")
"""Compared as bytes; numpy ignores trailing zeros, which among equal lengths changes nothing."""


class Hashes(NamedTuple):
    """Content of selected rows, one share of it."""

    before_M: NDArray[np.bytes_]
    """Of the run before."""
    now_M: NDArray[np.bytes_]
    """Selected now, and not the same row before."""
    places_M: NDArray[np.int64]
    """[M, 2] unit ordinal and offset in the unit of the latter."""


def split_chunk(
    chunk: Sequence[Segment[ScoredRows]], *, cuts: Cuts, shares: int
) -> list[Hashes] | Hashes:
    """The content of the rows that some segments select, in shares by its first bits.

    One share is given as itself, as Ray wants it.
    """
    parts = [_hashes(segment, cuts) for segment in chunk]
    whole = _concatenate(parts)
    before_M, now_M = _share_of(whole.before_M, shares), _share_of(whole.now_M, shares)
    found = [
        Hashes(
            whole.before_M[before_M == share],
            whole.now_M[now_M == share],
            whole.places_M[now_M == share],
        )
        for share in range(shares)
    ]
    return found if shares > 1 else found[0]


def _share_of(hashes_M: NDArray[np.bytes_], shares: int) -> NDArray[np.uint64]:
    """[M] which share a hash falls into: equal hashes into one."""
    heads_M = hashes_M.view(np.uint8).reshape(-1, HASH_BYTES)[:, :4].copy().view(">u4")[:, 0]
    return heads_M.astype(np.uint64) * np.uint64(shares) >> np.uint64(32)


def _hashes(segment: Segment[ScoredRows], cuts: Cuts) -> Hashes:
    before, now = open_sides(segment, cuts)
    fresh_N = now.selected_N
    if segment.fate == "same":
        fresh_N = fresh_N & ~before.selected_N
    return Hashes(
        _content(before.columns, before.selected_N),
        _content(now.columns, fresh_N),
        _places(now.columns, fresh_N),
    )


def _content(columns: Sequence[SidecarColumns], picked_N: NDArray[np.bool_]) -> NDArray[np.bytes_]:
    """[M] content hashes of picked rows; read only of units that have one."""
    parts = [np.zeros(0, HASH)]
    for of_unit, picked in _by_unit(columns, picked_N):
        if picked.any():
            parts.append(np.ascontiguousarray(of_unit.hashes[picked]).view(HASH)[:, 0])
    return np.concatenate(parts)


def _places(columns: Sequence[SidecarColumns], picked_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    parts = [np.zeros((0, 2), np.int64)]
    for of_unit, picked in _by_unit(columns, picked_N):
        offsets_M = np.flatnonzero(picked)
        parts.append(np.stack([np.full_like(offsets_M, of_unit.ordinal), offsets_M], axis=1))
    return np.concatenate(parts)


def _by_unit(
    columns: Sequence[SidecarColumns], picked_N: NDArray[np.bool_]
) -> Iterator[tuple[SidecarColumns, NDArray[np.bool_]]]:
    start = 0
    for of_unit in columns:
        yield of_unit, picked_N[start : start + len(of_unit)]
        start += len(of_unit)


def _concatenate(parts: Sequence[Hashes]) -> Hashes:
    empty = Hashes(np.zeros(0, HASH), np.zeros(0, HASH), np.zeros((0, 2), np.int64))
    return Hashes(*(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True)))


class Found(NamedTuple):
    """What is new in one share."""

    places_M: NDArray[np.int64]
    """[M, 2] places of the rows whose content was not selected before."""
    rows_before: int
    """Rows of the run before that fell into this share."""


def find_new(*parts: Hashes) -> Found:
    """What is new in one share, from that share of every chunk."""
    whole = _concatenate(parts)
    new_M = ~np.isin(whole.now_M, whole.before_M)
    return Found(whole.places_M[new_M], len(whole.before_M))
