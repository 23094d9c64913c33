"""A pool's units, ranges of rows that are scored, resumed and counted as one; and their reading.

Units come from the files' footers alone, so cluster size and order of arrival cannot change them.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import AccessError, PoolFileError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile, RowGroup

# A row group of 600 MB is read in 24 MB with a buffer for each column, and no slower; pyarrow's
# default, to fetch all of a row group first, takes 610.
BUFFER_BYTES = 4 * 2**20
BATCH_ROWS = 1024
# Of one batch, as the footer estimates it: rows of 10 MB come a few at a time.
BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class UnitConfig:
    """How a pool is cut into units."""

    unit_rows: int = 2048
    """Rows of a unit, at least 1. The grain of resuming: another value scores everything anew."""
    unit_megabytes: int = 64
    """Text of a unit at most, as the footers estimate it, at least 1."""

    def __post_init__(self) -> None:
        """Refuse empty units."""
        if self.unit_rows < 1 or self.unit_megabytes < 1:
            raise ValueError(
                f"unit_rows and unit_megabytes must be at least 1, "
                f"got {self.unit_rows} and {self.unit_megabytes}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A range of rows of one file."""

    path: str
    """Of the file, relative to the pool."""
    row_start: int
    """Number of its first row within the file."""
    rows: int
    """At least 1."""
    fingerprint: str
    """Of the file."""

    @property
    def id(self) -> str:
        """32 hex digits that stand for the rows: of the fingerprint and the range.

        Not of the path, which another file of the same name makes longer; so copies share an id.
        """
        text = json.dumps([self.fingerprint, self.row_start, self.rows])
        return blake2b(text.encode(), digest_size=16).hexdigest()


def plan_units(files: Iterable[PoolFile], config: UnitConfig) -> list[Unit]:
    """The units of a pool in (path, row) order: every row of every file in exactly one.

    Small row groups are put together, a huge one is cut into equal parts; a unit never spans files.
    """
    return [
        Unit(path=file.path, row_start=start, rows=stop - start, fingerprint=file.fingerprint)
        for file in files
        for start, stop in _cut(file.row_groups, config)
    ]


def _cut(groups: Sequence[RowGroup], config: UnitConfig) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each unit of a file."""
    start = stop = 0
    pending_bytes = 0
    limit_bytes = config.unit_megabytes * 2**20
    for group in groups:
        full = stop - start + group.rows > config.unit_rows
        if stop > start and (full or pending_bytes + group.text_bytes > limit_bytes):
            yield start, stop
            start, pending_bytes = stop, 0
        parts = max(
            math.ceil(group.rows / config.unit_rows), math.ceil(group.text_bytes / limit_bytes)
        )
        parts = min(parts, group.rows)
        if parts > 1:
            edges = [stop + group.rows * part // parts for part in range(parts + 1)]
            yield from pairwise(edges)
            start = stop = edges[-1]
        else:
            stop += group.rows
            pending_bytes += group.text_bytes
    if stop > start:
        yield start, stop


def read_ranges(
    file: PoolFile, ranges: Sequence[tuple[int, int]], *, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """One table per range of rows, streamed; row groups outside the ranges are not read.

    Args:
        file: where to read.
        ranges: (first row, row after the last), none empty, ascending, none overlapping.
        columns: which, and in which order; all where None.

    Raises:
        PoolFileError: the file is not what it was when the run was planned, or is broken.
    """
    waiting = deque(ranges)
    parts: list[pa.RecordBatch] = []
    for first, batch in _batches(file, ranges, columns):
        after = first + batch.num_rows
        while waiting and waiting[0][0] < after:
            start, stop = waiting[0]
            low = max(start - first, 0)
            parts.append(batch.slice(low, min(stop - first, batch.num_rows) - low))
            if stop > after:
                break
            yield pa.Table.from_batches(parts).select(columns or batch.schema.names)
            parts.clear()
            waiting.popleft()


def _batches(
    file: PoolFile, ranges: Sequence[tuple[int, int]], columns: list[str] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of the rows that the ranges touch, and some around them."""
    starts = [start for start, _ in ranges]
    first = 0
    with _open_unchanged(file) as parquet:
        for index, group in enumerate(file.row_groups):
            begun = bisect_left(starts, first + group.rows)
            wanted_rows = min(ranges[begun - 1][1] - first, group.rows) if begun else 0
            read_rows = 0
            if wanted_rows > 0:
                for batch in parquet.iter_batches(
                    _batch_rows(group, columns),
                    row_groups=[index],
                    columns=columns,
                    use_threads=False,
                ):
                    yield first + read_rows, batch
                    read_rows += batch.num_rows
                    if read_rows >= wanted_rows:
                        break
            if read_rows < wanted_rows:
                raise PoolFileError(
                    f"{file.shown}: row group {index} holds {read_rows:,} rows, its footer says "
                    f"{group.rows:,}. Write the file again."
                )
            first += group.rows


def take_rows(table: pa.Table, offsets: NDArray[np.integer]) -> pa.Table:
    """Rows of a table, of any column type: Arrow's own `take` knows no views."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    types = pa.schema(
        [field.with_type(plain.get(field.type, field.type)) for field in table.schema]
    )
    if types.equals(table.schema):
        return table.take(pa.array(offsets))
    return table.cast(types).take(pa.array(offsets)).cast(table.schema)


def _batch_rows(group: RowGroup, columns: list[str] | None) -> int:
    """Rows that are decoded together, so that long ones do not add up."""
    size = group.all_bytes if columns is None else group.text_bytes
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.rows // max(size, 1)))


@contextmanager
def _open_unchanged(file: PoolFile) -> Iterator[pq.ParquetFile]:
    """The file, open; PoolFileError if it is not the one that was planned, or cannot be read on."""
    try:
        now = storage.stat(file.url)
        if (now.size_bytes, now.stamp) != (file.info.size_bytes, file.info.stamp):
            raise PoolFileError(
                f"{file.shown}: changed since the run was planned: {file.info.size_bytes:,} bytes "
                f"({file.info.stamp}), now {now.size_bytes:,} ({now.stamp}). "
                "Start again: finished units are kept."
            )
        with (
            storage.open_input(file.rows_url) as opened,
            pq.ParquetFile(opened, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            yield parquet
    except (AccessError, StoreError):  # the store's fault, and not the file's
        raise
    except (pa.ArrowException, OSError) as error:
        raise PoolFileError(
            f"{file.shown}: was readable when the run was planned, now: {error}. "
            "Start again: finished units are kept."
        ) from error
