"""One door to files, local and object storage alike.

A path is a plain path or a URL that fsspec knows (`s3://bucket/key`). A file appears whole or not
at all; no rename, empty directory or lock is assumed of a store.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scar_core import local_files
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOB_MARKS = frozenset("*?[")

# In these URLs the part before an @ is a place (container@account), not a user with a password.
_AT_IS_A_PLACE = frozenset({"abfs", "abfss", "wasb", "wasbs"})


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file as its store lists it."""

    path: str
    """Absolute path or URL."""
    size_bytes: int
    """As listed."""
    stamp: str
    """The store's etag, else the time of the last change: another stamp, another content."""


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
    scheme, _, rest = path.partition("://")
    place, slash, key = rest.partition("/")
    if scheme.rpartition("::")[2] not in _AT_IS_A_PLACE:
        place = place.rpartition("@")[2]
    if scheme in {"http", "https"}:  # most often a signature; elsewhere ? is a letter of the key
        key = key.partition("?")[0]
    return f"{scheme}://{place}{slash}{key}"


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


def _open(path: str) -> tuple[Any, str]:
    """The file system of a path and the path inside it; listings are never cached."""
    if is_local(path):
        return LocalFileSystem(), absolute(path)
    filesystem, inner = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return filesystem, inner


def _kind(path: str) -> str | None:
    """`file`, `directory`, or None where nothing is; raises if the store cannot be asked."""
    filesystem, inner = _open(path)
    try:
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
    filesystem, inner = _open(path)
    return bytes(filesystem.cat_file(inner))


def open_input(path: str) -> BinaryIO:
    """A seekable file for reading parts of it, and never more than is asked for; close it."""
    filesystem, inner = _open(path)
    # s3fs would read 50 MiB ahead, and do so at each step between two columns read in turn.
    opened: BinaryIO = filesystem.open(inner, "rb", cache_type="none")
    return opened


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends well, and leaves nothing else."""
    if is_local(path):
        with local_files.replacing(Path(absolute(path))) as file:
            yield file
        return
    filesystem, inner = _open(path)
    # Not straight into the store: few of them can take back a half-written file.
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        with whole.open("wb") as file:
            yield file
        filesystem.put_file(str(whole), inner)


def write_bytes(path: str, data: bytes) -> None:
    """Store a whole file; a reader sees the old content or the new, never a part."""
    if is_local(path):
        with local_files.replacing(Path(absolute(path))) as file:
            file.write(data)
    else:
        filesystem, inner = _open(path)
        filesystem.pipe_file(inner, data)


def write_bytes_if_absent(path: str, data: bytes) -> bool:
    """Store a file only where none is; whether these bytes are there now.

    Of several that try at once exactly one wins, if each brings bytes of its own. Object stores
    are asked for a conditional put (`If-None-Match: *`).
    """
    filesystem, inner = _open(path)
    try:
        if is_local(path):
            local_files.create(Path(inner), data)
        else:
            filesystem.pipe_file(inner, data, mode="create")
    except OSError:
        # Another was first; or this one was, and the answer to its put was lost on the way.
        if not exists(path):
            raise
        return read_bytes(path) == data
    return True


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
    filesystem, inner = _open(pattern)
    top = _open(root)[1]
    entries = (filesystem.find if inner == top else filesystem.glob)(inner, detail=True)
    searched = None
    for name in sorted(name for name, entry in entries.items() if entry["type"] == "directory"):
        if searched is None or not name.startswith(f"{searched}/"):
            searched = name
            entries |= filesystem.find(name, detail=True)
    names = {name: name[len(top) :].lstrip("/") for name in entries}
    return {
        names[name]: _file_info(join(root, names[name]), entry)
        for name, entry in entries.items()
        if entry["type"] == "file"
    }


def stat(path: str) -> FileInfo:
    """One file as listed now; FileNotFoundError where there is none."""
    filesystem, inner = _open(path)
    if is_local(path):
        found = Path(inner).stat()
        return FileInfo(path=inner, size_bytes=found.st_size, stamp=str(found.st_mtime_ns))
    return _file_info(path, filesystem.info(inner))


def _file_info(url: str, entry: dict[str, Any]) -> FileInfo:
    names = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
    stamp = next((entry[name] for name in names if entry.get(name)), "")
    if isinstance(stamp, datetime):  # memory:// lists it as a number
        stamp = stamp.timestamp()
    return FileInfo(path=url, size_bytes=int(entry["size"] or 0), stamp=str(stamp).strip('"'))


def download_folder(path: str, local: Path) -> None:
    """Copy every file below a folder to this machine; InputError where there is none."""
    filesystem, inner = _open(path)
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
    filesystem, inner = _open(path)
    if filesystem.exists(inner):
        filesystem.rm(inner, recursive=True)
