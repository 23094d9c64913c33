"""What runs on the workers of a verification.

check_chunk    files     →  which of them are as a manifest says
differ_chunk   sidecars  →  rows that a cut selects and the run did not list, or the reverse
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.select_stages import columns_of
from scar_core import storage
from scar_core.manifest import describe_file
from scar_core.selection.picked import PICKED_SCHEMA, picked_path, picked_rows, read_picked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobs.select_stages import ScoredUnit
    from scar_core.selection.groups import GroupCuts
    from scar_core.selection.labels import Groups
    from scar_core.selection.radix import Cut


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file that a manifest vouches for."""

    folder: str
    path: str
    """Relative to the folder."""
    rows: int
    bytes: int
    sha256: str
    score_column: str | None = None
    """Of selected rows: where their scores are."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found of some files."""

    files: int = 0
    """That are as published."""
    bytes: int = 0
    lowest: float | None = None
    """The lowest score of selected rows; None where there are none."""
    faults: list[str] = field(default_factory=list)
    """What is wrong, a sentence each."""

    def __add__(self, other: Seen) -> Seen:
        """Of both."""
        lowest = [seen.lowest for seen in (self, other) if seen.lowest is not None]
        return Seen(
            files=self.files + other.files,
            bytes=self.bytes + other.bytes,
            lowest=min(lowest, default=None),
            faults=self.faults + other.faults,
        )


def check_chunk(chunk: Sequence[Listed]) -> Seen:
    """Read some files again."""
    return merge_seen(_check(listed) for listed in chunk)


def merge_seen(parts: Iterable[Seen]) -> Seen:
    """What was found of all files."""
    return reduce(Seen.__add__, parts, Seen())


def _check(listed: Listed) -> Seen:
    url = storage.join(listed.folder, listed.path)
    try:
        found = describe_file(listed.folder, listed.path, rows=listed.rows)
    except FileNotFoundError:
        return Seen(faults=[f"{url}: is missing."])
    if found.bytes != listed.bytes:
        told = f"{url}: holds {found.bytes:,} bytes, the manifest says {listed.bytes:,}."
        return Seen(faults=[told])
    if found.sha256 != listed.sha256:
        told = f"{url}: has sha256 {found.sha256}, the manifest says {listed.sha256}."
        return Seen(faults=[told])
    if listed.path.endswith(".jsonl"):
        return _check_lines(url, listed)
    if listed.path.endswith(".parquet"):
        return _check_table(url, listed)
    return Seen(files=1, bytes=found.bytes)


def _check_table(url: str, listed: Listed) -> Seen:
    with storage.open_input(url) as opened, pq.ParquetFile(opened) as file:
        rows = file.metadata.num_rows
        if rows != listed.rows:
            return Seen(faults=[f"{url}: holds {rows:,} rows, the manifest says {listed.rows:,}."])
        lowest = None if listed.score_column is None else _lowest(file, listed.score_column)
    return Seen(files=1, bytes=listed.bytes, lowest=lowest)


def _check_lines(url: str, listed: Listed) -> Seen:
    rows, lowest = 0, None
    with storage.open_input(url) as file:
        for rows, line in enumerate(file, start=1):  # noqa: B007 - how many there are
            if listed.score_column:
                score = json.loads(line)[listed.score_column]
                lowest = score if lowest is None else min(lowest, score)
    if rows != listed.rows:
        return Seen(faults=[f"{url}: holds {rows:,} rows, the manifest says {listed.rows:,}."])
    return Seen(files=1, bytes=listed.bytes, lowest=lowest)


def _lowest(file: pq.ParquetFile, column: str) -> float | None:
    lowest: list[float] = [
        pc.min(batch.column(0)).as_py()
        for batch in file.iter_batches(columns=[column])
        if batch.num_rows
    ]
    return min(lowest, default=None)


def differ_chunk(
    chunk: Sequence[ScoredUnit],
    *,
    folder: str,
    cut: Cut | GroupCuts,
    groups: Groups | None,
) -> int:
    """How many rows of some units are selected by a cut or listed by the run, and not both.

    The units are those of one file of the run's lists.
    """
    names = ["path", "row"]
    selected = pa.concat_tables(
        picked_rows(scored.unit, columns, cut.mask(columns)).select(names)
        for scored, columns in zip(chunk, columns_of(chunk, groups=groups), strict=True)
    )
    url = storage.join(folder, picked_path(chunk[0].ordinal))
    listed = PICKED_SCHEMA.empty_table().select(names)
    if storage.exists(url):
        listed = read_picked(url, names).cast(listed.schema)
    if selected.equals(listed):
        return 0
    mine, theirs = (
        set(zip(*table.to_pydict().values(), strict=True)) for table in (selected, listed)
    )
    return len(mine ^ theirs)
