"""A pool of Parquet files as units: what is scored, resumed and counted as one.

Units come from the files' footers alone, so cluster size and order of arrival cannot change them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import InputError, RunError
from scar_core.rows import PairColumns, check_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FOOTER_THREADS = 16


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


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """One row group of a Parquet file, as its footer tells."""

    rows: int
    text_bytes: int
    """Uncompressed bytes of the instruction and response columns."""
    all_bytes: int
    """Uncompressed bytes of all columns."""


@dataclass(frozen=True, kw_only=True)
class PoolFile:
    """One Parquet file of a pool."""

    path: str
    """Relative to the pool; unique in it."""
    url: str
    """Where to read it from any machine."""
    fingerprint: str
    """Changes when the file's content does: of size, etag or time of change, and footer."""
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(group.rows for group in self.row_groups)

    @property
    def bytes_per_row(self) -> float:
        """Uncompressed, on average; 0 for a file without rows."""
        return sum(group.all_bytes for group in self.row_groups) / max(self.rows, 1)


@dataclass(frozen=True, kw_only=True)
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
        """32 hex digits that stand for all of the above."""
        text = json.dumps([self.path, self.row_start, self.rows, self.fingerprint])
        return blake2b(text.encode(), digest_size=16).hexdigest()


def open_pool(pool: Sequence[str], columns: PairColumns) -> list[PoolFile]:
    """The Parquet files of a pool, footers read and columns checked, sorted by relative path.

    Args:
        pool: files, folders and globs. A file named by several of them counts once.
        columns: where instruction and response are.

    Raises:
        InputError: nothing matches, a file is not Parquet, or the pool has no rows.
        SchemaError: a file lacks one of the columns.
    """
    infos = _match(pool)
    with ThreadPoolExecutor(FOOTER_THREADS) as threads:
        files = list(
            threads.map(lambda item: open_file(item[1], path=item[0], columns=columns), infos)
        )
    if not any(file.rows for file in files):
        raise InputError(
            f"{' '.join(pool)}: {len(files)} Parquet files, all without rows; nothing to score."
        )
    return sorted(files, key=lambda file: file.path)


def _match(pool: Sequence[str]) -> list[tuple[str, storage.FileInfo]]:
    """(relative path, file) of every file that the pool's arguments name."""
    found: dict[str, tuple[str, storage.FileInfo]] = {}
    for argument in pool:
        pattern = storage.absolute(argument)
        infos = storage.list_files(pattern, suffixes=(".parquet", ".pq"))
        if not infos:
            raise InputError(
                f"--pool {argument}: matches no Parquet file. "
                "Check the path; quote globs, and name files *.parquet."
            )
        root = storage.static_folder(pattern)
        for info in infos:
            relative = info.path[len(root) :].lstrip("/") or info.path.rsplit("/", 1)[-1]
            found.setdefault(info.path, (relative, info))
    return _distinct(list(found.values()))


def _distinct(
    matches: list[tuple[str, storage.FileInfo]],
) -> list[tuple[str, storage.FileInfo]]:
    """Relative paths made unique: equal ones grow by parent folders until they differ."""
    while True:
        counts = Counter(relative for relative, _ in matches)
        if max(counts.values()) == 1:
            return matches
        matches = [
            (_with_parent(relative, info.path) if counts[relative] > 1 else relative, info)
            for relative, info in matches
        ]


def _with_parent(relative: str, full: str) -> str:
    return "/".join(full.split("/")[-(relative.count("/") + 2) :])


def open_file(info: storage.FileInfo, *, path: str, columns: PairColumns) -> PoolFile:
    try:
        with storage.open_input(info.path) as file, pq.ParquetFile(file) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{info.path}: cannot be read as Parquet ({info.size_bytes:,} bytes): {error}. "
            "Write it again, or leave it out of --pool."
        ) from error
    check_schema(schema, columns, where=info.path)
    text = {columns.instruction_column, columns.response_column}
    groups = tuple(_row_group(metadata.row_group(i), text) for i in range(metadata.num_row_groups))
    layout = [info.size_bytes, info.stamp, [(group.rows, group.all_bytes) for group in groups]]
    digest = blake2b(json.dumps(layout).encode(), digest_size=16)
    digest.update(schema.remove_metadata().to_string().encode())
    return PoolFile(
        path=path,
        url=info.path,
        fingerprint=digest.hexdigest(),
        schema=schema,
        row_groups=groups,
    )


def _row_group(group: pq.RowGroupMetaData, text_columns: set[str]) -> RowGroup:
    chunks = [group.column(i) for i in range(group.num_columns)]
    return RowGroup(
        rows=group.num_rows,
        text_bytes=sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema in text_columns
        ),
        all_bytes=group.total_byte_size,
    )


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
    start = stop = 0
    pending_bytes = 0
    limit_bytes = config.unit_megabytes * 2**20
    for group in groups:
        parts = max(
            math.ceil(group.rows / config.unit_rows), math.ceil(group.text_bytes / limit_bytes)
        )
        full = stop - start + group.rows > config.unit_rows
        if stop > start and (full or pending_bytes + group.text_bytes > limit_bytes):
            yield start, stop
            start, pending_bytes = stop, 0
        if parts > 1:
            parts = min(parts, group.rows)
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
        ranges: (first row, row after the last), ascending, none overlapping.
        columns: which, in the file's order; all where None.

    Raises:
        RunError: the file is not what it was when the run was planned.
    """
    _check_unchanged(file)
    wanted = iter(ranges)
    current = next(wanted, None)
    parts: list[pa.RecordBatch] = []
    with storage.open_input(file.url) as opened, pq.ParquetFile(opened) as parquet:
        schema = parquet.schema_arrow
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
        for first, batch in _batches(parquet, file, ranges, columns):
            while current is not None and current[0] < first + batch.num_rows:
                low = max(current[0] - first, 0)
                high = min(current[1] - first, batch.num_rows)
                parts.append(batch.slice(low, high - low))
                if current[1] > first + batch.num_rows:
                    break
                yield _table(parts, schema, current, file)
                parts = []
                current = next(wanted, None)
    if current is not None:
        raise RunError(f"{file.url}: ends before row {current[1]:,}; it changed during the run.")


def _table(
    parts: list[pa.RecordBatch], schema: pa.Schema, bounds: tuple[int, int], file: PoolFile
) -> pa.Table:
    table = pa.Table.from_batches(parts).select(schema.names)
    if table.num_rows != bounds[1] - bounds[0]:
        raise RunError(
            f"{file.url}: rows {bounds[0]:,} to {bounds[1]:,} gave {table.num_rows:,} rows; "
            "the file changed during the run. Start again: finished units are kept."
        )
    return table


def _batches(
    parquet: pq.ParquetFile,
    file: PoolFile,
    ranges: Sequence[tuple[int, int]],
    columns: list[str] | None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of the row groups that the ranges touch."""
    first = 0
    for index, group in enumerate(file.row_groups):
        after = first + group.rows
        touching = [stop for start, stop in ranges if start < after and stop > first]
        if touching:
            position = first
            for batch in parquet.iter_batches(
                batch_size=1024, row_groups=[index], columns=columns, use_threads=False
            ):
                yield position, batch
                position += batch.num_rows
                if position >= max(touching):
                    break
        first = after


def _check_unchanged(file: PoolFile) -> None:
    try:
        with storage.open_input(file.url) as opened, pq.ParquetFile(opened) as parquet:
            rows = parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{file.url}: was readable when the run was planned, now: {error}. "
            "Start again: finished units are kept."
        ) from error
    if rows != file.rows:
        raise RunError(
            f"{file.url}: had {file.rows:,} rows when the run was planned, now {rows:,}. "
            "Start again: finished units are kept."
        )
