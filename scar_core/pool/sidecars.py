"""Sidecars: the scores of one unit as a small Parquet file, and which of them are finished.

A sidecar belongs to (unit, ranker, columns, truncation, precision). Same input, same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import RunError
from scar_core.pool.rows import Long, RowFormat, Turns, sidecar_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scar_core.pool.units import Unit

READ_THREADS = 16
# Few rows have a message of their own; a column for them would weigh on every sidecar.
MESSAGES = b"scar_messages"
# Of a key, those that it had from the start.
_FIRST_FIELDS = 7
TOKEN_COLUMNS = ("instruction_tokens", "response_tokens", "cut_tokens")


@dataclass(frozen=True, kw_only=True)
class ScoringKey:
    """What a score depends on, beside the row itself."""

    ranker: str
    """Fingerprint of the ranker."""
    instruction_column: str
    response_column: str
    max_row_bytes: int
    max_tokens: int
    precision: Literal["fp32", "bf16"]
    sidecar_version: int = 1
    """Raised when the same input would give another sidecar."""
    filters: str = ""
    """What stands for the filters; empty where none takes a row."""
    format: RowFormat = "columns"
    chat_column: str | None = None
    instruction_template: str | None = None
    turns: Turns = "first"
    long: Long = "head"

    @property
    def id(self) -> str:
        """16 hex digits that stand for all of the above."""
        return blake2b(json.dumps(self.told).encode(), digest_size=8).hexdigest()

    @property
    def told(self) -> dict[str, Any]:
        """The same for a sidecar and a manifest.

        What came with a later version is not told where it is as it was before there was a choice:
        older sidecars stay valid.
        """
        later = {one.name: one.default for one in fields(self)[_FIRST_FIELDS:]}
        everything = asdict(self).items()
        return {n: value for n, value in everything if n not in later or value != later[n]}


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """A finished sidecar and what is in it."""

    unit: Unit
    path: str
    """Relative to the scores directory."""
    bytes: int
    sha256: str
    scored: int
    """Rows with a score."""
    quarantined: dict[str, int]
    """Rows without one, by reason."""
    tokens: int
    """Given to the encoder, special tokens included."""
    cut_tokens: int
    """Lost to truncation."""
    cut_rows: int = 0
    """Rows that lost some."""


def sidecar_path(unit: Unit, key: ScoringKey) -> str:
    """Where a unit's sidecar lies below the scores directory."""
    return f"sidecars/{key.id}/{unit.id}.parquet"


def write_sidecar(
    scores: str,
    *,
    unit: Unit,
    key: ScoringKey,
    table: pa.Table,
    messages: Mapping[int, str] | None = None,
) -> Sidecar:
    """Store a unit's scores, whole or not at all.

    Args:
        scores: the scores directory.
        unit: whose rows.
        key: how they were scored.
        table: of `sidecar_schema`, one row per row of the unit, in input order.
        messages: by row number, what happened to rows whose reason alone does not tell.

    Raises:
        RunError: the table is not that.
    """
    fault = _find_fault(table, unit, key)
    if fault is not None:
        raise RunError(
            f"{unit.path} rows {unit.row_start:,}+{unit.rows:,}: cannot be stored as scored: "
            f"{fault}. Start again; if it stays, the scoring is at fault, not the pool."
        )
    sink = pa.BufferOutputStream()
    told = {MESSAGES: json.dumps(dict(sorted(messages.items()))).encode()} if messages else {}
    whole = _normalized(table).replace_schema_metadata(_identity(unit, key) | told)
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    path = sidecar_path(unit, key)
    storage.write_bytes(storage.join(scores, path), data)
    return _describe(data, table, unit=unit, path=path)


def _find_fault(table: pa.Table, unit: Unit, key: ScoringKey) -> str | None:
    """What keeps a table from being the scores of a unit; None if nothing does."""
    if table.schema.remove_metadata() != sidecar_schema(key.turns):
        return f"columns {table.schema.to_string(show_schema_metadata=False)}"
    if table.num_rows != unit.rows:
        return f"{table.num_rows:,} rows"
    if not np.array_equal(table["row"], unit.row_start + np.arange(unit.rows)):
        return "row numbers out of order"
    missing = table["score"].is_null()
    if not (
        missing.equals(table["content_hash"].is_null())
        and missing.equals(table["reason"].is_valid())
    ):
        return "rows that neither have score and content hash, nor a reason alone"
    return None


def _normalized(table: pa.Table) -> pa.Table:
    """The same rows in one chunk, reasons numbered as they occur: bytes depend on nothing else."""
    reasons = table["reason"].cast(pa.string()).combine_chunks().dictionary_encode()
    column = pa.DictionaryArray.from_arrays(reasons.indices.cast(pa.int8()), reasons.dictionary)
    index = table.schema.get_field_index("reason")
    return table.set_column(index, table.schema.field(index), column).combine_chunks()


def _identity(unit: Unit, key: ScoringKey) -> dict[bytes, bytes]:
    """What a sidecar says of itself. No path: copies of a file have one id, and share sidecars."""
    return {b"scar_unit": unit.id.encode(), b"scar_key": json.dumps(key.told).encode()}


def find_finished(scores: str, units: Iterable[Unit], key: ScoringKey) -> dict[str, Sidecar]:
    """The finished sidecars of these units by unit id: listed, opened, checked.

    One that is cut short, foreign, or of another number of rows is not finished.
    """
    folder = storage.join(scores, f"sidecars/{key.id}")
    there = {info.path.rpartition("/")[2] for info in storage.list_files(folder)}
    candidates = [unit for unit in units if f"{unit.id}.parquet" in there]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        found = threads.map(lambda unit: _open_sidecar(scores, unit, key), candidates)
        return {sidecar.unit.id: sidecar for sidecar in found if sidecar is not None}


def _open_sidecar(scores: str, unit: Unit, key: ScoringKey) -> Sidecar | None:
    """A unit's sidecar; None where the unit is to be scored again."""
    path = sidecar_path(unit, key)
    data = storage.read_bytes(storage.join(scores, path))
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            table = parquet.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError):  # cut, foreign, or not what was written
        return None
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != MESSAGES}
    if metadata != _identity(unit, key) or _find_fault(table, unit, key):
        return None
    return _describe(data, table, unit=unit, path=path)


def _describe(data: bytes, table: pa.Table, *, unit: Unit, path: str) -> Sidecar:
    quarantined = {
        entry["values"]: entry["counts"]
        for entry in table["reason"].drop_null().cast(pa.string()).value_counts().to_pylist()
    }
    sums = {name: int(np.sum(table[name], dtype=np.int64)) for name in TOKEN_COLUMNS}
    return Sidecar(
        unit=unit,
        path=path,
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        scored=table.num_rows - sum(quarantined.values()),
        quarantined=dict(sorted(quarantined.items())),
        tokens=sums["instruction_tokens"] + sums["response_tokens"],
        cut_tokens=sums["cut_tokens"],
        cut_rows=int(np.count_nonzero(table["cut_tokens"])),
    )


def total_quarantined(sidecars: Iterable[Sidecar]) -> dict[str, int]:
    """Quarantined rows of all, by reason."""
    total: Counter[str] = Counter()
    for sidecar in sidecars:
        total.update(sidecar.quarantined)
    return dict(sorted(total.items()))


def sidecar_entry(sidecar: Sidecar) -> dict[str, Any]:
    """A sidecar as a manifest's `files` list names it, with the rows that it belongs to."""
    unit = sidecar.unit
    return {
        "path": sidecar.path,
        "rows": unit.rows,
        "bytes": sidecar.bytes,
        "sha256": sidecar.sha256,
        "pool_file": unit.path,
        "row_start": unit.row_start,
    }
