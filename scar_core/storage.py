"""One door to files, local and object storage alike.

A path is a plain path or a URL that fsspec knows (`s3://bucket/key`). A file appears whole or not
at all; no rename, empty directory or lock is assumed of a store.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from scar_core import local_files, stores
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOB_MARKS = frozenset("*?[")
# A glob that ends so names files of one folder, not what lies below it.
LEAF_SUFFIXES = (".parquet", ".pq", ".jsonl", ".json", ".gz")

# A put that meets another one under way is answered with a conflict: neither of them is there yet.
CONFLICT_WAIT_SECONDS = (0.2, 0.5, 1.0, 2.0)
UPLOAD_ATTEMPTS = 3
# A file of two of these and more goes to S3 in parts, several at a time; a reset costs one of them.
PART_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file as its store lists it."""

    path: str
    """Absolute path or URL."""
    size_bytes: int
    """As listed."""
    stamp: str
    """The store's etag, else the time of the last change: another stamp, another content."""

    @property
    def shown(self) -> str:
        """The path for people: without a password, a token or a signature."""
        return stores.without_secret(self.path)


def is_local(path: str) -> bool:
    """Whether a path lies on this machine's file systems."""
    return "://" not in path or path.startswith(("file://", "local://"))


def absolute(path: str) -> str:
    """The path as any process may use it: URLs as they are, local paths made absolute."""
    if not is_local(path):
        return path if path.endswith("://") else path.rstrip("/")
    local = Path(path.partition("://")[2] or path).expanduser().absolute()
    # Only the file system knows what `..` behind a link means.
    return str(local.resolve() if ".." in local.parts else local)


def join(folder: str, *parts: str) -> str:
    """A path below a folder."""
    start = folder if folder.endswith("://") else f"{folder.rstrip('/')}/"
    return start + "/".join(parts)


def portable(path: str, *, base: str) -> str:
    """A path fit for a manifest in `base`: relative to it where both are local, without secrets.

    A local path in a manifest that is not local is a `file://` URL; nothing less leads there.
    """
    if is_local(path):
        here = absolute(path)
        return os.path.relpath(here, absolute(base)) if is_local(base) else f"file://{here}"
    return stores.without_secret(path)


def locate(path: str, *, base: str) -> str:
    """The inverse of `portable`: where a manifest in `base` points to."""
    if not is_local(path):
        return path
    if "://" in path or Path(path).is_absolute():
        return absolute(path)
    if is_local(base):
        return os.path.normpath(join(absolute(base), path))
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{posixpath.normpath(join(rest, path))}"  # a store knows no `..`


@contextmanager
def _asked(path: str) -> Iterator[tuple[Any, str]]:
    """The file system of a path, the path inside it; what a store's client raises made ours."""
    if is_local(path):
        yield LocalFileSystem(), absolute(path)
        return
    with stores.answered(path):
        yield stores.filesystem(path)


def _kind(path: str) -> str | None:
    """`file`, `directory`, or None where nothing is; raises if the store cannot be asked."""
    try:
        with _asked(path) as (filesystem, inner):
            return str(filesystem.info(inner)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(path: str) -> bool:
    """Whether a file is there now."""
    return _kind(path) == "file"


def is_folder(path: str) -> bool:
    """Whether anything is stored below a path."""
    return _kind(path) == "directory"


def read_bytes(path: str) -> bytes:
    """The whole content; FileNotFoundError where there is none."""
    with _asked(path) as (filesystem, inner):
        # One connection: with several s3fs asks for the size first, twice the requests.
        one = {"max_concurrency": 1} if stores.S3 & set(_protocols(filesystem)) else {}
        return bytes(filesystem.cat_file(inner, **one))


def open_input(path: str, *, listed: FileInfo | None = None) -> BinaryIO:
    """A seekable file for reading parts of it, and never more than is asked for; close it.

    A store need not be asked about a file that was just listed. Without `listed` it is an error if
    S3 finds the file replaced while it is read.
    """
    with _asked(path) as (filesystem, inner):
        known = listed is not None and stores.S3 & set(_protocols(filesystem))
        options = {"size": listed.size_bytes} if listed is not None and known else {}
        # s3fs would read 50 MiB ahead, and do so at each step between two columns read in turn.
        opened = filesystem.open(inner, "rb", cache_type="none", **options)
        if listed is not None and known:  # else s3fs asks for them at the first read
            opened.details = {"name": inner, "size": listed.size_bytes, "type": "file"}
    return (
        cast("BinaryIO", opened)
        if is_local(path)
        else cast("BinaryIO", stores.StoredFile(opened, path))
    )


def _protocols(filesystem: Any) -> tuple[str, ...]:  # noqa: ANN401 - as above
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends well, and leaves nothing else."""
    if is_local(path):
        with local_files.replacing(Path(absolute(path))) as file:
            yield file
        return
    # Not straight into the store: few of them can take back a half-written file.
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        with whole.open("wb") as file:
            yield file
        with _asked(path) as (filesystem, inner):
            _upload(filesystem, str(whole), inner)


def _upload(filesystem: Any, local: str, inner: str) -> None:  # noqa: ANN401 - as above
    """Put a local file, in parts if it is large, which appear together or not at all."""
    parts = {"chunksize": PART_BYTES} if stores.S3 & set(_protocols(filesystem)) else {}
    for attempt in range(UPLOAD_ATTEMPTS):
        try:
            filesystem.put_file(local, inner, **parts)
        except FileNotFoundError as error:
            # The parts were put together, the answer was lost, and the store knows them no more.
            if stores.error_code(error) != "NoSuchUpload" or attempt == UPLOAD_ATTEMPTS - 1:
                raise
        else:
            return


def write_bytes(path: str, data: bytes) -> None:
    """Store a whole file; a reader sees the old content or the new, never a part."""
    if is_local(path):
        with local_files.replacing(Path(absolute(path))) as file:
            file.write(data)
    else:
        with _asked(path) as (filesystem, inner):
            filesystem.pipe_file(inner, data)


def write_bytes_if_absent(path: str, data: bytes) -> bool:
    """Store a file only where none is; whether these bytes are there now.

    Of several that try at once exactly one wins, if each brings bytes of its own. Object stores
    are asked for a conditional put (`If-None-Match: *`). One that knows none never loses a file
    that was there before; of several at once the last one wins, and an earlier one may not notice.
    """
    try:
        if is_local(path):
            local_files.create(Path(absolute(path)), data)
            return True
        if not exists(path):
            _put_new(path, data)
    except OSError:
        # Another was first; or this one was, and the answer to its put was lost on the way.
        if not exists(path):
            raise
    return read_bytes(path) == data


def _put_new(path: str, data: bytes) -> None:
    """Put a file where none is; OSError where one is, as far as the store can tell."""
    for wait_seconds in (*CONFLICT_WAIT_SECONDS, None):
        try:
            with _asked(path) as (filesystem, inner):
                filesystem.pipe_file(inner, data, mode="create")
        except (OSError, ValueError, NotImplementedError) as error:
            code = stores.error_code(error)
            if code == "NotImplemented" or not isinstance(error, OSError):
                write_bytes(path, data)
            elif code == "ConditionalRequestConflict" and wait_seconds is not None:
                time.sleep(wait_seconds)
                continue
            else:
                raise
        return


def list_files(pattern: str, *, suffixes: tuple[str, ...] = ()) -> list[FileInfo]:
    """The files that a path, folder (searched to its depth) or glob names, sorted by path.

    In folders and globs hidden files and hidden folders (a name that starts with a dot or an
    underscore) are left out, as Spark and Hive do, and only names with one of the suffixes count,
    if any are given. A folder that a glob names is searched like one that is named outright.

    Raises:
        OSError: a folder or a file in it cannot be read, so the list would not be whole.
    """
    pattern = absolute(pattern)
    if exists(pattern):
        return [stat(pattern)]
    root = static_folder(pattern)
    found = _found(pattern, root)
    return [
        found[name] or stat(join(root, name))
        for name in sorted(found)
        if not any(local_files.is_hidden(part) for part in name.split("/"))
        and (not suffixes or name.lower().endswith(suffixes))
    ]


def list_folders(path: str) -> list[str]:
    """The names of the folders right below a path, sorted; none where nothing is there."""
    try:
        with _asked(path) as (filesystem, inner):
            entries = filesystem.ls(inner, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (entry["name"] for entry in entries if entry["type"] == "directory")
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def static_folder(pattern: str) -> str:
    """The folder whose contents a path, folder or glob names: the deepest above any glob mark."""
    pattern = absolute(pattern)
    kind = _kind(pattern)
    parts = pattern.split("/")
    if kind is None:
        marked = (index for index, part in enumerate(parts) if GLOB_MARKS & set(part))
        parts = parts[: next(marked, len(parts))]
    elif kind == "file":
        parts = parts[:-1]
    return "/".join(parts) or "/"


def _found(pattern: str, root: str) -> dict[str, FileInfo | None]:
    """By name below `root` the files that a folder or glob names; None: ask for its `stat`."""
    if is_local(pattern):
        files = local_files.matching(pattern)
        return dict.fromkeys(name[len(root) :].lstrip("/") for name in files)
    with _asked(pattern) as (filesystem, inner):
        top = filesystem._strip_protocol(root)  # noqa: SLF001 - fsspec's name for "path inside it"
        entries = _entries(filesystem, inner, top)
    names = {name: name[len(top) :].lstrip("/") for name in entries}
    return {
        names[name]: _file_info(join(root, names[name]), entry)
        for name, entry in entries.items()
        if entry["type"] == "file"
    }


def _entries(filesystem: Any, inner: str, top: str) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """Of all files below a folder those that it, or a glob, names: one listing, in pages.

    fsspec's `glob` would list each folder that matches by itself, a thousand days one by one.
    """
    if inner == top:
        return dict(filesystem.find(inner, detail=True))
    first, *more = inner[len(top) :].lstrip("/").split("/")
    if not more and first.endswith(LEAF_SUFFIXES):
        return dict(filesystem.glob(inner, detail=True))
    start = {}
    if stores.S3 & set(_protocols(filesystem)):
        start["prefix"] = re.split(r"[*?[]", first)[0]
    named = re.compile(glob_translate(inner)).match
    return {
        name: entry
        for name, entry in filesystem.find(top, detail=True, **start).items()
        if any(named(path) for path in _with_parents(name, top))
    }


def _with_parents(name: str, top: str) -> Iterator[str]:
    """A path and the folders above it, as far as they lie below another."""
    while len(name) > len(top):
        yield name
        name = name.rpartition("/")[0]


def stat(path: str) -> FileInfo:
    """One file as listed now; FileNotFoundError where there is none."""
    if is_local(path):
        inner = absolute(path)
        found = Path(inner).stat()
        return FileInfo(path=inner, size_bytes=found.st_size, stamp=str(found.st_mtime_ns))
    with _asked(path) as (filesystem, inner):
        return _file_info(path, filesystem.info(inner))


def _file_info(url: str, entry: dict[str, Any]) -> FileInfo:
    names = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
    stamp = next((entry[name] for name in names if entry.get(name)), "")
    if isinstance(stamp, datetime):  # memory:// lists it as a number
        stamp = stamp.timestamp()
    return FileInfo(path=url, size_bytes=int(entry["size"] or 0), stamp=str(stamp).strip('"'))


def download_folder(path: str, local: Path) -> None:
    """Copy every file below a folder to this machine; InputError where there is none."""
    with _asked(path) as (filesystem, inner):
        names = filesystem.find(inner)
        if not names:
            raise InputError(f"{path}: no files there. Check the path and the credentials.")
        for name in names:
            target = local / os.path.relpath(name, inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(target))


def upload_folder(local: Path, path: str) -> list[str]:
    """Store every file below a local folder under a path; the relative names, sorted."""
    names = sorted(str(file.relative_to(local)) for file in local.rglob("*") if file.is_file())
    for name in names:
        with (local / name).open("rb") as file, open_output(join(path, name)) as stored:
            shutil.copyfileobj(file, stored)
    return names


def remove_folder(path: str) -> None:
    """Remove a folder that this process's run made, with all in it; nothing where there is none."""
    with _asked(path) as (filesystem, inner):
        if filesystem.exists(inner):
            filesystem.rm(inner, recursive=True)
