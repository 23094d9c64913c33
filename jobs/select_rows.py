"""Keep exactly the best of what is scored: Ray Data around `selection`, reading only sidecars."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from jobs import cli, pipeline
from jobs import select_stages as stages
from jobs.actors import ActorConfig
from jobs.comparison import Against, compare
from jobs.events import EventsConfig, recording, tell, tell_published
from jobs.passes import Judged, chunks_of, judge
from jobs.rescore import Rescorer, settle
from jobs.scored_pool import Scores, check_score_column, open_scores
from jobs.select_report import make_report
from jobs.select_stages import Part, ScoredUnit
from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.manifest import MANIFEST_NAME, check_unpublished, new_run_id, publish, to_json
from scar_core.selection.keep import parse_keep
from scar_core.selection.report import render
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.news import News
    from jobs.select_stages import Told
    from scar_core.selection.radix import Cut

logger = logging.getLogger("scar_curate")

ALONE = Against()
"""A selection that is held against no other."""


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What to keep, and how it is written."""

    keep: str
    """What to keep: a share (10%), a number of rows (2500) or a threshold ('score>=1.5')."""
    source_column: str = "source"
    """Column by which the report breaks the selection down, where the pool has it."""
    score_column: str = "scar_score"
    """Name of the column that is added to the selected rows."""
    file_megabytes: int = 256
    """Uncompressed size of an output file, about, at least 1."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        parse_keep(self.keep)
        if self.file_megabytes < 1:
            raise ValueError(f"file_megabytes must be at least 1, got {self.file_megabytes}")


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
        SchemaError: the pool has a column of the name that is to be added.
        IncompleteError: rows are missing somewhere; nothing was published.
    """
    check_score_column(scores.files, options.score_column)
    units, judged, precision = _settled(scores, options, rescorer)
    cut = judged.decision.cut
    told = list(
        pipeline.run(
            stages.tell_chunk, chunks_of(units), cut=cut, source_column=options.source_column
        )
    )
    news = compare(against, scores, units, judged, folder=folder)
    parts = news.hand_out(plan_parts(units, news.narrow(told), megabytes=options.file_megabytes))
    logger.info(
        "selected %s of %s rows; writing %s files",
        f"{cut.selected:,}",
        f"{judged.eligible:,}",
        f"{len(parts):,}",
    )
    tell(
        "rows_selected",
        eligible=judged.eligible,
        selected=cut.selected,
        threshold=cut.threshold,
        files=len(parts),
    )
    if "before" in news.report:
        tell("compared", before=news.report["before"])
    written = pipeline.run(
        stages.write_part, parts, folder=folder, cut=cut, score_column=options.score_column
    )
    entries = sorted(written, key=lambda entry: str(entry["path"]))
    report = make_report(scores, options, judged, told)
    report["precision"] = precision
    report["counts"] |= news.counts(cut.selected)
    report |= news.report
    _publish(scores, options, news, folder=folder, cut=cut, report=report, entries=entries)
    return report


def _settled(
    scores: Scores, options: SelectOptions, rescorer: Rescorer
) -> tuple[list[ScoredUnit], Judged, dict[str, Any]]:
    """The units, the selection, and how precise their scores are."""
    keep = parse_keep(options.keep)
    if scores.manifest["key"]["precision"] == "fp32":
        units, judged, precision = scores.units, judge(scores.units, keep), {"scores": "fp32"}
    else:
        units, judged, precision = settle(rescorer, scores.units, partial(judge, keep=keep))
    if judged.counts.rows != scores.manifest["counts"]["rows_in"]:
        raise IncompleteError(
            f"{scores.folder}: sidecars hold {judged.counts.rows:,} rows, the manifest says "
            f"{scores.manifest['counts']['rows_in']:,}. Score again."
        )
    return units, judged, precision


def rescorer_of(scores: Scores, actors: ActorConfig, *, ranker: str | None = None) -> Rescorer:
    """What scores rows again in fp32, should the scores be bf16 ones.

    The ranker is the one that the scores' manifest names, unless another place is given.

    Raises:
        InputError: it is not the ranker that scored.
    """
    key = scores.manifest["key"]
    named = scores.manifest["config"]["ranker"]
    place = ranker or storage.locate(named, base=scores.folder)
    place = place if storage.is_folder(place) else named
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


def plan_parts(units: Sequence[ScoredUnit], told: Sequence[Told], *, megabytes: int) -> list[Part]:
    """Output files of about so many megabytes, each of one schema, in (path, row) order.

    At least one, without rows if none is selected, so that the directory is a dataset.
    """
    selected = {ordinal: n for part in told for ordinal, n in part.selected.items()}
    groups: list[list[ScoredUnit]] = []
    size = 0.0
    for scored in units:
        if scored.ordinal not in selected:
            continue
        added = selected[scored.ordinal] * scored.file.bytes_per_row
        same = groups and groups[-1][0].file.schema.equals(scored.file.schema)
        if not same or size + added > megabytes * 2**20:
            groups.append([])
            size = 0.0
        groups[-1].append(scored)
        size += added
    return [
        Part(
            path=f"data/part-{index:05d}.parquet",
            units=tuple(group),
            rows=sum(selected.get(scored.ordinal, 0) for scored in group),
        )
        for index, group in enumerate(groups or [list(units[:1])])
    ]


def _publish(
    scores: Scores,
    options: SelectOptions,
    news: News,
    *,
    folder: str,
    cut: Cut,
    report: dict[str, Any],
    entries: list[dict[str, Any]],
) -> None:
    written = sum(entry["rows"] for entry in entries)
    wanted = report["counts"].get("written", cut.selected)
    if written != wanted:
        raise IncompleteError(f"{folder}: {wanted:,} rows were to be written, {written:,} were.")
    data = to_json(report)
    storage.write_bytes(storage.join(folder, "report.json"), data)
    report_entry = {"path": "report.json", "rows": 0, "bytes": len(data)}
    publish(
        folder,
        kind="selection",
        config={
            **{name: getattr(options, name) for name in SelectOptions.__dataclass_fields__},
            "scores": storage.portable(scores.folder, base=folder),
            "since": None if news.wanted is None else "latest",
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
            *news.inputs,
        ],
        counts=report["counts"],
        threshold=report["threshold"],
        precision=report["precision"],
        cut=cut.to_json(),
        files=[*entries, {**report_entry, "sha256": sha256(data).hexdigest()}],
    )


def job(argv: Sequence[str]) -> None:
    """Parse, select, and print the report."""
    config = cli.parse(SelectConfig, argv, prog="jobs.select_rows", description=__doc__ or "")
    folder = storage.absolute(config.out)
    check_readable([storage.absolute(config.scores)])
    check_writable(folder)
    check_unpublished(folder)
    with recording(config, job="select_rows", run=new_run_id()):
        scores = open_scores(config.scores)
        check_score_column(scores.files, config.score_column)
        rescorer = rescorer_of(scores, config, ranker=config.ranker)
        with cli.connected():
            report = select(scores, config, rescorer, folder=folder)
        tell_published(folder, kind="selection", counts=report["counts"])
    print(render(report))  # noqa: T201 - the job's result
    logger.info("%s", storage.join(folder, MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
