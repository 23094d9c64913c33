"""Keep exactly the best of what is scored: Ray Data around `selection`, reading only sidecars."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from jobs import cli, pipeline
from jobs import select_stages as stages
from jobs.actors import ActorConfig
from jobs.before import SPREAD_NAME
from jobs.beside import beside
from jobs.comparison import compare
from jobs.events import EventsConfig, recording, tell, tell_published
from jobs.find_copies import scratch
from jobs.news import Against
from jobs.push import open_hub, push
from jobs.scored_pool import Scores, open_scores
from jobs.select_report import make_report
from jobs.select_write import plan_parts, write_part
from jobs.settled import SelectOptions, output_of, rescorer_of, settled
from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.manifest import MANIFEST_NAME, check_unpublished, new_run_id, publish, to_json
from scar_core.selection.combine import check_number_columns
from scar_core.selection.labels import check_label_column
from scar_core.selection.report import render
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.passes import Judged
    from jobs.rescore import Rescorer
    from jobs.select_stages import ScoredUnit, Told
    from jobs.select_write import Part
    from jobs.written_as import Output

logger = logging.getLogger("scar_curate")

# Rows of the pool whose selected ones one file lists; of any cluster, so that files are the same.
PICKED_ROWS = 1_000_000

ALONE = Against()
"""A selection that is held against no other."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(SelectOptions, ActorConfig, EventsConfig):
    """Select the best rows of a scored pool."""

    scores: str
    """Scores directory (its newest scores), or the directory of one run in it."""
    out: str
    """Directory of the selection; must not hold one yet."""
    ranker: str | None = None
    """For bf16 scores: the ranker to score rows near the threshold again with, if it is not where
    the scores' manifest says. Actor flags matter only then."""

    def __post_init__(self) -> None:
        """Check what both halves check."""
        SelectOptions.__post_init__(self)
        ActorConfig.__post_init__(self)


def select(
    scores: Scores,
    options: SelectOptions,
    rescorer: Rescorer,
    *,
    folder: str,
    against: Against = ALONE,
) -> dict[str, Any]:
    """Select, write the rows, publish with a report; the report.

    Args:
        scores: what to select from.
        options: what to keep.
        rescorer: for bf16 scores.
        folder: of the run; holds nothing yet.
        against: the run before, and whether only rows that are new are written.

    Raises:
        SchemaError: the pool has a column of the name that is to be added, or lacks that of groups.
        InputError: what is to be kept of each group does not add up.
        IncompleteError: rows are missing somewhere; nothing was published.
    """
    check_columns(scores, options)
    output = output_of(scores.columns, options)
    with scratch(folder) as exchange:
        units, judged, precision = settled(scores, options, rescorer, exchange=exchange)
        told = _tell(units, judged, options, folder=folder)
        compared = compare(against.before, scores, units, told.picked)
        picked = against.to_write(told.picked, exchange=exchange)
        parts = plan_parts(units, picked, megabytes=options.file_megabytes)
        entries = _write(judged, parts, compared, output, folder=folder)
    report = make_report(scores, options, judged, told)
    report["precision"] = precision
    report["counts"] |= against.counts(judged.cut.selected, picked)
    report |= compared
    ranker = scores.manifest["key"]["ranker"]
    told_beside = beside(output, parts[0].schema, report, ranker=ranker)
    spread = {"edges": judged.edges_E.tolist(), "rows": told.spread_B.tolist()}
    entries += [
        _write_bytes(folder, "report.json", to_json(report)),
        _write_bytes(folder, SPREAD_NAME, to_json(spread, indent=None)),
        *(_write_bytes(folder, name, text.encode()) for name, text in told_beside.items()),
    ]
    _publish(scores, options, against, judged, told, folder=folder, report=report, files=entries)
    return report


def check_columns(scores: Scores, options: SelectOptions) -> None:
    """Raise SchemaError if the pool has the column that is to be added, or lacks one asked for."""
    output_of(scores.columns, options).check(scores.files)
    if options.per is not None:
        check_label_column(scores.files, options.per, flag="--per")
    order = options.order_rule()
    check_number_columns(scores.files, order.columns, flag=order.flag)


def _write(
    judged: Judged,
    parts: Sequence[Part],
    compared: dict[str, Any],
    output: Output,
    *,
    folder: str,
) -> list[dict[str, Any]]:
    """Write the output files; their manifest entries."""
    logger.info(
        "selected %s of %s rows; writing %s files",
        f"{judged.cut.selected:,}",
        f"{judged.eligible:,}",
        f"{len(parts):,}",
    )
    tell(
        "rows_selected",
        eligible=judged.eligible,
        selected=judged.cut.selected,
        threshold=judged.cut.threshold,
        files=len(parts),
    )
    if compared:
        tell("compared", **compared)
    written = pipeline.run(write_part, parts, folder=folder, output=output)
    return sorted(written, key=lambda entry: str(entry["path"]))


def _tell(
    units: Sequence[ScoredUnit], judged: Judged, options: SelectOptions, *, folder: str
) -> Told:
    """What the selection is; its rows are listed below the run's folder.

    Raises:
        IncompleteError: it is not what the passes before have found.
    """
    told: Told = pipeline.fold(
        stages.tell_chunk,
        list(stages.consecutive(units, rows=PICKED_ROWS)),
        stages.merge_told,
        cut=judged.cut,
        source_column=options.source_column,
        folder=folder,
        edges_E=judged.edges_E,
        groups=judged.groups,
    )
    selected = told.by_group_G.tolist()
    wanted = [share.quota for share in judged.shares] or [judged.cut.selected]
    listed = sum(part.entry["rows"] for part in told.picked)
    if selected != wanted or listed != judged.cut.selected:
        raise IncompleteError(
            f"{folder}: {sum(wanted):,} rows were to be selected, {sum(selected):,} are and "
            f"{listed:,} are listed, or those of a group are others. Select again when no other "
            "job writes there."
        )
    return told


def _publish(
    scores: Scores,
    options: SelectOptions,
    against: Against,
    judged: Judged,
    told: Told,
    *,
    folder: str,
    report: dict[str, Any],
    files: list[dict[str, Any]],
) -> None:
    publish(
        folder,
        kind="selection",
        config={
            **{name: getattr(options, name) for name in SelectOptions.__dataclass_fields__},
            "scores": storage.portable(scores.folder, base=folder),
            "since": "latest" if against.only_new else None,
        },
        inputs=[
            {
                "kind": "scores",
                "manifest": storage.portable(
                    storage.join(scores.folder, MANIFEST_NAME), base=folder
                ),
                "sha256": sha256(
                    storage.read_bytes(storage.join(scores.folder, MANIFEST_NAME))
                ).hexdigest(),
                "ranker": scores.manifest["key"]["ranker"],
            },
            *against.inputs(folder),
        ],
        counts=report["counts"],
        threshold=report["threshold"],
        precision=report["precision"],
        **({"groups": report["groups"]} if judged.groups else {}),
        **({"policy": report["policy"]} if judged.policy else {}),
        picked=[part.entry for part in told.picked],
        files=files,
    )


def _write_bytes(folder: str, name: str, data: bytes) -> dict[str, Any]:
    """Store a file that is no table; its manifest entry."""
    storage.write_bytes(storage.join(folder, name), data)
    return {"path": name, "rows": 0, "bytes": len(data), "sha256": sha256(data).hexdigest()}


def job(argv: Sequence[str]) -> None:
    """Parse, select, and print the report."""
    config = cli.parse(SelectConfig, argv, prog="jobs.select_rows", description=__doc__ or "")
    folder = storage.absolute(config.out)
    check_readable([storage.absolute(config.scores)])
    check_writable(folder)
    check_unpublished(folder)
    hub = open_hub(config.push_to_hub) if config.push_to_hub else None
    with recording(config, job="select_rows", run=new_run_id()):
        scores = open_scores(config.scores)
        check_columns(scores, config)
        rescorer = rescorer_of(scores, config, ranker=config.ranker)
        with cli.connected():
            report = select(scores, config, rescorer, folder=folder)
        tell_published(folder, kind="selection", counts=report["counts"])
    print(render(report))  # noqa: T201 - the job's result
    logger.info("%s", storage.join(folder, MANIFEST_NAME))
    if hub is not None and config.push_to_hub:
        push(hub, folder, config.push_to_hub)


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
