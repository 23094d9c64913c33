"""Quarantine: rows and files that could not be scored, each with a reason, and how many may be.

A row is quarantined within its unit: its sidecar holds the reason. A file is quarantined whole:
how many rows an unreadable footer speaks of is not known, so such rows are not among the rows that
went in, and files are counted beside rows: files in = files scored + files quarantined.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scar_core import storage
from scar_core.errors import InputError, RunError
from scar_core.pool.chats import told as told_of_chat
from scar_core.pool.filters import FILTERED
from scar_core.pool.sidecars import MESSAGES
from scar_core.pool.turns import TURN_REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scar_core.pool.files import BadFile
    from scar_core.pool.rows import PairColumns
    from scar_core.pool.sidecars import Sidecar

Policy = Literal["fail", "quarantine"]

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One row per quarantined row or file.

path: of the file, relative to the pool. row: number within the file, null for a whole file.
"""


@dataclass(frozen=True, kw_only=True)
class QuarantineConfig:
    """What is done about rows and files that cannot be scored."""

    # Not `Policy`: the command line reads types in the module of the config that inherits them.
    on_bad_row: Literal["fail", "quarantine"] = "quarantine"
    """quarantine: a row that cannot be scored is left out, counted and listed with its reason.
    fail: the first one stops the run."""
    on_bad_file: Literal["fail", "quarantine"] = "fail"
    """fail: a file that cannot be read, or lacks a column, stops the run. quarantine: it is left
    out whole, counted and listed with its reason."""
    max_bad_ratio: float = 0.5
    """Largest share of rows, and of files, that may be quarantined, in [0, 1]; a run with more
    fails and publishes nothing. More than half is most often another column than was meant."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.max_bad_ratio <= 1:
            raise ValueError(f"max_bad_ratio must be in [0, 1], got {self.max_bad_ratio}")


def check_losses(
    config: QuarantineConfig,
    *,
    rows_in: int,
    quarantined_rows: int,
    files_in: int,
    bad_files: Sequence[BadFile],
) -> None:
    """Raise RunError if more is quarantined than may be.

    Args:
        config: how much may be.
        rows_in: rows of the files that are not quarantined.
        quarantined_rows: those of them that are.
        files_in: all files of the pool.
        bad_files: those of them that are quarantined. Their rows, where known, count as bad rows.
    """
    lost_rows = sum(file.rows or 0 for file in bad_files)
    for what, bad, total in (
        ("rows", quarantined_rows + lost_rows, rows_in + lost_rows),
        ("files", len(bad_files), files_in),
    ):
        if bad and bad / total > config.max_bad_ratio:
            first = f" The first file: {bad_files[0].message}" if bad_files else ""
            raise RunError(
                f"{bad:,} of {total:,} {what} cannot be scored ({bad / total:.2%}), more than "
                f"--max-bad-ratio {config.max_bad_ratio:g} allows. Nothing was published; "
                f"finished units are kept. Mend them, or allow more.{first}"
            )


def refuse_row(scores: str, sidecar: Sidecar, columns: PairColumns) -> NoReturn:
    """Raise InputError for the first quarantined row of a unit."""
    rows = quarantined_rows(scores, sidecar, columns).to_pylist()
    row = next(row for row in rows if not row["reason"].startswith(FILTERED))
    raise InputError(
        f"{row['path']} row {row['row']:,}: {row['message']} ({row['reason']}); wanted a row that "
        "can be scored. Mend it, or pass --on-bad-row quarantine. Finished units are kept."
    )


def quarantined_rows(scores: str, sidecar: Sidecar, columns: PairColumns) -> pa.Table:
    """The quarantined rows of a unit as QUARANTINE_SCHEMA, in input order."""
    data = storage.read_bytes(storage.join(scores, sidecar.path))
    table = pq.read_table(pa.BufferReader(data), columns=["row", "reason"])
    bad = table.filter(pc.is_valid(table["reason"]))
    told = json.loads((table.schema.metadata or {}).get(MESSAGES, b"{}"))
    rows, reasons = bad["row"].to_pylist(), bad["reason"].cast(pa.string()).to_pylist()
    return pa.table(
        {
            "path": [sidecar.unit.path] * len(rows),
            "row": rows,
            "reason": reasons,
            "message": [
                told.get(str(row)) or message_of(reason, columns)
                for row, reason in zip(rows, reasons, strict=True)
            ],
        },
        schema=QUARANTINE_SCHEMA,
    )


def message_of(reason: str, columns: PairColumns) -> str:
    """What a reason of `check_rows` means, in these columns."""
    if columns.format not in ("auto", "columns", "template"):
        return _of_chat(reason, columns)
    if reason == "too_large":
        return (
            f"{columns.instruction_column!r} and {columns.response_column!r} together take more "
            f"than --max-row-bytes {columns.max_row_bytes:,}"
        )
    if reason in ("not_json", "not_csv"):
        return f"the line is broken: no {'JSON object' if reason == 'not_json' else 'row of CSV'}"
    role, _, fault = reason.partition("_")
    name = columns.instruction_column if role == "instruction" else columns.response_column
    told = {
        "null": "is null",
        "empty": "holds nothing but white space",
        "not_text": "holds bytes that are not valid UTF-8",
    }
    if role == "instruction" and columns.instruction_template is not None:
        return f"the instruction by --instruction-template {told[fault]}"
    return f"{name!r} {told[fault]}"


def _of_chat(reason: str, columns: PairColumns) -> str:
    """The same of a row that is read as a chat."""
    told = {
        **TURN_REASONS,
        "too_large": f"holds texts of more than --max-row-bytes {columns.max_row_bytes:,}",
        "chat_not_json": f"holds text in {columns.chat_column!r} that is no JSON of a list",
        "instruction_empty": "asks, before an answer that is scored, with nothing but white space",
        "response_empty": "has an answer that is nothing but white space",
    }
    return f"as {columns.format}, the row {told.get(reason) or told_of_chat(reason)}"


def quarantined_files(files: Iterable[BadFile]) -> pa.Table:
    """Quarantined files as QUARANTINE_SCHEMA."""
    rows = [
        {"path": file.path, "row": None, "reason": file.reason, "message": file.message}
        for file in files
    ]
    return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def count_reasons(files: Iterable[BadFile]) -> dict[str, int]:
    """Quarantined files by reason."""
    reasons = sorted(file.reason for file in files)
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def bad_file_entry(file: BadFile, *, base: str) -> dict[str, Any]:
    """A quarantined file as a manifest in `base` names it."""
    return {
        "path": file.path,
        "url": storage.portable(file.url, base=base),
        "reason": file.reason,
        "message": file.message,
        "rows": file.rows,
    }
