"""Pools: what counts as one file, how it is named, and which pools need fixing first."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scar_core import storage
from scar_core.errors import (
    AccessError,
    InputError,
    RunError,
    ScarError,
    SchemaError,
    StoreError,
)
from scar_core.pool.files import BadFile, open_pool, open_sound_files
from scar_core.pool.quarantine import QuarantineConfig, check_losses
from scar_core.pool.units import UnitConfig, plan_units, read_ranges, take_rows
from tests.pools import COLUMNS, open_one, planned, texts, write

# Names


def test_ids_know_the_content_and_nothing_else(tmp_path: Path) -> None:
    """A pool that moved, grew, or was named otherwise is not scored again."""
    pool = tmp_path / "pool" / "day1"
    write(pool / "part-0.parquet", texts(5))
    write(pool / "part-1.parquet", texts(7))
    ids = {unit.id for unit in planned(pool)}
    assert len(ids) == 2
    for same in (
        [f"{pool}/*.parquet"],
        [pool.parent],
        [pool / "part-1.parquet", pool / "part-0.parquet"],
    ):
        assert {unit.id for unit in planned(*same)} == ids
    write(pool.parent / "day2" / "part-0.parquet", texts(5, tag="other"))
    grown = {unit.id for unit in planned(pool, pool.parent / "day2")}
    assert ids < grown
    assert {unit.id for unit in planned(pool.parent / "day2", pool)} == grown
    pool.parent.rename(tmp_path / "moved")
    assert {unit.id for unit in planned(tmp_path / "moved")} == grown


def test_ids_change_with_the_content(tmp_path: Path) -> None:
    """Whether time, size or nothing but the footer's statistics tells; and with the name."""
    path = write(tmp_path / "a.parquet", texts(5, tag="x"))
    stamp = path.stat().st_mtime_ns
    seen = [planned(path)[0].id]

    def look(*, mtime: int) -> None:
        os.utime(path, ns=(mtime, mtime))
        seen.append(planned(path)[0].id)

    look(mtime=stamp + 1)
    look(mtime=stamp)
    assert seen[2] == seen[0]
    size = path.stat().st_size
    write(path, texts(5, tag="y"))
    assert path.stat().st_size == size
    look(mtime=stamp)
    write(path, texts(6))
    look(mtime=stamp)
    path = path.rename(tmp_path / "b.parquet")
    seen.append(planned(path)[0].id)
    assert len(set(seen)) == len(seen) - 1


def test_ids_change_with_how_a_file_is_cut(tmp_path: Path) -> None:
    """Another range is another unit."""
    path = write(tmp_path / "a.parquet", texts(10))
    by_rows = [
        {unit.id for unit in planned(path, config=UnitConfig(unit_rows=n))} for n in (10, 5, 4)
    ]
    assert [len(ids) for ids in by_rows] == [1, 2, 3]
    assert not by_rows[0] & by_rows[1]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    """By two arguments, by a link, by a detour; and it has one name in any order of them."""
    pool = tmp_path / "pool"
    path = write(pool / "x" / "a.parquet", texts(3))
    (tmp_path / "link").symlink_to(pool)
    (pool / "x" / "again.parquet").symlink_to(path)
    (tmp_path / "y").mkdir()
    names: list[Path | str] = [
        path,
        pool,
        f"{pool}/*/*.parquet",
        tmp_path / "link",
        f"{tmp_path}/y/../pool",
    ]
    for arguments in (names, names[::-1]):
        units = planned(*arguments)
        assert [(unit.path, unit.rows) for unit in units] == [("x/again.parquet", 3)]


def test_equal_names_in_different_folders_are_told_apart(tmp_path: Path) -> None:
    """As little longer as is needed, and the same in any order of the arguments."""
    for name in (
        "day1/part.parquet",
        "day2/part.parquet",
        "day2/deep/part.parquet",
        "u/day1/part.parquet",
    ):
        write(tmp_path / name, texts(2, tag=name))
    folders = [tmp_path / name for name in ("day1", "day2", "u/day1")]
    names = [
        "day2/part.parquet",
        "deep/part.parquet",
        f"{tmp_path.name}/day1/part.parquet",
        "u/day1/part.parquet",
    ]
    for arguments in (folders, folders[::-1]):
        files = open_pool([str(path) for path in arguments], COLUMNS)
        assert [file.path for file in files] == sorted(names)
        assert len({unit.id for unit in plan_units(files, UnitConfig())}) == 4


def test_copies_of_a_file_are_counted_apart_and_scored_alike(tmp_path: Path) -> None:
    """Same bytes, name and time: their units share ids, so their scores are there already."""
    path = write(tmp_path / "a" / "part.parquet", texts(3))
    (tmp_path / "b").mkdir()
    shutil.copy2(path, tmp_path / "b" / "part.parquet")
    units = planned(tmp_path)
    assert [unit.path for unit in units] == ["a/part.parquet", "b/part.parquet"]
    assert units[0].id == units[1].id


def test_a_pool_in_a_store_has_the_same_units() -> None:
    """Here fsspec's memory stands in for it; names with spaces and of any script."""
    bucket = f"memory://{uuid4().hex}"
    for name in ("a b/ü.parquet", "c.parquet"):
        with storage.open_output(f"{bucket}/{name}") as file:
            pq.write_table(texts(3, tag=name), file)
    for pattern in (bucket, f"{bucket}/", f"{bucket}/**/*.parquet"):
        files = open_pool([pattern], COLUMNS)
        assert [file.path for file in files] == ["a b/ü.parquet", "c.parquet"]
    tables = list(read_ranges(files[0], [(1, 3)]))
    assert tables[0].equals(texts(3, tag="a b/ü.parquet").slice(1))
    with storage.open_output(f"{bucket}/c.parquet") as file:
        pq.write_table(texts(3, tag="other"), file)
    with pytest.raises(RunError, match="changed since"):
        list(read_ranges(files[1], [(0, 1)]))
    fsspec.filesystem("memory").rm(bucket, recursive=True)


# Pools that need fixing


def broken(path: Path, kind: str) -> Path:
    """A file that is not Parquet any more, or never was."""
    whole = write(path, texts(100)).read_bytes()
    content = {
        "empty": b"",
        "short": b"PAR1",
        "text": b"instruction,response\n" * 100,
        "cut": whole[:-20],
        "half": whole[: len(whole) // 2],
        "footer": whole[:-200] + bytes(192) + whole[-8:],
        "length": whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:],
    }
    path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("kind", ["empty", "short", "text", "cut", "half", "footer", "length"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, kind: str) -> None:
    """In one sentence with its size, beside good files."""
    write(tmp_path / "a.parquet", texts(3))
    path = broken(tmp_path / "b.parquet", kind)
    with pytest.raises(InputError) as caught:
        open_pool([str(tmp_path)], COLUMNS)
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be read as Parquet ({path.stat().st_size:,} bytes)")
    assert text.endswith("Write it again, or leave it out of --pool.")


@pytest.mark.parametrize("argument", ["nothing", "*.parquet", "empty", "data.csv/x", "a/**"])
def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path, argument: str) -> None:
    """Even beside others that match something: a typo must not shrink a pool."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("")
    good = write(tmp_path / "good" / "a.parquet", texts(3))
    with pytest.raises(InputError) as caught:
        open_pool([str(good), str(tmp_path / argument)], COLUMNS)
    assert f"--pool {tmp_path / argument}: matches no file that can be read" in str(caught.value)


def test_a_pool_of_nothing_is_refused() -> None:
    """As a config file may ask for it."""
    with pytest.raises(InputError, match="--pool names no file"):
        open_pool([], COLUMNS)


def test_what_cannot_be_listed_is_an_input_error(tmp_path: Path) -> None:
    """A broken link in a pool, say."""
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"cannot be listed: .*gone\.parquet"):
        open_pool([str(tmp_path)], COLUMNS)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Before it breaks a manifest at the end of a run."""
    path = write(tmp_path / "a.parquet", texts(3))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"udcff\.parquet': the name is not valid UTF-8"):
        open_pool([str(tmp_path)], COLUMNS)


def test_a_pool_without_rows_is_refused(tmp_path: Path) -> None:
    """One sentence; files without rows beside others are nothing to speak of."""
    write(tmp_path / "a.parquet", texts(0))
    write(tmp_path / "b.parquet", texts(0), groups=[0, 0])
    with pytest.raises(InputError, match="2 files, all without rows"):
        open_pool([str(tmp_path)], COLUMNS)
    write(tmp_path / "c.parquet", texts(1), groups=[0, 1, 0])
    assert len(planned(tmp_path)) == 1


def test_a_missing_column_names_the_file_the_columns_and_the_flag(tmp_path: Path) -> None:
    """The first file that lacks it, in path order."""
    write(tmp_path / "a.parquet", texts(3))
    path = write(tmp_path / "b.parquet", texts(3).rename_columns(["prompt", "response"]))
    with pytest.raises(SchemaError) as caught:
        open_pool([str(tmp_path)], COLUMNS)
    assert str(caught.value) == (
        f"{path}: no column 'instruction'; found prompt, response. "
        "Rename it, or pass --instruction-column."
    )


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    """Chat messages, for one."""
    chat = pa.table({"instruction": ["a"], "response": [[{"role": "user", "content": "a"}]]})
    write(tmp_path / "a.parquet", chat)
    with pytest.raises(SchemaError, match=r"'response' holds list<.*; wanted text"):
        open_pool([str(tmp_path)], COLUMNS)


def test_columns_of_equal_names_are_refused(tmp_path: Path) -> None:
    """Which of them would a selected row hold?"""
    table = pa.Table.from_arrays(
        [pa.array(["x"])] * 4, names=["instruction", "response", "id", "id"]
    )
    write(tmp_path / "a.parquet", table)
    with pytest.raises(SchemaError, match="several columns are named id"):
        open_pool([str(tmp_path)], COLUMNS)


# Pools that may lose files


def test_sound_files_and_bad_ones_come_apart(tmp_path: Path) -> None:
    """Bad ones with a reason each, and with messages that name them by their place in the pool."""
    write(tmp_path / "day/a.parquet", texts(3))
    broken(tmp_path / "day/b.parquet", "empty")
    write(tmp_path / "c.parquet", texts(3).drop_columns("response"))
    files, bad = open_sound_files([str(tmp_path)], COLUMNS)
    assert [file.path for file in files] == ["day/a.parquet"]
    assert [(file.path, file.reason, file.rows) for file in bad] == [
        ("c.parquet", "schema", None),
        ("day/b.parquet", "not_parquet", None),
    ]
    assert bad[1].message.startswith("day/b.parquet: cannot be read as Parquet (0 bytes)")
    assert str(tmp_path) not in "".join(file.message for file in bad)


@pytest.mark.parametrize("fault", [StoreError, AccessError])
def test_a_store_that_fails_is_no_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[ScarError]
) -> None:
    """An outage must not shrink a pool."""
    path = write(tmp_path / "a.parquet", texts(3))
    file = open_one(path)

    class Failing(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise fault("s3://bucket: does not answer")

    monkeypatch.setattr(storage, "open_input", lambda *_, **__: Failing(path.read_bytes()))
    with pytest.raises(fault, match="does not answer"):
        open_sound_files([str(tmp_path)], COLUMNS)
    with pytest.raises(fault, match="does not answer"):
        list(read_ranges(file, [(0, 3)]))


def lost(rows: int | None) -> BadFile:
    """A quarantined file."""
    return BadFile(path="b", url="/p/b", reason="gone", message="b: is gone.", rows=rows)


@pytest.mark.parametrize(
    ("ratio", "bad_rows", "files", "too_much"),
    [
        (0.29, 29, [], False),  # 0.29 * 100 is 28.999999999999996
        (0.29, 30, [], True),
        (0.0, 0, [], False),
        (0.0, 1, [], True),
        (1.0, 100, [], False),
        (0.5, 0, [lost(100)], False),
        (0.5, 1, [lost(100)], True),  # 101 of 200
        (0.5, 0, [lost(None)] * 2, False),
        (0.5, 0, [lost(None)] * 3, True),  # of four files
    ],
)
def test_no_more_is_lost_than_may_be(
    ratio: float, bad_rows: int, files: list[BadFile], too_much: bool
) -> None:
    """Exactly the ratio is allowed; a lost file counts by its rows, where known, and as a file."""
    config = QuarantineConfig(max_bad_ratio=ratio)

    def check() -> None:
        check_losses(config, rows_in=100, quarantined_rows=bad_rows, files_in=4, bad_files=files)

    if too_much:
        with pytest.raises(RunError, match=r"cannot be scored.*Nothing was published"):
            check()
    else:
        check()


def test_rows_of_any_type_are_taken() -> None:
    """Arrow's own `take` raises for views."""
    columns = {
        "view": pa.array(["a", None, "c"], pa.string_view()),
        "bytes": pa.array([b"\xff", b"", None], pa.binary_view()),
        "nested": [{"x": [1]}, {"x": []}, None],
        "dictionary": pa.array(["u", "v", "u"]).dictionary_encode(),
    }
    table = pa.table(columns)
    taken = take_rows(table, np.array([2, 0]))
    assert taken.schema == table.schema
    rows = table.to_pylist()
    assert taken.to_pylist() == [rows[2], rows[0]]


def test_a_signature_is_in_no_error_and_no_name(tmp_path: Path) -> None:
    """A signed URL is a password for as long as it is valid."""
    path = write(tmp_path / "a.parquet", texts(2), groups=[2])
    signed = replace(
        storage.stat(str(path)), path="https://host/pool/a.parquet?X-Amz-Signature=5ec4e7"
    )
    assert signed.shown == "https://host/pool/a.parquet"
    with pytest.raises(InputError) as caught:
        open_pool(["memory://user:5ec4e7@host/*.parquet"], COLUMNS)
    assert "memory://host/*.parquet" in str(caught.value)
    assert "5ec4e7" not in str(caught.value)
