"""Curate a pool: score what is not scored yet, keep exactly the best, report. The main job."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from jobs import cli
from jobs.score import ScoreConfig, make_plan, score
from jobs.scored_pool import check_score_column, open_scores
from jobs.select_rows import SelectOptions, rescorer_of, select
from scar_core import storage
from scar_core.manifest import MANIFEST_NAME, new_run_id, write_pointer
from scar_core.selection.labels import check_label_column
from scar_core.selection.report import render

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

    def __post_init__(self) -> None:
        """Check what both halves check."""
        ScoreConfig.__post_init__(self)
        SelectOptions.__post_init__(self)

    def score_config(self) -> ScoreConfig:
        """The scoring half."""
        names = {field.name for field in fields(ScoreConfig)} - {"out"}
        out = self.scores or storage.join(storage.absolute(self.out), "scores")
        return ScoreConfig(**{name: getattr(self, name) for name in names}, out=out)


def curate(config: CurateConfig) -> str:
    """Score, select, publish, print the report; the directory of the selection.

    Raises:
        ScarError: as `score` and `select` do. What is scored by then stays.
    """
    out = storage.absolute(config.out)
    run = f"selected/{new_run_id()}"
    folder = storage.join(out, run)
    scoring = config.score_config()
    plan = make_plan(scoring)
    check_score_column(plan.files, config.score_column)
    if config.per is not None:
        check_label_column(plan.files, config.per, flag="--per")
    with cli.connected():
        scores = open_scores(score(scoring, plan))
        report = select(scores, config, rescorer_of(scores, config), folder=folder)
    write_pointer(out, run, kind="selection")
    print(render(report))  # noqa: T201 - the job's result
    return folder


def job(argv: Sequence[str]) -> None:
    """Parse, curate, and say where the selection is."""
    config = cli.parse(CurateConfig, argv, prog="jobs.curate", description=__doc__ or "")
    folder = curate(config)
    logger.info("%s", storage.join(folder, MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
