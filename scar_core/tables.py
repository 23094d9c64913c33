"""Tables as Parquet files, written as their rows come, with what a manifest says of them."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.manifest import PublishedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What a writer holds before it becomes a row group: large enough to compress and scan well.
ROW_GROUP_BYTES = 64 * 2**20


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
