"""Chats as rows of another form: written whole, or refused with a sentence.

`write_chat` gives the parts of a row, `written` a table whose layout's columns have given way to
those of a form; all other columns stay as they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scar_core.errors import InputError, SchemaError
from scar_core.pool.chats import SHAREGPT_TAGS, Chat, Message, read_chat, told
from scar_core.pool.layouts import OPTIONAL, PARTS, Form, Layout, is_list
from scar_core.pool.rows import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TEXT = pa.large_string()
CALLS = pa.list_(
    pa.struct(
        [
            pa.field("type", TEXT),
            pa.field("function", pa.struct([("name", TEXT), ("arguments", TEXT)])),
        ]
    )
)
TOOL_CALLS = "tool_calls"
ALPACA = ("instruction", "input", "output")
"""What alpaca rows are made of where none can have more."""


class _UnwritableError(Exception):
    """Why a chat has no row of a form; never leaves this module."""


def write_chat(chat: Chat, form: Form) -> dict[str, Any] | str:
    """The parts of a chat in a form, or what the form has no place for."""
    try:
        return _WRITERS[form](chat)
    except _UnwritableError as error:
        return str(error)


def _write_messages(chat: Chat) -> dict[str, Any]:
    return {"messages": chat}


def _write_sharegpt(chat: Chat) -> dict[str, Any]:
    return {"conversations": [_tagged(message) for message in chat]}


def _tagged(message: Message) -> Message:
    """A message as LLaMA-Factory's sharegpt has it, where calls are a message's only value."""
    rest = {n: value for n, value in message.items() if n not in ("role", "content", TOOL_CALLS)}
    if not (calls := message.get(TOOL_CALLS)):
        return {"from": SHAREGPT_TAGS[message["role"]], "value": _plain(message)} | rest
    if message["content"]:
        raise _UnwritableError("holds a message with text and tool calls; sharegpt takes either")
    if not all(isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls):
        raise _UnwritableError(
            "holds tool calls that are no list of functions, as sharegpt takes them"
        )
    functions = [call["function"] for call in calls]
    return {"from": "function_call", "value": json.dumps(functions, ensure_ascii=False)} | rest


def _plain(message: Message) -> str:
    if not isinstance(message["content"], str):
        raise _UnwritableError("holds a message whose content is parts; this form takes text")
    return message["content"]


def _write_alpaca(chat: Chat) -> dict[str, Any]:
    """The last question and answer; what was said before as `history`."""
    system, rest = ("", chat) if chat[0]["role"] != "system" else (_bare(chat[0]), chat[1:])
    if not rest or [message["role"] for message in rest] != ["user", "assistant"] * (
        len(rest) // 2
    ):
        roles = ", ".join(message["role"] for message in chat)
        raise _UnwritableError(
            f"holds messages of {roles}; alpaca takes questions of a user and answers in turn"
        )
    texts = [_bare(message) for message in rest]
    pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    (instruction, output), history = pairs[-1], pairs[:-1]
    return {
        "instruction": instruction,
        "input": "",
        "output": output,
        "system": system,
        "history": history,
    }


def _bare(message: Message) -> str:
    """The text of a message that is no more than that."""
    if beside := sorted(message.keys() - {"role", "content"}):
        raise _UnwritableError(
            f"holds a message with {', '.join(beside)}; alpaca takes texts alone"
        )
    return _plain(message)


def _write_prompt_completion(chat: Chat) -> dict[str, Any]:
    """The last answer, and all before it."""
    if len(chat) < len(PARTS["prompt-completion"]) or chat[-1]["role"] != "assistant":
        raise _UnwritableError(
            "holds a chat that does not end with an answer to something; a completion is one"
        )
    return {"prompt": chat[:-1], "completion": chat[-1:]}


_WRITERS: dict[Form, Callable[[Chat], dict[str, Any]]] = {
    "alpaca": _write_alpaca,
    "sharegpt": _write_sharegpt,
    "messages": _write_messages,
    "prompt-completion": _write_prompt_completion,
}


# Tables.


def written_schema(schema: pa.Schema, layout: Layout, form: Form, *, where: str) -> pa.Schema:
    """The schema of rows that are written in a form: its columns first, then all others.

    A layout's own form is left as it is. Which columns there are follows from the schema alone.

    Raises:
        SchemaError: another column has the name of a part.
    """
    if layout.form == form:
        return schema
    own = set(layout.columns_in(schema))
    beside = [one for one in schema if one.name not in own]
    fields = _fields(schema, layout, form)
    for name in (one.name for one in fields):
        if name in {one.name for one in beside}:
            raise SchemaError(
                f"{where}: has a column {name!r} that is no part of its {layout.form} rows, and "
                f"{form} rows have one of that name. Rename it, or choose another --write-as."
            )
    return pa.schema([*fields, *beside])


def _fields(schema: pa.Schema, layout: Layout, form: Form) -> list[pa.Field]:
    """The columns of a form, wide enough for what a layout can hold."""
    if form == "alpaca":
        kinds = {"history": pa.list_(pa.list_(TEXT))}
        parts = ALPACA if _is_bare(schema, layout) else PARTS[form]
        return [pa.field(part, kinds.get(part, TEXT)) for part in parts]
    held = message_type(schema, layout)
    if form == "sharegpt":
        rest = [one for one in held.fields if one.name not in ("role", "content", TOOL_CALLS)]
        held = pa.struct([pa.field("from", TEXT), pa.field("value", TEXT), *rest])
    return [pa.field(part, pa.list_(held)) for part in PARTS[form] if part not in OPTIONAL]


def _is_bare(schema: pa.Schema, layout: Layout) -> bool:
    """Whether no row can hold more than one question and its answer."""
    columns = layout.columns_in(schema)
    return layout.form == "pair" or all(is_text(schema.field(name).type) for name in columns)


def message_type(schema: pa.Schema, layout: Layout) -> pa.StructType:
    """A message of a chat that is read by a layout, with all that may come with it."""
    found: dict[str, pa.DataType] = {"role": TEXT, "content": TEXT}
    if layout.form == "sharegpt":
        found[TOOL_CALLS] = CALLS
    for name in layout.columns_in(schema):
        held = schema.field(name).type
        if not is_list(held) or not pa.types.is_struct(held.value_type):
            continue
        for one in held.value_type.fields:
            if one.name == "content" and is_list(one.type):
                found["content"] = one.type
            elif one.name not in ("from", "value", "role", "content"):
                found[one.name] = one.type
    return pa.struct(list(found.items()))


def written(
    table: pa.Table, layout: Layout, form: Form, *, where: Callable[[int], str]
) -> pa.Table:
    """Rows in another form, of `written_schema`; the same table where they have it already.

    Args:
        table: rows of a pool.
        layout: of them.
        form: wanted.
        where: what error texts call a row of the table.

    Raises:
        InputError: a row that the form cannot hold.
    """
    if layout.form == form:
        return table
    own = layout.columns_in(table.schema)
    schema = written_schema(table.schema, layout, form, where="these rows")
    try:
        rows = [
            _parts(row, layout, form, where=where(position))
            for position, row in enumerate(_decoded(table.select(own)))
        ]
        columns = [
            table[one.name]
            if one.name in table.column_names and one.name not in own
            else pa.array([row[one.name] for row in rows], one.type)
            for one in schema
        ]
    except (UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"{where(0)}, or one of the {table.num_rows:,} rows from there: cannot be written as "
            f"{form}: {error}. Choose another --write-as, or take the row out of the pool."
        ) from error
    return pa.table(columns, schema=schema)


def _decoded(table: pa.Table) -> Iterable[dict[str, Any]]:
    """Rows for Python; texts as bytes, since Parquet does not promise that they are UTF-8."""
    for name in table.column_names:
        place, held = table.schema.get_field_index(name), table.schema.field(name).type
        if is_text(held):
            column = table[name]
            plain = column.cast(held.value_type) if pa.types.is_dictionary(held) else column
            table = table.set_column(place, name, plain.cast(pa.large_binary()))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _parts(row: dict[str, Any], layout: Layout, form: Form, *, where: str) -> dict[str, Any]:
    chat = read_chat(row, layout)
    parts = told(chat) if isinstance(chat, str) else write_chat(chat, form)
    if isinstance(parts, str):
        raise InputError(
            f"{where}: cannot be written as {form}: it {parts}. "
            "Choose another --write-as, or take the row out of the pool."
        )
    return parts
