"""What a run selected: a row for each selected row, in (path, row) order, in a file or several.

Written by the pass that selects, by whatever policy, and read by all that come later: the writers
of the output, and the next run. What is scored again since does not change it.

Array suffixes: M selected rows, U units.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.pool.rows import HASH_BYTES
from scar_core.selection.copies import opened_batches, write_batches
from scar_core.selection.order import values_of
from scar_core.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.units import Unit
    from scar_core.selection.order import SidecarColumns

PICKED_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("content_hash", pa.binary(HASH_BYTES), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""path: of the file, relative to the pool. row: number within the file. content_hash, score: as
the run that selected them saw them."""

CONTENTS_SCHEMA = pa.schema([PICKED_SCHEMA.field("content_hash")])
NOTHING = np.zeros(0, f"S{HASH_BYTES}")

# A reader of some rows decodes no more than two such groups in vain.
GROUP_ROWS = 2**16


class Picked(NamedTuple):
    """A file of selected rows, and the units that they belong to."""

    url: str
    """From any machine."""
    entry: dict[str, Any]
    """As a manifest lists it: path, rows, bytes, sha256, and pool_file and row_start, its first
    row's place."""
    ordinals_U: NDArray[np.int64]
    """Of units, ascending."""
    rows_U: NDArray[np.int64]
    """How many rows of each."""


def picked_path(first: int) -> str:
    """Where the rows of units are listed, by the ordinal of the first unit; in the run's folder."""
    return f"picked/part-{first:010d}.parquet"


def picked_rows(unit: Unit, columns: SidecarColumns, mask_N: NDArray[np.bool_]) -> pa.Table:
    """The masked rows of a unit; reads hashes only if there are any."""
    offsets_M = np.flatnonzero(mask_N)
    if not len(offsets_M):
        return PICKED_SCHEMA.empty_table()
    return pa.table(
        [
            pa.repeat(pa.scalar(unit.path), len(offsets_M)),
            pa.array(unit.row_start + offsets_M),
            _array_of(columns.hashes[offsets_M]),
            columns.scores.take(pa.array(offsets_M)),
        ],
        schema=PICKED_SCHEMA,
    )


def write_picked(
    folder: str, path: str, tables: Iterable[pa.Table], *, ordinals: Sequence[int]
) -> list[Picked]:
    """Write selected rows, a table for each of these units; no file where there are no rows."""
    rows_of: list[int] = []

    def some() -> Iterator[pa.Table]:
        for table in tables:
            rows_of.append(table.num_rows)
            if table.num_rows:
                yield table

    filled = some()
    first = next(filled, None)
    if first is None:
        return []
    written = write_table(
        folder,
        path,
        chain([first], filled),
        schema=PICKED_SCHEMA,
        group_rows=GROUP_ROWS,
        use_dictionary=["path"],
        column_encoding={"row": "DELTA_BINARY_PACKED"},
    )
    rows_U = np.array(rows_of, np.int64)
    some_U = rows_U > 0
    place = {"pool_file": first["path"][0].as_py(), "row_start": first["row"][0].as_py()}
    return [
        Picked(
            url=storage.join(folder, path),
            entry=written._asdict() | place,
            ordinals_U=np.array(ordinals, np.int64)[some_U],
            rows_U=rows_U[some_U],
        )
    ]


def read_picked(
    url: str, columns: Sequence[str], *, start: int = 0, stop: int | None = None
) -> pa.Table:
    """Some columns of some rows of a file; paths as a dictionary."""
    with (
        storage.open_input(url) as file,
        pq.ParquetFile(file, read_dictionary=["path"]) as parquet,
    ):
        about = parquet.metadata
        ends = np.cumsum([about.row_group(n).num_rows for n in range(about.num_row_groups)])
        last = about.num_rows if stop is None else stop
        low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, last)
        groups = range(int(low), int(high) + 1)
        table = parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
    skipped = int(ends[low - 1]) if low else 0
    return table.slice(start - skipped, last - start)


def rows_by_path(table: pa.Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(path, row numbers) of each file that a table of selected rows names, in their order."""
    paths = table["path"].unify_dictionaries().combine_chunks()
    rows_M = values_of(table["row"].combine_chunks(), np.int64)
    codes_M = values_of(paths.indices, np.int32)
    starts = np.flatnonzero(np.diff(codes_M)) + 1
    for code, rows in zip(codes_M[[0, *starts]], np.split(rows_M, starts), strict=True):
        yield paths.dictionary[int(code)].as_py(), rows


# Contents of selected rows, found in two runs range by range of their hash.


def contents_of(table: pa.Table, *, ranges: int) -> list[NDArray[np.bytes_]]:
    """By range the contents of selected rows, each once, ascending."""
    hashes_M = np.unique(_hashes_of(table))
    heads_M = hashes_M.view(np.uint8).reshape(-1, HASH_BYTES)[:, :4].copy().view(">u4")[:, 0]
    ranges_M = heads_M.astype(np.uint64) * np.uint64(ranges) >> np.uint64(32)
    return np.split(hashes_M, np.searchsorted(ranges_M, np.arange(1, ranges)))


def new_contents(
    before: Sequence[NDArray[np.bytes_]], now: Sequence[NDArray[np.bytes_]]
) -> list[NDArray[np.bytes_]]:
    """Of each part now what is in none before."""
    known_M = np.concatenate([NOTHING, *before])
    return [contents_M[~np.isin(contents_M, known_M)] for contents_M in now]


def narrow(
    picked: Picked, new: Sequence[NDArray[np.bytes_]], *, folder: str, path: str
) -> list[Picked]:
    """Write, of a file of selected rows, those whose content is new."""
    table = read_picked(picked.url, PICKED_SCHEMA.names)
    new_M = np.isin(_hashes_of(table), np.concatenate([NOTHING, *new]))
    stops = np.cumsum(picked.rows_U).tolist()
    of_units = (
        table.slice(start, stop - start).filter(pa.array(new_M[start:stop])).cast(PICKED_SCHEMA)
        for start, stop in zip([0, *stops], stops, strict=False)
    )
    return write_picked(folder, path, of_units, ordinals=picked.ordinals_U.tolist())


def write_contents(path: str, parts: Iterable[NDArray[np.bytes_]]) -> None:
    """Store contents, a batch for each part."""
    write_batches(path, CONTENTS_SCHEMA, ([_array_of(part)] for part in parts))


def read_contents(path: str, index: int) -> NDArray[np.bytes_]:
    """The contents of one part."""
    with opened_batches(path) as reader:
        return _hashes_of(pa.table([reader.get_batch(index).column(0)], CONTENTS_SCHEMA)).copy()


def _hashes_of(table: pa.Table) -> NDArray[np.bytes_]:
    """[M] content hashes; numpy ignores trailing zeros, which among equal lengths is no matter."""
    column = table["content_hash"].combine_chunks()
    return values_of(column, np.uint8, width=HASH_BYTES).view(NOTHING.dtype)


def _array_of(hashes_M: NDArray[Any]) -> pa.Array:
    """The same hashes for Arrow."""
    size = hashes_M.nbytes // HASH_BYTES
    buffer = pa.py_buffer(hashes_M.tobytes())
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), size, [None, buffer])
