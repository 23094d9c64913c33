"""Files of quadruples as tables with all their columns, each row's texts checked, with a reason."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core.errors import InputError, SchemaError
from scar_core.training.quadruple_files import (
    QuadrupleInput,
    is_dataset,
    json_rows,
    load_train_split,
    read_files,
)
from scar_core.training.quadruples import ROLES, check_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scar_core.training.quadruples import QuadrupleColumns

TEXTS = ("instruction", *ROLES)
"""What of a row is text."""

_NO_ARROW = (pa.ArrowException, UnicodeEncodeError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class QuadrupleRow:
    """The texts of one row, under the names of TEXTS."""

    texts: dict[str, str]
    """Those that are there: neither null nor blank."""
    reason: str
    """`<text>_<not_text|too_large>` of the first text that cannot be used; else empty."""
    others: dict[str, Any]
    """A judge's scores that are there, by column."""


@dataclass(frozen=True, kw_only=True)
class QuadrupleTable:
    """One input, with every column it has."""

    source: QuadrupleInput
    table: pa.Table
    """A text that is none, a number or bytes that are not UTF-8, is null here."""
    rows: list[QuadrupleRow]

    def first(self, count: int) -> QuadrupleTable:
        """The first rows alone, so many at most."""
        return replace(self, table=self.table.slice(0, count), rows=self.rows[:count])


def read_tables(sources: Sequence[str], columns: QuadrupleColumns) -> Iterator[QuadrupleTable]:
    """The inputs one by one, in the order given.

    Columns of JSON that are no Arrow column (values of several kinds) become JSON text.

    Raises:
        SchemaError: an input has no instruction, or a text column of another type.
        InputError: an input is not there, is empty, or is not what its name says.
    """
    for source in sources:
        if is_dataset(source):
            dataset = load_train_split(source)
            entry = QuadrupleInput(source, str(dataset._fingerprint))  # noqa: SLF001 - no public name
            yield _from_arrow(entry, dataset.with_format("arrow")[:], columns)
            continue
        for entry, data in read_files(source):
            if entry.path.endswith(".parquet"):
                try:
                    table = pq.read_table(pa.BufferReader(data))
                except (pa.ArrowException, OSError) as error:
                    told = f"{entry.path}: is not a readable Parquet file ({error})."
                    raise InputError(told) from error
                yield _from_arrow(entry, table, columns)
            else:
                yield _from_json(entry, list(json_rows(entry.path, data)), columns)


def _names(columns: QuadrupleColumns) -> dict[str, str]:
    """Columns of the texts by the names of TEXTS."""
    return dict(zip(TEXTS, (columns.instruction_column, *columns.response_columns), strict=True))


def _check(
    entry: QuadrupleInput, names: Sequence[str], rows: int, columns: QuadrupleColumns
) -> None:
    if not rows:
        raise InputError(f"{entry.path}: holds no rows. Check the file.")
    if columns.instruction_column not in names:
        raise SchemaError(
            f"{entry.path}: no column {columns.instruction_column!r}; found "
            f"{', '.join(sorted(names)) or 'no columns'}. Rename it, or pass --instruction-column."
        )


def _from_arrow(
    entry: QuadrupleInput, table: pa.Table, columns: QuadrupleColumns
) -> QuadrupleTable:
    _check(entry, table.column_names, table.num_rows, columns)
    texts = {}
    for name, column in _names(columns).items():
        if column not in table.column_names:
            continue
        kind = table.schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_null(kind) or _holds_text(kind)):
            raise SchemaError(
                f"{entry.path}: column {column!r} holds {kind}; wanted text. Rename the columns, "
                f"or pass --{name}-column."
            )
        texts[name] = [
            _decoded(value) for value in table[column].cast(pa.large_binary()).to_pylist()
        ]
    rows = _rows(texts, table, columns)
    return QuadrupleTable(source=entry, table=_mended(table, texts, columns), rows=rows)


def _holds_text(kind: pa.DataType) -> bool:
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _decoded(value: bytes | None) -> str | bytes | None:
    """The text of some bytes; themselves where they are none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _from_json(
    entry: QuadrupleInput, found: list[dict[str, Any]], columns: QuadrupleColumns
) -> QuadrupleTable:
    names = list(dict.fromkeys(name for row in found for name in row))
    _check(entry, names, len(found), columns)
    texts = {
        name: [row.get(column) for row in found]
        for name, column in _names(columns).items()
        if column in names
    }
    of_texts = set(_names(columns).values())
    table = pa.table(
        {
            name: pa.nulls(len(found), pa.string())
            if name in of_texts
            else _column([row.get(name) for row in found])
            for name in names
        }
    )
    mended = _mended(table, texts, columns, all_of_them=True)
    return QuadrupleTable(source=entry, table=mended, rows=_rows(texts, table, columns))


def _column(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
        if not _has_empty_struct(array.type):
            return array
    except _NO_ARROW:
        pass
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Whether Parquet could not hold a type."""
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(index).type) for index in range(kind.num_fields))


def _mended(
    table: pa.Table,
    texts: dict[str, list[Any]],
    columns: QuadrupleColumns,
    *,
    all_of_them: bool = False,
) -> pa.Table:
    """The table with null where a text is none; untouched columns where all are."""
    for name, values in texts.items():
        kept = [value if check_text(value, columns)[1] != "not_text" else None for value in values]
        if all_of_them or any(new is not old for new, old in zip(kept, values, strict=True)):
            index = table.column_names.index(_names(columns)[name])
            table = table.set_column(index, table.column_names[index], pa.array(kept, pa.string()))
    return table


def _rows(
    texts: dict[str, list[Any]], table: pa.Table, columns: QuadrupleColumns
) -> list[QuadrupleRow]:
    aspects = (columns.helpfulness_column, columns.correctness_column)
    judged = {name.replace("{role}", role) for name in aspects for role in ROLES}
    scores = {name: table[name].to_pylist() for name in judged & set(table.column_names)}
    rows = []
    for number in range(table.num_rows):
        found, reason = {}, ""
        for name, values in texts.items():
            text, fault = check_text(values[number], columns)
            if text is not None:
                found[name] = text
            elif fault in {"not_text", "too_large"}:
                reason = reason or f"{name}_{fault}"
        others = {name: _known(values[number]) for name, values in scores.items()}
        rows.append(QuadrupleRow(texts=found, reason=reason, others=others))
    return rows


def _known(value: object) -> object:
    """A value, or None for pandas' way to write a missing number."""
    return None if isinstance(value, float) and math.isnan(value) else value
