"""Rows: what a pair must be to be scored, its content hash, and the sidecar's columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from string import Formatter
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa

from scar_core.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


TURN_SCORES = pa.field("turn_scores", pa.list_(pa.float32()))
"""A row's scores turn by turn, in the chat's order; null when quarantined."""

RowFormat = Literal["columns", "alpaca", "sharegpt", "messages", "prompt-completion", "template"]
Turns = Literal["first", "last", "all", "mean", "min"]
Long = Literal["head", "head-tail", "windows"]


@dataclass(frozen=True, kw_only=True)
class PairColumns:
    """How rows hold pairs, which of them are scored and how, and how large a row may be."""

    format: Literal["auto", RowFormat] = "auto"
    """How rows hold instructions and responses; auto: what the pool's first file looks like, said
    in the log. columns: in two columns of text. alpaca, sharegpt, messages, prompt-completion: as
    trainers know them. template: --instruction-template and a response column."""
    instruction_column: str = "instruction"
    """Column with the instruction, or the prompt."""
    response_column: str = "response"
    """Column with the response, output or completion."""
    chat_column: str | None = None
    """Column with the messages of a chat; by default conversations (sharegpt) or messages."""
    instruction_template: str | None = None
    """The instruction as text around columns in braces, '{question}\\n\\n{context}'."""
    turns: Turns = "first"
    """Which responses of a chat are scored, each given the conversation before it, and what the
    row's score is: that of the first or the last, the mean of all, their mean weighted by tokens
    (all), or the lowest (min)."""
    long: Long = "head"
    """What is read of a text of more than --max-tokens. head: its beginning. head-tail: half of the
    tokens from its beginning, half from its end. windows: of a response all, window by window,
    averaged by tokens."""
    max_row_bytes: int = 1_000_000
    """Rows whose texts together take more bytes of UTF-8 are quarantined; at least 1."""

    def __post_init__(self) -> None:
        """Refuse limits that no row can meet, and one column for two things."""
        if self.max_row_bytes < 1:
            raise ValueError(f"max_row_bytes must be at least 1, got {self.max_row_bytes}")
        if self.instruction_column == self.response_column:
            raise ValueError(f"one column for two things: {self.instruction_column!r}")
        if self.format == "template" and self.instruction_template is None:
            raise ValueError("format template needs instruction_template")
        if self.instruction_template is None:
            return
        if self.format not in ("auto", "template"):
            raise ValueError(f"instruction_template goes with format template, not {self.format}")
        template_columns(self.instruction_template)


def template_columns(template: str) -> list[str]:
    """The columns that an instruction template names, once each.

    Raises:
        ValueError: it names none, or does more than naming columns.
    """
    names = []
    for _, name, spec, conversion in Formatter().parse(template):  # ValueError: a lone brace
        if name is None:
            continue
        if not name or spec or conversion or set(name) & set(".[]"):
            raise ValueError(
                f"instruction_template takes names of columns in braces alone, got {template!r}"
            )
        names.append(name)
    if not names:
        raise ValueError(f"instruction_template names no column: {template!r}")
    return list(dict.fromkeys(names))


def sidecar_schema(turns: Turns) -> pa.Schema:
    """Columns of a sidecar: with scores by turn where a row's score is made of several."""
    return SIDECAR_SCHEMA if turns in ("first", "last") else SIDECAR_SCHEMA.append(TURN_SCORES)


class CheckedPairs(NamedTuple):
    """N rows sorted into those that can be scored (K of them) and those that cannot."""

    kept_rows: list[int]
    """Positions of the K rows, ascending."""
    instructions: list[str]
    """K texts, or J of several turns a row."""
    responses: list[str]
    """As many."""
    hashes: list[bytes | None]
    """N content hashes; None where quarantined."""
    reasons: list[str | None]
    """N reasons; None where kept."""
    turns: list[int] | None = None
    """How many pairs each of the K rows has, J texts of either side in all; None: one each."""
    conversations: list[bool] | None = None
    """Whether an instruction is a conversation, of which the end counts; None: none of the J is."""

    def rows_of_pairs(self) -> list[int]:
        """Which of the K rows each of the J pairs is of."""
        rows = range(len(self.kept_rows))
        return [k for k in rows for _ in range(1 if self.turns is None else self.turns[k])]

    def last_pairs(self) -> list[tuple[str, str]]:
        """The last pair of each of the K rows: of a chat, all that was said before its answer."""
        last = {k: j for j, k in enumerate(self.rows_of_pairs())}
        return [(self.instructions[j], self.responses[j]) for j in last.values()]

    def only(self, left: Sequence[int]) -> CheckedPairs:
        """The pairs of some of the K rows; hashes and reasons stay as they are."""
        wanted = set(left)
        of_pairs = [j for j, k in enumerate(self.rows_of_pairs()) if k in wanted]
        turns, some = self.turns, self.conversations
        return self._replace(
            kept_rows=[self.kept_rows[k] for k in left],
            instructions=[self.instructions[j] for j in of_pairs],
            responses=[self.responses[j] for j in of_pairs],
            turns=None if turns is None else [turns[k] for k in left],
            conversations=None if some is None else [some[j] for j in of_pairs],
        )


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
    return checked_texts(
        text_bytes(table.column(columns.instruction_column)),
        text_bytes(table.column(columns.response_column)),
        max_row_bytes=columns.max_row_bytes,
    )


def checked_texts(
    heads: Sequence[bytes | None], tails: Sequence[bytes | None], *, max_row_bytes: int
) -> CheckedPairs:
    """`check_pairs` of N instructions and responses."""
    kept_rows: list[int] = []
    instructions: list[str] = []
    responses: list[str] = []
    hashes: list[bytes | None] = []
    reasons: list[str | None] = []
    for position, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        checked = _check_pair(head, tail, max_row_bytes)
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


def text_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """The texts of a column; raw, as Parquet does not promise that a string column is UTF-8."""
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
