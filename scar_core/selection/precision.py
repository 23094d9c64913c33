"""Lower precision, same selection: bf16 scores every row, fp32 decides near the cut.

Let b be a row's bf16 score, s its fp32 score, and |b - s| <= bound for every row. The effective
score is s where a row was scored again, else b; t is the threshold that selecting by it finds.
If no row lies within `bound` of t but those that were scored again, selecting by the effective
score selects what selecting by s would: a row above t that was not scored again has
s >= b - bound > t, one below has s < t, and the others are ordered by s itself.

With groups, each group is such a selection of its own: its quota does not depend on scores. Without
copies, rows whose content comes several times are all scored again before the best one is kept, so
which rows take part is known as from s, and the argument holds for those. With a cap each band is
a selection of its own first, with a boundary of its own. A budget of tokens has two: the last row
that fits, and the first that does not, for it is the tokens of that one which decide. Where luck is
added to a score it is added to both b and s, whose distance stays the same but for rounding.

The bound is measured: the largest error of a sample and of every row scored again so far, widened.

Array suffixes: N rows of a unit, M of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.selection.order import SidecarColumns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

SAMPLE_ROWS = 1024
"""Rows whose error is measured before anything else, about."""
WIDENING = 2.0
"""The bound over the largest error seen. 1,024 normal errors reach 3.2 standard deviations, a
billion 6.1."""

RESCORED_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)


class Rescored(NamedTuple):
    """Rows of one unit that were scored again in fp32."""

    offsets_M: NDArray[np.int32]
    """Within the unit; may come twice, with the same score."""
    scores_M: NDArray[np.float32]


@dataclass(frozen=True)
class Errors:
    """How far bf16 scores are from fp32 ones."""

    rows: int
    """Scored both ways."""
    largest: float
    """|b - s|; infinite if only one of them is finite."""

    def __add__(self, other: Errors) -> Errors:
        """The errors of both groups of rows."""
        return Errors(self.rows + other.rows, max(self.largest, other.largest))

    @property
    def bound(self) -> float:
        """What no row's error is taken to exceed."""
        return self.largest * WIDENING


def rescored_folder(key_id: str) -> str:
    """Where re-scored rows lie below the scores directory; a folder per unit."""
    return f"rescored/{key_id}"


def write_rescored(scores: str, *, key_id: str, unit_id: str, rescored: Rescored) -> str:
    """Store rows that were scored again, beside the sidecars; the path below `scores`.

    The name follows from the rows: a retry writes the same file again.
    """
    digest = blake2b(rescored.offsets_M.tobytes(), digest_size=8).hexdigest()
    path = f"{rescored_folder(key_id)}/{unit_id}/{digest}.parquet"
    table = pa.table([rescored.offsets_M, rescored.scores_M], schema=RESCORED_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(scores, path), sink.getvalue().to_pybytes())
    return path


def list_rescored(scores: str, *, key_id: str) -> dict[str, list[str]]:
    """The files of `write_rescored` by unit id, sorted."""
    found: dict[str, list[str]] = {}
    for info in storage.list_files(storage.join(scores, rescored_folder(key_id))):
        found.setdefault(info.path.split("/")[-2], []).append(info.path)
    return found


def read_rescored(paths: Iterable[str]) -> Rescored:
    """The rows of several files of one unit together."""
    tables = [RESCORED_SCHEMA.empty_table()]
    for path in paths:
        with storage.open_input(path) as file:
            tables.append(pq.read_table(file, schema=RESCORED_SCHEMA))
    table = pa.concat_tables(tables)
    return Rescored(table["offset"].to_numpy(), table["score"].to_numpy())


def open_columns(
    sidecar: str,
    *,
    ordinal: int,
    rescored: Sequence[str] = (),
    **others: Any,  # noqa: ANN401 - typed there
) -> SidecarColumns:
    """A sidecar's columns with effective scores; all else as `SidecarColumns` has it."""
    columns = SidecarColumns.open(sidecar, ordinal=ordinal)
    again = read_rescored(rescored) if rescored else None

    def read(name: str) -> pa.ChunkedArray:
        column = columns.read(name)
        return effective_scores(column, again) if again and name == "score" else column

    return SidecarColumns(read, ordinal=ordinal, where=sidecar, **others)


def effective_scores(scores: pa.ChunkedArray, again: Rescored) -> pa.ChunkedArray:
    """[N] scores with those of re-scored rows in place; nulls stay."""
    values_N = scores.to_numpy().copy()
    values_N[again.offsets_M] = again.scores_M
    missing_N = scores.is_null().to_numpy()
    return pa.chunked_array([pa.array(values_N, mask=missing_N, from_pandas=False)])


def errors_of(columns: SidecarColumns, again: Rescored) -> Errors:
    """The errors of a unit's re-scored rows; `columns` holds its bf16 scores."""
    before_M = columns.scores.to_numpy(zero_copy_only=False)[again.offsets_M].astype(np.float64)
    with np.errstate(invalid="ignore"):
        error_M = np.abs(before_M - again.scores_M)
    error_M[before_M == again.scores_M] = 0.0  # equal infinities differ by nothing
    finite = bool(np.isfinite(error_M).all())
    largest = float(error_M.max(initial=0.0)) if finite else float("inf")
    return Errors(len(np.unique(again.offsets_M)), largest)


def sample_rows(columns: SidecarColumns, again: Rescored, *, share: float) -> NDArray[np.int32]:
    """[M] offsets of the unit's part of the sample that is not scored again yet.

    Which rows are in it follows from their content, so it is the same in every run.
    """
    heads_N = columns.hashes[:, :6].astype(np.int64) @ (1 << np.arange(40, -1, -8))
    picked_N = columns.eligible_N & (heads_N < share * 2**48)
    return _missing(picked_N, again)


def rows_near(
    columns: SidecarColumns,
    again: Rescored,
    *,
    boundaries_G: NDArray[np.float64],
    bound: float,
) -> NDArray[np.int32]:
    """[M] offsets of the rows within the bound of their group's boundary, not scored again yet.

    Args:
        columns: of a unit; bf16 scores.
        again: the unit's rows that were scored again.
        boundaries_G: by group, the score that parts selected rows from others; NaN: nothing does.
        bound: what no row's error exceeds.
    """
    boundary_N = boundaries_G[columns.groups_N]
    with np.errstate(invalid="ignore"):  # rows without a score hold anything
        distance_N = np.abs(columns.worth_N.astype(np.float64) - boundary_N)
        if columns.worth is not None:  # b and s were rounded apart, by half a step each
            reach_N = np.abs(columns.worth_N.astype(np.float64)) + bound
            distance_N -= np.spacing(reach_N.astype(np.float32))
    return _missing(columns.eligible_N & ~np.isnan(boundary_N) & ~(distance_N > bound), again)


def _missing(picked_N: NDArray[np.bool_], again: Rescored) -> NDArray[np.int32]:
    picked_N[again.offsets_M] = False
    return np.flatnonzero(picked_N).astype(np.int32)
