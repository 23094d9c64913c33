"""What runs on the workers of a difference of two selections.

part_one  a file of rows that one run selected  →  those of them that the other did not, and why
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.compare_stages import read_before
from scar_core.selection.picked import PICKED_SCHEMA, rows_by_path
from scar_core.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from jobs.compare_stages import Meeting

DIFF_SCHEMA = PICKED_SCHEMA.append(pa.field("reason", pa.string(), nullable=False))
"""A selected row as its run listed it, and why it is in that run alone."""


@dataclass(frozen=True, kw_only=True)
class Parted:
    """The rows of a file of selected rows."""

    stayed: int
    """Selected by both runs."""
    reasons: Counter[str]
    """The others, by reason."""
    examples: list[dict[str, Any]]
    """The best-scored of them."""
    entry: dict[str, Any] | None
    """Where they are listed, if they are to be."""


def part_one(
    item: tuple[int, Meeting],
    *,
    reasons: Mapping[str, str],
    otherwise: str,
    examples: int,
    folder: str | None,
    name: str,
) -> Parted:
    """Part the rows of a file into those that both runs selected and the others.

    Args:
        item: number of the file; the file, and what there may be of its rows in the other run.
        reasons: by path of a pool file that is not the same in the other run, why.
        otherwise: why rows of all other files are in this run alone.
        examples: how many to bring.
        folder: to list the rows in, if anywhere.
        name: of the folder in it.
    """
    number, meeting = item
    other: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for url in meeting.now:
        for path, rows_M in rows_by_path(read_before(url, ["path", "row"])):
            other[path].append(rows_M)
    table = read_before(meeting.before, PICKED_SCHEMA.names)
    alone, told = [], []
    for path, rows_M in rows_by_path(table):
        there = other.get(meeting.same.get(path, ""), [])
        alone.append(~np.isin(rows_M, np.concatenate([np.zeros(0, np.int64), *there])))
        told += [reasons.get(path, otherwise)] * int(alone[-1].sum())
    mask_M = np.concatenate(alone)
    parted = table.filter(pa.array(mask_M)).cast(PICKED_SCHEMA)
    parted = parted.append_column(DIFF_SCHEMA.field("reason"), pa.array(told, pa.string()))
    entry = None
    if folder is not None and parted.num_rows:
        path = f"{name}/part-{number:06d}.parquet"
        entry = write_table(folder, path, [parted], schema=DIFF_SCHEMA)._asdict()
    best = parted.sort_by([("score", "descending")]).slice(0, examples).to_pylist()
    return Parted(
        stayed=int(len(mask_M) - mask_M.sum()),
        reasons=Counter(told),
        examples=[{**row, "content_hash": row["content_hash"].hex()} for row in best],
        entry=entry,
    )
