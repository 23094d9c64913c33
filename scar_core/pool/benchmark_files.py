"""The texts of benchmark files: Parquet, JSON lines (gzipped, too), JSON, or a text a line."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")
GZIP_MARK = b"\x1f\x8b"


def benchmark_texts(sources: Sequence[str]) -> Iterator[str]:
    """All texts of benchmark files, however deep they lie in their rows.

    Args:
        sources: files, folders and globs.

    Raises:
        InputError: nothing is there, a file holds no text, or is not what its name says.
    """
    for source in sources:
        files = storage.list_files(source, suffixes=SUFFIXES)
        if not files:
            raise InputError(
                f"--benchmarks {source}: no file there; wanted names ending in "
                f"{', '.join(SUFFIXES)}. Check the path."
            )
        for file in files:
            count = 0
            for text in _texts_of_file(file.path):
                count += 1
                yield text
            if not count:
                raise InputError(f"--benchmarks {file.shown}: holds no text. Leave it out.")


def _texts_of_file(path: str) -> Iterator[str]:
    data = storage.read_bytes(path)
    try:
        if path.endswith(".parquet"):
            with pq.ParquetFile(pa.BufferReader(data)) as parquet:
                for batch in parquet.iter_batches():
                    yield from texts_in(batch.to_pylist())
            return
        text = (gzip.decompress(data) if data.startswith(GZIP_MARK) else data).decode("utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        if ".txt" in path:
            yield from lines
        elif text.lstrip().startswith("["):
            yield from texts_in(json.loads(text))
        else:
            for line in lines:
                yield from texts_in(json.loads(line))
    except (AccessError, StoreError):
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"--benchmarks {path}: is not what its name says: {error}. Write it again."
        ) from error


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
