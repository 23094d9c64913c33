"""Shapes of rows: found in a schema, checked against one, and read as pairs that can be scored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scar_core.errors import SchemaError
from scar_core.pool.chats import read_chat
from scar_core.pool.layouts import Form, Layout, check_layout, has_messages
from scar_core.pool.rows import (
    CheckedPairs,
    PairColumns,
    check_pairs,
    check_schema,
    checked_texts,
    is_text,
    template_columns,
    text_bytes,
)
from scar_core.pool.turns import chat_hash, texts_of, turns_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scar_core.pool.rows import RowFormat

    FirstValues = Callable[[str], Sequence[Any]]
    """Some values of a column, of the first rows."""

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


def check_rows(table: pa.Table, columns: PairColumns) -> CheckedPairs:
    """Sort a table's N rows into those that can be scored and those that cannot, with reasons.

    Of chats each turn that is scored is a pair. Reasons are those of `check_pairs`, `read_chat` and
    `turns_of`, and `not_json` of text that is no JSON of messages.
    """
    if columns.format in ("auto", "columns"):
        return check_pairs(table, columns)
    if columns.format == "template":
        tails = text_bytes(table.column(columns.response_column))
        return checked_texts(_filled(table, columns), tails, max_row_bytes=columns.max_row_bytes)
    layout = layout_of(columns)
    kept: list[int] = []
    pairs = []
    turns = []
    hashes: list[bytes | None] = []
    reasons: list[str | None] = []
    for position, row in enumerate(_python_rows(table)):
        checked = _check_chat(row, layout, columns) if row is not None else "content_not_text"
        if isinstance(checked, str):
            hashes.append(None)
            reasons.append(checked)
            continue
        kept.append(position)
        pairs += checked[0]
        turns.append(len(checked[0]))
        hashes.append(checked[1])
        reasons.append(None)
    return CheckedPairs(
        kept,
        [turn.instruction for turn in pairs],
        [turn.response for turn in pairs],
        hashes,
        reasons,
        turns,
        [turn.conversation for turn in pairs],
    )


def _check_chat(row: dict[str, Any], layout: Layout, columns: PairColumns) -> Any:  # noqa: ANN401
    """(turns, content hash) of a row, or the reason why it cannot be scored."""
    keys = KEYS["sharegpt" if columns.format == "sharegpt" else "messages"]
    for name, value in row.items():
        found = _parsed(value) if name == columns.chat_column else value
        fault = "not_json" if found is None and value is not None else _fault_of(found, keys=keys)
        if fault is not None:
            return fault
        row = {**row, name: found}
    chat = read_chat(row, layout)
    if isinstance(chat, str):
        return chat
    try:
        if sum(len(text.encode()) for text in texts_of(chat)) > columns.max_row_bytes:
            return "too_large"
        turns = turns_of(chat, columns.turns)
        return turns if isinstance(turns, str) else (turns, chat_hash(chat))
    except UnicodeEncodeError:  # half of a character, which JSON can hold
        return "content_not_text"


def _parsed(value: object) -> object:
    """A list from text that is JSON of one; None if it is not; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _fault_of(value: object, *, keys: tuple[str, str]) -> str | None:
    """What is wrong with a list of messages, beside what `read_chat` finds."""
    for message in value if isinstance(value, list) else ():
        if not isinstance(message, dict):
            continue  # or pairs of a history
        if not isinstance(message.get(keys[0]), str):
            return "role_unknown"
        if not _is_content(message.get(keys[1])):
            return "content_not_text"
    return None


def _is_content(value: object) -> bool:
    """Whether it is text, nothing, or a list of parts."""
    if not isinstance(value, list):
        return value is None or isinstance(value, str | bytes)
    return all(
        isinstance(part, dict) and (part.get("type") != "text" or isinstance(part.get("text"), str))
        for part in value
    )


def _python_rows(table: pa.Table) -> list[dict[str, Any] | None]:
    """Rows as Python has them; None where a text is no UTF-8, which Parquet does not promise."""
    try:
        rows: list[dict[str, Any] | None] = table.to_pylist()
    except UnicodeDecodeError:
        return [_python_row(table.slice(position, 1)) for position in range(table.num_rows)]
    return rows


def _python_row(one: pa.Table) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = one.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


def _filled(table: pa.Table, columns: PairColumns) -> list[bytes | None]:
    """The instructions that a template gives; None where one of its columns is null."""
    template = str(columns.instruction_template)
    names = template_columns(template)
    parts = [text_bytes(table.column(name)) for name in names]
    filled: list[bytes | None] = []
    for values in zip(*parts, strict=True):
        if any(value is None for value in values):
            filled.append(None)
            continue
        # As bytes that may be no UTF-8: what is wrong with them is for `checked_texts` to say.
        texts = (value.decode("utf-8", "surrogateescape") for value in values if value is not None)
        text = template.format_map(dict(zip(names, texts, strict=True)))
        filled.append(text.encode("utf-8", "surrogateescape"))
    return filled


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
        messages = _parsed(value)
        if isinstance(messages, list) and messages and isinstance(messages[0], dict):
            return next((form for form, keys in KEYS.items() if keys[0] in messages[0]), None)
    return None
