"""The job in one process: rows in memory are scored and the best kept, as `jobs.curate` would.

For notebooks and small sets. What a cluster is for, millions of rows and runs that survive being
killed, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from scar_core.errors import InputError
from scar_core.pool.pairs import check_rows
from scar_core.pool.pieces import reduce_pieces
from scar_core.pool.rows import SIDECAR_SCHEMA, TURN_SCORES, PairColumns, sidecar_schema
from scar_core.pool.shapes import FIRST_ROWS, check_shape, columns_read, resolved, texts_in
from scar_core.pool.units import take_rows
from scar_core.ranker.cutting import tokenize_pairs
from scar_core.selection.budget import token_histograms
from scar_core.selection.keep import decide, parse_keep
from scar_core.selection.order import SidecarColumns
from scar_core.selection.radix import histograms, survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scar_core.scoring import Scorer

SCORE_COLUMN = "scar_score"

Rows = TypeVar("Rows")
"""A sequence of (instruction, response) pairs, a `pyarrow.Table`, or a `datasets.Dataset`."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows(Generic[Rows]):
    """N rows with their scores; each is scored or has a reason why not."""

    rows: Rows
    """As they were given."""
    table: pa.Table
    """[N] in input order, as a sidecar of the job would hold them (`SIDECAR_SCHEMA`)."""

    @cached_property
    def scores(self) -> list[float | None]:
        """N scores in input order, None where a row cannot be scored; higher is better."""
        scores: list[float | None] = self.table["score"].to_pylist()
        return scores

    @cached_property
    def quarantined(self) -> dict[int, str]:
        """Why rows have no score: `response_empty` and the like, by their number."""
        reasons = enumerate(self.table["reason"].to_pylist())
        return {row: reason for row, reason in reasons if reason is not None}

    def best(self, keep: str) -> list[int]:
        """Numbers of the rows that the job would select, in input order.

        Args:
            keep: what `--keep` takes: `10%`, `2500`, `score>=1.5` or `50M-tokens`.

        Raises:
            InputError: it is none of them.
        """
        columns = SidecarColumns.from_table(self.table, ordinal=0)
        cut = decide(
            survey([columns]),
            lambda prefixes: histograms([columns], prefixes),
            parse_keep(keep),
            weigh=lambda prefixes: token_histograms([columns], prefixes),
        ).cut
        best: list[int] = np.flatnonzero(cut.mask(columns)).tolist()
        return best

    def keep(self, keep: str, *, score_column: str = SCORE_COLUMN) -> Rows:
        """The rows that the job would select, of the type that was given, in input order.

        A table or a dataset comes back with every column untouched and the scores beside them.

        Raises:
            InputError: `keep` cannot be read, or a column of that name is there already.
        """
        best = self.best(keep)
        scores = self.table["score"].take(pa.array(best, pa.int64()))
        taken: Any = _taken(self.rows, best, scores, name=score_column)
        return taken  # type: ignore[no-any-return]  # of the type that came


def score_rows(
    rows: Rows, scorer: Scorer, *, columns: PairColumns | None = None
) -> ScoredRows[Rows]:
    """Score rows in memory, in input order.

    Args:
        rows: (instruction, response) pairs, a `pyarrow.Table`, or a `datasets.Dataset`.
        scorer: a loaded ranker.
        columns: where a table's texts are, and how large a row may be.

    Raises:
        SchemaError: a column is missing, or holds no text.
        TypeError: the rows are of another type.
    """
    columns = _resolved(rows, columns or PairColumns())
    parts = [
        _scored(table, scorer, columns, first=first)
        for first, table in _tables(rows, columns, scorer.config.work_rows)
    ]
    empty = sidecar_schema(columns.turns).empty_table()
    return ScoredRows(rows=rows, table=pa.concat_tables([empty, *parts]))


def curate(
    rows: Rows,
    scorer: Scorer,
    *,
    keep: str,
    columns: PairColumns | None = None,
    score_column: str = SCORE_COLUMN,
) -> Rows:
    """The best rows, of the type that was given; `score_rows` and `ScoredRows.keep` in one.

    Raises:
        InputError: as these do.
        TypeError: the rows are of a type that is not known.
    """
    return score_rows(rows, scorer, columns=columns).keep(keep, score_column=score_column)


def _resolved(rows: Any, columns: PairColumns) -> PairColumns:  # noqa: ANN401 - as `_tables`
    """How rows are read, by their columns and the first of them."""
    if isinstance(rows, pa.Table):
        schema, first = rows.schema, rows.slice(0, FIRST_ROWS)
    elif _is_dataset(rows):
        schema = rows.features.arrow_schema
        first = next(iter(rows.with_format("arrow").iter(FIRST_ROWS)), schema.empty_table())
    else:
        return replace(columns, format="columns")

    return resolved(schema, columns, first_values=lambda name: texts_in(first[name]))


def _tables(
    rows: Any,  # noqa: ANN401 - no import of `datasets` for its type
    columns: PairColumns,
    batch_rows: int,
) -> Iterator[tuple[int, pa.Table]]:
    """(number of its first row, table with both columns) of one stretch of rows after the other."""
    names = [columns.instruction_column, columns.response_column]
    if isinstance(rows, pa.Table):
        check_shape(rows.schema, columns, where="the table")
        names = columns_read(columns, rows.schema)
        for first in range(0, rows.num_rows, batch_rows):
            yield first, rows.select(names).slice(first, batch_rows)
    elif _is_dataset(rows):
        check_shape(rows.features.arrow_schema, columns, where="the dataset")
        names = columns_read(columns, rows.features.arrow_schema)
        texts = rows.select_columns(names).with_format("arrow")
        for index, table in enumerate(texts.iter(batch_rows)):
            yield index * batch_rows, table
    elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        for first in range(0, len(rows), batch_rows):
            texts = zip(*rows[first : first + batch_rows], strict=True)
            arrays = [pa.array(column, pa.large_string()) for column in texts]
            yield first, pa.Table.from_arrays(arrays, names=names)
    else:
        raise TypeError(
            f"{type(rows).__name__}: wanted (instruction, response) pairs, a pyarrow.Table or a "
            "datasets.Dataset. A pandas frame becomes one by pyarrow.Table.from_pandas."
        )


def _is_dataset(rows: Any) -> bool:  # noqa: ANN401 - anything
    """Whether these are a `datasets.Dataset`; the package is not imported for the question."""
    return any(
        (kind.__module__, kind.__name__) == ("datasets.arrow_dataset", "Dataset")
        for kind in type(rows).__mro__
    )


def _scored(table: pa.Table, scorer: Scorer, columns: PairColumns, *, first: int) -> pa.Table:
    """The scores of a stretch of rows, as a sidecar of the job would hold them."""
    pairs = check_rows(table, columns)
    tokens = tokenize_pairs(pairs, scorer.tokenizer, long=columns.long)
    scores_P = scorer.score_tokens(tokens.instructions, tokens.responses)
    reduced = reduce_pieces(scores_P, tokens.pieces, turns=columns.turns)

    def spread(values_K: NDArray[Any]) -> NDArray[Any]:
        values_N = np.zeros(table.num_rows, values_K.dtype)
        values_N[pairs.kept_rows] = values_K
        return values_N

    scores_N = spread(reduced.scores_K)
    missing_N = np.array([reason is not None for reason in pairs.reasons])
    by_name = {
        "row": np.arange(first, first + table.num_rows),
        "score": pa.array(scores_N, mask=missing_N),
        "content_hash": pairs.hashes,
        "reason": pa.array(pairs.reasons, SIDECAR_SCHEMA.field("reason").type),
        "instruction_tokens": spread(tokens.of_rows(tokens.instruction_tokens_J)),
        "response_tokens": spread(tokens.of_rows(tokens.response_tokens_J)),
        "cut_tokens": spread(tokens.of_rows(tokens.cut_tokens_J)),
    }
    schema = sidecar_schema(columns.turns)
    if TURN_SCORES.name in schema.names:
        by_turn = iter(np.split(reduced.turn_scores_T, np.cumsum(reduced.turns_K)[:-1]))
        by_name[TURN_SCORES.name] = [None if missing else next(by_turn) for missing in missing_N]
    return pa.table(by_name, schema=schema)


def _taken(rows: Any, best: list[int], scores: pa.Array, *, name: str) -> Any:  # noqa: ANN401 - any rows
    """Some rows, as the type that came; with their scores where rows have columns."""
    if not isinstance(rows, pa.Table) and not _is_dataset(rows):
        return (
            type(rows)(rows[row] for row in best)
            if isinstance(rows, tuple)
            else [rows[row] for row in best]
        )
    if name in (names := rows.column_names):
        raise InputError(
            f"a column {name!r} is there already: {', '.join(names)}. Pass another score_column."
        )
    if isinstance(rows, pa.Table):
        return take_rows(rows, np.array(best, np.int64)).append_column(name, scores)
    return rows.select(best).add_column(name, scores)
