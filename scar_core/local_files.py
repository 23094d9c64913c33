"""Files of this machine: written whole or not at all, listed with links followed."""

from __future__ import annotations

import errno
import glob
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a file system that knows no hard links answers to `link`.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces `target` when the block ends well, and else is gone."""
    temporary = _temporary_for(target)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def create(target: Path, data: bytes) -> None:
    """Write a file only where none is; FileExistsError if another one was first."""
    temporary = _temporary_for(target)
    with replacing(temporary) as file:
        file.write(data)
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Still never over another file, but no longer all at once.
        with target.open("xb") as file:
            file.write(data)
    finally:
        temporary.unlink()


def _temporary_for(target: Path) -> Path:
    """A free name in a file's folder, which is made: only from there is a move atomic."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot, so that no listing takes it for data.
    return target.with_name(f".{secrets.token_hex(8)}.tmp")


def matching(pattern: str) -> Iterator[str]:
    """The files that a folder or glob names, in no order; of a folder all below it.

    A folder is searched once, by whatever links it can be reached; hidden ones are not.

    Raises:
        OSError: a folder cannot be read.
    """
    searched: set[str] = set()
    names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - pathlib's does not follow links
    for name in names:
        if not Path(name).is_dir():
            yield name
            continue
        for parent, folders, files in os.walk(name, followlinks=True, onerror=_raise):
            place = os.path.realpath(parent)
            # Sorted, so that of two links to one folder it is always the same that counts.
            folders[:] = sorted(f for f in folders if place not in searched and not is_hidden(f))
            if place not in searched:
                searched.add(place)
                yield from (os.path.join(parent, file) for file in files)  # noqa: PTH118 - a str


def is_hidden(name: str) -> bool:
    """Whether listings leave out a file or folder of this name, as those of Spark and Hive do."""
    return name.startswith((".", "_"))


def _raise(error: OSError) -> None:
    raise error
