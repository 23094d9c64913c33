"""Whether stores can be read and written, asked before anything is started."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scar_core import storage, stores
from scar_core.errors import AccessError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("scar_curate")

_NO_CONDITIONAL_PUT = (
    "this store puts a file over one that is there, also when asked not to: two runs that publish "
    "one directory at the same moment would not notice. Start one run at a time."
)


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
        there = Path(storage.absolute(folder))
        while not there.exists():
            there = there.parent
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise AccessError(
                f"{folder}: nothing can be stored below {there}. Check the path and the "
                "permissions, or choose another --out."
            )
    _check(folder, _try_puts)


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


def _try_puts(filesystem: Any, folder: str) -> None:  # noqa: ANN401 - as above
    path = f"{folder.rstrip('/')}/.scar-{secrets.token_hex(8)}"
    filesystem.pipe_file(path, b"1")
    try:
        filesystem.pipe_file(path, b"2", mode="create")
        refused = False
    except OSError as error:
        refused = stores.error_code(error) != "NotImplemented"
    except (ValueError, NotImplementedError):
        refused = False
    finally:
        with suppress(OSError):  # a role may have no right to delete, and needs none
            filesystem.rm_file(path)
    if not refused:
        logger.warning("%s", _NO_CONDITIONAL_PUT)
