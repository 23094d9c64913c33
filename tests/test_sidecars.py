"""Sidecars: same scores, same bytes; and only a whole one of this unit and key is finished."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import RunError
from scar_core.pool.rows import HASH_BYTES, SIDECAR_SCHEMA, TURN_SCORES
from scar_core.pool.sidecars import (
    ScoringKey,
    Sidecar,
    find_finished,
    sidecar_entry,
    sidecar_path,
    total_quarantined,
    write_sidecar,
)
from scar_core.pool.units import Unit

if TYPE_CHECKING:
    from pathlib import Path

KEY = ScoringKey(
    ranker="r",
    instruction_column="instruction",
    response_column="response",
    max_row_bytes=1_000_000,
    max_tokens=512,
    precision="fp32",
)

OLD_ID = "3c07778a04e5cef2"
"""Of this key, by the version that had nothing else in it."""

Row = tuple[float | None, str | None, int, int, int]
"""Score, reason, tokens of the instruction and of the response, tokens cut off."""

SCORED: Row = (1.5, None, 3, 4, 1)
EMPTY: Row = (None, "response_empty", 0, 0, 0)


def unit_of(rows: int, *, start: int = 100, fingerprint: str = "f") -> Unit:
    """A unit of so many rows."""
    return Unit(path="a/b.parquet", row_start=start, rows=rows, fingerprint=fingerprint)


def table_of(rows: list[Row], *, start: int = 100) -> pa.Table:
    """Scores as the pipeline hands them over."""
    scores, reasons, heads, tails, cuts = zip(*rows, strict=True) if rows else [()] * 5
    hashes = [
        None if score is None else bytes([i % 256]) * HASH_BYTES for i, score in enumerate(scores)
    ]
    numbered = pa.array(reasons, pa.string()).dictionary_encode()
    columns = [
        pa.array(np.arange(start, start + len(rows))),
        pa.array(scores, pa.float32()),
        pa.array(hashes, pa.binary(HASH_BYTES)),
        pa.DictionaryArray.from_arrays(numbered.indices.cast(pa.int8()), numbered.dictionary),
        *(pa.array(values, pa.int32()) for values in (heads, tails, cuts)),
    ]
    return pa.Table.from_arrays(columns, schema=SIDECAR_SCHEMA)


def store(folder: Path, rows: list[Row], *, unit: Unit | None = None) -> Sidecar:
    """Write the sidecar of a unit of these rows."""
    unit = unit or unit_of(len(rows))
    return write_sidecar(
        str(folder), unit=unit, key=KEY, table=table_of(rows, start=unit.row_start)
    )


def finished(folder: Path, *units: Unit, key: ScoringKey = KEY) -> list[Sidecar]:
    """The finished sidecars of these units, in their order."""
    found = find_finished(str(folder), units, key)
    return [found[unit.id] for unit in units if unit.id in found]


# Round trip

ROWS = st.lists(
    st.one_of(
        st.tuples(st.floats(width=32), st.none(), *[st.integers(0, 2**31 - 1)] * 3),
        st.tuples(
            st.none(), st.sampled_from(["too_large", "response_empty", "x"]), *[st.just(0)] * 3
        ),
    ),
    min_size=1,
    max_size=30,
)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_scores_come_back_as_they_were_stored(tmp_path: Path, rows: list[Row]) -> None:
    """NaN, infinities, no score at all, no reason at all; and the counts are those of a loop."""
    unit = unit_of(len(rows))
    written = store(tmp_path, rows)
    assert finished(tmp_path, unit) == [written]
    data = (tmp_path / written.path).read_bytes()
    read = pq.read_table(pa.BufferReader(data))
    expected = table_of(rows)
    assert read.schema.remove_metadata().equals(SIDECAR_SCHEMA)
    for name in SIDECAR_SCHEMA.names:
        if name == "score":
            stored, wanted = (table[name].fill_null(7).to_numpy() for table in (read, expected))
            assert np.array_equal(stored.view(np.uint32), wanted.view(np.uint32))
            assert read[name].null_count == expected[name].null_count
        else:
            assert read[name].to_pylist() == expected[name].to_pylist()
    reasons = [reason for _, reason, *_ in rows if reason is not None]
    assert written.scored == sum(score is not None for score, *_ in rows)
    assert written.quarantined == {name: reasons.count(name) for name in sorted(set(reasons))}
    assert written.tokens == sum(head + tail for _, _, head, tail, _ in rows)
    assert written.cut_tokens == sum(row[-1] for row in rows)
    assert written.cut_rows == sum(row[-1] > 0 for row in rows)
    assert (written.bytes, written.sha256) == (len(data), sha256(data).hexdigest())


def test_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    """However the table came: in chunks, behind an offset, its reasons numbered otherwise."""
    rows: list[Row] = [SCORED, EMPTY, (None, "too_large", 0, 0, 0), SCORED, EMPTY]
    plain = table_of(rows)
    place = plain.schema.get_field_index("reason")
    renumbered = pa.DictionaryArray.from_arrays(
        pa.array([None, 2, 1, None, 2], pa.int8()), ["unused", "too_large", "response_empty"]
    )
    other_numbers = plain.set_column(place, SIDECAR_SCHEMA.field(place), renumbered)
    others = [
        pa.concat_tables([plain.slice(0, 1), plain.slice(1, 0), plain.slice(1)]),
        other_numbers,
        pa.concat_tables([plain.slice(0, 2), other_numbers.slice(2)]),
        plain.replace_schema_metadata({"from": "elsewhere"}),
    ]
    first = store(tmp_path, rows)
    data = (tmp_path / first.path).read_bytes()
    for index, table in enumerate(others):
        folder = tmp_path / str(index)
        again = write_sidecar(str(folder), unit=unit_of(5), key=KEY, table=table)
        assert again == first
        assert (folder / again.path).read_bytes() == data


def test_copies_of_a_file_share_their_sidecars(tmp_path: Path) -> None:
    """Whichever wrote it, the other finds its scores and keeps its own path."""
    unit = unit_of(2)
    copy = replace(unit, path="copy/b.parquet")
    first = store(tmp_path, [SCORED, EMPTY], unit=unit)
    data = (tmp_path / first.path).read_bytes()
    assert finished(tmp_path, copy) == [replace(first, unit=copy)]
    store(tmp_path, [SCORED, EMPTY], unit=copy)
    assert (tmp_path / first.path).read_bytes() == data
    assert sidecar_entry(replace(first, unit=copy)) == {
        "path": first.path,
        "rows": 2,
        "bytes": first.bytes,
        "sha256": first.sha256,
        "pool_file": "copy/b.parquet",
        "row_start": 100,
    }


# What is not stored


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (table_of([SCORED]), "1 rows"),
        (table_of([SCORED, SCORED], start=0), "row numbers out of order"),
        (table_of([SCORED, (None, None, 0, 0, 0)]), "nor a reason alone"),
        (table_of([SCORED, (1.0, "too_large", 0, 0, 0)]), "nor a reason alone"),
        (table_of([SCORED, SCORED]).drop(["reason"]), "columns row: int64 not null"),
        (
            table_of([SCORED, SCORED]).set_column(1, "score", pa.array([1.0, 2.0])),
            "score: double",
        ),
    ],
)
def test_a_table_that_is_not_the_units_scores_is_refused(
    tmp_path: Path, table: pa.Table, fault: str
) -> None:
    """Nothing is stored: a row without score and reason would vanish from the counts."""
    with pytest.raises(RunError) as caught:
        write_sidecar(str(tmp_path), unit=unit_of(2), key=KEY, table=table)
    assert "a/b.parquet rows 100+2: cannot be stored as scored" in str(caught.value)
    assert fault in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# What is not finished


def test_nothing_is_finished_where_nothing_is(tmp_path: Path) -> None:
    """Neither in a folder that is not there."""
    assert finished(tmp_path / "scores", unit_of(3)) == []


def test_only_units_that_are_asked_for_are_looked_at(tmp_path: Path) -> None:
    """Sidecars of an older pool stay where they are."""
    units = [unit_of(1, start=start) for start in (0, 1, 2)]
    for unit in units[:2]:
        store(tmp_path, [SCORED], unit=unit)
    assert [sidecar.unit for sidecar in finished(tmp_path, *units[1:])] == [units[1]]


@pytest.mark.parametrize(
    "change",
    [
        {"ranker": "s"},
        {"instruction_column": "prompt"},
        {"response_column": "output"},
        {"max_row_bytes": 10},
        {"max_tokens": 256},
        {"precision": "bf16"},
        {"sidecar_version": 2},
        {"format": "messages"},
        {"chat_column": "chat"},
        {"instruction_template": "{q}"},
        {"turns": "last"},
        {"long": "windows"},
    ],
)
def test_another_key_scores_anew(tmp_path: Path, change: dict[str, str | int]) -> None:
    """Also where its sidecars were copied to the place of this one's."""
    unit = unit_of(1)
    written = store(tmp_path, [SCORED])
    other = replace(KEY, **change)  # type: ignore[arg-type]
    assert other.id != KEY.id
    assert finished(tmp_path, unit, key=other) == []
    storage.write_bytes(
        str(tmp_path / sidecar_path(unit, other)), (tmp_path / written.path).read_bytes()
    )
    assert finished(tmp_path, unit, key=other) == []


def test_a_key_from_before_there_was_a_choice_is_what_it_was() -> None:
    """Rows of two columns, scored by their heads: old sidecars stay valid."""
    assert KEY.told == {
        "ranker": "r",
        "instruction_column": "instruction",
        "response_column": "response",
        "max_row_bytes": 1_000_000,
        "max_tokens": 512,
        "precision": "fp32",
        "sidecar_version": 1,
    }
    assert KEY.id == OLD_ID


def test_scores_of_turns_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    """A list a row, null without a score; another key takes no such sidecar for finished."""
    key, unit = replace(KEY, turns="mean"), unit_of(2)
    whole = table_of([SCORED, EMPTY]).append_column(
        TURN_SCORES, pa.array([[1.0, 2.0], None], TURN_SCORES.type)
    )
    written = write_sidecar(str(tmp_path), unit=unit, key=key, table=whole)
    assert finished(tmp_path, unit, key=key) == [written]
    read = pq.read_table(tmp_path / written.path)
    assert read["turn_scores"].to_pylist() == [[1.0, 2.0], None]
    for table, other in ((whole, KEY), (table_of([SCORED, EMPTY]), key)):
        with pytest.raises(RunError, match="columns"):
            write_sidecar(str(tmp_path), unit=unit, key=other, table=table)


def test_a_sidecar_of_another_unit_is_not_finished(tmp_path: Path) -> None:
    """Nor one of other rows or of an older file, under this unit's name."""
    unit = unit_of(2)
    others = [unit_of(2, start=0), unit_of(3), unit_of(2, fingerprint="older")]
    for other in others:
        written = store(tmp_path / other.id, [SCORED] * other.rows, unit=other)
        data = (tmp_path / other.id / written.path).read_bytes()
        storage.write_bytes(str(tmp_path / sidecar_path(unit, KEY)), data)
        assert finished(tmp_path, unit) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"not Parquet at all" * 100],
)
def test_a_foreign_file_is_not_finished(tmp_path: Path, content: bytes) -> None:
    """It is scored again, not a reason to stop."""
    unit = unit_of(1)
    path = tmp_path / sidecar_path(unit, KEY)
    storage.write_bytes(str(path), content)
    assert finished(tmp_path, unit) == []
    store(tmp_path, [SCORED])
    assert len(finished(tmp_path, unit)) == 1


def test_a_foreign_table_is_not_finished(tmp_path: Path) -> None:
    """A Parquet file of anything, even with the names of ours and metadata that is no JSON."""
    unit = unit_of(1)
    written = store(tmp_path, [SCORED])
    ours = pq.read_table(tmp_path / written.path)
    foreign = [
        pa.table({"a": [1]}).replace_schema_metadata(ours.schema.metadata),
        ours.replace_schema_metadata(None),
        ours.replace_schema_metadata({"scar_unit": "{", "scar_key": "["}),
        ours.slice(0, 0),
        ours.set_column(3, SIDECAR_SCHEMA.field(3), table_of([EMPTY])["reason"]),
    ]
    for table in foreign:
        pq.write_table(table, tmp_path / written.path)
        assert finished(tmp_path, unit) == []


def test_a_cut_sidecar_is_not_finished(tmp_path: Path) -> None:
    """Wherever it was cut."""
    unit = unit_of(3)
    written = store(tmp_path, [SCORED, EMPTY, SCORED])
    path = tmp_path / written.path
    data = path.read_bytes()
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        assert finished(tmp_path, unit) == []
    path.write_bytes(data)
    assert finished(tmp_path, unit) == [written]


def test_a_bit_that_turned_is_noticed(tmp_path: Path) -> None:
    """In any byte: the sidecar is not finished, or it still says what it said."""
    rows: list[Row] = [SCORED, EMPTY, (-2.25, None, 1, 1, 0)] * 20
    unit = unit_of(len(rows))
    written = store(tmp_path, rows)
    path = tmp_path / written.path
    data = path.read_bytes()
    unnoticed = 0
    for place in range(4, len(data) - 4, 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        if finished(tmp_path, unit):
            unnoticed += 1
            assert pq.read_table(path).equals(pq.read_table(pa.BufferReader(data)))
    assert unnoticed < len(data) / 6


def test_a_thousand_sidecars_are_found_quickly(tmp_path: Path) -> None:
    """A pool of two million rows goes on within seconds; here each holds few rows."""
    units = [unit_of(64, start=start) for start in range(0, 64_000, 64)]
    for unit in units:
        store(tmp_path, [SCORED] * 64, unit=unit)
    started = time.process_time()
    assert len(finished(tmp_path, *units)) == 1000
    assert time.process_time() - started < 10


def test_quarantined_rows_add_up() -> None:
    """Over all sidecars, by reason, in alphabetical order."""
    one = Sidecar(
        unit=unit_of(9),
        path="",
        bytes=0,
        sha256="",
        scored=3,
        quarantined={"too_large": 2, "response_null": 4},
        tokens=0,
        cut_tokens=0,
    )
    other = replace(one, quarantined={"instruction_empty": 1, "too_large": 1})
    total = total_quarantined([one, other])
    assert list(total.items()) == [("instruction_empty", 1), ("response_null", 4), ("too_large", 3)]
    assert total_quarantined([]) == {}
