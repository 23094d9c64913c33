"""Storage: whole files or none, one winner, what a pattern names, paths fit for a manifest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each imports only pyarrow and fsspec; report and manifest not even all of that.
LIGHT = ("local_files", "storage", "rows", "pool", "units", "sidecars", "manifest", "report")


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder on this machine, and one in what stands in for an object store."""
    if request.param == "local":
        yield str(tmp_path / "folder")
        return
    url = f"memory://{uuid4().hex}"
    yield url
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


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


# Writing


def test_a_file_is_read_as_it_was_written(folder: str) -> None:
    """Whole, in parts, and after it was replaced; missing folders are made."""
    path = storage.join(folder, "a b", "ü.bin")
    storage.write_bytes(path, b"first")
    storage.write_bytes(path, b"second")
    assert storage.read_bytes(path) == b"second"
    with storage.open_input(path) as file:
        file.seek(3)
        assert file.read() == b"ond"
    assert storage.stat(path).size_bytes == 6


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_block_that_fails_leaves_what_was_there(folder: str, old: bytes | None) -> None:
    """No file where none was, the old content where one was, and nothing beside it."""
    path = storage.join(folder, "data.bin")
    if old is not None:
        storage.write_bytes(path, old)

    def write_and_fail() -> None:
        with storage.open_output(path) as file:
            file.write(b"half of the new cont")
            raise KeyError("the writer broke")

    with pytest.raises(KeyError):
        write_and_fail()
    assert storage.exists(path) == (old is not None)
    if old is not None:
        assert storage.read_bytes(path) == old
    if storage.is_local(folder):
        left = list(Path(folder).iterdir())
        assert left == ([] if old is None else [Path(path)])


def test_a_block_that_ends_well_replaces_the_file(folder: str) -> None:
    """Nobody sees the new content before the end, and all of it after."""
    path = storage.join(folder, "data.bin")
    storage.write_bytes(path, b"old")
    with storage.open_output(path) as file:
        file.write(b"new")
        file.flush()
        assert storage.read_bytes(path) == b"old"
    assert storage.read_bytes(path) == b"new"


def test_pyarrow_writes_parquet_into_an_output(folder: str) -> None:
    """The file is one that a Parquet writer can use, and leaves open."""
    table = pa.table({"a": [1, 2, 3]})
    path = storage.join(folder, "t.parquet")
    with storage.open_output(path) as file:
        pq.write_table(table, file)
    with storage.open_input(path) as stored:
        assert pq.read_table(stored).equals(table)


def test_files_have_the_permissions_that_the_operator_asked_for(tmp_path: Path) -> None:
    """The umask decides, as for any other program: not readable by all where that was excluded."""
    old = os.umask(0o027)
    try:
        storage.write_bytes(str(tmp_path / "a"), b"")
        storage.write_bytes_if_absent(str(tmp_path / "b"), b"")
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


# Only where none is


def test_the_first_one_stays(folder: str) -> None:
    """A later one is told so, and nothing is overwritten."""
    path = storage.join(folder, "manifest.json")
    assert storage.write_bytes_if_absent(path, b"first")
    assert not storage.write_bytes_if_absent(path, b"second")
    assert storage.read_bytes(path) == b"first"


def test_a_put_whose_answer_was_lost_counts_as_done(folder: str) -> None:
    """A store that answers a repeated put with "is there already" must not fail a finished run."""
    path = storage.join(folder, "manifest.json")
    assert storage.write_bytes_if_absent(path, b"mine")
    assert storage.write_bytes_if_absent(path, b"mine")


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    """The file holds what the winner brought; no temporary file is left."""
    racers = 16
    with ThreadPoolExecutor(racers) as threads:
        for race in range(20):
            path = tmp_path / str(race)
            start = threading.Barrier(racers)

            def run(racer: int, path: Path = path, start: threading.Barrier = start) -> bool:
                start.wait()
                return storage.write_bytes_if_absent(str(path), b"%d" % racer * 1000)

            won = list(threads.map(run, range(racers)))
            assert sum(won) == 1
            assert path.read_bytes() == b"%d" % won.index(True) * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(20)))


def test_of_many_processes_one_wins(tmp_path: Path) -> None:
    """They share nothing but the folder."""
    code = (
        "import sys; from scar_core.storage import write_bytes_if_absent as put\n"
        "sys.stdin.readline()\n"
        "print([put(f'{sys.argv[1]}/{i}', sys.argv[2].encode()) for i in range(50)])"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), f"racer {racer}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for racer in range(3)
    ]
    for racer in racers:  # they are all there before any is let go
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [racer.communicate()[0].count("True") for racer in racers]
    assert sum(won) == 50
    held = [path.read_text() for path in tmp_path.iterdir()]
    assert [held.count(f"racer {racer}") for racer in range(3)] == won


def test_a_file_system_without_links_still_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, SMB or some FUSE mounts."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = str(tmp_path / "manifest.json")
    assert storage.write_bytes_if_absent(path, b"first")
    assert not storage.write_bytes_if_absent(path, b"second")
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
    assert storage.read_bytes(path) == b"first"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """It is not taken for "another was first"."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        storage.write_bytes_if_absent(str(tmp_path / "file" / "manifest.json"), b"")


# Listing


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


# Paths


def test_a_path_in_a_manifest_survives_a_move(tmp_path: Path) -> None:
    """Local ones are relative: the whole tree may be renamed."""
    base, pool = str(tmp_path / "out" / "run"), str(tmp_path / "pool" / "a b" / "ü.parquet")
    text = storage.portable(pool, base=base)
    assert text == "../../pool/a b/ü.parquet"
    assert storage.locate(text, base=base) == pool
    assert storage.locate(text, base="/moved/out/run") == "/moved/pool/a b/ü.parquet"


@settings(deadline=None)
@given(
    st.lists(st.text("ab é.%?#@", min_size=1).filter(lambda s: s not in {".", ".."}), min_size=1),
    st.lists(st.text("ab", min_size=1), min_size=1),
)
def test_any_local_path_can_be_found_again(path: list[str], base: list[str]) -> None:
    """Whatever letters it has, from whatever folder."""
    full, folder = "/" + "/".join(path), "/" + "/".join(base)
    assert storage.locate(storage.portable(full, base=folder), base=folder) == full


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://bucket/a b/ü?x=1#y.parquet", "s3://bucket/a b/ü?x=1#y.parquet"),
        ("s3://key:secret@bucket/a@b", "s3://bucket/a@b"),
        ("sftp://user:pass@host/a", "sftp://host/a"),
        ("https://token@host/a.parquet?X-Amz-Signature=abc", "https://host/a.parquet"),
        ("simplecache::s3://key:secret@bucket/a", "simplecache::s3://bucket/a"),
        ("abfs://container@account.dfs.core/a", "abfs://container@account.dfs.core/a"),
    ],
)
def test_a_url_in_a_manifest_holds_no_secret(url: str, text: str) -> None:
    """It leads to the same place for whoever has the credentials."""
    assert storage.portable(url, base="/anywhere") == text
    assert storage.locate(text, base="/anywhere") == text


def test_a_local_pool_can_be_found_from_scores_in_a_store() -> None:
    """A path relative to a bucket would lead nowhere."""
    text = storage.portable("/data/pool", base="s3://bucket/scores")
    assert text == "file:///data/pool"
    assert storage.locate(text, base="s3://bucket/scores") == "/data/pool"


def test_dots_are_resolved_in_a_store() -> None:
    """A store takes `..` for a name."""
    assert storage.locate("../..", base="s3://bucket/scores/runs/1") == "s3://bucket/scores"
    assert storage.locate("a", base="s3://bucket") == "s3://bucket/a"


def test_absolute_paths_are_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder, a file URL, a detour by a linked folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert storage.absolute("a") == f"{tmp_path}/a"
    assert storage.absolute("link/../b") == f"{tmp_path.resolve()}/far/b"
    assert storage.absolute("~/a") == "/home/someone/a"
    assert storage.absolute("file:///a b/c") == "/a b/c"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.join(storage.absolute("memory://"), "a", "b") == "memory://a/b"


# Folders


def test_a_folder_comes_back_as_it_was_sent(folder: str, tmp_path: Path) -> None:
    """All files below it, by their relative names."""
    source, back = tmp_path / "source", tmp_path / "back"
    fill(str(source), "config.json", "deep/er/weights.bin")
    assert storage.upload_folder(source, folder) == ["config.json", "deep/er/weights.bin"]
    storage.download_folder(folder, back)
    found = {str(f.relative_to(back)): f.read_bytes() for f in back.rglob("*") if f.is_file()}
    assert found == {name: name.encode() for name in ("config.json", "deep/er/weights.bin")}


def test_a_folder_that_is_not_there_is_said_to_be_missing(folder: str, tmp_path: Path) -> None:
    """Before anything is loaded from an empty directory."""
    with pytest.raises(InputError, match="no files there"):
        storage.download_folder(storage.join(folder, "nothing"), tmp_path / "here")


def test_files_and_folders_are_told_apart(folder: str) -> None:
    """And neither is seen where nothing is, nor below a file."""
    fill(folder, "a/b")
    paths = [storage.join(folder, name) for name in ("a/b", "a", "c", "a/b/c")]
    assert [storage.exists(path) for path in paths] == [True, False, False, False]
    assert [storage.is_folder(path) for path in paths] == [False, True, False, False]


def test_selecting_starts_without_torch_and_pandas() -> None:
    """None of these rooms, nor what they import, loads either."""
    code = (
        f"import sys, importlib\n"
        f"for name in {LIGHT}: importlib.import_module('scar_core.' + name)\n"
        "sys.exit(str({'torch', 'pandas', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
