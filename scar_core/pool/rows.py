"""Rows: what a pair must be to be scored, its content hash, and the sidecar's columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa

from scar_core.errors import SchemaError

HASH_BYTES = 16

SIDECAR_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("content_hash", pa.binary(HASH_BYTES)),
        pa.field("reason", pa.dictionary(pa.int8(), pa.string())),
        pa.field("instruction_tokens", pa.int32(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("cut_tokens", pa.int32(), nullable=False),
    ]
)
"""One row per input row, in input order.

row: number within the file. score: null when quarantined. content_hash: of both texts, null when
quarantined. reason: why a row is quarantined, else null. *_tokens: as given to the encoder,
special tokens included; cut_tokens: lost to truncation, both texts together.
"""


@dataclass(frozen=True, kw_only=True)
class PairColumns:
    """Which columns hold the pair, and how large a row may be."""

    instruction_column: str = "instruction"
    """Column with the instruction."""
    response_column: str = "response"
    """Column with the response."""
    max_row_bytes: int = 1_000_000
    """Rows whose instruction and response together take more bytes of UTF-8 are quarantined;
    at least 1."""

    def __post_init__(self) -> None:
        """Refuse limits that no row can meet, and one column for two things."""
        if self.max_row_bytes < 1:
            raise ValueError(f"max_row_bytes must be at least 1, got {self.max_row_bytes}")
        if self.instruction_column == self.response_column:
            raise ValueError(f"one column for two things: {self.instruction_column!r}")


class CheckedPairs(NamedTuple):
    """N rows sorted into those that can be scored (K of them) and those that cannot."""

    kept_rows: list[int]
    """Positions of the K rows, ascending."""
    instructions: list[str]
    """K texts."""
    responses: list[str]
    """K texts."""
    hashes: list[bytes | None]
    """N content hashes; None where quarantined."""
    reasons: list[str | None]
    """N reasons; None where kept."""


def content_hash(instruction: str, response: str) -> bytes:
    """The 16 bytes that stand for a pair's content: BLAKE2b of both texts, length-prefixed."""
    head, tail = instruction.encode(), response.encode()
    digest = blake2b(len(head).to_bytes(8, "big"), digest_size=HASH_BYTES)
    digest.update(head)
    digest.update(tail)
    return digest.digest()


def is_text(column: pa.DataType) -> bool:
    """Whether a column can hold text: strings, dictionaries of them, bytes, or only nulls."""
    value = column.value_type if pa.types.is_dictionary(column) else column
    return bool(
        pa.types.is_string(value)
        or pa.types.is_large_string(value)
        or pa.types.is_string_view(value)
        or pa.types.is_binary(value)
        or pa.types.is_large_binary(value)
        or pa.types.is_binary_view(value)
        or pa.types.is_null(value)
    )


def check_schema(schema: pa.Schema, columns: PairColumns, *, where: str) -> None:
    """Raise SchemaError unless both columns are there and can hold text, and no name is twice."""
    twice = sorted(name for name, count in Counter(schema.names).items() if count > 1)
    if twice:
        raise SchemaError(
            f"{where}: several columns are named {', '.join(twice)}; wanted one of each name. "
            "Rename or drop the others."
        )
    for role in ("instruction", "response"):
        name = getattr(columns, f"{role}_column")
        flag = f"--{role}-column"
        if name not in schema.names:
            raise SchemaError(
                f"{where}: no column {name!r}; found {', '.join(schema.names) or 'no columns'}. "
                f"Rename it, or pass {flag}."
            )
        if not is_text(schema.field(name).type):
            raise SchemaError(
                f"{where}: column {name!r} holds {schema.field(name).type}; wanted text. "
                f"Pass another column with {flag}."
            )


def check_pairs(table: pa.Table, columns: PairColumns) -> CheckedPairs:
    """Sort a table's N rows into those that can be scored and those that cannot, with reasons.

    A reason is `<instruction|response>_<null|not_text|empty>` or `too_large`; the instruction's
    problem is named first. Bytes count as text where they are valid UTF-8.
    """
    kept_rows: list[int] = []
    instructions: list[str] = []
    responses: list[str] = []
    hashes: list[bytes | None] = []
    reasons: list[str | None] = []
    heads = _as_bytes(table.column(columns.instruction_column))
    tails = _as_bytes(table.column(columns.response_column))
    for position, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        checked = _check_pair(head, tail, columns.max_row_bytes)
        if isinstance(checked, str):
            hashes.append(None)
            reasons.append(checked)
            continue
        kept_rows.append(position)
        instructions.append(checked[0])
        responses.append(checked[1])
        hashes.append(content_hash(*checked))
        reasons.append(None)
    return CheckedPairs(kept_rows, instructions, responses, hashes, reasons)


def _as_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Raw bytes: Parquet does not promise that a string column holds valid UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _check_pair(
    head: bytes | None, tail: bytes | None, max_row_bytes: int
) -> tuple[str, str] | str:
    """Both texts, or the reason why not."""
    texts = []
    for role, raw in (("instruction", head), ("response", tail)):
        if raw is None:
            return f"{role}_null"
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return f"{role}_not_text"
        if not text.strip():
            return f"{role}_empty"
        texts.append(text)
    if len(head or b"") + len(tail or b"") > max_row_bytes:
        return "too_large"
    return texts[0], texts[1]
