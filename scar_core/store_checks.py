"""Whether stores can be read and written, asked before anything is started."""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scar_core import local_files, storage, stores
from scar_core.errors import AccessError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("scar_curate")

NO_CONDITIONAL_PUT = (
    "this store puts a file over one that is there, also when asked not to: two runs that publish "
    "one directory at the same moment would not notice. Start one run at a time."
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A small hidden file that was put below a folder, and how the store took it."""

    path: str
    content: bytes
    put_only_if_absent: bool
    """Whether the store refused to put another one over it when asked to."""
    ahead_seconds: tuple[float, float] | None
    """The store's clock before ours, at least and at most; None where it tells no time."""


def check_readable(paths: Iterable[str]) -> None:
    """Raise AccessError for the first path whose store cannot be asked; a few seconds at most."""
    for path in paths:
        _check(path, _ask)


def check_writable(folder: str) -> None:
    """Raise AccessError if nothing can be stored below a folder; a few seconds at most.

    In a store a small hidden file is put there and taken away again. A warning is logged where it
    knows no put that only the first of several can do.
    """
    if storage.is_local(folder):
        there = _existing(folder)
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise AccessError(
                f"{folder}: nothing can be stored below {there}. Check the path and the "
                "permissions, or choose another --out."
            )
        return
    trial = put_trial(folder)
    take_away(trial)
    if not trial.put_only_if_absent:
        logger.warning("%s", NO_CONDITIONAL_PUT)


def put_trial(folder: str) -> Trial:
    """Put a small hidden file below a folder, here or in a store; `take_away` removes it.

    Of a local folder that is not there the next one above that is gets it.

    Raises:
        AccessError: nothing can be stored there.
    """
    if storage.is_local(folder):
        return _put_local_trial(folder)
    trials: list[Trial] = []
    _check(folder, lambda filesystem, inner: trials.append(_put_trial(filesystem, inner, folder)))
    return trials[0]


def take_away(trial: Trial) -> bool:
    """Remove a trial's file; whether it is gone: a role may have no right to delete."""
    with suppress(OSError):
        if storage.is_local(trial.path):
            Path(trial.path).unlink()
            return True
        with stores.answered(trial.path):
            filesystem, inner = stores.filesystem(trial.path, patient=False)
            filesystem.rm_file(inner)
            return True
    return False


def _check(path: str, ask: Callable[[Any, str], None]) -> None:
    if storage.is_local(path):
        return
    try:
        with stores.answered(path):
            ask(*stores.filesystem(path, patient=False))
    except AccessError:
        raise
    except StoreError as error:
        raise AccessError(str(error)) from error
    except (OSError, TypeError, ValueError) as error:  # the latter two: options that make no sense
        raise AccessError(
            f"{stores.without_secret(path)}: {error}. Check the path and --storage-options."
        ) from error


def _ask(filesystem: Any, inner: str) -> None:  # noqa: ANN401 - fsspec has no types
    try:
        filesystem.info(inner)
    except (FileNotFoundError, NotADirectoryError) as error:
        if stores.error_code(error) == "NoSuchBucket":  # anything else is told by who reads it
            raise


def _existing(folder: str) -> Path:
    """A local folder, or the next one above that is there."""
    there = Path(storage.absolute(folder))
    while not there.exists():
        there = there.parent
    return there


def _put_local_trial(folder: str) -> Trial:
    path = _existing(folder) / _trial_name()
    content = path.name.encode()
    before = time.time()
    try:
        local_files.create(path, content)
        modified = path.stat().st_mtime
    except OSError as error:
        raise AccessError(
            f"{folder}: nothing can be stored below {path.parent} ({error}). Check the path and "
            "the permissions, or choose another --out."
        ) from error
    ahead = (modified - time.time(), modified - before)
    with suppress(OSError):
        local_files.create(path, b"another")
    found = path.read_bytes()
    return Trial(
        path=str(path),
        content=found,
        put_only_if_absent=found == content,
        ahead_seconds=ahead,
    )


def _put_trial(filesystem: Any, inner: str, folder: str) -> Trial:  # noqa: ANN401 - as above
    name = _trial_name()
    path, content = f"{inner.rstrip('/')}/{name}", name.encode()
    before = time.time()
    filesystem.pipe_file(path, content)
    try:
        knows = _knows_conditional_puts(filesystem, path)
        after = time.time()
        found = bytes(filesystem.cat_file(path))
        return Trial(
            path=storage.join(folder, name),
            content=found,
            put_only_if_absent=knows and found == content,
            ahead_seconds=_ahead(filesystem.info(path), before=before, after=after),
        )
    except BaseException:
        try:
            filesystem.rm_file(path)
        except OSError:
            shown = stores.without_secret(storage.join(folder, name))
            logger.warning("%s: was put as a trial and could not be removed", shown)
        raise


def _knows_conditional_puts(filesystem: Any, path: str) -> bool:  # noqa: ANN401 - as above
    """Try to put another file over one, only where none is; False if that is said to be unknown.

    Whether it was refused is seen by what is there afterwards, not by an error, which any fault
    may give.
    """
    try:
        filesystem.pipe_file(path, b"another", mode="create")
    except OSError as error:
        return stores.error_code(error) != "NotImplemented"
    except (ValueError, NotImplementedError):
        return False
    return True


def _ahead(info: dict[str, Any], *, before: float, after: float) -> tuple[float, float] | None:
    """How far a store's clock is before ours, which said `before` and `after` around a put."""
    names = ("LastModified", "last_modified", "mtime", "updated", "created")
    put = next((info[name] for name in names if info.get(name)), None)
    if isinstance(put, datetime):
        put = put.timestamp()
    if not isinstance(put, int | float):
        return None
    return put - after, put + 1 - before  # stores tell whole seconds


def _trial_name() -> str:
    return f".scar-{secrets.token_hex(8)}"
