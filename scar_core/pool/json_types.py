"""The one type that all values of a JSON field have, as Arrow knows types.

Whole numbers become floats where floats are among them and none loses a digit. Values without a
common type are kept as text: a string as it is, any other value as its JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

# Of an object inside a row. One with more is a map that somebody wrote as an object.
MOST_KEYS = 256
MOST_DEPTH = 32
# Whole numbers up to this one are floats, too.
_EXACT = 2**53
_LARGEST = 2**63

KEPT_AS = b"scar.kept_as"
"""Key of a field's metadata: `json`, each value as JSON; `text`, strings as they are, the others
as JSON."""


@dataclass(frozen=True, slots=True)
class ListOf:
    """Lists of values of one type."""

    item: JsonType


@dataclass(slots=True)
class ObjectOf:
    """Objects with such fields, in the order in which they were first seen."""

    fields: dict[str, JsonType]


Scalar = Literal["null", "bool", "int", "long", "float", "text", "json", "mixed"]
JsonType = Scalar | ListOf | ObjectOf
"""int: up to 2^53; long: up to 64 bits; json: no common type; mixed: none, and text among them."""


def type_of(value: Any, depth: int = 0) -> JsonType:  # noqa: ANN401, C901, PLR0911 - a table of cases
    """The narrowest type that has this value."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return "int"
        return "long" if -_LARGEST <= value < _LARGEST else "json"
    if isinstance(value, float):
        return "float"
    if depth >= MOST_DEPTH:
        return "json"
    if isinstance(value, list):
        item: JsonType = "null"
        for part in value:
            item = common(item, type_of(part, depth + 1))
        return ListOf(item)
    if len(value) > MOST_KEYS:
        return "json"
    return ObjectOf({name: type_of(part, depth + 1) for name, part in value.items()})


def common(one: JsonType, other: JsonType) -> JsonType:  # noqa: PLR0911 - a table of cases
    """The narrowest type that has the values of both."""
    if other in (one, "null"):
        return one
    if one == "null":
        return other
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        return ListOf(common(one.item, other.item))
    if isinstance(one, ObjectOf) and isinstance(other, ObjectOf):
        fields = dict(one.fields)
        for name, kind in other.fields.items():
            fields[name] = common(fields.get(name, "null"), kind)
        return ObjectOf(fields) if len(fields) <= MOST_KEYS else "json"
    if {"text", "mixed"} & {kind for kind in (one, other) if isinstance(kind, str)}:
        return "mixed"
    pair = {kind for kind in (one, other) if isinstance(kind, str)}
    if pair == {"int", "long"}:
        return "long"
    return "float" if pair == {"int", "float"} else "json"


def observe(fields: dict[str, JsonType], row: dict[str, Any]) -> None:
    """Widen the types of fields, in place, until they have a row's values."""
    for name, value in row.items():
        known = fields.get(name)
        if known == "text" and isinstance(value, str):  # nearly all
            continue
        fields[name] = common("null" if known is None else known, type_of(value))


def arrow_field(name: str, kind: JsonType) -> pa.Field:
    """A type as a field of a schema; with a note where values are kept as text."""
    kept = {"json": b"json", "mixed": b"text"}.get(kind) if isinstance(kind, str) else None
    if isinstance(kind, ObjectOf) and not kind.fields:
        kept = b"json"  # Parquet knows no struct of nothing
    return pa.field(name, _arrow_type(kind), metadata={KEPT_AS: kept} if kept else None)


def _arrow_type(kind: JsonType) -> pa.DataType:
    if isinstance(kind, ListOf):
        return pa.list_(arrow_field("element", kind.item))
    if isinstance(kind, ObjectOf):
        fields = [arrow_field(name, part) for name, part in kind.fields.items()]
        return pa.struct(fields) if fields else pa.string()
    scalars = {
        "null": pa.null(),
        "bool": pa.bool_(),
        "int": pa.int64(),
        "long": pa.int64(),
        "float": pa.float64(),
    }
    return scalars.get(kind, pa.string())


def as_column(values: list[Any], kind: JsonType) -> pa.Array:
    """Values as an Arrow array of their common type."""
    if _has_text_for_values(kind):
        values = [_shaped(value, kind) for value in values]
    return pa.array(values, _arrow_type(kind))


def _has_text_for_values(kind: JsonType) -> bool:
    if isinstance(kind, ListOf):
        return _has_text_for_values(kind.item)
    if isinstance(kind, ObjectOf):
        return not kind.fields or any(map(_has_text_for_values, kind.fields.values()))
    return kind in ("json", "mixed")


def _shaped(value: Any, kind: JsonType) -> Any:  # noqa: ANN401 - any JSON
    """A value with text in place of what has no common type."""
    if value is None:
        return None
    if isinstance(kind, ListOf):
        return [_shaped(part, kind.item) for part in value]
    if isinstance(kind, ObjectOf) and kind.fields:
        return {name: _shaped(part, kind.fields[name]) for name, part in value.items()}
    if kind == "json" or isinstance(kind, ObjectOf):
        return json.dumps(value, ensure_ascii=False)
    if kind == "mixed" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def kept_as_text(fields: dict[str, JsonType]) -> list[str]:
    """The names of the fields of a row in which something is kept as text that is none."""
    return [name for name, kind in fields.items() if _has_text_for_values(kind)]
