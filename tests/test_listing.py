"""Listing: which files a path, folder or glob names, on this machine and in a store."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import fsspec
import pytest

from scar_core import storage

if TYPE_CHECKING:
    from pathlib import Path


def names_below(
    folder: str, *, pattern: str | None = None, **options: tuple[str, ...]
) -> list[str]:
    """What `list_files` finds, relative to a folder."""
    found = storage.list_files(pattern or folder, **options)
    return [info.path.removeprefix(f"{folder}/") for info in found]


def fill(folder: str, *names: str) -> None:
    """A small file under each name."""
    for name in names:
        storage.write_bytes(storage.join(folder, name), name.encode())


def test_a_folder_is_searched_to_its_depth(folder: str) -> None:
    """Sorted by path; names with spaces and of any script."""
    fill(folder, "b.parquet", "a b/c.parquet", "a/ü/文.parquet", "a/b.txt")
    assert names_below(folder) == ["a b/c.parquet", "a/b.txt", "a/ü/文.parquet", "b.parquet"]
    assert names_below(folder, suffixes=(".parquet",))[1] == "a/ü/文.parquet"
    assert names_below(folder, pattern=f"{folder}/a") == ["a/b.txt", "a/ü/文.parquet"]


def test_hidden_files_and_folders_are_left_out(folder: str) -> None:
    """Spark's `_temporary` holds halves of files; naming one outright takes it."""
    fill(folder, "a.parquet", "_SUCCESS", ".b.parquet", "_temporary/0/c.parquet", "d/.e/f.parquet")
    assert names_below(folder) == ["a.parquet"]
    assert names_below(folder, pattern=f"{folder}/**/*.parquet") == ["a.parquet"]
    assert names_below(folder, pattern=f"{folder}/.b.parquet") == [".b.parquet"]
    assert names_below(folder, pattern=f"{folder}/_temporary") == ["_temporary/0/c.parquet"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["a.parquet"]),
        ("?.parquet", ["a.parquet"]),
        ("[ab].parquet", ["a.parquet"]),
        ("x/*", ["x/b.parquet", "x/y/c.parquet"]),
        ("*/b.parquet", ["x/b.parquet"]),
        ("**/*.parquet", ["a.parquet", "x/b.parquet", "x/y/c.parquet"]),
        ("x/**", ["x/b.parquet", "x/y/c.parquet"]),
        ("**/y", ["x/y/c.parquet"]),
        ("z*", []),
        ("z", []),
    ],
)
def test_globs_name_files_and_folders(folder: str, pattern: str, names: list[str]) -> None:
    """On this machine and in a store alike; a folder that matches is searched, as Spark's are."""
    fill(folder, "a.parquet", "x/b.parquet", "x/y/c.parquet")
    assert names_below(folder, pattern=f"{folder}/{pattern}") == names


def test_a_name_with_glob_marks_is_itself_first(tmp_path: Path) -> None:
    """`data[1].parquet` is what a browser calls the second download."""
    folder = str(tmp_path)
    fill(folder, "data[1].parquet", "data1.parquet", "set[2]/a.parquet")
    assert names_below(folder, pattern=f"{folder}/data[1].parquet") == ["data[1].parquet"]
    assert names_below(folder, pattern=f"{folder}/set[2]") == ["set[2]/a.parquet"]
    assert storage.static_folder(f"{folder}/set[2]") == f"{folder}/set[2]"


def test_suffixes_count_in_any_case_but_not_for_a_file_that_is_named(folder: str) -> None:
    """`A.PARQUET` from another system must not be lost without a word."""
    fill(folder, "a.PARQUET", "b.parquet", "c.txt")
    assert names_below(folder, suffixes=(".parquet",)) == ["a.PARQUET", "b.parquet"]
    alone = names_below(folder, pattern=f"{folder}/c.txt", suffixes=(".parquet",))
    assert alone == ["c.txt"]


def test_links_are_followed(tmp_path: Path) -> None:
    """The Hugging Face cache holds nothing but links; size and stamp are the target's."""
    blobs, pool = tmp_path / "blobs", tmp_path / "pool"
    fill(str(blobs), "1", "more/2")
    pool.mkdir()
    (pool / "a.parquet").symlink_to(blobs / "1")
    (pool / "more").symlink_to(blobs / "more")
    for pattern in (pool, f"{pool}/*"):
        assert names_below(str(pool), pattern=str(pattern)) == ["a.parquet", "more/2"]
    os.utime(blobs / "1", ns=(1, 1))
    assert storage.list_files(str(pool))[0].stamp == "1"
    assert storage.list_files(str(pool / "a.parquet"))[0].stamp == "1"


def test_links_that_lead_back_end_somewhere(tmp_path: Path) -> None:
    """Two of them in one folder would be 2**40 paths."""
    fill(str(tmp_path), "a/b.parquet")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "loop2").symlink_to(tmp_path)
    assert names_below(str(tmp_path)) == ["a/b.parquet"]


def test_what_cannot_be_read_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken link and a forbidden folder are errors: rows would be missing."""
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        storage.list_files(str(tmp_path))
    (tmp_path / "gone.parquet").unlink()
    (tmp_path / "forbidden").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("forbidden"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # a test may run as root, who may read anything
    with pytest.raises(PermissionError, match="forbidden"):
        storage.list_files(str(tmp_path))


def test_a_store_that_fails_does_not_look_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fsspec's own `isfile` answers False to a broken connection: "not published yet"."""

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    memory = fsspec.filesystem("memory", use_listings_cache=False)
    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(ConnectionError):
        storage.exists("memory://a")


def test_stamps_change_with_the_content_and_only_then(folder: str) -> None:
    """The listing and a look at one file give the same stamp."""
    path = storage.join(folder, "a")
    storage.write_bytes(path, b"1")
    before = storage.stat(path)
    assert storage.list_files(folder) == [before] == storage.list_files(path)
    storage.write_bytes(path, b"2")
    assert storage.stat(path) != before


@pytest.mark.parametrize(
    ("pattern", "static"),
    [
        ("/a/b", "/a/b"),
        ("/a/*/b", "/a"),
        ("/a/b*", "/a"),
        ("/*.parquet", "/"),
        ("s3://bucket/a/*.parquet", "s3://bucket/a"),
        ("s3://bucket/*", "s3://bucket"),
    ],
)
def test_a_glob_stands_in_the_folder_above_its_first_mark(
    pattern: str, static: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative names start there."""
    monkeypatch.setattr(storage, "_kind", lambda _: None)
    assert storage.static_folder(pattern) == static
