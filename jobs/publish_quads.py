"""Publish quadruples that an LLM added to, and list the rows that are left out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from jobs.events import tell, tell_published
from jobs.publish_scores import portable_events
from scar_core import storage
from scar_core.errors import RunError
from scar_core.manifest import publish
from scar_core.pool.quarantine import QUARANTINE_SCHEMA
from scar_core.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobs.asking import AskConfig, Asked
    from jobs.prompting import Prompt
    from scar_core.training.quadruple_tables import QuadrupleTable

logger = logging.getLogger("scar_curate")

GROUP_ROWS = 4096


class Fault(NamedTuple):
    """Why a row is left out."""

    reason: str
    message: str


@dataclass(kw_only=True)
class FilledTable:
    """One input with what was added, and the rows that are left out."""

    origin: QuadrupleTable
    columns: dict[str, pa.Array]
    """New or changed columns by name, of all rows."""
    bad: dict[int, Fault]
    """Quarantined rows by number."""
    counts: dict[str, int]
    """More of a manifest's counts, to be added up over the inputs."""

    def kept(self) -> pa.Table:
        """The other rows, with all columns."""
        table = self.origin.table
        for name, values in self.columns.items():
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
        return table.filter(pa.array([row not in self.bad for row in range(table.num_rows)]))

    def quarantined(self) -> pa.Table:
        """Those that are left out, as a list."""
        rows = [
            {"path": self.origin.source.path, "row": row, "reason": reason, "message": message}
            for row, (reason, message) in sorted(self.bad.items())
        ]
        return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def publish_quadruples(
    config: AskConfig,
    tables: list[FilledTable],
    asked: Asked,
    *,
    prompts: Mapping[str, Prompt],
) -> dict[str, Any]:
    """Write rows and quarantine, then the manifest; the manifest.

    Raises:
        RunError: more rows are quarantined than may be; nothing was written.
        IncompleteError: counts do not close.
    """
    rows_in = sum(len(table.origin.rows) for table in tables)
    reasons = Counter(reason for table in tables for reason, _ in table.bad.values())
    quarantined = dict(sorted(reasons.items()))
    _check_losses(config, tables, rows_in=rows_in, quarantined=quarantined)
    if quarantined:
        tell("rows_quarantined", reasons=quarantined)
    folder = storage.absolute(config.out)
    files = []
    for number, table in enumerate(tables):
        rows = table.kept()
        path = f"data/part-{number:05d}.parquet"
        files.append(write_table(folder, path, [rows], schema=rows.schema, group_rows=GROUP_ROWS))
    listed = []
    if quarantined:
        whole = pa.concat_tables([table.quarantined() for table in tables])
        listed.append(
            write_table(
                folder, "quarantine/rows.parquet", [_placed(whole, folder)], schema=whole.schema
            )
        )
    counts = {
        "rows_in": rows_in,
        "rows_out": sum(file.rows for file in files),
        "quarantined": quarantined,
        **asked.counts(config),
        **_summed(table.counts for table in tables),
    }
    manifest = publish(
        folder,
        kind="quadruples",
        config=_portable(config, folder),
        inputs=[
            {
                "kind": "quadruples",
                "path": storage.portable(table.origin.source.path, base=folder),
                "fingerprint": table.origin.source.fingerprint,
            }
            for table in tables
        ],
        counts=counts,
        prompts={name: prompt.described() for name, prompt in prompts.items()},
        quarantine=[file._asdict() for file in listed],
        files=[file._asdict() for file in files],
    )
    tell_published(folder, kind="quadruples", counts=counts)
    return manifest


def _check_losses(
    config: AskConfig, tables: list[FilledTable], *, rows_in: int, quarantined: dict[str, int]
) -> None:
    bad = sum(quarantined.values())
    if bad <= config.max_bad_ratio * rows_in:
        return
    first = next(told for table in tables for told in table.bad.values())
    raise RunError(
        f"{bad:,} of {rows_in:,} rows are left out ({_listed(quarantined)}), more than "
        f"--max-bad-ratio {config.max_bad_ratio:g} allows; the first: {first[0]}: {first[1]}. "
        "Nothing was published; answers are kept. Start again, or allow more."
    )


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts of all inputs together; a count of 0 stays one."""
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _placed(table: pa.Table, folder: str) -> pa.Table:
    """The list with paths as files of a folder may hold them."""
    paths = [storage.portable(path, base=folder) for path in table["path"].to_pylist()]
    return table.set_column(0, table.schema.field(0), pa.array(paths, pa.string()))


def _portable(config: AskConfig, folder: str) -> dict[str, Any]:
    """The config as a manifest may hold it: no absolute path of this machine."""
    prompts = {
        name: storage.portable(storage.absolute(value), base=folder)
        for name, value in asdict(config).items()
        if name.endswith("_prompt") and storage.exists(value)
    }
    work = config.work
    return {
        **asdict(config),
        **prompts,
        "quads": [
            storage.portable(path, base=folder) if _is_place(path) else path
            for path in config.quads
        ],
        "out": storage.portable(folder, base=folder),
        "work": None if work is None else storage.portable(storage.absolute(work), base=folder),
        "events": portable_events(config.events, base=folder),
    }


def _is_place(path: str) -> bool:
    return bool(storage.exists(path) or storage.is_folder(path) or storage.GLOB_MARKS & set(path))


def log_summary(manifest: dict[str, Any]) -> None:
    """Rows, requests, tokens and cost in a line each."""
    counts = manifest["counts"]
    left_out = counts["quarantined"]
    logger.info(
        "%s rows in, %s out, %s quarantined %s",
        *(f"{counts[name]:,}" for name in ("rows_in", "rows_out")),
        f"{sum(left_out.values()):,}",
        left_out or "",
    )
    logger.info(
        "%s requests (%s answered before), %s tries: %s; %s tokens in, %s out, cost %.4f",
        *(f"{counts[name]:,}" for name in ("requests", "answered_before", "tries")),
        _listed(counts["outcomes"]) or "none",
        *(f"{counts[name]:,}" for name in ("tokens_in", "tokens_out")),
        counts["cost"],
    )
