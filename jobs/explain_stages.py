"""What runs on the workers of an explanation.

stand_chunk  sidecars                →  rows before one in selection order, those next to it, copies
kept_chunk   sidecars                →  the best row of a cluster
seek_chunk   sidecars, or a column   →  the rows that have a content hash, or a value
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from jobs.select_stages import columns_of, labelled
from scar_core.pool.rows import HASH_BYTES
from scar_core.selection.extremes import Extremes, extremes, merge_extremes
from scar_core.selection.order import KEY_DIGITS, Placed
from scar_core.selection.radix import Cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jobs.select_stages import ScoredUnit

NOBODY = Extremes([], [], [], [])
# Places of rows that are told; how many there are is counted.
FOUND_HELD = 100


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a row stands among the eligible rows of some units."""

    eligible: int = 0
    up_to: int = 0
    """Rows that are not behind it: itself, too."""
    near: Extremes = NOBODY
    """`above` ends with the row itself, `below` begins with the one behind it."""


def cut_at(placed: Placed) -> Cut:
    """The cut behind a row: it parts the rows up to it, by its whole key, from those behind it."""
    key = placed.score_key.to_bytes(4) + placed.content_hash
    key += placed.ordinal.to_bytes(4) + placed.offset.to_bytes(4)
    digits = tuple(np.frombuffer(key, ">u2").tolist())
    assert len(digits) == KEY_DIGITS  # noqa: S101 - as `order` has it
    return Cut(selected=1, digits=digits)


def stand_chunk(chunk: Sequence[ScoredUnit], *, placed: Placed, neighbours: int) -> Standing:
    """Where a row stands among those of some units."""
    cut = cut_at(placed)
    eligible = up_to = 0
    for columns in columns_of(chunk):
        eligible += int(np.count_nonzero(columns.eligible_N))
        up_to += int(np.count_nonzero(cut.mask(columns)))
    near = extremes(columns_of(chunk), cut, n=neighbours + 1)
    return Standing(eligible=eligible, up_to=up_to, near=near)


def merge_standings(parts: Iterable[Standing], *, neighbours: int) -> Standing:
    """Among the rows of all units; a part at a time."""
    total = Standing()
    for part in parts:
        total = Standing(
            eligible=total.eligible + part.eligible,
            up_to=total.up_to + part.up_to,
            near=merge_extremes([total.near, part.near], n=neighbours + 1),
        )
    return total


def kept_chunk(chunk: Sequence[ScoredUnit], *, cluster: tuple[int, int]) -> list[Placed]:
    """The best row of a cluster among the eligible ones of some units; none or one."""
    found = []
    for columns in columns_of(chunk):
        high_N, low_N = columns.clusters
        mask_N = (high_N == np.uint64(cluster[0])) & (low_N == np.uint64(cluster[1]))
        rows_M = np.flatnonzero(mask_N & columns.eligible_N)
        found += [columns.placed(int(row)) for row in rows_M]
    return sorted(found)[:1]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Rows that were looked for."""

    rows: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)
    """(unit ordinal, offset within it) of the first of them, ascending."""

    def __add__(self, other: Found) -> Found:
        """Those of both."""
        places = sorted(self.places + other.places)[:FOUND_HELD]
        return Found(rows=self.rows + other.rows, places=places)


def seek_chunk(chunk: Sequence[ScoredUnit], *, wanted: str, column: str | None) -> Found:
    """Rows of some units with a value in a column of the pool; without a column, with a content.

    Args:
        chunk: some units; the files of the pool are read only for a column.
        wanted: the value as text, or the content hash in hexadecimal digits.
        column: of the pool.
    """
    return merge_found(
        Found(
            rows=len(offsets),
            places=[(scored.ordinal, offset) for offset in offsets[:FOUND_HELD].tolist()],
        )
        for scored, mask_N in _masks(chunk, wanted, column)
        for offsets in [np.flatnonzero(mask_N)]
    )


def _masks(
    chunk: Sequence[ScoredUnit], wanted: str, column: str | None
) -> Iterator[tuple[ScoredUnit, np.ndarray]]:
    if column is not None:
        for scored, labels in labelled(chunk, column):
            codes = [code for code, name in enumerate(labels.names) if name == wanted]
            yield scored, np.isin(labels.codes_N, codes)
        return
    content = np.frombuffer(bytes.fromhex(wanted), np.uint8)
    assert len(content) == HASH_BYTES  # noqa: S101 - who asks has looked
    for scored, columns in zip(chunk, columns_of(chunk), strict=True):
        yield scored, columns.scored_N & np.all(columns.hashes == content, axis=1)


def merge_found(parts: Iterable[Found]) -> Found:
    """Those of all units."""
    return reduce(Found.__add__, parts, Found())
