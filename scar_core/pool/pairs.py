"""Rows of any shape as pairs that can be scored, or the reasons why they cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scar_core.pool.chats import read_chat
from scar_core.pool.rows import (
    CheckedPairs,
    PairColumns,
    check_pairs,
    checked_texts,
    template_columns,
    text_bytes,
)
from scar_core.pool.shapes import KEYS, layout_of, parsed
from scar_core.pool.turns import chat_hash, texts_of, turns_of

if TYPE_CHECKING:
    import pyarrow as pa

    from scar_core.pool.layouts import Layout


def check_rows(table: pa.Table, columns: PairColumns) -> CheckedPairs:
    """Sort a table's N rows into those that can be scored and those that cannot, with reasons.

    Of chats each turn that is scored is a pair. Reasons are those of `check_pairs`, `read_chat` and
    `turns_of`, and `chat_not_json` of text that is no JSON of messages.
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
        found = parsed(value) if name == columns.chat_column else value
        fault = (
            "chat_not_json" if found is None and value is not None else _fault_of(found, keys=keys)
        )
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
