"""Reading ranges of rows: what pyarrow reads of the whole file, and no more bytes than needed."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import RunError
from scar_core.pool import units as units_module
from scar_core.pool.files import RowGroup
from scar_core.pool.units import read_ranges
from tests.pools import open_one, texts, write

if TYPE_CHECKING:
    from pathlib import Path


def awkward(rows: int) -> pa.Table:
    """Columns of every kind that a pool may carry along, with nulls."""
    start = datetime(2024, 2, 29, tzinfo=UTC)
    every = range(rows)
    some = [row % 3 == 0 for row in every]
    binary = pa.array([bytes([row % 256, 255]) for row in every], pa.binary())
    broken_utf8 = pa.Array.from_buffers(pa.string(), rows, binary.buffers())
    columns = {
        "response": pa.array(
            [None if none else f"a{row}" for row, none in zip(every, some, strict=True)]
        ),
        "instruction": pa.array([f"q{row}" for row in every], pa.large_string()),
        "broken": broken_utf8,
        "label": pa.array([f"l{row % 4}" for row in every]).dictionary_encode(),
        "words": pa.array(
            [[f"w{n}" for n in range(row % 4)] for row in every], pa.list_(pa.string())
        ),
        "meta": pa.array(
            [
                None if none else {"n": row, "deep": {"tags": [{"k": str(row)}] * (row % 3)}}
                for row, none in zip(every, some, strict=True)
            ],
            pa.struct(
                [
                    ("n", pa.int16()),
                    ("deep", pa.struct([("tags", pa.list_(pa.struct([("k", pa.string())])))])),
                ]
            ),
        ),
        "map": pa.array(
            [[("k", row)] * (row % 2) for row in every], pa.map_(pa.string(), pa.int32())
        ),
        "vector": pa.array([[row, row + 1.5] for row in every], pa.list_(pa.float32(), 2)),
        "bytes": binary,
        "digest": pa.array([bytes(16)] * rows, pa.binary(16)),
        "when": pa.array(
            [start + timedelta(seconds=row) for row in every], pa.timestamp("us", "Europe/Vienna")
        ),
        "naive": pa.array([row * 10**9 for row in every], pa.timestamp("ns")),
        "day": pa.array(list(every), pa.date32()),
        "price": pa.array([Decimal(row) / 100 for row in every], pa.decimal128(12, 2)),
        "flag": pa.array(some),
        "nothing": pa.nulls(rows),
        "a.b": pa.array([float(row) for row in every], pa.float16()),
        "view": pa.array([f"v{row}" for row in every], pa.string_view()),
        "u8": pa.array([row % 256 for row in every], pa.uint8()),
    }
    table = pa.table(columns)
    field = table.schema.field("flag").with_metadata({"why": "kept"})
    schema = table.schema.set(table.schema.get_field_index("flag"), field)
    return table.cast(schema).replace_schema_metadata({"origin": "a test"})


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Rows of the row groups of a file, and ascending ranges in it."""
    groups = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
    edges = sorted(draw(st.sets(st.integers(0, sum(groups)), min_size=2)))
    taken = draw(st.lists(st.booleans(), min_size=len(edges), max_size=len(edges)))
    ranges = [span for span, take in zip(pairwise(edges), taken, strict=False) if take]
    return groups, ranges


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layout=layouts(), batch_rows=st.integers(1, 30))
def test_ranges_are_slices_of_the_whole_table(
    tmp_path: Path, layout: tuple[list[int], list[tuple[int, int]]], batch_rows: int
) -> None:
    """Whatever the row groups: every column, type and metadata as pyarrow reads the whole file."""
    groups, ranges = layout
    path = write(tmp_path / f"{uuid4().hex}.parquet", awkward(sum(groups)), groups=groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units_module, "BATCH_ROWS", batch_rows)
        tables = list(read_ranges(open_one(path), ranges))
        chosen = list(read_ranges(open_one(path), ranges, columns=["meta", "response"]))
    whole = pq.read_table(path)
    assert len(tables) == len(chosen) == len(ranges)
    for table, part, (start, stop) in zip(tables, chosen, ranges, strict=True):
        expected = whole.slice(start, stop - start)
        assert table.schema.equals(whole.schema, check_metadata=True)
        assert table.equals(expected)
        assert part.equals(expected.select(["meta", "response"]))
    path.unlink()


def test_the_awkward_table_is_what_was_written(tmp_path: Path) -> None:
    """So that the comparison above is one with the input, not only with another reader."""
    table = awkward(50)
    path = write(tmp_path / "a.parquet", table, groups=[20, 30])
    (read,) = read_ranges(open_one(path), [(0, 50)])
    assert read.equals(table)
    assert read.schema.metadata == table.schema.metadata
    assert read.schema.field("flag").metadata == table.schema.field("flag").metadata


def test_no_ranges_read_nothing(tmp_path: Path) -> None:
    """And give nothing."""
    assert list(read_ranges(open_one(write(tmp_path / "a.parquet", texts(3))), [])) == []


class CountingFile(io.FileIO):
    """A file that knows which of its bytes were read."""

    spans: list[tuple[int, int]]

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and remember what."""
        start = self.tell()
        data = super().read(size)
        self.spans.append((start, start + len(data)))
        return data


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(start, stop) of all that is read of pool files."""
    found: list[tuple[int, int]] = []

    def open_input(path: str, **_: object) -> CountingFile:
        file = CountingFile(path)
        file.spans = found
        return file

    monkeypatch.setattr(storage, "open_input", open_input)
    return found


def test_only_the_row_groups_and_columns_that_are_asked_for_are_read(
    tmp_path: Path, spans: list[tuple[int, int]]
) -> None:
    """One large row group of five, two columns of three; the rest of the file stays where it is."""
    rows = 500
    table = texts(rows).append_column("image", pa.array([os.urandom(1000) for _ in range(rows)]))
    path = write(tmp_path / "a.parquet", table, groups=[100] * 5)
    file = open_one(path)
    spans.clear()
    (part,) = read_ranges(file, [(210, 290)], columns=["instruction", "response"])
    assert part.equals(texts(rows).slice(210, 80))
    group = pq.read_metadata(path).row_group(2)
    allowed = [group.column(i) for i in range(2)]
    data_end = path.stat().st_size - pq.read_metadata(path).serialized_size - 8
    in_data = [(start, stop) for start, stop in spans if start < data_end - 2**16]
    assert in_data
    first = allowed[0].dictionary_page_offset or allowed[0].data_page_offset
    last = first + sum(chunk.total_compressed_size for chunk in allowed)
    assert all(first <= start and stop <= last for start, stop in in_data)
    assert sum(stop - start for start, stop in spans) < path.stat().st_size / 4


def test_a_huge_row_group_is_not_held_at_once(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    """Many real files are one row group; memory must not grow with them."""
    rows = 40_000
    noise = [os.urandom(500).hex() for _ in range(rows)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"instruction": ["q"] * rows, "response": noise}),
        path,
        use_dictionary=False,
        compression="none",
    )
    del noise
    file = open_one(path)
    ranges = [(start, start + 500) for start in range(0, rows, 2000)]
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_ranges(file, ranges)]
    assert len(held) == len(ranges)
    assert max(held) < path.stat().st_size / 2
    assert max(stop - start for start, stop in spans) <= units_module.BUFFER_BYTES


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store each opening is a round trip."""
    file = open_one(write(tmp_path / "a.parquet", texts(10), groups=[5, 5]))
    opened: list[str] = []
    plain = storage.open_input

    def open_input(path: str, **_: object) -> object:
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(storage, "open_input", open_input)
    assert len(list(read_ranges(file, [(0, 3), (4, 9)]))) == 2
    assert opened == [file.url]


def test_reading_stops_when_the_ranges_end(tmp_path: Path) -> None:
    """What is behind the last row that is asked for may be broken; it is not looked at."""
    path = write(tmp_path / "a.parquet", texts(20), groups=[10, 10])
    stamp = path.stat().st_mtime_ns
    chunk = pq.read_metadata(path).row_group(1).column(0)
    with path.open("r+b") as opened:
        opened.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        opened.write(bytes(chunk.total_compressed_size))
    os.utime(path, ns=(stamp, stamp))
    file = open_one(path)
    (table,) = read_ranges(file, [(0, 10)])
    assert table.equals(texts(20).slice(0, 10))
    with pytest.raises(RunError, match=r"a\.parquet: was readable when the run was planned, now: "):
        list(read_ranges(file, [(0, 11)]))


@pytest.mark.parametrize("change", ["shrunk", "grown", "replaced", "touched", "deleted", "cut"])
def test_a_file_that_changed_since_the_plan_stops_the_run(tmp_path: Path, change: str) -> None:
    """Also one of the same size and rows: its scores would belong to other texts."""
    path = write(tmp_path / "a.parquet", texts(20, tag="x"))
    file = open_one(path)
    stamp = path.stat().st_mtime_ns
    if change == "deleted":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif change == "touched":
        os.utime(path, ns=(stamp + 1, stamp + 1))
    else:
        rows = {"shrunk": 10, "grown": 30, "replaced": 20}[change]
        write(path, texts(rows, tag="y"))
        assert change != "replaced" or path.stat().st_size == file.info.size_bytes
    with pytest.raises(RunError, match=rf"{path.name}: .*Start again: finished units are kept"):
        list(read_ranges(file, [(0, 20)]))


def test_fewer_rows_than_the_footer_says_stop_the_run(tmp_path: Path) -> None:
    """Not silently the next row group's rows in their place."""
    path = write(tmp_path / "a.parquet", texts(20), groups=[10, 10])
    file = open_one(path)
    longer = RowGroup(rows=12, text_bytes=0, all_bytes=0)
    lying = replace(file, row_groups=(longer, file.row_groups[1]))
    with pytest.raises(RunError, match="row group 0 holds 10 rows, its footer says 12"):
        list(read_ranges(lying, [(0, 15)]))
