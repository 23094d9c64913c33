"""Tables as files, written as their rows come, with what a manifest says of them."""

from __future__ import annotations

import json
from datetime import date, time
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import PublishedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What a writer holds before it becomes a row group: large enough to compress and scan well.
ROW_GROUP_BYTES = 64 * 2**20
# Rows that are text at once on their way to JSON.
LINES_HELD = 1024


def write_table(
    folder: str,
    path: str,
    tables: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    group_rows: int | None = None,
    **options: Any,  # noqa: ANN401 - pyarrow has no types
) -> PublishedFile:
    """Write one file below a folder, whole or not at all; it may hold no rows.

    Args:
        folder: of the run.
        path: relative to it.
        tables: of the schema, the rows one after the other.
        schema: of the file.
        group_rows: rows of a row group at most.
        options: of pyarrow's ParquetWriter.
    """
    with storage.open_output(storage.join(folder, path)) as opened:
        file = HashingFile(opened)
        rows = 0
        sink = pa.PythonFile(file, "w")
        with pq.ParquetWriter(sink, schema, compression="zstd", **options) as writer:
            for table in _grouped(tables):
                writer.write_table(table, row_group_size=group_rows or table.num_rows)
                rows += table.num_rows
    return PublishedFile(path, rows, file.bytes, file.digest.hexdigest())


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables that are each large enough for a row group, but the last."""
    waiting: list[pa.Table] = []
    waiting_bytes = 0
    for table in tables:
        waiting.append(table)
        waiting_bytes += table.nbytes
        if waiting_bytes >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def write_lines(folder: str, path: str, tables: Iterable[pa.Table]) -> PublishedFile:
    """Write one file of JSON lines below a folder, whole or not at all; it may hold no rows.

    Bytes are text; dates, times and decimals are their text.

    Raises:
        InputError: a value that JSON lacks: a number that is not finite, bytes that are no UTF-8.
    """
    with storage.open_output(storage.join(folder, path)) as opened:
        file = HashingFile(opened)
        rows = 0
        for table in tables:
            for batch in table.to_batches(max_chunksize=LINES_HELD):
                file.write(_lines(batch, path, first=rows))
                rows += batch.num_rows
    return PublishedFile(path, rows, file.bytes, file.digest.hexdigest())


def _lines(batch: pa.RecordBatch, path: str, *, first: int) -> bytes:
    try:
        return b"".join(map(_line, batch.to_pylist()))
    except (ValueError, TypeError) as error:  # a text that is no UTF-8 is a ValueError, too
        if batch.num_rows > 1:
            singles = (batch.slice(row, 1) for row in range(batch.num_rows))
            return b"".join(_lines(one, path, first=first + n) for n, one in enumerate(singles))
        raise InputError(
            f"{path}, row {first:,}: holds what JSON lacks: {error}. Write Parquet "
            "(--write-format parquet), or leave the column or the row out of the pool."
        ) from error


def _line(row: dict[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
    return text.encode() + b"\n"


def _as_text(value: object) -> str:
    """What JSON has no kind for and a text says as well."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


class HashingFile:
    """A file to write that knows the checksum and the size of what went through it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Write and count."""
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        """Bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Pass on."""
        self.file.flush()

    def close(self) -> None:
        """Leave closing to whoever opened the file."""
