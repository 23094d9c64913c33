"""A pool: its Parquet files, each once, with their footers read and their columns checked."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage, stores
from scar_core.errors import AccessError, InputError, PoolFileError, SchemaError, StoreError
from scar_core.pool.shapes import check_shape, columns_read, resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scar_core.pool.rows import PairColumns

FOOTER_THREADS = 16
SUFFIXES = (".parquet", ".pq")


# By their serialized form: 100,000 files of one schema would hold 600 MB of copies of it.
_SCHEMAS: dict[bytes, pa.Schema] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """One row group of a Parquet file, as its footer tells."""

    rows: int
    text_bytes: int
    """Uncompressed bytes of the columns that rows are scored by."""
    all_bytes: int
    """Uncompressed bytes of all columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolFile:
    """One Parquet file of a pool."""

    path: str
    """Relative to the pool; unique in it."""
    info: storage.FileInfo
    """As it was listed when the run was planned."""
    fingerprint: str
    """Changes when the file's content does: of name, size, etag or time of change, and footer."""
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def url(self) -> str:
        """Where to read it from any machine."""
        return self.info.path

    @property
    def shown(self) -> str:
        """The same for people: no secret is in an error."""
        return self.info.shown

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(group.rows for group in self.row_groups)

    @property
    def bytes_per_row(self) -> float:
        """Uncompressed, on average; 0 for a file without rows."""
        return sum(group.all_bytes for group in self.row_groups) / max(self.rows, 1)


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file of a pool that is left out whole, because it or a part of it cannot be read."""

    path: str
    """Relative to the pool."""
    url: str
    """Where it lies, or lay."""
    reason: str
    """`not_parquet`, `schema`, `gone`, `changed` or `unreadable`."""
    message: str
    """What was found, wanted, and what next; names the file by its path in the pool."""
    rows: int | None
    """That its footer speaks of; None where there is no footer to read."""


def open_pool(pool: Sequence[str], columns: PairColumns) -> list[PoolFile]:
    """The Parquet files of a pool, footers read and columns checked, sorted by relative path.

    Args:
        pool: files, folders and globs. A file named by several of them counts once.
        columns: where instruction and response are.

    Raises:
        InputError: nothing matches, a file is not Parquet, or the pool has no rows.
        SchemaError: a file lacks one of the columns.
    """
    return _open(pool, lambda path, info: open_file(info, path=path, columns=columns))[0]


def open_sound_files(
    pool: Sequence[str], columns: PairColumns
) -> tuple[list[PoolFile], list[BadFile]]:
    """As `open_pool`, but files that cannot be read, or lack a column, come apart from the others.

    Raises:
        InputError: nothing matches, or no file that can be read has rows.
        StoreError, AccessError: the store does not answer, or refuses; no file is blamed.
    """

    def opened(path: str, info: storage.FileInfo) -> PoolFile | BadFile:
        try:
            return open_file(info, path=path, columns=columns)
        except InputError as error:
            reason = "schema" if isinstance(error, SchemaError) else _reason(error.__cause__)
            message = str(error).replace(info.path, path)
            return BadFile(path=path, url=info.path, reason=reason, message=message, rows=None)

    return _open(pool, opened)


def bad_file(file: PoolFile, error: PoolFileError) -> BadFile:
    """A file that was sound when it was planned and could not be read later."""
    try:
        now = storage.stat(file.url)
        same = (now.size_bytes, now.stamp) == (file.info.size_bytes, file.info.stamp)
        reason = "unreadable" if same else "changed"
    except OSError as fault:
        reason = _reason(fault) if isinstance(fault, FileNotFoundError) else "unreadable"
    message = str(error).replace(file.url, file.path)
    return BadFile(path=file.path, url=file.url, reason=reason, message=message, rows=file.rows)


def _reason(error: BaseException | None) -> str:
    """Why a footer could not be read."""
    if isinstance(error, FileNotFoundError):
        return "gone"
    return "unreadable" if isinstance(error, PermissionError) else "not_parquet"


def _open(
    pool: Sequence[str], opened: Callable[[str, storage.FileInfo], PoolFile | BadFile]
) -> tuple[list[PoolFile], list[BadFile]]:
    """The sound and the bad files of a pool, each sorted by relative path."""
    if not pool:
        raise InputError("--pool names no file. Pass Parquet files, folders or globs.")
    matches = sorted(_match(pool))
    with ThreadPoolExecutor(FOOTER_THREADS) as threads:
        found = list(threads.map(lambda match: opened(*match), matches))
    files = [file for file in found if isinstance(file, PoolFile)]
    bad = [file for file in found if isinstance(file, BadFile)]
    if not any(file.rows for file in files):
        also = f", and {len(bad)} that cannot be read, the first: {bad[0].message}" if bad else ""
        raise InputError(
            f"--pool {' '.join(pool)}: {len(files)} Parquet files, all without rows{also}; "
            "nothing to score."
        )
    return files, bad


def _match(pool: Sequence[str]) -> list[tuple[str, storage.FileInfo]]:
    """(relative path, file) of every file that the pool's arguments name, each file once."""
    found: dict[str, list[tuple[str, storage.FileInfo]]] = {}
    for argument in pool:
        infos, root = _list(argument)
        for info in infos:
            _check_name(info.path)
            # The same file by a link, or by two arguments.
            same = os.path.realpath(info.path) if storage.is_local(info.path) else info.path
            found.setdefault(same, []).append((_unsigned(info.path)[len(root) :].lstrip("/"), info))
    # Of several names the longest, whatever the order of the arguments.
    longest = [
        max(names, key=lambda name: (name[0].count("/"), name[0], name[1].path))
        for names in found.values()
    ]
    return _distinct(longest)


def _unsigned(path: str) -> str:
    """A path without what may be a signature: another one, or a manifest, must not show it."""
    return path.partition("?")[0] if path.startswith(("http://", "https://")) else path


def _list(argument: str) -> tuple[list[storage.FileInfo], str]:
    """The files that one argument names, and the folder that their paths start with."""
    shown = stores.without_secret(argument)
    try:
        infos = storage.list_files(argument, suffixes=SUFFIXES)
        root = storage.static_folder(argument)
    except OSError as error:
        raise InputError(
            f"--pool {shown}: cannot be listed: {error}. Check the path and the access to it."
        ) from error
    if not infos:
        raise InputError(
            f"--pool {shown}: matches no Parquet file. "
            "Check the path; quote globs, and name files *.parquet."
        )
    return infos, root


def _check_name(path: str) -> None:
    """Raise InputError for a name that no manifest can hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path!r}: the name is not valid UTF-8. Rename the file.") from error


def _distinct(
    matches: list[tuple[str, storage.FileInfo]],
) -> list[tuple[str, storage.FileInfo]]:
    """Relative paths made unique: equal ones grow by parent folders until they differ."""
    counts = Counter(relative for relative, _ in matches)
    while len(counts) < len(matches):
        matches = [
            (_with_parent(relative, info.path) if counts[relative] > 1 else relative, info)
            for relative, info in matches
        ]
        counts = Counter(relative for relative, _ in matches)
    return matches


def _with_parent(relative: str, full: str) -> str:
    return "/".join(full.split("/")[-(relative.count("/") + 2) :])


def open_file(info: storage.FileInfo, *, path: str, columns: PairColumns) -> PoolFile:
    """Read a listed file's footer and check its columns; `path` is its name in the pool.

    Raises:
        InputError: it is not Parquet.
        SchemaError: it lacks one of the columns.
    """
    try:
        with (
            storage.open_input(info.path, listed=info) as opened,
            pq.ParquetFile(opened) as parquet,
        ):
            metadata, schema = parquet.metadata, parquet.schema_arrow
            opened.seek(-metadata.serialized_size - len("size") - len("PAR1"), os.SEEK_END)
            footer = opened.read()
    except (AccessError, StoreError):  # the store's fault, and not the file's
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{info.shown}: cannot be read as Parquet ({info.size_bytes:,} bytes): "
            f"{str(error).rstrip('.')}. "
            "Write it again, or leave it out of --pool."
        ) from error
    columns = resolved(schema, columns)  # of `auto` a first look, by the schema alone
    check_shape(schema, columns, where=info.shown)
    identity = [_unsigned(info.path).rpartition("/")[2], info.size_bytes, info.stamp]
    digest = blake2b(json.dumps(identity).encode(), digest_size=16)
    digest.update(footer)
    return PoolFile(
        path=path,
        info=info,
        fingerprint=digest.hexdigest(),
        schema=_SCHEMAS.setdefault(schema.serialize().to_pybytes(), schema),
        row_groups=_row_groups(metadata, columns_read(columns, schema)),
    )


def _row_groups(metadata: pq.FileMetaData, names: Sequence[str]) -> tuple[RowGroup, ...]:
    # A nested column has several leaves, and a name may have a dot of its own.
    nested = tuple(f"{name}." for name in names)
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaves = [i for i, path in enumerate(paths) if path in names or path.startswith(nested)]
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return tuple(
        RowGroup(
            rows=group.num_rows,
            text_bytes=sum(group.column(leaf).total_uncompressed_size for leaf in leaves),
            all_bytes=group.total_byte_size,
        )
        for group in groups
    )
