"""Files that are no Parquet as exact Parquet copies of their rows, made once and read ever after.

Row n of a file is row n of its copy. The same file gives the same bytes, so two runs that make one
copy at once do no harm, and one that somebody deleted is made again.
"""

from __future__ import annotations

import json
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import AccessError, InputError, SchemaError, StoreError
from scar_core.pool.json_types import (
    JsonType,
    arrow_field,
    as_column,
    kept_as_text,
    observe,
)
from scar_core.pool.kinds import UNPACKING_ERRORS, Kind, unpacked
from scar_core.pool.text_rows import Broken, SizedRow, csv_header, csv_rows, json_rows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

# Another version writes other copies: what is scored of a file that was imported is scored anew.
VERSION = 1
# Of a row group, and of what is held of a file: as rows of Python it is some times as large.
GROUP_ROWS = 8192
GROUP_BYTES = 16 * 2**20
MOST_BROKEN = 10_000
MOST_COLUMNS = 4096
BROKEN = b"scar.broken_rows"
"""Key of a copy's metadata: the numbers of the rows that are broken lines, as JSON."""
_TASTE_ROWS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """A file and where the copy of its rows is, or is to be."""

    info: storage.FileInfo
    kind: Kind
    fingerprint: str
    """Of name, size, etag or time of change, first and last bytes, and how it is read."""
    copy: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an import."""

    fingerprint: str
    reason: str = ""
    """Why there is no copy; empty where there is one."""
    message: str = ""
    """The same for a person."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the copy."""


def import_of(info: storage.FileInfo, kind: Kind, ends: tuple[bytes, bytes], folder: str) -> Import:
    """The import of a file whose copy lies in `imported/` of a scores directory."""
    name = info.path.rpartition("/")[2].partition("?")[0]
    read_as = [kind.format, kind.compression, kind.delimiter, VERSION]
    identity = json.dumps([name, info.size_bytes, info.stamp, read_as]).encode()
    # The ends, too: archives unpack many a file of one name, size and time, and other content.
    digest = blake2b(b"%d " % len(identity) + identity, digest_size=16)
    for end in ends:
        digest.update(end)
    fingerprint = digest.hexdigest()
    return Import(info=info, kind=kind, fingerprint=fingerprint, copy=copy_in(folder, fingerprint))


def copy_in(scores: str, fingerprint: str) -> str:
    """Where the copy of a file lies in a scores directory."""
    return storage.join(scores, "imported", f"{fingerprint}.parquet")


def copies_there(scores: str) -> set[str]:
    """The copies of a scores directory."""
    folder = storage.join(scores, "imported")
    return {info.path for info in storage.list_files(folder, suffixes=(".parquet",))}


def make_copies(tasks: Iterable[Import]) -> Iterator[Outcome]:
    """Make copies one after the other, in this process."""
    return map(make_copy, tasks)


def make_copy(task: Import) -> Outcome:
    """Write the copy of a file, whole or not at all; what is wrong with the file is an outcome.

    Raises:
        AccessError, StoreError: the store's fault, and not the file's.
    """
    fault = f"not_{task.kind.format}"
    try:
        with storage.open_output(task.copy) as file:
            notes = _write(task, file)
            _check_unchanged(task.info)
    except (AccessError, StoreError):
        raise
    except FileNotFoundError:
        where = f"{task.info.shown}: is gone. Bring it back, or leave it out of --pool."
        return Outcome(fingerprint=task.fingerprint, reason="gone", message=where)
    except SchemaError as error:
        return Outcome(fingerprint=task.fingerprint, reason="schema", message=str(error))
    except _ChangedError as error:
        return Outcome(fingerprint=task.fingerprint, reason="changed", message=str(error))
    except (InputError, ValueError, RecursionError, *UNPACKING_ERRORS) as error:
        told = (
            f"{task.info.shown}: cannot be read as {task.kind} ({task.info.size_bytes:,} bytes): "
            f"{str(error).rstrip('.') or type(error).__name__}. Mend it, say what it is with "
            "--pool-format, or leave it out of --pool."
        )
        return Outcome(fingerprint=task.fingerprint, reason=fault, message=told)
    return Outcome(fingerprint=task.fingerprint, notes=notes)


class _ChangedError(InputError):
    """A file is another one now."""


def _check_unchanged(info: storage.FileInfo) -> None:
    now = storage.stat(info.path)
    if (now.size_bytes, now.stamp) != (info.size_bytes, info.stamp):
        raise _ChangedError(f"{info.shown}: changed while it was read. Start again.")


def _write(task: Import, file: BinaryIO) -> list[str]:
    """The rows of a file as Parquet; what a person should know of them."""
    if task.kind.format == "arrow":
        with _arrow_batches(task) as (schema, batches):
            _check_names(schema.names, task.info.shown)
            tables = _regrouped(schema, batches)
            with pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=GROUP_ROWS)
        return []
    types = row_types(task)
    schema = pa.schema([arrow_field(name, kind) for name, kind in types.items()])
    broken: dict[int, Broken] = {}
    with pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as writer:
        for rows in _row_groups(_rows(task), broken):
            columns = [
                as_column([row.get(name) for row in rows], kind) for name, kind in types.items()
            ]
            table = pa.Table.from_arrays(columns, schema=schema)
            writer.write_table(table, row_group_size=GROUP_ROWS)
        writer.add_key_value_metadata({BROKEN: json.dumps(list(broken))})
    return _notes(task, types, broken)


def _notes(task: Import, types: dict[str, JsonType], broken: dict[int, Broken]) -> list[str]:
    notes = []
    if mixed := kept_as_text(types):
        notes.append(
            f"{task.info.shown}: values without a common type are kept as text in "
            f"{', '.join(mixed)}: strings as they are, others as JSON"
        )
    if broken:
        first = next(iter(broken.values()))
        notes.append(
            f"{task.info.shown}: {len(broken):,} broken rows, which are quarantined; the first, "
            f"{first.place}, {first.why}"
        )
    return notes


def row_types(task: Import, *, most_rows: int | None = None) -> dict[str, JsonType]:
    """The columns of a JSON or CSV file and their types, of all its rows or of the first ones.

    Raises:
        InputError: the file cannot be read.
        SchemaError: it has two columns of one name, or none.
    """
    shown = task.info.shown
    if task.kind.format == "csv":
        with _opener(task) as opened:
            names = csv_header(opened, delimiter=task.kind.delimiter)
        _check_names(names, shown)
        return dict.fromkeys(names, "text")
    types: dict[str, JsonType] = {}
    with closing(_rows(task)) as rows:
        for _, row in islice(rows, most_rows):
            if not isinstance(row, Broken):
                observe(types, row)
            if len(types) > MOST_COLUMNS:
                raise SchemaError(
                    f"{shown}: has more than {MOST_COLUMNS:,} fields; wanted rows of one kind. Put "
                    "what differs from row to row into one field."
                )
    _check_names(list(types), shown)
    return types


def _check_names(names: list[str], shown: str) -> None:
    if not names:
        raise SchemaError(f"{shown}: has no columns; wanted rows with names. Check the file.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(
            f"{shown}: several columns are named {', '.join(twice)}; wanted one of each name. "
            "Rename or drop the others."
        )


def taste_schema(task: Import) -> pa.Schema:
    """The columns of a file by its first rows, without a copy of it.

    Raises:
        InputError: it cannot be read so far.
    """
    try:
        if task.kind.format == "arrow":
            with _arrow_batches(task) as (schema, _):
                return schema
        types = row_types(task, most_rows=_TASTE_ROWS)
    except (AccessError, StoreError, SchemaError):
        raise
    except (InputError, ValueError, RecursionError, *UNPACKING_ERRORS) as error:
        raise InputError(
            f"{task.info.shown}: cannot be read as {task.kind}: {error}. Check the file."
        ) from error
    return pa.schema([arrow_field(name, kind) for name, kind in types.items()])


def plain_rows(task: Import) -> Iterator[dict[str, Any] | Broken]:
    """The rows of a file as Python objects, without a copy; those of Arrow as Arrow has them.

    Raises:
        InputError: the file cannot be read to its end.
    """
    try:
        if task.kind.format == "arrow":
            with _arrow_batches(task) as (_, batches):
                for batch in batches:
                    yield from batch.to_pylist()
        else:
            for _, row in _rows(task):
                yield row
    except (AccessError, StoreError):
        raise
    except (InputError, ValueError, RecursionError, *UNPACKING_ERRORS) as error:
        raise InputError(
            f"{task.info.shown}: cannot be read as {task.kind}: {error}. Check the file."
        ) from error


@contextmanager
def _opener(task: Import) -> Iterator[Any]:
    """Gives the file from its start, as often as it is called; each is closed at the end."""
    held = []

    def opened() -> BinaryIO:
        held.append(unpacked(task.info, task.kind))
        return held[-1].__enter__()

    try:
        yield opened
    finally:
        for one in held:
            one.__exit__(None, None, None)


def _rows(task: Import) -> Generator[SizedRow, None, None]:
    with _opener(task) as opened:
        if task.kind.format == "csv":
            yield from csv_rows(opened, delimiter=task.kind.delimiter)
        else:
            yield from json_rows(opened, lines=task.kind.format == "jsonl")


def _row_groups(
    rows: Iterable[SizedRow], broken: dict[int, Broken]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one row group after the other; a broken one has no fields, and is told of."""
    group: list[dict[str, Any]] = []
    held = 0
    for number, (size, row) in enumerate(rows):
        if isinstance(row, Broken):
            broken[number] = row
            if len(broken) > MOST_BROKEN:
                raise InputError(
                    f"more than {MOST_BROKEN:,} rows are broken; the last, {row.place}, {row.why}"
                )
        group.append({} if isinstance(row, Broken) else row)
        held += size
        if len(group) == GROUP_ROWS or held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


@contextmanager
def _arrow_batches(task: Import) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema and the batches of an Arrow file, or of a stream."""
    with storage.open_input(task.info.path, listed=task.info) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            with pa.ipc.open_file(file) as reader:
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
                yield reader.schema, batches
        else:
            with pa.ipc.open_stream(file) as stream:
                yield stream.schema, iter(stream)


def _regrouped(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables for a row group each."""
    waiting: list[pa.RecordBatch] = []
    rows = held = 0
    for batch in batches:
        for start in range(0, batch.num_rows, GROUP_ROWS):
            part = batch.slice(start, GROUP_ROWS)
            waiting.append(part)
            rows, held = rows + part.num_rows, held + part.nbytes
            if rows >= GROUP_ROWS or held >= GROUP_BYTES:
                yield pa.Table.from_batches(waiting, schema)
                waiting, rows, held = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def broken_rows(metadata: pq.FileMetaData) -> frozenset[int]:
    """The rows of a copy that are broken lines."""
    return frozenset(json.loads((metadata.metadata or {}).get(BROKEN, b"[]")))
