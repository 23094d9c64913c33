"""Rows: which pairs can be scored and why others cannot, and what stands for a pair's content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scar_core.errors import SchemaError
from scar_core.pool.rows import (
    HASH_BYTES,
    SIDECAR_SCHEMA,
    CheckedPairs,
    PairColumns,
    check_pairs,
    check_schema,
    content_hash,
    is_text,
)

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = PairColumns()


def pairs(instructions: object, responses: object) -> pa.Table:
    """A pool table of two columns."""
    return pa.table({"instruction": instructions, "response": responses})


def broken_text(*values: bytes) -> pa.Array:
    """A string column with any bytes in it, as careless writers leave them in Parquet."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


# Reasons


@pytest.mark.parametrize(
    ("instruction", "response", "reason"),
    [
        (b"Why?", b"Because.", None),
        (None, b"Because.", "instruction_null"),
        (b"Why?", None, "response_null"),
        (b"", b"Because.", "instruction_empty"),
        (b"Why?", b" \n\t\xc2\xa0\xe3\x80\x80", "response_empty"),
        (b"Why?\xff", b"Because.", "instruction_not_text"),
        (b"Why?", b"\xed\xa0\x80", "response_not_text"),  # half of a surrogate pair
        (b"Why?", b"\x00", None),
        (b"1", b"1", None),
        (b"12345678", b"12345", "too_large"),
        (b"1234567", b"12345", None),
        ("é".encode() * 6, b"1", "too_large"),  # bytes, not characters
        (None, None, "instruction_null"),
        (b" ", None, "instruction_empty"),
        (b"\xff" * 99, b"", "instruction_not_text"),
    ],
)
def test_a_row_has_the_reason_that_holds_for_it(
    instruction: bytes | None, response: bytes | None, reason: str | None
) -> None:
    """The instruction's problem first, the size last; at most twelve bytes here."""
    table = pairs(pa.array([instruction], pa.binary()), pa.array([response], pa.binary()))
    checked = check_pairs(table, PairColumns(max_row_bytes=12))
    assert checked.reasons == [reason]
    if reason is None:
        assert instruction is not None
        assert response is not None
        texts = instruction.decode(), response.decode()
        expected = CheckedPairs([0], [texts[0]], [texts[1]], [content_hash(*texts)], [None])
        assert checked == expected
    else:
        assert checked == CheckedPairs([], [], [], [None], [reason])


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
    pa.dictionary(pa.int16(), pa.binary()),
]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_the_type_of_a_text_column_makes_no_difference(kind: pa.DataType) -> None:
    """Same texts, same hashes, same reasons, in several chunks and behind an offset."""
    texts = ["unused", "Grüße, 世界 🌍", None, "", "a" * 300, " "]
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    flat = pa.array(texts, pa.string())
    if not pa.types.is_string(value):
        raw = [text and text.encode() for text in texts]
        flat = pa.array(raw if "binary" in str(value) else texts, value)
    column = flat.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else flat
    chunked = pa.chunked_array([column.slice(1, 2), column.slice(3)])
    assert is_text(kind)
    checked = check_pairs(pairs(["x"] * 5, chunked), COLUMNS)
    plain = check_pairs(pairs(["x"] * 5, pa.array(texts[1:])), COLUMNS)
    assert checked == plain
    assert checked.reasons == [None, "response_null", "response_empty", None, "response_empty"]


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_a_string_column_may_hold_bytes_that_are_no_text(as_dictionary: bool) -> None:
    """Parquet promises nothing; such a row is quarantined and its neighbours are scored."""
    column = broken_text(b"good", b"\xff\xfe", b"fine")
    if as_dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int8()), column)
    checked = check_pairs(pairs(["a", "b", "c"], column), COLUMNS)
    assert checked.kept_rows == [0, 2]
    assert checked.reasons == [None, "response_not_text", None]


def test_broken_text_is_found_in_a_real_file(tmp_path: Path) -> None:
    """It survives the way through Parquet."""
    path = tmp_path / "pool.parquet"
    pq.write_table(pairs(["a", "b"], broken_text(b"\xc3\x28", b"fine")), path)
    assert check_pairs(pq.read_table(path), COLUMNS).reasons == ["response_not_text", None]


def test_a_column_of_nulls_has_no_text_in_any_row() -> None:
    """What pandas writes for an empty column."""
    kinds = [pa.null(), pa.dictionary(pa.int8(), pa.null())]
    for column in (pa.nulls(2, kind) for kind in kinds):
        assert is_text(column.type)
        checked = check_pairs(pairs(["a", "b"], column), COLUMNS)
        assert checked.reasons == ["response_null"] * 2


def test_a_table_without_rows_has_no_pairs() -> None:
    """Nothing kept, nothing quarantined."""
    empty = pairs(pa.array([], pa.string()), pa.array([], pa.string()))
    assert check_pairs(empty, COLUMNS) == CheckedPairs([], [], [], [], [])


RAW = st.one_of(st.none(), st.binary(max_size=12), st.text(max_size=12).map(str.encode))


@settings(deadline=None)
@given(st.lists(st.tuples(RAW, RAW), max_size=20), st.integers(1, 20))
def test_no_row_vanishes(rows: list[tuple[bytes | None, bytes | None]], limit: int) -> None:
    """Every row is kept with a hash or quarantined with a reason, and keeps its place."""
    columns = PairColumns(instruction_column="q", response_column="a", max_row_bytes=limit)
    table = pa.table(
        {
            "a": pa.array([response for _, response in rows], pa.binary()),
            "q": pa.array([instruction for instruction, _ in rows], pa.binary()),
        }
    )
    checked = check_pairs(table, columns)
    kept = dict(
        zip(
            checked.kept_rows,
            zip(checked.instructions, checked.responses, strict=True),
            strict=True,
        )
    )
    assert len(checked.reasons) == len(checked.hashes) == len(rows)
    for position, (instruction, response) in enumerate(rows):
        assert (position in kept) == (checked.reasons[position] is None)
        if position in kept:
            assert kept[position] == ((instruction or b"").decode(), (response or b"").decode())
            assert checked.hashes[position] == content_hash(*kept[position])
        else:
            assert checked.hashes[position] is None


# Content hash


def test_the_content_hash_is_what_it_always_was() -> None:
    """Kept by hand: another value would reorder ties in every selection that was ever published."""
    digest = content_hash("Name the capital of France.", "Paris — naturally.")
    assert digest.hex() == "d35f757bebf3ac48da87ef02bbea32d2"
    assert len(digest) == HASH_BYTES
    assert SIDECAR_SCHEMA.field("content_hash").type.byte_width == HASH_BYTES


@settings(deadline=None)
@given(st.text(), st.text(), st.text(), st.text())
def test_different_pairs_have_different_hashes(a: str, b: str, c: str, d: str) -> None:
    """Also those that read the same when put together."""
    assume((a, b) != (c, d))
    assert content_hash(a, b) != content_hash(c, d)


def test_where_the_instruction_ends_counts() -> None:
    """`ab` + `c` is not `a` + `bc`."""
    text = "abcdefgh"
    hashes = {content_hash(text[:cut], text[cut:]) for cut in range(len(text) + 1)}
    assert len(hashes) == len(text) + 1


# Schemas


def test_a_missing_column_lists_what_is_there_and_the_flag() -> None:
    """The operator can fix the command from the error alone."""
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with pytest.raises(SchemaError) as caught:
        check_schema(schema, COLUMNS, where="pool/a.parquet")
    assert str(caught.value) == (
        "pool/a.parquet: no column 'instruction'; found prompt, response. "
        "Rename it, or pass --instruction-column."
    )
    check_schema(schema, PairColumns(instruction_column="prompt"), where="")


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.list_(pa.string()), pa.binary(4), pa.dictionary(pa.int8(), pa.int64())]
)
def test_a_column_that_is_no_text_is_named_with_its_type(kind: pa.DataType) -> None:
    """And with the flag."""
    schema = pa.schema([("instruction", pa.string()), ("response", kind)])
    with pytest.raises(SchemaError) as caught:
        check_schema(schema, COLUMNS, where="x")
    assert f"column 'response' holds {kind}; wanted text" in str(caught.value)
    assert "--response-column" in str(caught.value)


def test_a_file_without_columns_says_so() -> None:
    """Not an empty list."""
    with pytest.raises(SchemaError, match="found no columns"):
        check_schema(pa.schema([]), COLUMNS, where="x")


@pytest.mark.parametrize("name", ["response", "source"])
def test_two_columns_of_one_name_are_refused(name: str) -> None:
    """Also others than the texts: the selected rows are to hold them all."""
    names = ["instruction", "response", "source", name]
    with pytest.raises(SchemaError, match=f"several columns are named {name}; wanted one"):
        check_schema(pa.schema([(n, pa.string()) for n in names]), COLUMNS, where="x")


def test_columns_that_no_row_can_meet_are_refused() -> None:
    """At construction."""
    with pytest.raises(ValueError, match="max_row_bytes must be at least 1, got 0"):
        PairColumns(max_row_bytes=0)
    with pytest.raises(ValueError, match="one column for two things: 'x'"):
        PairColumns(instruction_column="x", response_column="x")
