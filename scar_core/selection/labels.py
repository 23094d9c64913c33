"""Groups: a column of the pool as numbers, unit by unit, and how many rows each group has.

Array suffixes: N rows of a unit, M values of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from scar_core.errors import InputError, SchemaError
from scar_core.pool.units import read_ranges
from scar_core.selection.order import values_of
from scar_core.selection.quotas import MOST_GROUPS, MOST_NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile
    from scar_core.selection.order import SidecarColumns

NO_VALUE = "(none)"
"""The group of rows without a value."""


class Labels(NamedTuple):
    """One value per row of a unit, as text."""

    codes_N: NDArray[np.int32]
    names: list[str]
    """By code; two codes may have one name."""


class GroupRows(NamedTuple):
    """How many rows a group has."""

    rows: int
    """With its value."""
    eligible: int
    """Of these, with a score, and no copies where copies are left out."""
    duplicates: int
    """Of these, copies of better rows, of whichever group."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a pool, numbered."""

    column: str
    names: tuple[str, ...]
    """Sorted; a group's number is its place."""

    @cached_property
    def numbers(self) -> dict[str, int]:
        """By name."""
        return {name: number for number, name in enumerate(self.names)}

    def number(self, labels: Labels) -> NDArray[np.int32]:
        """[N] number of each row's group."""
        by_code = np.array([self.numbers[name] for name in labels.names], np.int32)
        return by_code[labels.codes_N]


def check_label_column(files: Iterable[PoolFile], column: str, *, flag: str) -> None:
    """Raise SchemaError for a file that has no such column, or one that holds no labels."""
    for file in files:
        if column not in file.schema.names:
            raise SchemaError(
                f"{file.shown}: no column {column!r}; found {', '.join(file.schema.names)}. "
                f"Pass another column with {flag}."
            )
        held = file.schema.field(column).type
        if pa.types.is_nested(held) or pa.types.is_floating(held):
            raise SchemaError(
                f"{file.shown}: column {column!r} holds {held}; wanted text or whole numbers. "
                f"Pass another column with {flag}."
            )


def labels_of(
    file: PoolFile, ranges: Sequence[tuple[int, int]], *, column: str
) -> Iterator[Labels]:
    """The labels of some ranges of rows; no other column is read."""
    for table in read_ranges(file, ranges, columns=[column]):
        yield as_labels(table[column])


def as_labels(column: pa.ChunkedArray) -> Labels:
    """A column as codes and names; NO_VALUE for nulls, bytes that are no UTF-8 escaped."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # Arrow's hash tables know no views.
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    elif pa.types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())
    if pa.types.is_null(column.type):
        return Labels(np.zeros(len(column), np.int32), [NO_VALUE])
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return Labels(
        values_of(encoded.indices, np.int32), list(map(_name, encoded.dictionary.to_pylist()))
    )


def _name(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return NO_VALUE if value is None else str(value)


def count_groups(columns: SidecarColumns, labels: Labels, *, column: str) -> dict[str, GroupRows]:
    """How many rows of a unit are in which group.

    Raises:
        InputError: a name is too long for a label.
    """
    size = len(labels.names)
    rows_M = np.bincount(labels.codes_N, minlength=size).tolist()
    eligible_M = np.bincount(labels.codes_N[columns.eligible_N], minlength=size).tolist()
    scored_M = np.bincount(labels.codes_N[columns.scored_N], minlength=size).tolist()
    found: dict[str, GroupRows] = {}
    for name, rows, eligible, scored in zip(
        labels.names, rows_M, eligible_M, scored_M, strict=True
    ):
        if len(name.encode()) > MOST_NAME_BYTES:
            raise InputError(
                f"--per {column}: a value has {len(name.encode()):,} bytes, the limit is "
                f"{MOST_NAME_BYTES}: {name[:60]!r}…. Pass a column of labels."
            )
        _add(found, name, GroupRows(rows, eligible, scored - eligible))
    return found


def merge_groups(parts: Iterable[dict[str, GroupRows]], *, column: str) -> dict[str, GroupRows]:
    """The rows of all parts by group.

    Raises:
        InputError: there are more than MOST_GROUPS.
    """
    found: dict[str, GroupRows] = {}
    for part in parts:
        for name, rows in part.items():
            _add(found, name, rows)
        if len(found) > MOST_GROUPS:
            raise InputError(
                f"--per {column}: more than {MOST_GROUPS:,} different values, the limit. "
                "Pass a column of labels."
            )
    return found


def _add(found: dict[str, GroupRows], name: str, rows: GroupRows) -> None:
    before = found.get(name)
    found[name] = rows if before is None else GroupRows(*map(sum, zip(before, rows, strict=True)))
