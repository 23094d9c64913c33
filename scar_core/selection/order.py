"""The order of a selection: every eligible row's key, read from sidecars a column at a time.

A key is fourteen 16-bit digits, most significant first, and ascending keys are the selection's
order: two digits of score (higher first, -0.0 as 0.0), eight of content hash, two of the unit's
ordinal among the units in (path, row) order, two of the row's offset in its unit. No two rows
share a key. A row without a score, or with one that is NaN, is not eligible and has no key; nor
is a copy of a better row, where a selection leaves copies out, nor a row beyond a cap. A policy may
order rows by something else, their worth: then it stands wherever a key has the score.

Array suffixes: N rows of a sidecar, M of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import SchemaError
from scar_core.pool.rows import HASH_BYTES, SIDECAR_SCHEMA
from scar_core.pool.sidecars import TOKEN_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

DIGIT_BITS = 16
DIGIT_VALUES = 1 << DIGIT_BITS
SCORE_DIGITS = 2
HASH_DIGITS = HASH_BYTES * 8 // DIGIT_BITS
ORDINAL_DIGITS = 2
OFFSET_DIGITS = 2
KEY_DIGITS = SCORE_DIGITS + HASH_DIGITS + ORDINAL_DIGITS + OFFSET_DIGITS

BEST_SCORE_KEY = 0x007FFFFF  # of +inf; NaN lies before it,
WORST_SCORE_KEY = 0xFF7FFFFF  # and after that of -inf
ZERO_SCORE_KEY = 0x7FFFFFFF  # of both zeros
NAN_SCORE_KEY = 0  # of one of many NaNs

NAN_REASON = "score_nan"
"""Why a row with a score is not eligible, beside the reasons that sidecars name."""
INFINITE_REASON = "score_not_finite"
"""Why a row with an infinite score has no worth, where one is made of finite numbers."""

NEAR_SCHEMA = pa.schema(
    [pa.field("offset", pa.uint32()), pa.field("high", pa.uint64()), pa.field("low", pa.uint64())]
)
"""Rows of a unit that are in clusters: offset within it, and both halves of the cluster's id."""

Scalar = TypeVar("Scalar", bound=np.generic)

Prefix = tuple[int, ...]
"""The leading digits of a key."""


def score_keys(scores_N: NDArray[np.float32]) -> NDArray[np.uint32]:
    """[N] first two digits as one number: smaller for higher scores, equal for both zeros.

    Integers throughout: some libraries switch a process to flushing denormals to zero.
    """
    bits_N = scores_N.view(np.uint32)
    negative_N = (bits_N.view(np.int32) >> 31).view(np.uint32)  # all ones, or all zeros
    # Below zero the bits ascend already; less one, so that -0.0 gets the key of 0.0.
    return (bits_N ^ (~negative_N & np.uint32(ZERO_SCORE_KEY))) + negative_N


def score_of(score_key: int) -> float:
    """The score that has this key, a float32 value; 0.0 for both zeros."""
    bits = score_key ^ ZERO_SCORE_KEY if score_key <= ZERO_SCORE_KEY else score_key + 1
    return float(np.array(bits, np.uint32).view(np.float32))


class Placed(NamedTuple):
    """An eligible row and its key: ascending ones are in selection order."""

    score_key: int
    content_hash: bytes
    ordinal: int
    """Of its unit."""
    offset: int
    """Within its unit."""
    selected: bool = False
    own_score: float | None = None
    """Its score, where rows are ordered by something else."""

    @property
    def score(self) -> float:
        """Its score; 0.0 for both zeros."""
        return self.worth if self.own_score is None else self.own_score

    @property
    def worth(self) -> float:
        """What it is ordered by; 0.0 for both zeros."""
        return score_of(self.score_key)


class Worth(Protocol):
    """What rows are ordered by in place of their scores."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the pool that it reads, as float32."""
        ...

    def of(self, rows: SidecarColumns) -> NDArray[np.float32]:
        """[N] worth of each row, higher first; NaN where it has none, anything without a score."""
        ...


class SidecarColumns:
    """The columns of one sidecar, each read when first asked for, then kept.

    Args:
        read: gives the named column of the sidecar, one value per row, in input order.
        ordinal: place of the unit among the run's units in (path, row) order, below 2**32.
        where: what error texts call the sidecar.
        copies_N: [N] rows that are copies of better ones and left out; none where None.
        groups_N: [N] int32 number of each row's group; one group, 0, where None.
        worth: what rows are ordered by; their scores where None.
        numbers: by name, [N] float32 of other columns of the pool; NaN where not finite.
        place: path of the unit's file, relative to the pool, and its first row's number there.
        near: gives NEAR_SCHEMA, the rows that are in clusters of near-duplicates; none where None.

    Raises:
        SchemaError: on first use of a column that does not hold what sidecars hold.
    """

    def __init__(
        self,
        read: Callable[[str], pa.ChunkedArray],
        *,
        ordinal: int,
        where: str,
        copies_N: NDArray[np.bool_] | None = None,
        groups_N: NDArray[np.int32] | None = None,
        worth: Worth | None = None,
        numbers: Mapping[str, NDArray[np.float32]] | None = None,
        place: tuple[str, int] = ("", 0),
        near: Callable[[], pa.RecordBatch] | None = None,
    ) -> None:
        if not 0 <= ordinal < DIGIT_VALUES**ORDINAL_DIGITS:
            raise ValueError(f"{where}: ordinal must be in [0, 2**32), got {ordinal}")
        self.read = read
        self.ordinal = ordinal
        self.where = where
        self.copies_N = copies_N
        self.worth = worth
        self.numbers = numbers or {}
        self.place = place
        self.near = near
        self._groups_N = groups_N

    @classmethod
    def from_table(cls, table: pa.Table, *, ordinal: int, where: str = "table") -> SidecarColumns:
        """Those of a table in memory."""
        return cls(table.column, ordinal=ordinal, where=where)

    @classmethod
    def open(cls, path: str, *, ordinal: int) -> SidecarColumns:
        """Those of a Parquet file; it is opened anew for each column and never left open."""

        def read(name: str) -> pa.ChunkedArray:
            # Arrow's own file where possible: half the time of a Python one for 2,000 rows.
            # From a store whole, in one request: to find the footer takes 64 KB of it anyway.
            local = storage.is_local(path)
            opened = (
                pa.OSFile(storage.absolute(path))
                if local
                else pa.BufferReader(storage.read_bytes(path))
            )
            with opened as file, pq.ParquetFile(file) as parquet:
                return parquet.read(columns=[name], use_threads=False).column(name)

        return cls(read, ordinal=ordinal, where=path)

    def __len__(self) -> int:
        """Rows of the sidecar."""
        return len(self.scores)

    def _column(self, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
        try:
            column = self.read(name)
        except KeyError as error:
            raise SchemaError(
                f"{self.where}: no column {name!r}, so it is no sidecar. Score the unit again."
            ) from error
        wanted = SIDECAR_SCHEMA.field(name).type
        if column.type != wanted:
            raise SchemaError(
                f"{self.where}: column {name!r} holds {column.type}; wanted {wanted}. "
                "Cast it, or score the unit again."
            )
        return column.combine_chunks()

    @cached_property
    def scores(self) -> pa.Array:
        """[N] float32, null where quarantined."""
        return self._column("score")

    @property
    def reasons(self) -> dict[str, int]:
        """Quarantined rows by reason; reads reasons only where there are any."""
        if not self.scores.null_count:
            return {}
        counts = self._column("reason").drop_null().value_counts().to_pylist()
        return {entry["values"]: entry["counts"] for entry in counts}

    @property
    def scores_N(self) -> NDArray[np.float32]:
        """[N] the scores; anything where null."""
        return values_of(self.scores, np.float32)

    @cached_property
    def worth_N(self) -> NDArray[np.float32]:
        """[N] what rows are ordered by; anything where a score is null."""
        return self.scores_N if self.worth is None else self.worth.of(self)

    @property
    def unfit(self) -> dict[str, int]:
        """Rows with a score and without a worth, by reason."""
        counts = {}
        left_N = _valid(self.scores) & ~self.scored_N
        for reason, none_N in self._lacks():
            counts[reason] = int(np.count_nonzero(left_N & none_N))
            left_N &= ~none_N
        return {reason: rows for reason, rows in counts.items() if rows}

    def _lacks(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """Why a row may have no worth, and which have none for that; the first reason counts."""
        columns = () if self.worth is None else self.worth.columns
        lacks = [(f"{name}_missing", np.isnan(self.numbers[name])) for name in columns]
        every_N = np.ones(len(self), np.bool_)
        return [(NAN_REASON, np.isnan(self.scores_N)), *lacks, (INFINITE_REASON, every_N)]

    @cached_property
    def tokens_N(self) -> NDArray[np.int64]:
        """[N] tokens of both texts as the ranker counts them, those that it did not read too."""
        columns = (self._column(name) for name in TOKEN_COLUMNS)
        total_N = np.zeros(len(self), np.int64)
        for column in columns:
            total_N += values_of(column, np.int32)
        return total_N

    @cached_property
    def score_keys_N(self) -> NDArray[np.uint32]:
        """[N] of what rows are ordered by; without meaning where not eligible."""
        keys_N = score_keys(self.worth_N)
        keys_N[~_valid(self.scores)] = NAN_SCORE_KEY
        return keys_N

    @cached_property
    def scored_N(self) -> NDArray[np.bool_]:
        """[N] whether a row has a score that is not NaN, and a worth."""
        best, worst = np.uint32(BEST_SCORE_KEY), np.uint32(WORST_SCORE_KEY)
        return (self.score_keys_N >= best) & (self.score_keys_N <= worst)

    @cached_property
    def eligible_N(self) -> NDArray[np.bool_]:
        """[N] whether a row has a key: it has a score, and is no copy that is left out."""
        return self.scored_N if self.copies_N is None else self.scored_N & ~self.copies_N

    @property
    def groups_N(self) -> NDArray[np.int32]:
        """[N] number of each row's group."""
        return np.zeros(len(self), np.int32) if self._groups_N is None else self._groups_N

    def group_by(self, groups_N: NDArray[np.int32] | None) -> None:
        """Give each row the number of its group."""
        self._groups_N = groups_N

    def limit(self, within_N: NDArray[np.bool_]) -> None:
        """Take the other rows for not eligible."""
        self.eligible_N = self.eligible_N & within_N

    @property
    def clusters(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """[N] twice: two halves of what stands for each row's duplicates.

        That of its near-duplicates, where they were looked for and it has any; else its content
        hash.
        """
        high_N, low_N = self.hashes.view(">u8").T.astype(np.uint64)
        if self.near is not None:
            offsets, *halves = self.near().columns
            offsets_M = values_of(offsets, np.uint32)
            high_N[offsets_M], low_N[offsets_M] = (values_of(half, np.uint64) for half in halves)
        return high_N, low_N

    @cached_property
    def hashes(self) -> NDArray[np.uint8]:
        """[N, 16] bytes of the content hashes; without meaning where not scored."""
        column = self._column("content_hash")
        scored_N = _valid(self.scores) & ~np.isnan(self.scores_N)
        if not _valid(column)[scored_N].all():
            raise SchemaError(
                f"{self.where}: a row has a score and no content_hash. Score the unit again."
            )
        return values_of(column, np.uint8, width=HASH_BYTES).reshape(-1, HASH_BYTES)

    def digit(self, position: int, rows_M: NDArray[np.intp]) -> NDArray[np.intp]:
        """[M] digits of some rows; position 0 is the most significant of KEY_DIGITS."""
        if position < SCORE_DIGITS:
            return _half(self.score_keys_N[rows_M], position)
        position -= SCORE_DIGITS
        if position < HASH_DIGITS:
            digits_M: NDArray[np.uint16] = self.hashes.view(">u2")[rows_M, position]
            return digits_M.astype(np.intp)
        position -= HASH_DIGITS
        if position < ORDINAL_DIGITS:
            return _half(np.full(len(rows_M), self.ordinal), position)
        return _half(rows_M, position - ORDINAL_DIGITS)

    def rows_under(self, prefix: Prefix) -> NDArray[np.intp]:
        """[M] offsets, ascending, of the eligible rows whose key starts with these digits.

        Hashes are read only if the prefix goes beyond the score and a row has that score.
        """
        fitting_N = self.eligible_N
        if len(prefix) >= SCORE_DIGITS:
            fitting_N = fitting_N & (self.score_keys_N == np.uint32(score_key_of(prefix)))
        elif prefix:
            fitting_N = fitting_N & (self.score_keys_N >> DIGIT_BITS == np.uint32(prefix[0]))
        rows_M = np.flatnonzero(fitting_N)
        for position in range(SCORE_DIGITS, len(prefix)):
            if not len(rows_M):
                break
            rows_M = rows_M[self.digit(position, rows_M) == prefix[position]]
        return rows_M

    def reason_of(self, offset: int) -> str | None:
        """Why a row cannot be selected by its score or worth; None where it can."""
        if self.scored_N[offset]:
            return None
        if not _valid(self.scores)[offset]:
            return str(self._column("reason")[offset])
        return next(reason for reason, none_N in self._lacks() if none_N[offset])

    def in_order(self, rows_M: NDArray[np.intp]) -> NDArray[np.intp]:
        """[M] the same eligible rows in selection order; reads hashes."""
        high_M, low_M = self.hashes[rows_M].view(">u8").T.astype(np.uint64)
        return rows_M[np.lexsort((rows_M, low_M, high_M, self.score_keys_N[rows_M]))]

    def placed(self, row: int, *, selected: bool = False) -> Placed:
        """The key of an eligible row; reads hashes."""
        key = int(self.score_keys_N[row])
        own = None if self.worth is None else float(self.scores_N[row])
        return Placed(key, self.hashes[row].tobytes(), self.ordinal, int(row), selected, own)


def score_key_of(prefix: Prefix) -> int:
    """The first two digits of a prefix as one number."""
    return prefix[0] << DIGIT_BITS | prefix[1]


def _half(values_M: NDArray[Any], position: int) -> NDArray[np.intp]:
    """The high (0) or low (1) digit of 32-bit values."""
    wide_M: NDArray[np.intp] = values_M.astype(np.intp)
    return wide_M >> DIGIT_BITS if position == 0 else wide_M & (DIGIT_VALUES - 1)


# By hand, because Arrow's own conversions import pandas: 0.2 s in every new worker.


def values_of(column: pa.Array, dtype: type[Scalar], *, width: int = 1) -> NDArray[Scalar]:
    """[N * width] values of an array of fixed width; anything where null."""
    start = column.offset * width * np.dtype(dtype).itemsize
    return np.frombuffer(column.buffers()[1], dtype, len(column) * width, start)


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    """[N] whether an array has a value there."""
    bitmap = column.buffers()[0]
    if bitmap is None:
        return np.ones(len(column), np.bool_)
    bits = np.unpackbits(
        np.frombuffer(bitmap, np.uint8), count=column.offset + len(column), bitorder="little"
    )
    return bits[column.offset :].view(np.bool_)
