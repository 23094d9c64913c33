"""A pool: its files, each once, with footers read and columns checked.

The rows of a file that is no Parquet are read from a copy that is; all that is said of it, its
name, its changes and its place, is of the file itself.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage, stores
from scar_core.errors import AccessError, InputError, PoolFileError, SchemaError, StoreError
from scar_core.pool import imports
from scar_core.pool.kinds import (
    FORMAT_SUFFIXES,
    SUFFIXES,
    FormatConfig,
    kind_of,
    named_kind,
    read_ends,
    told_apart,
)
from scar_core.pool.shapes import check_shape, columns_read, resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scar_core.pool.rows import PairColumns

logger = logging.getLogger("scar_curate")

FOOTER_THREADS = 16
# Of files in one folder, or of notes on them, so many are told one by one.
TOLD = 20


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
    """One file of a pool."""

    path: str
    """Relative to the pool; unique in it."""
    info: storage.FileInfo
    """As it was listed when the run was planned."""
    fingerprint: str
    """Changes when the file's content does: of name, size, etag or time of change, and footer."""
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]
    copy: str | None = None
    """Where its rows are read, if it is no Parquet itself."""
    format: str = "parquet"
    """What the file itself holds."""
    broken: frozenset[int] = frozenset()
    """Numbers of the rows that are broken lines of it, and nothing but nulls in the copy."""

    @property
    def url(self) -> str:
        """Where it lies, for any machine."""
        return self.info.path

    @property
    def rows_url(self) -> str:
        """Where its rows are read as Parquet."""
        return self.copy or self.info.path

    @property
    def shown(self) -> str:
        """The same for people: no secret is in an error."""
        return self.info.shown

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(group.rows for group in self.row_groups)

    def broken_among(self, rows: Iterable[int]) -> list[int]:
        """Positions of those among some rows, by number, that are broken lines."""
        return [at for at, row in enumerate(rows) if row in self.broken] if self.broken else []

    @property
    def broken_reason(self) -> str:
        """Why broken lines are quarantined."""
        return "not_csv" if self.format.startswith("csv") else "not_json"

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
    """`not_parquet` or another format, `schema`, `gone`, `changed` or `unreadable`."""
    message: str
    """What was found, wanted, and what next; names the file by its path in the pool."""
    rows: int | None
    """That its footer speaks of; None where there is no footer to read."""


@dataclass(frozen=True, kw_only=True)
class Imports:
    """How files that are no Parquet become a part of a pool."""

    scores: str
    """The directory in whose `imported/` the copies lie."""
    config: FormatConfig = field(default_factory=FormatConfig)
    """What files are taken for."""
    make: Callable[[Sequence[imports.Import]], Iterable[imports.Outcome]] = imports.make_copies
    """Makes copies that are not there."""
    aside: str | None = None
    """Another directory for copies that are not there, in which nothing is looked for."""


def open_pool(
    pool: Sequence[str], columns: PairColumns, *, importing: Imports | None = None
) -> list[PoolFile]:
    """The files of a pool, footers read and columns checked, sorted by relative path.

    Args:
        pool: files, folders and globs. A file named by several of them counts once.
        columns: where instruction and response are.
        importing: where copies of files that are no Parquet lie; without it such files are an
            error.

    Raises:
        InputError: nothing matches, a file cannot be read, or the pool has no rows.
        SchemaError: a file lacks one of the columns.
    """
    return _open(pool, columns, importing, sound_only=True)[0]


def open_sound_files(
    pool: Sequence[str], columns: PairColumns, *, importing: Imports | None = None
) -> tuple[list[PoolFile], list[BadFile]]:
    """As `open_pool`, but files that cannot be read, or lack a column, come apart from the others.

    Raises:
        InputError: nothing matches, or no file that can be read has rows.
        StoreError, AccessError: the store does not answer, or refuses; no file is blamed.
    """
    return _open(pool, columns, importing, sound_only=False)


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
    pool: Sequence[str], columns: PairColumns, importing: Imports | None, *, sound_only: bool
) -> tuple[list[PoolFile], list[BadFile]]:
    """The sound and the bad files of a pool, each sorted by relative path."""
    if not pool:
        raise InputError("--pool names no file. Pass files, folders or globs.")
    matches = sorted(_match(pool))
    with ThreadPoolExecutor(FOOTER_THREADS) as threads:
        looked = list(threads.map(lambda match: _looked_at(match, columns, importing), matches))
        copies = _imported([one for one in looked if isinstance(one, imports.Import)], importing)
        opened = partial(_opened, copies=copies, columns=columns)
        found = list(threads.map(opened, matches, looked))
    files = [file for file in found if isinstance(file, PoolFile)]
    bad = []
    for (path, info), file in zip(matches, found, strict=True):
        if isinstance(file, PoolFile):
            continue
        error, reason = file
        if sound_only:
            raise error
        message = str(error).replace(info.path, path)
        bad.append(BadFile(path=path, url=info.path, reason=reason, message=message, rows=None))
    _tell_formats(files)
    if not any(file.rows for file in files):
        also = f", and {len(bad)} that cannot be read, the first: {bad[0].message}" if bad else ""
        raise InputError(
            f"--pool {' '.join(pool)}: {len(files)} files, all without rows{also}; "
            "nothing to score."
        )
    return files, bad


_Fault = tuple[InputError, str]
"""What is wrong with a file, and the reason in a word."""


def _fault_of(error: InputError) -> _Fault:
    return error, "schema" if isinstance(error, SchemaError) else _reason(error.__cause__)


def _looked_at(
    match: tuple[str, storage.FileInfo], columns: PairColumns, importing: Imports | None
) -> PoolFile | imports.Import | _Fault:
    """A Parquet file, open; or how another one is to be imported."""
    path, info = match
    try:
        return _look(path, info, columns, importing)
    except InputError as error:
        return _fault_of(error)
    except FileNotFoundError:
        return InputError(f"{info.shown}: is gone. Bring it back, or leave it out."), "gone"
    except PermissionError as error:
        return InputError(f"{info.shown}: cannot be read: {error}."), "unreadable"


def _look(
    path: str, info: storage.FileInfo, columns: PairColumns, importing: Imports | None
) -> PoolFile | imports.Import:
    config = importing.config if importing else FormatConfig()
    if named_kind(info.path) == ("parquet", "") and config.pool_format in ("auto", "parquet"):
        return open_file(info, path=path, columns=columns)
    ends = read_ends(info)
    kind = kind_of(info, ends[0], config)
    if said := told_apart(info, kind):
        logger.warning("%s", said)
    if kind.format == "parquet":
        return open_file(info, path=path, columns=columns)
    if importing is None:
        raise InputError(f"{info.shown}: holds {kind}; wanted Parquet here.")
    return imports.import_of(info, kind, ends, importing.scores)


def _imported(
    wanted: Sequence[imports.Import], importing: Imports | None
) -> dict[str, imports.Import | imports.Outcome]:
    """By fingerprint where the copies of files are, made where they were not, or why there is none.

    The same file in two folders has one copy.
    """
    copies: dict[str, imports.Import | imports.Outcome] = {}
    if not wanted or importing is None:
        return copies
    there = imports.copies_there(importing.scores)
    missing = {}
    for task in wanted:
        place = importing.scores if task.copy in there else importing.aside or importing.scores
        moved = replace(task, copy=imports.copy_in(place, task.fingerprint))
        copies[task.fingerprint] = moved
        if task.copy not in there:
            missing[task.fingerprint] = moved
    if not missing:
        return copies
    size = sum(task.info.size_bytes for task in missing.values())
    logger.info("importing %s files, %.1f MiB, as Parquet", f"{len(missing):,}", size / 2**20)
    notes: list[str] = []
    for outcome in importing.make(list(missing.values())):
        notes += outcome.notes
        if outcome.reason:
            copies[outcome.fingerprint] = outcome
    for note in sorted(notes)[:TOLD]:
        logger.warning("%s", note)
    if len(notes) > TOLD:
        logger.warning("%s more notes of this kind", f"{len(notes) - TOLD:,}")
    return copies


def _opened(
    match: tuple[str, storage.FileInfo],
    looked: PoolFile | imports.Import | _Fault,
    *,
    copies: Mapping[str, imports.Import | imports.Outcome],
    columns: PairColumns,
) -> PoolFile | _Fault:
    """What was looked at, with the copy of an import open."""
    if not isinstance(looked, imports.Import):
        return looked
    there = copies[looked.fingerprint]
    if isinstance(there, imports.Outcome):
        kind = SchemaError if there.reason == "schema" else InputError
        return kind(there.message), there.reason
    try:
        # Of two copies of a file each has a place of its own, and both are read from one.
        return open_copy(replace(looked, copy=there.copy), path=match[0], columns=columns)
    except InputError as error:
        return _fault_of(error)


def _tell_formats(files: Sequence[PoolFile]) -> None:
    """Say how many files of a pool there are of each format, unless all are Parquet."""
    formats = Counter(file.format for file in files)
    if formats.keys() - {"parquet"}:
        told = (f"{count:,} {name}" for name, count in sorted(formats.items()))
        logger.info("pool: files by what they hold: %s", ", ".join(told))


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
        infos = list_data(argument)
        root = storage.static_folder(argument)
    except OSError as error:
        raise InputError(
            f"--pool {shown}: cannot be listed: {error}. Check the path and the access to it."
        ) from error
    if not infos:
        raise InputError(
            f"--pool {shown}: matches no file that can be read. Check the path; quote globs, "
            f"and name files {', '.join(f'*{suffix}' for suffix in FORMAT_SUFFIXES)}."
        )
    return infos, root


DESCRIPTIONS = frozenset(
    {
        "config.json",
        "dataset_dict.json",
        "dataset_info.json",
        "dataset_infos.json",
        "latest.json",
        "manifest.json",
        "report.json",
        "spread.json",
        "state.json",
    }
)
"""Names of files that tell of the data beside them: those of `datasets`, of trainers and ours."""


def list_data(argument: str) -> list[storage.FileInfo]:
    """The files of a pool that one argument names, sorted by path.

    What a folder holds under one of the names of DESCRIPTIONS is no data, and of a folder that
    `Dataset.save_to_disk` wrote only what its state.json lists is. Any other file is of the pool:
    if it holds no rows, it is a bad file and not passed over.
    """
    infos = storage.list_files(argument, suffixes=SUFFIXES)
    if named_kind(argument)[0] is not None:  # a file, or a glob for such files
        return infos
    saved = {
        info.path.rpartition("/")[0]: _saved_files(info.path)
        for info in infos
        if info.path.rpartition("/")[2] == "state.json"
    }
    listed = []
    for info in infos:
        folder, _, name = info.path.rpartition("/")
        data = saved.get(folder)
        if name not in DESCRIPTIONS if data is None else name in data:
            listed.append(info)
    return listed


def _saved_files(state: str) -> set[str] | None:
    """The names that the state.json of a saved data set lists; None where it is another's."""
    try:
        listed = json.loads(storage.read_bytes(state))["_data_files"]
        return {str(entry["filename"]) for entry in listed}
    except (ValueError, KeyError, TypeError):
        return None


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
    """Read a listed Parquet file's footer and check its columns; `path` is its name in the pool.

    Raises:
        InputError: it is not Parquet.
        SchemaError: it lacks one of the columns.
    """
    try:
        metadata, schema, footer = _footer(info)
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


def open_copy(task: imports.Import, *, path: str, columns: PairColumns) -> PoolFile:
    """A file that is no Parquet, by the copy of its rows.

    Raises:
        InputError: there is no copy, or it is not whole.
        SchemaError: the file lacks one of the columns.
    """
    shown = task.info.shown
    try:
        metadata, schema, _ = _footer(storage.stat(task.copy))
    except (AccessError, StoreError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{shown}: the copy of its rows, {task.copy}, cannot be read: {error}. Remove the "
            "copy and score again: it is made again."
        ) from error
    kept = {key: value for key, value in (schema.metadata or {}).items() if key != imports.BROKEN}
    schema = schema.with_metadata(kept) if kept else schema.remove_metadata()
    columns = resolved(schema, columns)  # as of Parquet
    check_shape(schema, columns, where=shown)
    return PoolFile(
        path=path,
        info=task.info,
        fingerprint=task.fingerprint,
        schema=_SCHEMAS.setdefault(schema.serialize().to_pybytes(), schema),
        row_groups=_row_groups(metadata, columns_read(columns, schema)),
        copy=task.copy,
        format=str(task.kind),
        broken=imports.broken_rows(metadata),
    )


def reopen(
    info: storage.FileInfo,
    *,
    path: str,
    fingerprint: str,
    columns: PairColumns,
    importing: Imports,
) -> PoolFile:
    """A file that was scored, and its copy, which is not made again.

    Raises:
        InputError: it changed, it cannot be read, or there is no copy of it.
        SchemaError: it lacks one of the columns.
    """
    found = _look(path, info, columns, importing)
    if found.fingerprint != fingerprint:
        raise InputError(
            f"{info.shown}: changed since it was scored. Score again: only it is done anew."
        )
    if isinstance(found, imports.Import):
        return open_copy(found, path=path, columns=columns)
    return found


def _footer(info: storage.FileInfo) -> tuple[pq.FileMetaData, pa.Schema, bytes]:
    """A Parquet file's footer, parsed, and its bytes."""
    with (
        storage.open_input(info.path, listed=info) as opened,
        pq.ParquetFile(opened) as parquet,
    ):
        metadata, schema = parquet.metadata, parquet.schema_arrow
        opened.seek(-metadata.serialized_size - len("size") - len("PAR1"), os.SEEK_END)
        return metadata, schema, opened.read()


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
