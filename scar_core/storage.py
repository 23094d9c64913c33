"""One door to files, local and object storage alike.

A path is a plain path or a URL that fsspec knows (`s3://bucket/key`). A file appears whole or not
at all; no rename, empty directory or lock is assumed of a store.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOB_MARKS = frozenset("*?[")


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
        return path.rstrip("/")
    return str(Path(path.split("://", 1)[-1]).expanduser().absolute())


def join(folder: str, *parts: str) -> str:
    """A path below a folder."""
    return "/".join([folder.rstrip("/"), *parts])


def portable(path: str, *, base: str) -> str:
    """A path fit for a manifest in `base`: relative to it where local, without credentials."""
    if is_local(path):
        return os.path.relpath(absolute(path), absolute(base))
    url = urlsplit(path)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))


def locate(path: str, *, base: str) -> str:
    """The inverse of `portable`: where a manifest in `base` points to."""
    if "://" in path or Path(path).is_absolute():
        return path
    return os.path.normpath(join(base, path)) if is_local(base) else join(base, path)


def _open(path: str) -> tuple[Any, str]:
    """The file system of a path and the path inside it; listings are never cached."""
    filesystem, inner = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return filesystem, inner


def exists(path: str) -> bool:
    """Whether a file is there now."""
    filesystem, inner = _open(path)
    return bool(filesystem.isfile(inner))


def is_folder(path: str) -> bool:
    """Whether anything is stored below a path."""
    filesystem, inner = _open(path)
    return bool(filesystem.isdir(inner))


def read_bytes(path: str) -> bytes:
    """The whole content; FileNotFoundError where there is none."""
    filesystem, inner = _open(path)
    return bytes(filesystem.cat_file(inner))


def open_input(path: str) -> BinaryIO:
    """A seekable file for reading parts of it; close it."""
    filesystem, inner = _open(path)
    opened: BinaryIO = filesystem.open(inner, "rb")
    return opened


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends well, and leaves nothing else."""
    filesystem, inner = _open(path)
    if isinstance(filesystem, LocalFileSystem):
        with _open_local_output(Path(inner)) as file:
            yield file
        return
    file = filesystem.open(inner, "wb", autocommit=False)
    try:
        yield file
        file.close()
    except BaseException:
        file.discard()
        raise
    file.commit()


@contextmanager
def _open_local_output(target: Path) -> Iterator[BinaryIO]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, so that the move is atomic; a leading dot, so that no listing takes it for data.
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Store a whole file; a reader sees the old content or the new, never a part."""
    filesystem, inner = _open(path)
    if isinstance(filesystem, LocalFileSystem):
        with _open_local_output(Path(inner)) as file:
            file.write(data)
    else:
        filesystem.pipe_file(inner, data)


def write_bytes_if_absent(path: str, data: bytes) -> bool:
    """Store a file only where none is; False if another one was first.

    Object stores are asked for a conditional put (`If-None-Match: *`).
    """
    filesystem, inner = _open(path)
    if not isinstance(filesystem, LocalFileSystem):
        try:
            filesystem.pipe_file(inner, data, mode="create")
        except FileExistsError:
            return False
        return True
    target = Path(inner)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def list_files(pattern: str, *, suffixes: tuple[str, ...] = ()) -> list[FileInfo]:
    """The files that a path, folder (searched to its depth) or glob names, sorted by path.

    Hidden files (a name that starts with a dot or an underscore) are left out, as Spark and Hive
    do; in folders and globs only names with one of the suffixes count, if any are given.
    """
    filesystem, inner = _open(pattern)
    if GLOB_MARKS & set(inner):
        found = filesystem.glob(inner, detail=True)
    elif filesystem.isfile(inner):
        return [_file_info(filesystem, inner, filesystem.info(inner))]
    else:
        found = filesystem.find(inner, detail=True)
    return [
        _file_info(filesystem, name, info)
        for name, info in sorted(found.items())
        if info["type"] == "file"
        and not PurePosixPath(name).name.startswith((".", "_"))
        and (not suffixes or name.endswith(suffixes))
    ]


def stat(path: str) -> FileInfo:
    """One file as listed now; FileNotFoundError where there is none."""
    filesystem, inner = _open(path)
    return _file_info(filesystem, inner, filesystem.info(inner))


def _file_info(filesystem: Any, name: str, info: dict[str, Any]) -> FileInfo:  # noqa: ANN401 - fsspec has no types
    stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    url = name if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(name)
    return FileInfo(path=url, size_bytes=int(info["size"]), stamp=str(stamp).strip('"'))


def static_folder(pattern: str) -> str:
    """The deepest folder of a path, folder or glob that holds no glob mark."""
    parts = absolute(pattern).split("/")
    for index, part in enumerate(parts):
        if GLOB_MARKS & set(part):
            return "/".join(parts[:index])
    return absolute(pattern)


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
        write_bytes(join(path, name), (local / name).read_bytes())
    return names
