"""Quadruples from JSONL, JSON, Parquet, or a data set of the `datasets` library."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import InputError
from scar_core.training.quadruples import (
    ROLES,
    CheckedQuadruples,
    QuadrupleColumns,
    check_columns,
    check_quadruples,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

# Marks of a folder that `Dataset.save_to_disk` wrote.
_SAVED_DATASET = ("state.json", "dataset_dict.json")
_PARQUET_BATCH_ROWS = 1024

Row = dict[str, Any]


class QuadrupleInput(NamedTuple):
    """One file or data set that was read; what a manifest says of it."""

    path: str
    """As given; a file's is absolute or a URL."""
    fingerprint: str
    """SHA-256 of a file's bytes, or the fingerprint `datasets` gives."""


class ReadQuadruples(NamedTuple):
    """All rows of all inputs."""

    checked: CheckedQuadruples
    inputs: list[QuadrupleInput]


def read_quadruples(sources: Sequence[str], columns: QuadrupleColumns) -> ReadQuadruples:
    """Read files, folders, globs and names of data sets, in the order given.

    Raises:
        SchemaError: an input lacks the columns of a pair.
        InputError: an input is not there, is empty, or is not what its name says.
    """
    inputs: list[QuadrupleInput] = []
    checked = check_quadruples(_all_rows(sources, columns, inputs), columns)
    return ReadQuadruples(checked, inputs)


def _all_rows(
    sources: Sequence[str], columns: QuadrupleColumns, inputs: list[QuadrupleInput]
) -> Iterator[Row]:
    for source in sources:
        if is_dataset(source):
            yield from _dataset_rows(source, columns, inputs)
            continue
        for entry, data in read_files(source):
            inputs.append(entry)
            yield from _file_rows(entry.path, data, columns)


def read_files(source: str) -> Iterator[tuple[QuadrupleInput, bytes]]:
    """The files that a path, folder or glob names, unpacked where they are gzipped.

    Raises:
        InputError: there are none, or one is not whole.
    """
    files = storage.list_files(source, suffixes=SUFFIXES)
    if not files:
        raise InputError(
            f"{source}: no quadruples there; wanted a file, folder or glob with names ending "
            f"in {', '.join(SUFFIXES)}. Check the path."
        )
    for file in files:
        data = storage.read_bytes(file.path)
        entry = QuadrupleInput(file.path, sha256(data).hexdigest())
        yield entry, _unpacked(file.path, data)


def is_dataset(source: str) -> bool:
    """Whether a source is for the `datasets` library: a folder it saved, or a name, no path."""
    if storage.is_folder(source):
        return any(storage.exists(storage.join(source, mark)) for mark in _SAVED_DATASET)
    is_path = storage.GLOB_MARKS & set(source) or "://" in source or source.endswith(SUFFIXES)
    return not is_path and not source.startswith((".", "/", "~")) and not storage.exists(source)


def _file_rows(path: str, data: bytes, columns: QuadrupleColumns) -> Iterator[Row]:
    if path.endswith(".parquet"):
        yield from _parquet_rows(path, data, columns)
        return
    names: set[str] = set()
    for row in json_rows(path, data):
        names.update(row)
        yield row
    _check_names(names, columns, where=path)


def _unpacked(path: str, data: bytes) -> bytes:
    if not path.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is not whole gzip ({error}). Fetch it again.") from error


def _check_names(names: Iterable[str], columns: QuadrupleColumns, *, where: str) -> None:
    if not (found := sorted(names)):
        raise InputError(f"{where}: holds no rows. Check the file.")
    check_columns(found, columns, where=where)


def json_rows(path: str, data: bytes) -> Iterator[Row]:
    """Objects of a JSON list, or one object per line, whatever the file is called."""
    wanted = "wanted a list of objects, or one object per line"
    if data.lstrip()[:1] == b"[":
        try:
            rows = json.loads(data)
        except ValueError as error:
            raise InputError(f"{path}: is not JSON ({error}); {wanted}.") from error
        numbered: Iterable[tuple[int, Any]] = enumerate(rows, start=1)
    else:
        numbered = _json_lines(path, data)
    for number, row in numbered:
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise InputError(f"{path}: item {number} is a {kind}, no object; {wanted}.")
        yield row


def _json_lines(path: str, data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:  # also bytes that are not UTF-8
            raise InputError(
                f"{path}: line {number} is not JSON ({error}). Repair or remove the line."
            ) from error


def _parquet_rows(path: str, data: bytes, columns: QuadrupleColumns) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        _check_names(names, columns, where=path)
        wanted = [name for name in _needed(columns) if name in names]
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=wanted):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a readable Parquet file ({error}).") from error


def _needed(columns: QuadrupleColumns) -> list[str]:
    aspects = (columns.helpfulness_column, columns.correctness_column)
    judged = [name.replace("{role}", role) for name in aspects for role in ROLES]
    return [columns.instruction_column, *columns.response_columns, columns.source_column, *judged]


def _dataset_rows(
    source: str, columns: QuadrupleColumns, inputs: list[QuadrupleInput]
) -> Iterator[Row]:
    dataset = load_train_split(source)
    _check_names(dataset.column_names, columns, where=source)
    inputs.append(QuadrupleInput(source, str(dataset._fingerprint)))  # noqa: SLF001 - no public name
    wanted = [name for name in _needed(columns) if name in dataset.column_names]
    yield from dataset.select_columns(wanted)


def load_train_split(source: str) -> Any:  # noqa: ANN401 - datasets has no types
    """The `train` split of a saved folder or of a data set on the hub."""
    from datasets import load_dataset, load_from_disk  # noqa: PLC0415 - slow, and rarely needed

    try:
        if not storage.is_folder(source):
            return load_dataset(source, split="train")
        dataset = load_from_disk(source)
        return dataset["train"] if isinstance(dataset, dict) else dataset
    except KeyError as error:
        raise InputError(f"{source}: has no split {error}; wanted `train`.") from error
    except (OSError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source}: neither a file nor a data set that can be loaded ({first_line}). "
            "Check the name, or download the data and give its path."
        ) from error
