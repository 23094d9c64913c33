"""The texts of benchmark files: of any format that a pool may have, or a text a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.pool.imports import import_of, plain_rows
from scar_core.pool.kinds import (
    COMPRESSIONS,
    SUFFIXES,
    UNPACKING_ERRORS,
    FormatConfig,
    Kind,
    kind_of,
    named_kind,
    read_ends,
    unpacked,
)
from scar_core.pool.text_rows import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scar_core.storage import FileInfo

TEXT_SUFFIXES = (".txt", *(f".txt.{compression}" for compression in COMPRESSIONS))


def benchmark_texts(sources: Sequence[str]) -> Iterator[str]:
    """All texts of benchmark files, however deep they lie in their rows.

    Args:
        sources: files, folders and globs.

    Raises:
        InputError: nothing is there, a file holds no text, or cannot be read to its end.
    """
    for source in sources:
        files = storage.list_files(source, suffixes=(*SUFFIXES, *TEXT_SUFFIXES))
        if not files:
            raise InputError(
                f"--benchmarks {source}: no file there; wanted names of files that a pool may "
                "have, or .txt. Check the path."
            )
        for info in files:
            count = 0
            for text in _texts_of(info):
                count += 1
                yield text
            if not count:
                raise InputError(f"--benchmarks {info.shown}: holds no text. Leave it out.")


def _texts_of(info: FileInfo) -> Iterator[str]:
    try:
        if info.path.endswith(TEXT_SUFFIXES):
            yield from _lines(info)
            return
        for row in _rows(info):
            yield from texts_in(row)
    except (AccessError, StoreError):
        raise
    except (InputError, ValueError, *UNPACKING_ERRORS) as error:
        raise InputError(
            f"--benchmarks {info.shown}: cannot be read: {error} Write it again."
        ) from error


def _lines(info: FileInfo) -> Iterator[str]:
    _, compression = named_kind(info.path)
    with unpacked(info, Kind(format="jsonl", compression=compression)) as file:
        for line in file.read().decode("utf-8-sig").splitlines():
            if line.strip():
                yield line


def _rows(info: FileInfo) -> Iterator[dict[str, Any]]:
    ends = read_ends(info)
    kind = kind_of(info, ends[0], FormatConfig())
    if kind.format != "parquet":
        for row in plain_rows(import_of(info, kind, ends, folder="")):
            if isinstance(row, Broken):
                raise InputError(f"{row.place} {row.why}")
            yield row
        return
    with storage.open_input(info.path) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches():
            yield from pa.Table.from_batches([batch]).to_pylist()


def texts_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever a row holds
    """All texts of a value, of lists and objects in it, too; names of fields are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for held in value.values():
            yield from texts_in(held)
    elif isinstance(value, list):
        for held in value:
            yield from texts_in(held)
