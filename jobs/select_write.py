"""The selected rows as output files: planned on the driver, each written by one worker.

Rows are copied, never shuffled: a file holds selected rows of units that follow each other. Which
they are, and their scores, is read from what the selecting pass wrote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from scar_core.errors import IncompleteError
from scar_core.pool.units import read_ranges, take_rows
from scar_core.selection.order import values_of
from scar_core.selection.picked import read_picked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit
    from jobs.written_as import Output
    from scar_core.pool.files import PoolFile
    from scar_core.selection.picked import Picked


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The selected rows of a unit."""

    file: PoolFile
    """Whose rows they are."""
    picked: str
    """Where they are listed."""
    start: int
    """The first of them there."""
    stop: int
    """After the last."""

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Part:
    """One output file."""

    index: int
    """Among the output files, from 0."""
    schema: pa.Schema
    """Of the input rows."""
    slices: tuple[Slice, ...]
    """In (path, row) order."""

    @property
    def rows(self) -> int:
        """Rows to write."""
        return sum(part.rows for part in self.slices)


def plan_parts(
    units: Sequence[ScoredUnit], picked: Sequence[Picked], *, megabytes: int
) -> list[Part]:
    """Output files of at most about so many megabytes, each of one schema, in (path, row) order.

    Files of one schema that follow each other are of about one size. At least one file, without
    rows if there are none, so that the directory is a dataset.

    Args:
        units: of the pool.
        picked: the rows to write.
        megabytes: of a file.
    """
    groups: list[tuple[Slice, ...]] = []
    for run in _runs_of_one_schema(list(_slices(units, picked))):
        sizes = [part.rows * part.file.bytes_per_row for part in run]
        groups += _balanced(run, sizes, most=megabytes * 2**20)
    return [
        Part(
            index=index,
            schema=(group[0] if group else units[0]).file.schema,
            slices=group,
        )
        for index, group in enumerate(groups or [()])
    ]


def _slices(units: Sequence[ScoredUnit], picked: Sequence[Picked]) -> Iterator[Slice]:
    """The rows to write of one unit after the other."""
    for part in picked:
        stops = np.cumsum(part.rows_U).tolist()
        for ordinal, start, stop in zip(part.ordinals_U.tolist(), [0, *stops], stops, strict=False):
            yield Slice(file=units[ordinal].file, picked=part.url, start=start, stop=stop)


def _runs_of_one_schema(slices: Sequence[Slice]) -> list[list[Slice]]:
    runs: list[list[Slice]] = []
    for part in slices:
        last = runs[-1][-1].file if runs else None
        if last is not part.file and not (last and last.schema.equals(part.file.schema)):
            runs.append([])
        runs[-1].append(part)
    return runs


def _balanced(
    slices: Sequence[Slice], sizes: Sequence[float], *, most: float
) -> list[tuple[Slice, ...]]:
    """Consecutive shares of about equal size: as few as keep each at about `most`."""
    total = sum(sizes)
    share = total / max(1, math.ceil(total / most))
    groups: list[list[Slice]] = []
    filled = 0.0
    for part, size in zip(slices, sizes, strict=True):
        # A unit goes where its middle lies.
        if not groups or (share and (filled + size / 2) // share >= len(groups)):
            groups.append([])
        groups[-1].append(part)
        filled += size
    return [tuple(group) for group in groups]


def write_part(part: Part, *, folder: str, output: Output) -> dict[str, Any]:
    """Write an output file below the run's folder; its manifest entry.

    Raises:
        InputError: a row that cannot be written as asked for.
        IncompleteError: other rows are there than were planned.
    """
    path = output.path(part.index)
    written = output.write(folder, path, _selected_rows(part, output), pool=part.schema)
    if written.rows != part.rows:
        raise IncompleteError(
            f"{path}: {part.rows:,} rows were to be written, not {written.rows:,}."
        )
    return written._asdict()


def _selected_rows(part: Part, output: Output) -> Iterator[pa.Table]:
    """Output rows, one stretch after the other, in order."""
    for (file, url), group in groupby(part.slices, key=lambda one: (one.file, one.picked)):
        held = list(group)
        picked = read_picked(url, ["row", "score"], start=held[0].start, stop=held[-1].stop)
        rows_M = values_of(picked["row"].combine_chunks(), np.int64)
        stretches = _stretches(file, held, rows_M)
        ranges = [(int(stretch[0]), int(stretch[-1]) + 1) for stretch in stretches]
        done = 0
        for table, stretch in zip(read_ranges(file, ranges), stretches, strict=True):
            scores = picked["score"].slice(done, len(stretch))
            rows = take_rows(table, stretch - stretch[0])
            yield output.rows(rows, scores, where=partial(_place, file, stretch))
            done += len(stretch)


def _place(file: PoolFile, rows_M: NDArray[np.int64], position: int) -> str:
    """What error texts call one of some rows of a file."""
    return f"{file.shown}, row {rows_M[position]:,}"


def _stretches(
    file: PoolFile, slices: Sequence[Slice], rows_M: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Ascending rows of a file, those of each row group and of each unit apart.

    A row group without any is not read, and what is read at once is no longer than a unit.
    """
    ends = np.cumsum([group.rows for group in file.row_groups])
    stops = np.cumsum([one.rows for one in slices])
    cuts = np.union1d(np.searchsorted(rows_M, ends), stops)
    return [part for part in np.split(rows_M, cuts) if len(part)]
