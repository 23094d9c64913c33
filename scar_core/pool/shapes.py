"""Shapes of rows: found by a schema and the first rows, checked against a schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scar_core.errors import SchemaError
from scar_core.pool.layouts import Form, Layout, check_layout, has_messages
from scar_core.pool.rows import PairColumns, check_schema, is_text, template_columns, text_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scar_core.pool.rows import RowFormat

    FirstValues = Callable[[str], Sequence[Any]]
    """Some values of a column, of the first rows."""

FIRST_ROWS = 20
"""Whose content is looked at where a schema does not tell how rows are to be read."""
CHAT_COLUMNS = ("messages", "conversations", "conversation")
KEYS: dict[RowFormat, tuple[str, str]] = {
    "sharegpt": ("from", "value"),
    "messages": ("role", "content"),
}
_CHAT_PART: dict[RowFormat, str] = {"sharegpt": "conversations", "messages": "messages"}
_COLUMNS_BY_NAME: dict[RowFormat, tuple[str, str]] = {
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
_PLAIN = PairColumns()


def resolved(
    schema: pa.Schema, columns: PairColumns, *, first_values: FirstValues | None = None
) -> PairColumns:
    """The same with the shape of the rows and the columns that they are in.

    What is set is left as it is. `auto` becomes, in this order: template, if one is given; columns,
    if both are there as text or one of them is set; sharegpt or messages, where a column holds
    lists of such messages, or text that is JSON of them; alpaca; prompt-completion; else columns,
    which `check_shape` will then refuse. `first_values` is asked where only content can tell;
    without it such a column is taken for what its name says.
    """
    if columns.format != "auto":
        return _named(columns)
    if columns.instruction_template is not None:
        return replace(columns, format="template")
    names = (columns.instruction_column, columns.response_column)
    if all(_has_text(schema, name) for name in names) or names != _names_of(_PLAIN):
        return replace(columns, format="columns")
    asked = (columns.chat_column,) if columns.chat_column is not None else CHAT_COLUMNS
    for name in asked:
        form = _chat_format(schema, name, first_values)
        if form is not None:
            return replace(columns, format=form, chat_column=name)
    for format_, parts in _COLUMNS_BY_NAME.items():
        if all(name in schema.names for name in parts):
            return _named(replace(columns, format=format_))
    return replace(columns, format="columns")


def texts_in(column: pa.ChunkedArray) -> list[str | None]:
    """Values of a column of text to be looked at; what is no UTF-8 is marked in them."""
    return [None if raw is None else raw.decode(errors="replace") for raw in text_bytes(column)]


def in_words(columns: PairColumns) -> str:
    """How rows are read, for the log."""
    if columns.format in KEYS:
        keys = "/".join(KEYS[columns.format])
        return f"{columns.format}: {columns.chat_column} ({keys}), turns {columns.turns}"
    if columns.format == "template":
        return f"template: {columns.instruction_template!r} and {columns.response_column}"
    return f"{columns.format}: {columns.instruction_column} and {columns.response_column}"


def layout_of(columns: PairColumns) -> Layout:
    """Where in such rows a chat is; of a template, where the response is and a column beside it."""
    instruction, response = columns.instruction_column, columns.response_column
    by_form: dict[str, tuple[Form, dict[str, str]]] = {
        "alpaca": ("alpaca", {"instruction": instruction, "output": response}),
        "prompt-completion": (
            "prompt-completion",
            {"prompt": instruction, "completion": response},
        ),
        "sharegpt": ("sharegpt", {"conversations": columns.chat_column or "conversations"}),
        "messages": ("messages", {"messages": columns.chat_column or "messages"}),
    }
    plain: tuple[Form, dict[str, str]] = (
        "pair",
        {"instruction": instruction, "response": response},
    )
    form, names = by_form.get(columns.format, plain)
    return Layout(form=form, columns=names)


def columns_read(columns: PairColumns, schema: pa.Schema) -> list[str]:
    """The columns of a file that rows are scored by."""
    if columns.format == "template" and columns.instruction_template is not None:
        names = [*template_columns(columns.instruction_template), columns.response_column]
        return list(dict.fromkeys(names))
    return layout_of(columns).columns_in(schema)


def check_shape(schema: pa.Schema, columns: PairColumns, *, where: str) -> None:
    """Raise SchemaError unless rows of this schema can be of this shape."""
    if columns.format in ("auto", "columns"):
        check_schema(schema, columns, where=where)
    elif columns.format == "template":
        for name in columns_read(columns, schema):
            if not _has_text(schema, name):
                found = schema.field(name).type if name in schema.names else "no such column"
                raise SchemaError(
                    f"{where}: column {name!r}, by --instruction-template or --response-column: "
                    f"{found}; wanted text. Columns: {', '.join(schema.names) or 'none'}."
                )
    elif columns.format in KEYS and _has_text(schema, columns.chat_column or ""):
        return  # JSON, row by row
    else:
        check_layout(schema, layout_of(columns), where=where)


def parsed(value: object) -> object:
    """A list from text that is JSON of one; None if it is not; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _named(columns: PairColumns) -> PairColumns:
    """With the columns' names that a format has by itself, where none are given."""
    if columns.format in KEYS:
        return replace(columns, chat_column=columns.chat_column or _CHAT_PART[columns.format])
    if columns.format not in _COLUMNS_BY_NAME:
        return columns
    given = zip(
        _names_of(columns), _names_of(_PLAIN), _COLUMNS_BY_NAME[columns.format], strict=True
    )
    instruction, response = (name if name != plain else own for name, plain, own in given)
    return replace(columns, instruction_column=instruction, response_column=response)


def _names_of(columns: PairColumns) -> tuple[str, str]:
    return columns.instruction_column, columns.response_column


def _has_text(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and is_text(schema.field(name).type)


def _chat_format(
    schema: pa.Schema, name: str, first_values: FirstValues | None
) -> RowFormat | None:
    """What a column of chats holds; None if it is no such column."""
    if name not in schema.names:
        return None
    held = schema.field(name).type
    for form, keys in KEYS.items():
        if has_messages(held, *keys):
            return form
    if not is_text(held) or pa.types.is_null(held):
        return None
    if first_values is None:
        return "messages" if name == "messages" else "sharegpt"
    for value in first_values(name):
        messages = parsed(value)
        if isinstance(messages, list) and messages and isinstance(messages[0], dict):
            return next((form for form, keys in KEYS.items() if keys[0] in messages[0]), None)
    return None
