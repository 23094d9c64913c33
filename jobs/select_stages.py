"""What runs on the workers of a selection: passes over sidecars, and the writing of rows.

survey_chunk   sidecars  →  their counts and the first histogram of their keys
scan_chunk     sidecars  →  histograms of a further digit
sample_chunk   sidecars  →  rows by which bf16 errors are measured
near_chunk     sidecars  →  rows that bf16 errors could carry over the threshold
errors_chunk   sidecars  →  the largest error seen
tell_chunk     sidecars  →  selected rows of each unit, shares by source, best and worst rows
write_part     one output file: the selected rows of consecutive units
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.pool.units import Unit, read_ranges, take_rows
from scar_core.selection.keep import Extremes, extremes
from scar_core.selection.order import Prefix, SidecarColumns
from scar_core.selection.precision import (
    Errors,
    Rescored,
    errors_of,
    open_columns,
    read_rescored,
    rows_near,
    sample_rows,
)
from scar_core.selection.radix import Cut, Survey, histograms, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile

    Rows = dict[int, NDArray[np.int32]]
    """Offsets within a unit, by its ordinal."""

# What a writer holds before it becomes a row group: large enough to compress and scan well.
ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ScoredUnit:
    """A unit and where its scores are."""

    ordinal: int
    """Its place in (path, row) order among all units; part of a row's key."""
    unit: Unit
    file: PoolFile
    """Whose rows these are."""
    sidecar: str
    """Path or URL, from any machine."""
    rescored: tuple[str, ...] = ()
    """Files with rows of it that were scored again in fp32."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a cut does to some units."""

    selected: dict[int, int]
    """Selected rows by unit ordinal; units without any are left out."""
    sources: dict[str, tuple[int, int]]
    """(rows, selected rows) by source; empty where the files have no such column."""
    extremes: Extremes


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

    def mask(self, columns: SidecarColumns, cut: Cut) -> NDArray[np.bool_]:
        """[N] which rows of one of the units are written."""
        selected_N = cut.mask(columns)
        if self.wanted is None:
            return selected_N
        bits = np.frombuffer(self.wanted.get(columns.ordinal, b""), np.uint8)
        wanted_N = np.zeros(len(columns), np.bool_)
        if len(bits):
            wanted_N[:] = np.unpackbits(bits, count=len(columns)).view(np.bool_)
        return selected_N & wanted_N


def columns_of(units: Iterable[ScoredUnit]) -> Iterator[SidecarColumns]:
    """The sidecars of some units with effective scores, opened one after the other."""
    for scored in units:
        yield open_columns(scored.sidecar, ordinal=scored.ordinal, rescored=scored.rescored)


def consecutive(units: Sequence[ScoredUnit], *, rows: int) -> Iterator[list[ScoredUnit]]:
    """Units that follow each other, about so many rows at a time."""
    chunk: list[ScoredUnit] = []
    held = 0
    for scored in units:
        if chunk and held + scored.unit.rows > rows:
            yield chunk
            chunk, held = [], 0
        chunk.append(scored)
        held += scored.unit.rows
    yield chunk


def survey_chunk(chunk: Sequence[ScoredUnit]) -> Survey:
    """The first pass over some units.

    Raises:
        IncompleteError: a sidecar has another number of rows than its unit.
    """

    def checked() -> Iterator[SidecarColumns]:
        for scored, columns in zip(chunk, columns_of(chunk), strict=True):
            if len(columns) != scored.unit.rows:
                raise IncompleteError(
                    f"{scored.sidecar}: holds {len(columns):,} rows, its unit {scored.unit.rows:,}."
                    " Score again: only what is broken is done anew."
                )
            yield columns

    return survey(checked())


def scan_chunk(chunk: Sequence[ScoredUnit], *, prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
    """One more pass: the histograms of some units' keys under each prefix."""
    return histograms(columns_of(chunk), prefixes)


def sample_chunk(chunk: Sequence[ScoredUnit], *, share: float) -> Rows:
    """Rows of the sample by which bf16 errors are measured, less those scored again already."""
    return _rows_of(chunk, lambda columns, again: sample_rows(columns, again, share=share))


def near_chunk(chunk: Sequence[ScoredUnit], *, threshold: float, bound: float) -> Rows:
    """Rows within the bound of the threshold, less those scored again already."""
    return _rows_of(
        chunk,
        lambda columns, again: rows_near(columns, again, threshold=threshold, bound=bound),
    )


def _rows_of(
    chunk: Sequence[ScoredUnit], pick: Callable[[SidecarColumns, Rescored], NDArray[np.int32]]
) -> Rows:
    found = {}
    for scored in chunk:
        columns = SidecarColumns.open(scored.sidecar, ordinal=scored.ordinal)
        rows_M = pick(columns, read_rescored(scored.rescored))
        if len(rows_M):
            found[scored.ordinal] = rows_M
    return found


def errors_chunk(chunk: Sequence[ScoredUnit]) -> Errors:
    """How far the bf16 scores of some units are from fp32, where both are known."""
    errors = Errors(0, 0.0)
    for scored in chunk:
        if scored.rescored:
            columns = SidecarColumns.open(scored.sidecar, ordinal=scored.ordinal)
            errors += errors_of(columns, read_rescored(scored.rescored))
    return errors


def tell_chunk(chunk: Sequence[ScoredUnit], *, cut: Cut, source_column: str) -> Told:
    """What a cut does to some units."""
    masks = {columns.ordinal: cut.mask(columns) for columns in columns_of(chunk)}
    rows: Counter[str] = Counter()
    selected: Counter[str] = Counter()
    for file, units in groupby(chunk, key=lambda scored: scored.file):
        if source_column not in file.schema.names:
            continue
        of_file = list(units)
        tables = read_ranges(file, [_bounds(s.unit) for s in of_file], columns=[source_column])
        for scored, table in zip(of_file, tables, strict=True):
            kept = take_rows(table, np.flatnonzero(masks[scored.ordinal]))
            rows.update(_count_values(table[source_column]))
            selected.update(_count_values(kept[source_column]))
    return Told(
        selected={ordinal: int(mask.sum()) for ordinal, mask in masks.items() if mask.any()},
        sources={source: (n, selected[source]) for source, n in rows.items()},
        extremes=extremes(columns_of(chunk), cut),
    )


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Rows by value, as text; null counts as '(none)'."""
    counts = column.value_counts()
    return {
        "(none)" if entry["values"] is None else str(entry["values"]): entry["counts"]
        for entry in counts.to_pylist()
    }


def _bounds(unit: Unit) -> tuple[int, int]:
    return unit.row_start, unit.row_start + unit.rows


def write_part(part: Part, *, folder: str, cut: Cut, score_column: str) -> dict[str, Any]:
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
            for table in _grouped(_selected_rows(part, cut), schema):
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


def _selected_rows(part: Part, cut: Cut) -> Iterator[tuple[pa.Table, pa.Array]]:
    """(input rows, their scores) of one unit after the other, selected ones only, in order."""
    for file, units in groupby(part.units, key=lambda scored: scored.file):
        picked = []
        for columns, scored in ((next(columns_of([s])), s) for s in units):
            offsets = np.flatnonzero(part.mask(columns, cut))
            if len(offsets):
                start = scored.unit.row_start
                bounds = (start + int(offsets[0]), start + int(offsets[-1]) + 1)
                picked.append((bounds, offsets, columns.scores))
        tables = read_ranges(file, [bounds for bounds, _, _ in picked])
        for table, (_, offsets, scores) in zip(tables, picked, strict=True):
            yield take_rows(table, offsets - offsets[0]), scores.take(pa.array(offsets))


def _grouped(parts: Iterator[tuple[pa.Table, pa.Array]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the output schema, each large enough for a row group but the last."""
    waiting: list[pa.Table] = []
    for rows, scores in parts:
        named = rows.append_column(schema.field(schema.names[-1]), scores)
        waiting.append(named.replace_schema_metadata(schema.metadata))
        if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
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
