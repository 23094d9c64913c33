"""Which rows are copies: of one cluster with a row, or several, before them in selection order.

A cluster is all rows of one content hash; whoever knows better clusters numbers them in
`SidecarColumns.clusters`.

In three steps, so that nobody holds more than a chunk or a range of hashes, whatever the pool:
a chunk of sidecars keeps its first rows of each content, split by ranges of the hash; a range
compares those of all chunks; a chunk gathers what the ranges found of it. A content that comes
often costs a range one row per chunk, not one per copy.

Array suffixes: N rows of a chunk, M of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from scar_core import storage
from scar_core.selection.order import values_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.selection.order import SidecarColumns

Which = Literal["copies", "repeated"]
"""`copies`: rows of a content but the first ones; `repeated`: those of contents with several."""

CONTENTS_SCHEMA = pa.schema(
    [
        pa.field("high", pa.uint64(), nullable=False),
        pa.field("low", pa.uint64(), nullable=False),
        pa.field("score_key", pa.uint32(), nullable=False),
        pa.field("position", pa.uint32(), nullable=False),
    ]
)
POSITIONS_SCHEMA = pa.schema([CONTENTS_SCHEMA.field("position")])


class Contents(NamedTuple):
    """Rows of each content of a chunk, its first in selection order; sorted by content."""

    high_M: NDArray[np.uint64]
    """First half of the content hash."""
    low_M: NDArray[np.uint64]
    score_keys_M: NDArray[np.uint32]
    positions_M: NDArray[np.uint32]
    """Of the row within the chunk."""

    def take(self, rows: NDArray[np.intp] | slice) -> Contents:
        """Some of them."""
        return Contents(
            self.high_M[rows], self.low_M[rows], self.score_keys_M[rows], self.positions_M[rows]
        )


def contents_of(
    sidecars: Iterable[SidecarColumns], *, which: Which, most: int = 1
) -> tuple[Contents, NDArray[np.uint32]]:
    """What a chunk sends to the ranges, and the positions that it knows to be `which` by itself.

    Args:
        sidecars: of the chunk, in order.
        which: rows that are looked for.
        most: rows of a content that are no copies, at least 1.
    """
    nothing = np.zeros(0, np.uint64)
    parts = [Contents(nothing, nothing, nothing.astype(np.uint32), nothing.astype(np.uint32))]
    start = 0
    for columns in sidecars:
        rows_M = np.flatnonzero(columns.scored_N)
        high_M, low_M = (half_N[rows_M] for half_N in columns.clusters)
        positions_M = (rows_M + start).astype(np.uint32)
        parts.append(Contents(high_M, low_M, columns.score_keys_N[rows_M], positions_M))
        start += len(columns)
    rows = _joined(parts)
    order = _by_content(rows)
    ranks_M = _ranks(rows, order)
    found = np.sort(rows.positions_M[order[_found(ranks_M, which, most)]])
    return rows.take(order[ranks_M < (most if which == "copies" else 1)]), found


def _joined(parts: Sequence[Contents]) -> Contents:
    return Contents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _by_content(rows: Contents) -> NDArray[np.intp]:
    """[M] by content, its first row first; stable, so equal scores keep the order of places."""
    return np.lexsort((rows.score_keys_M, rows.low_M, rows.high_M))


def _ranks(rows: Contents, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """[M] of the ordered rows, how many of its content are before each."""
    first_M = np.ones(len(order), np.bool_)
    high_M, low_M = rows.high_M[order], rows.low_M[order]
    first_M[1:] = (high_M[1:] != high_M[:-1]) | (low_M[1:] != low_M[:-1])
    places_M = np.arange(len(order))
    return places_M - np.maximum.accumulate(np.where(first_M, places_M, 0))


def _found(ranks_M: NDArray[np.intp], which: Which, most: int) -> NDArray[np.bool_]:
    """[M] of the ordered rows, those that are looked for."""
    if which == "copies":
        return ranks_M >= most
    repeated_M: NDArray[np.bool_] = (ranks_M > 0) | np.append(ranks_M[1:] > 0, False)
    return repeated_M[: len(ranks_M)]


def split(contents: Contents, *, ranges: int) -> list[Contents]:
    """Contents by range of the hash: as many ranges as asked for, a power of two."""
    edges = [range_ * (2**64 // ranges) for range_ in range(1, ranges)]
    at = [
        0,
        *np.searchsorted(contents.high_M, np.array(edges, np.uint64)).tolist(),
        len(contents.high_M),
    ]
    return [contents.take(slice(low, high)) for low, high in pairwise(at)]


def compare(parts: Sequence[Contents], *, which: Which, most: int = 1) -> list[NDArray[np.uint32]]:
    """For each chunk's contents of one range, in chunk order, the positions that are `which`."""
    rows = _joined(parts)
    owners_M = np.repeat(np.arange(len(parts)), [len(part.high_M) for part in parts])
    order = _by_content(rows)
    found = order[_found(_ranks(rows, order), which, most)]
    by_owner = found[np.lexsort((rows.positions_M[found], owners_M[found]))]
    edges = np.searchsorted(owners_M[by_owner], np.arange(1, len(parts)))
    return np.split(rows.positions_M[by_owner], edges)


# Their files, which all workers of a run see.


def write_contents(path: str, parts: Iterable[Contents]) -> None:
    """Store a chunk's contents, a batch for each range."""
    write_batches(path, CONTENTS_SCHEMA, ([pa.array(c) for c in part] for part in parts))


def write_positions(path: str, parts: Iterable[NDArray[np.uint32]]) -> None:
    """Store positions, a batch for each chunk."""
    write_batches(path, POSITIONS_SCHEMA, ([pa.array(part)] for part in parts))


def write_batches(path: str, schema: pa.Schema, parts: Iterable[Sequence[pa.Array]]) -> None:
    """Store columns, a batch for each part."""
    with storage.open_output(path) as file, pa.ipc.new_file(file, schema) as writer:
        for part in parts:
            writer.write_batch(pa.record_batch(list(part), schema=schema))


def read_contents(path: str, index: int) -> Contents:
    """The contents of one range, of one chunk."""
    with opened_batches(path) as reader:
        columns = reader.get_batch(index).columns
        return Contents(
            values_of(columns[0], np.uint64).copy(),
            values_of(columns[1], np.uint64).copy(),
            values_of(columns[2], np.uint32).copy(),
            values_of(columns[3], np.uint32).copy(),
        )


def read_positions(path: str, index: int) -> NDArray[np.uint32]:
    """The positions of one chunk, as one range or the chunk itself found them."""
    with opened_batches(path) as reader:
        return values_of(reader.get_batch(index).column(0), np.uint32).copy()


@contextmanager
def opened_batches(path: str) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """What `write_batches` stored; gives any batch by itself."""
    with storage.open_input(path) as file, pa.ipc.open_file(file) as reader:
        yield reader
