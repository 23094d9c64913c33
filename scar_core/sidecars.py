"""Sidecars: the scores of one unit as a small Parquet file, and which of them are finished.

A sidecar belongs to (unit, ranker, columns, truncation, precision). Same input, same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import RunError
from scar_core.rows import SIDECAR_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scar_core.units import Unit

READ_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class ScoringKey:
    """What a score depends on, beside the row itself."""

    ranker: str
    """Fingerprint of the ranker."""
    instruction_column: str
    response_column: str
    max_row_bytes: int
    max_tokens: int
    precision: str
    sidecar_version: int = 1
    """Raised when the same input would give another sidecar."""

    @property
    def id(self) -> str:
        """16 hex digits that stand for all of the above."""
        return blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()


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


def sidecar_path(unit: Unit, key: ScoringKey) -> str:
    """Where a unit's sidecar lies below the scores directory."""
    return f"sidecars/{key.id}/{unit.id}.parquet"


def write_sidecar(scores: str, *, unit: Unit, key: ScoringKey, table: pa.Table) -> Sidecar:
    """Store a unit's scores, whole or not at all.

    Args:
        scores: the scores directory.
        unit: whose rows.
        key: how they were scored.
        table: SIDECAR_SCHEMA, one row per row of the unit, in input order.

    Raises:
        RunError: the table has another schema or another number of rows.
    """
    if table.num_rows != unit.rows or table.schema.remove_metadata() != SIDECAR_SCHEMA:
        raise RunError(
            f"{unit.path} rows {unit.row_start:,}+{unit.rows:,}: a sidecar of {table.num_rows:,} "
            f"rows was to be written, with columns {', '.join(table.schema.names)}."
        )
    identity = {"scar_unit": json.dumps(asdict(unit)), "scar_key": json.dumps(asdict(key))}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(identity), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    path = sidecar_path(unit, key)
    storage.write_bytes(storage.join(scores, path), data)
    return _describe(data, table, unit=unit, path=path)


def find_finished(scores: str, units: Iterable[Unit], key: ScoringKey) -> dict[str, Sidecar]:
    """The finished sidecars of these units by unit id: listed, opened, checked.

    One that is cut short, foreign, or of another number of rows is not finished.
    """
    folder = storage.join(scores, f"sidecars/{key.id}")
    there = {info.path.rsplit("/", 1)[-1] for info in storage.list_files(folder)}
    candidates = [unit for unit in units if f"{unit.id}.parquet" in there]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        found = threads.map(lambda unit: _open_sidecar(scores, unit, key), candidates)
        return {sidecar.unit.id: sidecar for sidecar in found if sidecar is not None}


def _open_sidecar(scores: str, unit: Unit, key: ScoringKey) -> Sidecar | None:
    path = sidecar_path(unit, key)
    data = storage.read_bytes(storage.join(scores, path))
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):  # cut or foreign: the unit is scored again
        return None
    identity = table.schema.metadata or {}
    if (
        table.num_rows != unit.rows
        or table.schema.remove_metadata() != SIDECAR_SCHEMA
        or json.loads(identity.get(b"scar_unit", b"null")) != asdict(unit)
        or json.loads(identity.get(b"scar_key", b"null")) != asdict(key)
    ):
        return None
    return _describe(data, table, unit=unit, path=path)


def _describe(data: bytes, table: pa.Table, *, unit: Unit, path: str) -> Sidecar:
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    tokens = sum(
        pa.compute.sum(table[name], min_count=0).as_py()
        for name in ("instruction_tokens", "response_tokens")
    )
    return Sidecar(
        unit=unit,
        path=path,
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        scored=table.num_rows - reasons.total(),
        quarantined=dict(sorted(reasons.items())),
        tokens=tokens,
        cut_tokens=pa.compute.sum(table["cut_tokens"], min_count=0).as_py(),
    )


def total_quarantined(sidecars: Iterable[Sidecar]) -> dict[str, int]:
    """Quarantined rows of all, by reason."""
    total: Counter[str] = Counter()
    for sidecar in sidecars:
        total.update(sidecar.quarantined)
    return dict(sorted(total.items()))


def sidecar_entry(sidecar: Sidecar) -> dict[str, Any]:
    """A sidecar as a manifest's `files` list names it; `read_entry` is the inverse."""
    unit = sidecar.unit
    return {
        "path": sidecar.path,
        "rows": unit.rows,
        "bytes": sidecar.bytes,
        "sha256": sidecar.sha256,
        "pool_file": unit.path,
        "row_start": unit.row_start,
    }
