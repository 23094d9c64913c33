"""The selected rows as output files: planned on the driver, each written by one worker.

Rows are copied, never shuffled: a file holds the selected rows of units that follow each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.select_stages import ScoredUnit, columns_of
from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.pool.units import read_ranges, take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import Told
    from scar_core.pool.files import PoolFile
    from scar_core.selection.groups import GroupCuts
    from scar_core.selection.labels import Groups
    from scar_core.selection.order import SidecarColumns
    from scar_core.selection.radix import Cut

# What a writer holds before it becomes a row group: large enough to compress and scan well.
ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Part:
    """One output file."""

    path: str
    """Relative to the run's directory."""
    units: tuple[ScoredUnit, ...]
    """In (path, row) order; all of one schema."""
    rows: int
    """Rows to write."""
    wanted: dict[int, bytes] | None = None
    """By unit ordinal which rows to write at most, as packed bits; None: all selected ones."""

    def mask(self, columns: SidecarColumns, cut: Cut | GroupCuts) -> NDArray[np.bool_]:
        """[N] which rows of one of the units are written."""
        selected_N = cut.mask(columns)
        if self.wanted is None:
            return selected_N
        bits = np.frombuffer(self.wanted.get(columns.ordinal, b""), np.uint8)
        wanted_N = np.zeros(len(columns), np.bool_)
        if len(bits):
            wanted_N[:] = np.unpackbits(bits, count=len(columns)).view(np.bool_)
        return selected_N & wanted_N


def plan_parts(units: Sequence[ScoredUnit], told: Told, *, megabytes: int) -> list[Part]:
    """Output files of at most about so many megabytes, each of one schema, in (path, row) order.

    Files of one schema that follow each other are of about one size. At least one file, without
    rows if none is selected, so that the directory is a dataset.
    """
    rows = dict(zip(told.ordinals_M.tolist(), told.selected_M.tolist(), strict=True))
    chosen = [units[ordinal] for ordinal in rows]
    groups: list[list[ScoredUnit]] = []
    for run in _runs_of_one_schema(chosen):
        sizes = [rows[scored.ordinal] * scored.file.bytes_per_row for scored in run]
        groups += _balanced(run, sizes, most=megabytes * 2**20)
    return [
        Part(
            path=f"data/part-{index:05d}.parquet",
            units=tuple(group),
            rows=sum(rows.get(scored.ordinal, 0) for scored in group),
        )
        for index, group in enumerate(groups or [list(units[:1])])
    ]


def _runs_of_one_schema(units: Sequence[ScoredUnit]) -> list[list[ScoredUnit]]:
    runs: list[list[ScoredUnit]] = []
    for scored in units:
        last = runs[-1][-1].file if runs else None
        if last is not scored.file and not (last and last.schema.equals(scored.file.schema)):
            runs.append([])
        runs[-1].append(scored)
    return runs


def _balanced(
    units: Sequence[ScoredUnit], sizes: Sequence[float], *, most: float
) -> list[list[ScoredUnit]]:
    """Consecutive shares of about equal size: as few as keep each at about `most`."""
    total = sum(sizes)
    share = total / max(1, math.ceil(total / most))
    groups: list[list[ScoredUnit]] = []
    filled = 0.0
    for scored, size in zip(units, sizes, strict=True):
        # A unit goes where its middle lies.
        if not groups or (share and (filled + size / 2) // share >= len(groups)):
            groups.append([])
        groups[-1].append(scored)
        filled += size
    return groups


def write_part(
    part: Part,
    *,
    folder: str,
    cut: Cut | GroupCuts,
    score_column: str,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Write an output file below the run's folder; its manifest entry.

    Raises:
        IncompleteError: other rows are selected than were planned.
    """
    first = part.units[0].file.schema
    schema = first.append(pa.field(score_column, pa.float32()))
    with storage.open_output(storage.join(folder, part.path)) as opened:
        file = HashingFile(opened)
        rows = 0
        with pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as writer:
            for table in _grouped(_selected_rows(part, cut, groups), schema):
                writer.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows
    if rows != part.rows:
        raise IncompleteError(f"{part.path}: {part.rows:,} rows were to be written, not {rows:,}.")
    return {
        "path": part.path,
        "rows": rows,
        "bytes": file.bytes,
        "sha256": file.digest.hexdigest(),
    }


def _selected_rows(
    part: Part, cut: Cut | GroupCuts, groups: Groups | None
) -> Iterator[tuple[pa.Table, pa.Array]]:
    """(input rows, their scores) of one stretch after the other, selected ones only, in order."""
    for file, units in groupby(part.units, key=lambda scored: scored.file):
        ranges: list[tuple[int, int]] = []
        picked: list[tuple[NDArray[np.intp], pa.Array]] = []
        held = list(units)
        for scored, columns in zip(held, columns_of(held, groups=groups), strict=True):
            offsets = np.flatnonzero(part.mask(columns, cut))
            for stretch in _by_row_group(file, scored.unit.row_start + offsets):
                ranges.append((int(stretch[0]), int(stretch[-1]) + 1))
                scores = columns.scores.take(pa.array(stretch - scored.unit.row_start))
                picked.append((stretch - stretch[0], scores))
        tables = read_ranges(file, ranges)
        for table, (offsets, scores) in zip(tables, picked, strict=True):
            yield take_rows(table, offsets), scores


def _by_row_group(file: PoolFile, rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Ascending rows of a file, those of each row group apart: one without any is not read."""
    ends = np.cumsum([group.rows for group in file.row_groups])
    return [part for part in np.split(rows, np.searchsorted(rows, ends)) if len(part)]


def _grouped(parts: Iterator[tuple[pa.Table, pa.Array]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the output schema, each large enough for a row group but the last."""
    waiting: list[pa.Table] = []
    waiting_bytes = 0
    for rows, scores in parts:
        named = rows.append_column(schema.field(schema.names[-1]), scores)
        waiting.append(named.replace_schema_metadata(schema.metadata))
        waiting_bytes += waiting[-1].nbytes
        if waiting_bytes >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


class HashingFile:
    """A file to write that knows the checksum and the size of what went through it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Write and count."""
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        """Bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Pass on."""
        self.file.flush()

    def close(self) -> None:
        """Leave closing to whoever opened the file."""
