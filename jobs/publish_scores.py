"""Publish the scores of a pool: what is quarantined, listed as Parquet, and then the manifest."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs import cli, pipeline
from jobs.events import tell, tell_published
from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.manifest import (
    PublishedFile,
    follow_pointer,
    next_run_id,
    publish,
    read_manifest,
    write_pointer,
)
from scar_core.pool.filters import bad_rows
from scar_core.pool.quarantine import (
    bad_file_entry,
    check_losses,
    count_reasons,
    quarantined_files,
    quarantined_rows,
)
from scar_core.pool.sidecars import sidecar_entry, total_quarantined
from scar_core.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.score import ScoreConfig
    from jobs.score_plan import Plan
    from scar_core.pool.files import PoolFile
    from scar_core.pool.rows import PairColumns
    from scar_core.pool.sidecars import Sidecar

logger = logging.getLogger("scar_curate")

# Of one file of quarantined rows, and of what a task holds: some 200 bytes each.
ROWS_PER_FILE = 200_000


def publish_scores(
    config: ScoreConfig,
    plan: Plan,
    sidecars: Sequence[Sidecar],
    *,
    figures: dict[str, Any] | None = None,
) -> str:
    """Publish the scores of this pool, unless the newest ones are the very same; their directory.

    `figures` say what the scoring of this run took; None where nothing was scored.

    Raises:
        RunError: more is quarantined than may be.
        IncompleteError: the counts do not close.
    """
    counts = _counts(plan, sidecars)
    check_losses(
        config,
        rows_in=plan.rows,
        quarantined_rows=bad_rows(counts["quarantined"]),
        files_in=plan.files_in,
        bad_files=plan.bad_files,
    )
    scores = storage.absolute(config.out)
    newest = follow_pointer(scores)
    run = f"runs/{next_run_id(storage.join(scores, 'runs'))}"
    folder = storage.join(scores, run)
    pool = _pool_input(plan, folder)
    # Where the files lie, too: a pool that was moved keeps its sidecars, but not this manifest.
    whole = json.dumps([pool["files"], pool["quarantined"], [unit.id for unit in plan.units]])
    set_id = sha256(whole.encode()).hexdigest()
    if counts["quarantined"]:
        tell("rows_quarantined", reasons=counts["quarantined"])
    if newest is not None:
        manifest = read_manifest(newest, kind="scores")
        if (manifest["set"], manifest["key_id"]) == (set_id, plan.key.id):
            return newest
    publish(
        folder,
        kind="scores",
        config=_portable(config, base=folder) | asdict(plan.columns),
        inputs=[{"kind": "ranker", "fingerprint": plan.key.ranker}, pool],
        counts=counts,
        scoring=figures,
        quarantine=_write_quarantine(plan, sidecars, scores=scores, run=run),
        files=[sidecar_entry(sidecar) for sidecar in sidecars],
        files_below="../..",
        key=plan.key.told,
        key_id=plan.key.id,
        set=set_id,
    )
    tell_published(folder, kind="scores", counts=counts)
    if (named := write_pointer(scores, run, kind="scores")) != run:
        logger.warning("%s: latest.json names %s, which was started after this run", scores, named)
    return folder


def _portable(config: ScoreConfig, *, base: str) -> dict[str, Any]:
    """The config as a manifest may hold it: no path of a machine."""
    return {
        **asdict(config),
        "pool": [storage.portable(path, base=base) for path in config.pool],
        "ranker": portable_ranker(config.ranker, base=base),
        "benchmarks": [storage.portable(path, base=base) for path in config.benchmarks],
        "out": storage.portable(storage.absolute(config.out), base=base),
        "events": portable_events(config.events, base=base),
    }


def _pool_input(plan: Plan, folder: str) -> dict[str, Any]:
    """The pool as the manifest of a run in this folder names it."""
    return {
        "kind": "pool",
        "files": [_pool_entry(file, folder) for file in plan.files],
        "quarantined": [bad_file_entry(file, base=folder) for file in plan.bad_files],
    }


def _counts(plan: Plan, sidecars: Sequence[Sidecar]) -> dict[str, Any]:
    """Rows, files and tokens of a pool, for its manifest."""
    return {
        "rows_in": plan.rows,
        "scored": sum(sidecar.scored for sidecar in sidecars),
        "quarantined": total_quarantined(sidecars),
        "files_in": plan.files_in,
        "files_scored": len(plan.files),
        "files_quarantined": count_reasons(plan.bad_files),
        "tokens": sum(sidecar.tokens for sidecar in sidecars),
        "cut_tokens": sum(sidecar.cut_tokens for sidecar in sidecars),
        "cut_rows": sum(sidecar.cut_rows for sidecar in sidecars),
    }


def _write_quarantine(
    plan: Plan, sidecars: Sequence[Sidecar], *, scores: str, run: str
) -> list[dict[str, Any]]:
    """List what is quarantined in `quarantine/` of a run; the files' manifest entries.

    Raises:
        IncompleteError: a sidecar lists other rows than were counted.
    """
    folder = f"{run}/quarantine"
    written = []
    if plan.bad_files:
        table = quarantined_files(plan.bad_files)
        path = f"{folder}/files.parquet"
        written.append(write_table(scores, path, [table], schema=table.schema))
    parts = [
        (f"{folder}/rows-{index:05d}.parquet", part)
        for index, part in enumerate(_consecutive(sidecars))
    ]
    if parts:
        with cli.connected():
            options = {"scores": scores, "columns": plan.columns}
            written += pipeline.run(write_quarantined_rows, parts, **options)
    rows = sum(entry.rows for entry in written) - len(plan.bad_files)
    counted = sum(total_quarantined(sidecars).values())
    if rows != counted:
        raise IncompleteError(
            f"{scores}: {counted:,} rows are quarantined, {rows:,} were listed. Start again."
        )
    return [entry._asdict() for entry in sorted(written)]


def _consecutive(sidecars: Sequence[Sidecar]) -> Iterator[list[Sidecar]]:
    """Sidecars with quarantined rows, about ROWS_PER_FILE of them at a time, in order."""
    part: list[Sidecar] = []
    held = 0
    for sidecar in sidecars:
        rows = sum(sidecar.quarantined.values())
        if part and held + rows > ROWS_PER_FILE:
            yield part
            part, held = [], 0
        if rows:
            part.append(sidecar)
            held += rows
    if part:
        yield part


def write_quarantined_rows(
    part: tuple[str, Sequence[Sidecar]], *, scores: str, columns: PairColumns
) -> PublishedFile:
    """Write one file of quarantined rows; runs on any worker, and again gives the same bytes."""
    path, sidecars = part
    rows = pa.concat_tables(quarantined_rows(scores, sidecar, columns) for sidecar in sidecars)
    return write_table(scores, path, [rows], schema=rows.schema)


def portable_events(events: str | None, *, base: str) -> str | None:
    """What --events asked for as a manifest may hold it."""
    return events if events in (None, "none") else storage.portable(str(events), base=base)


def portable_ranker(ranker: str, *, base: str) -> str:
    """A ranker's place as a manifest may name it."""
    return storage.portable(ranker, base=base) if storage.is_folder(ranker) else ranker


def _pool_entry(file: PoolFile, folder: str) -> dict[str, Any]:
    return {
        "path": file.path,
        "url": storage.portable(file.url, base=folder),
        "fingerprint": file.fingerprint,
        "rows": file.rows,
        **({"format": file.format} if file.copy else {}),
    }
