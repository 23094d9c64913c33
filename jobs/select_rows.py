"""Keep exactly the best of what is scored: Ray Data around `selection`, reading only sidecars."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from jobs import cli, pipeline
from jobs import select_stages as stages
from jobs.actors import ActorConfig
from jobs.before import SPREAD_NAME
from jobs.comparison import compare
from jobs.events import EventsConfig, recording, tell, tell_published
from jobs.find_copies import mark, scratch
from jobs.news import Against
from jobs.passes import Judged, judge
from jobs.rescore import Rescorer, score_repeated, settle
from jobs.scored_pool import Scores, check_score_column, open_scores
from jobs.select_report import make_report
from jobs.select_write import plan_parts, write_part
from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.manifest import MANIFEST_NAME, check_unpublished, new_run_id, publish, to_json
from scar_core.selection.keep import parse_keep
from scar_core.selection.labels import check_label_column
from scar_core.selection.quotas import GroupRule, group_rule
from scar_core.selection.report import render
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.select_stages import ScoredUnit, Told
    from jobs.select_write import Part

logger = logging.getLogger("scar_curate")

# Rows of the pool whose selected ones one file lists; of any cluster, so that files are the same.
PICKED_ROWS = 1_000_000

ALONE = Against()
"""A selection that is held against no other."""


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What to keep, and how it is written."""

    keep: str
    """What to keep: a share (10%), a number of rows (2500) or a threshold ('score>=1.5')."""
    per: str | None = None
    """Column of the pool whose values are groups; each keeps its part of --keep, by its own
    threshold: in proportion to its eligible rows, by largest remainder. At most 100,000 groups."""
    min_per_group: str | None = None
    """With --per, the least that a group keeps: rows (100), or a share of the rows to keep (1%,
    rounded up). A group with fewer eligible rows keeps them all."""
    max_per_group: str | None = None
    """With --per, the most that a group keeps: rows, or a share of the rows to keep (rounded
    down)."""
    dedup: Literal["none", "exact"] = "none"
    """exact: of rows with the same instruction and response only the best-scored one can be kept,
    and shares count distinct rows."""
    source_column: str = "source"
    """Column by which the report breaks the selection down, where the pool has it."""
    score_column: str = "scar_score"
    """Name of the column that is added to the selected rows."""
    file_megabytes: int = 256
    """Uncompressed size of an output file, about, at least 1."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        self.group_rule()
        if self.file_megabytes < 1:
            raise ValueError(f"file_megabytes must be at least 1, got {self.file_megabytes}")

    def group_rule(self) -> GroupRule | None:
        """How groups share the selection; None where nothing is asked per group."""
        return group_rule(
            parse_keep(self.keep),
            per=self.per,
            least=self.min_per_group,
            most=self.max_per_group,
        )


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
    with scratch(folder) as exchange:
        units, judged, precision = settled(scores, options, rescorer, exchange=exchange)
        told = _tell(units, judged, options, folder=folder)
        compared = compare(against.before, scores, units, told.picked)
        picked = against.to_write(told.picked, exchange=exchange)
        parts = plan_parts(units, picked, megabytes=options.file_megabytes)
        entries = _write(judged, parts, compared, options, folder=folder)
    report = make_report(scores, options, judged, told)
    report["precision"] = precision
    report["counts"] |= against.counts(judged.cut.selected, picked)
    report |= compared
    spread = {"edges": judged.edges_E.tolist(), "rows": told.spread_B.tolist()}
    entries += [
        _write_json(folder, "report.json", to_json(report)),
        _write_json(folder, SPREAD_NAME, to_json(spread, indent=None)),
    ]
    _publish(scores, options, against, judged, told, folder=folder, report=report, files=entries)
    return report


def check_columns(scores: Scores, options: SelectOptions) -> None:
    """Raise SchemaError if the pool has the column that is to be added, or lacks that of groups."""
    check_score_column(scores.files, options.score_column)
    if options.per is not None:
        check_label_column(scores.files, options.per, flag="--per")


def _write(
    judged: Judged,
    parts: Sequence[Part],
    compared: dict[str, Any],
    options: SelectOptions,
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
    written = pipeline.run(write_part, parts, folder=folder, score_column=options.score_column)
    return sorted(written, key=lambda entry: str(entry["path"]))


def settled(
    scores: Scores, options: SelectOptions, rescorer: Rescorer, *, exchange: str
) -> tuple[list[ScoredUnit], Judged, dict[str, Any]]:
    """The units, the selection that their scores lead to, and how precise those are.

    Args:
        scores: what to select from.
        options: what to keep.
        rescorer: for bf16 scores.
        exchange: a folder for what tasks pass on, which the caller removes.

    Raises:
        IncompleteError: the sidecars hold other rows than the manifest says.
    """
    keep, rule = parse_keep(options.keep), options.group_rule()
    units, rough = scores.units, scores.manifest["key"]["precision"] != "fp32"
    already = 0
    if options.dedup == "exact":
        if rough:
            units, already = score_repeated(rescorer, units, exchange)
        units = mark(units, folder=exchange, which="copies")
    if rough:
        units, judged, precision = settle(
            rescorer, units, partial(judge, keep=keep, rule=rule), already=already
        )
    else:
        judged, precision = judge(units, keep, rule), {"scores": "fp32"}
    if judged.counts.rows != scores.manifest["counts"]["rows_in"]:
        raise IncompleteError(
            f"{scores.folder}: sidecars hold {judged.counts.rows:,} rows, the manifest says "
            f"{scores.manifest['counts']['rows_in']:,}. Score again."
        )
    return units, judged, precision


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


def rescorer_of(scores: Scores, actors: ActorConfig, *, ranker: str | None = None) -> Rescorer:
    """What scores rows again in fp32, should the scores be bf16 ones.

    The ranker is the one that the scores' manifest names, unless another place is given.

    Raises:
        InputError: it is not the ranker that scored.
    """
    key = scores.manifest["key"]
    named = scores.manifest["config"]["ranker"]
    place = ranker
    if place is None:
        there = storage.locate(named, base=scores.folder)
        place = there if storage.is_folder(there) else named
    if key["precision"] != "fp32":
        from scar_core.ranker.checkpoint import ranker_fingerprint  # noqa: PLC0415 - torch

        if ranker_fingerprint(place) != key["ranker"]:
            raise InputError(
                f"{place}: is not the ranker of these bf16 scores; rows near the threshold cannot "
                "be scored again. Pass it with --ranker."
            )
    return Rescorer(
        scores=storage.locate(scores.manifest["files_below"], base=scores.folder),
        key_id=scores.manifest["key_id"],
        ranker=place,
        columns=scores.columns,
        max_tokens=key["max_tokens"],
        actors=actors,
    )


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
        picked=[part.entry for part in told.picked],
        files=files,
    )


def _write_json(folder: str, name: str, data: bytes) -> dict[str, Any]:
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
    with recording(config, job="select_rows", run=new_run_id()):
        scores = open_scores(config.scores)
        check_columns(scores, config)
        rescorer = rescorer_of(scores, config, ranker=config.ranker)
        with cli.connected():
            report = select(scores, config, rescorer, folder=folder)
        tell_published(folder, kind="selection", counts=report["counts"])
    print(render(report))  # noqa: T201 - the job's result
    logger.info("%s", storage.join(folder, MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
