"""Storage: whole files or none, one winner, paths fit for a manifest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import InputError

# Each imports only pyarrow and fsspec; report and manifest not even all of that.
LIGHT = ("storage", "manifest", "pool.units", "pool.sidecars", "selection.keep", "selection.report")


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
