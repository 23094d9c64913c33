"""Small pools for tests, written as Parquet files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.pool.files import PoolFile, open_file, open_pool
from scar_core.pool.rows import PairColumns
from scar_core.pool.units import Unit, UnitConfig, plan_units

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = PairColumns()


def texts(rows: int, *, tag: str = "") -> pa.Table:
    """So many rows of text, each another."""
    return pa.table(
        {
            "instruction": [f"{tag} question {row}" for row in range(rows)],
            "response": [f"{tag} answer {row}" for row in range(rows)],
        }
    )


def write(path: Path, table: pa.Table, *, groups: Sequence[int] | None = None) -> Path:
    """A Parquet file of these row groups, empty ones too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in groups if groups is not None else [table.num_rows]:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
    return path


def open_one(path: Path) -> PoolFile:
    """A file as the only one of a pool."""
    return open_file(storage.stat(str(path)), path=path.name, columns=COLUMNS)


def planned(*pool: Path | str, config: UnitConfig | None = None) -> list[Unit]:
    """The units of a pool."""
    files = open_pool([str(path) for path in pool], COLUMNS)
    return plan_units(files, config or UnitConfig())
