"""Units: every row of a pool in exactly one, of a size that can be read at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.pool.files import PoolFile, RowGroup
from scar_core.pool.units import UnitConfig, plan_units
from tests.pools import open_one, planned, texts, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MEGABYTE = 2**20


def fake_file(groups: Sequence[tuple[int, int]]) -> PoolFile:
    """A file of which only the footer is known: (rows, bytes of text) of its row groups."""
    return PoolFile(
        path="a.parquet",
        info=storage.FileInfo(path="/a.parquet", size_bytes=1, stamp="1"),
        fingerprint="f",
        schema=texts(0).schema,
        row_groups=tuple(
            RowGroup(rows=rows, text_bytes=size, all_bytes=size) for rows, size in groups
        ),
    )


GROUPS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 6), st.integers(0, 5000)),
        st.one_of(st.integers(0, 100), st.integers(0, 400 * MEGABYTE)),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(GROUPS, st.integers(1, 50), st.integers(1, 64))
def test_every_row_is_in_exactly_one_unit(
    groups: list[tuple[int, int]], unit_rows: int, megabytes: int
) -> None:
    """Whatever the row groups: tiny, huge, empty. None is empty or larger than was asked for."""
    config = UnitConfig(unit_rows=unit_rows, unit_megabytes=megabytes)
    file = fake_file(groups)
    units = plan_units([file], config)
    edges = [0, *(unit.row_start + unit.rows for unit in units)]
    assert edges[-1] == sum(rows for rows, _ in groups) == file.rows
    assert [unit.row_start for unit in units] == edges[:-1]
    assert all(1 <= unit.rows <= unit_rows for unit in units)
    assert len({unit.id for unit in units}) == len(units)


@settings(deadline=None)
@given(GROUPS, st.integers(1, 50), st.integers(1, 64))
def test_units_keep_to_row_groups_where_they_can(
    groups: list[tuple[int, int]], unit_rows: int, megabytes: int
) -> None:
    """A row group is cut only if it is too large for one unit: cut ones are decoded again."""
    config = UnitConfig(unit_rows=unit_rows, unit_megabytes=megabytes)
    edges = {unit.row_start for unit in plan_units([fake_file(groups)], config)}
    first = 0
    for rows, size in groups:
        if rows <= unit_rows and size <= megabytes * MEGABYTE:
            assert not edges & set(range(first + 1, first + rows))
        first += rows


def test_small_row_groups_are_put_together_and_a_huge_one_is_cut() -> None:
    """By hand: up to 100 rows a unit, equal parts."""
    file = fake_file([(40, 0), (0, 0), (60, 0), (10, 0), (250, 0), (5, 0), (0, 0)])
    units = plan_units([file], UnitConfig(unit_rows=100))
    spans = [(unit.row_start, unit.row_start + unit.rows) for unit in units]
    assert spans == [(0, 100), (100, 110), (110, 193), (193, 276), (276, 360), (360, 365)]


def test_huge_texts_make_small_units() -> None:
    """By their bytes: 10 rows of 30 MB each are not read at once; a single row is never cut."""
    config = UnitConfig(unit_rows=100, unit_megabytes=64)
    file = fake_file(
        [(10, 300 * MEGABYTE), (1, 900 * MEGABYTE), (3, 50 * MEGABYTE), (3, 50 * MEGABYTE)]
    )
    assert [unit.rows for unit in plan_units([file], config)] == [2, 2, 2, 2, 2, 1, 3, 3]


def test_real_bytes_are_those_of_the_text_columns(tmp_path: Path) -> None:
    """A large column beside them does not make units smaller; it counts for the output files."""
    table = texts(100).append_column("image", pa.array([os.urandom(50_000)] * 100))
    file = open_one(write(tmp_path / "a.parquet", table, groups=[50, 50]))
    assert sum(group.text_bytes for group in file.row_groups) < MEGABYTE
    assert file.bytes_per_row > 50
    assert len(plan_units([file], UnitConfig(unit_megabytes=1))) == 1
    long = pa.table(
        {"instruction": ["a"] * 9, "response": [os.urandom(MEGABYTE).hex() for _ in range(9)]}
    )
    file = open_one(write(tmp_path / "b.parquet", long))
    assert len(plan_units([file], UnitConfig(unit_megabytes=7))) == 3


@pytest.mark.parametrize("sizes", [{"unit_rows": 0}, {"unit_megabytes": 0}])
def test_empty_units_are_refused(sizes: dict[str, int]) -> None:
    """At construction."""
    with pytest.raises(ValueError, match="must be at least 1"):
        UnitConfig(**sizes)


def test_units_do_not_span_files_and_skip_empty_ones(tmp_path: Path) -> None:
    """In (path, row) order."""
    for name, rows in (("b", 3), ("a", 2), ("c", 0)):
        write(tmp_path / f"{name}.parquet", texts(rows, tag=name))
    units = planned(tmp_path, config=UnitConfig(unit_rows=2))
    assert [(unit.path, unit.row_start, unit.rows) for unit in units] == [
        ("a.parquet", 0, 2),
        ("b.parquet", 0, 1),
        ("b.parquet", 1, 2),
    ]
