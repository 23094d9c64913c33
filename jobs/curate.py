"""Curate a pool: score what is not scored yet, keep exactly the best, report. The main job."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jobs import cli
from jobs.before import open_before
from jobs.events import recording, tell, tell_published
from jobs.news import Against
from jobs.push import open_hub, push
from jobs.score import ScoreConfig, score
from jobs.score_plan import make_plan
from jobs.scored_pool import open_scores
from jobs.select_rows import select
from jobs.settled import SelectOptions, output_of, rescorer_of
from scar_core import storage
from scar_core.errors import InputError
from scar_core.lease import held
from scar_core.manifest import MANIFEST_NAME, new_run_id, next_run_id, write_pointer
from scar_core.selection.combine import check_number_columns
from scar_core.selection.labels import check_label_column
from scar_core.selection.report import render
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("scar_curate")


@dataclass(frozen=True, kw_only=True)
class CurateConfig(ScoreConfig, SelectOptions):
    """Keep the best of a pool."""

    out: str
    """Directory of the curation: scores/, selected/<run>/ and latest.json; later runs add to it."""
    scores: str | None = None
    """Scores directory, if not the one in --out."""
    wait: bool = False
    """Wait while another run holds --out, instead of ending with exit code 3."""
    lease_seconds: float = 120.0
    """A run that shows no sign of life for so long loses --out to the next one; at least 1."""
    since: Literal["latest"] | None = None
    """latest: write only those selected rows whose content the run that latest.json names had not
    selected. Which rows are selected stays the same."""

    def __post_init__(self) -> None:
        """Check what both halves check."""
        ScoreConfig.__post_init__(self)
        SelectOptions.__post_init__(self)
        if not self.lease_seconds >= 1:
            raise ValueError(f"lease_seconds must be at least 1, got {self.lease_seconds}")

    def score_config(self) -> ScoreConfig:
        """The scoring half."""
        names = {field.name for field in fields(ScoreConfig)} - {"out"}
        out = self.scores or storage.join(storage.absolute(self.out), "scores")
        return ScoreConfig(**{name: getattr(self, name) for name in names}, out=out)


def curate(config: CurateConfig) -> str:
    """Score, select, publish, print the report; the directory of the selection.

    It is held against the run that `latest.json` names when this one has the curation to itself,
    not at the end: what was published and never named was not handed out.

    Raises:
        ScarError: as `score` and `select` do. What is scored by then stays.
        LeaseError: another run holds the directory.
    """
    out = storage.absolute(config.out)
    check_readable([out])
    run = new_run_id()
    with recording(config, job="curate", run=run, default=out):
        report, folder = _curate(config, out, run=run)
    print(render(report))  # noqa: T201 - the job's result
    return folder


def _curate(config: CurateConfig, out: str, *, run: str) -> tuple[dict[str, Any], str]:
    """Plan; then, alone on the curation, score, select and publish: the report, and where."""
    scoring = config.score_config()
    if config.scores is not None:  # else the plan looks at the same store
        check_writable(out)
    plan = make_plan(scoring)
    output_of(plan.columns, config).check(plan.files)
    if config.per is not None:
        check_label_column(plan.files, config.per, flag="--per")
    order = config.order_rule()
    check_number_columns(plan.files, order.columns, flag=order.flag)
    if order.columns and plan.key.precision != "fp32":
        raise InputError(
            f"{order.flag} needs the fp32 score of every row. Score with --precision fp32."
        )
    lease_folder = storage.join(out, "lease")
    with held(lease_folder, lease_seconds=config.lease_seconds, wait=config.wait) as lease:
        if lease.waited:  # what the other run finished meanwhile is not scored again
            plan = make_plan(scoring)
        name = f"selected/{next_run_id(storage.join(out, 'selected'), own=run)}"
        against = Against(before=open_before(out), only_new=config.since is not None)
        with cli.connected():
            scores = open_scores(score(scoring, plan))
            rescorer = rescorer_of(scores, config, ranker=config.ranker)
            folder = storage.join(out, name)
            report = select(scores, config, rescorer, folder=folder, against=against)
        tell_published(folder, kind="selection", counts=report["counts"])
        newest = write_pointer(out, name, kind="selection")
        tell("pointer_written", latest=newest)
    if newest != name:
        logger.warning("latest.json names %s, which was started after this run", newest)
    return report, folder


def job(argv: Sequence[str]) -> None:
    """Parse, curate, and say where the selection is."""
    config = cli.parse(CurateConfig, argv, prog="jobs.curate", description=__doc__ or "")
    hub = open_hub(config.push_to_hub) if config.push_to_hub else None
    folder = curate(config)
    logger.info("%s", storage.join(folder, MANIFEST_NAME))
    if hub is not None and config.push_to_hub:
        push(hub, folder, config.push_to_hub)


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
