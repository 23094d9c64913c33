"""Score a pool: Ray Data around `Scorer`, one sidecar per unit, finished units never again."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

from jobs import cli, pipeline
from jobs.actors import READER_RETRIES, WRITER_CPUS, ActorConfig, few_tasks, scored_units
from jobs.effort import Effort
from jobs.events import EventsConfig, recording, tell
from jobs.progress import Progress
from jobs.publish_scores import publish_scores
from jobs.score_plan import Plan, make_plan
from jobs.tally import Tally
from scar_core import storage
from scar_core.errors import IncompleteError, RunError
from scar_core.manifest import MANIFEST_NAME, new_run_id, read_manifest
from scar_core.pool.files import BadFile
from scar_core.pool.filters import FilterConfig
from scar_core.pool.kinds import FormatConfig
from scar_core.pool.quarantine import QuarantineConfig
from scar_core.pool.rows import PairColumns
from scar_core.pool.units import UnitConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jobs.guarded import TokenScorer
    from jobs.score_stages import ScoredSidecar

logger = logging.getLogger("scar_curate")

# Consecutive units of a file are read by one task, so that a huge row group is not decoded from
# its start for each of them; more than this and the cores would wait for one reader.
UNITS_PER_READ = 8


@dataclass(frozen=True, kw_only=True)
class ScoreInput(
    PairColumns, FormatConfig, UnitConfig, FilterConfig, ActorConfig, QuarantineConfig
):
    """A pool, and how it is scored."""

    pool: list[str]
    """Files, folders and globs, one or several: Parquet, JSONL, JSON, CSV, Arrow, and what
    `save_to_disk` of datasets wrote."""
    ranker: str
    """Ranker directory, or the hub name of one that scar-tool published."""
    max_tokens: int = 512
    """Tokens of a text that the encoder sees, special tokens included, at least 8;
    fewer if its positions end before."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """fp32 is the reference. bf16 is faster where the processor has it; the selection then scores
    rows near the threshold again in fp32 and keeps what fp32 would. auto: bf16 on GPUs and on CPUs
    that have it, else fp32."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        PairColumns.__post_init__(self)
        FormatConfig.__post_init__(self)
        UnitConfig.__post_init__(self)
        FilterConfig.__post_init__(self)
        ActorConfig.__post_init__(self)
        QuarantineConfig.__post_init__(self)
        if self.max_tokens < 8:  # noqa: PLR2004 - special tokens and a word
            raise ValueError(f"max_tokens must be at least 8, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoreInput, EventsConfig):
    """Score every row of a pool with a ranker."""

    out: str
    """Scores directory; finished units found there are not scored again."""


def score(
    config: ScoreConfig, plan: Plan, *, load: Callable[..., TokenScorer] | None = None
) -> str:
    """Score what is missing and publish; the directory of the scores' manifest.

    Args:
        config: as the plan was made with.
        plan: what there is to score.
        load: gives the scorer from the arguments of `score_stages.load_scorer`, if not that itself.

    Raises:
        InputError: this machine cannot run the actors that are asked for, or a row is bad and
            none may be.
        RunError: more is quarantined than may be.
        IncompleteError: a unit came back without a sidecar, or counts do not close.
    """
    tally = Tally(config, plan)
    for sidecar in plan.finished.values():
        tally.add(sidecar)
    figures = _score_missing(config, plan, tally, load) if plan.missing else None
    plan = plan.without(tally.bad_files)
    finished = tally.finished
    lost = [unit for unit in plan.units if unit.id not in finished]
    if lost:
        raise IncompleteError(
            f"{len(lost):,} of {len(plan.units):,} units have no sidecar, the first: "
            f"{lost[0].path} from row {lost[0].row_start:,}. Start again to score them."
        )
    if not plan.units:
        raise RunError(f"no file is left; the first: {plan.bad_files[0].message}")
    # Copies of a file share ids and sidecars; each keeps its own place.
    sidecars = [replace(finished[unit.id], unit=unit) for unit in plan.units]
    return publish_scores(config, plan, sidecars, figures=figures)


def _score_missing(
    config: ScoreConfig, plan: Plan, tally: Tally, load: Callable[..., TokenScorer] | None
) -> dict[str, Any]:
    """Score the units that are not; what it took."""
    missing_rows = sum(unit.rows for unit in plan.missing)
    effort = Effort()
    with cli.connected():
        tell("scoring_started", units=len(plan.missing), rows=missing_rows)
        progress = Progress(total_rows=plan.rows, done_rows=plan.rows - missing_rows)
        for result in _dealt_until_done(config, plan, load):
            if isinstance(result, BadFile):
                tally.add_file(result)
                continue
            tally.add(result.sidecar)
            effort.add(result)
            progress.advance(rows=result.sidecar.unit.rows, tokens=result.sidecar.tokens)
        progress.finish()
    figures = effort.figures(progress.seconds)
    logger.info(
        "%.3f tokens computed for each real one; actors waited %.1f%% of the time",
        figures["computed_per_encoded_token"],
        100 * effort.wait_ratio,
    )
    tell("scoring_finished", **figures)
    return figures


def _dealt_until_done(
    config: ScoreConfig, plan: Plan, load: Callable[..., TokenScorer] | None
) -> Iterator[ScoredSidecar | BadFile]:
    """As `_run`; units that went down with a part of the cluster are dealt to what is left of it.

    Raises:
        ClusterError: the cluster broke before it finished a single unit more.
    """
    from jobs.standstill import ClusterError  # noqa: PLC0415 - Ray

    finished = dict(plan.finished)
    bad: dict[str, BadFile] = {}
    while True:
        left = replace(plan.without(bad), finished=dict(finished))
        if not left.missing:  # copies of a file share what one of them has
            return
        try:
            for result in _run(config, left, load):
                if isinstance(result, BadFile):
                    bad[result.path] = result
                else:
                    finished[result.sidecar.unit.id] = result.sidecar
                yield result
        except ClusterError as error:
            if len(finished) == len(left.finished):
                raise
            logger.warning("%s Going on with the units that are not.", error)
        else:
            return


def _run(
    config: ScoreConfig, plan: Plan, load: Callable[..., TokenScorer] | None
) -> Iterator[ScoredSidecar | BadFile]:
    """Sidecars of the missing units as they are finished, and files that could not be read."""
    from ray.exceptions import WorkerCrashedError  # noqa: PLC0415

    from jobs.score_stages import write_sidecars  # noqa: PLC0415 - torch
    from jobs.standstill import ClusterError  # noqa: PLC0415 - Ray

    scored = scored_units(
        read_tasks(plan),
        ranker=config.ranker,
        columns=plan.columns,
        max_tokens=plan.key.max_tokens,
        precision=plan.key.precision,
        actors=config,
        on_bad_file=config.on_bad_file,
        filters=plan.made.filters,
        load=load,
    )
    written = pipeline.stage(
        scored,
        write_sidecars,
        fn_kwargs={"scores": storage.absolute(config.out), "key": plan.key},
        batch_format="pyarrow",
        compute=few_tasks(),
        num_cpus=WRITER_CPUS,
    )
    try:
        yield from pipeline.results(written)
    except ClusterError as error:
        if not isinstance(error.__cause__, WorkerCrashedError):
            raise
        raise RunError(
            f"a worker that read the pool died {READER_RETRIES} times: too little memory, or a "
            "file that crashes its reader. Start again: finished units are kept."
        ) from error


def read_tasks(plan: Plan) -> list[Any]:
    """The missing units, up to UNITS_PER_READ of a file together, in (path, row) order."""
    from jobs.read_stage import ReadTask  # noqa: PLC0415 - torch

    files = {file.path: file for file in plan.files}
    tasks = []
    for path, units in groupby(plan.missing, key=lambda unit: unit.path):
        while chunk := tuple(islice(units, UNITS_PER_READ)):
            tasks.append(ReadTask(file=files[path], units=chunk))
    return tasks


def job(argv: Sequence[str]) -> None:
    """Parse, score, and say where the scores are."""
    config = cli.parse(ScoreConfig, argv, prog="jobs.score", description=__doc__ or "")
    with recording(config, job="score", run=new_run_id(), default=config.out):
        folder = score(config, make_plan(config))
        counts = read_manifest(folder, kind="scores")["counts"]
    for what, scored in (("rows", "scored"), ("files", "files_scored")):
        bad = counts["quarantined" if what == "rows" else "files_quarantined"]
        logger.info(
            "%s %s in, %s scored, %s quarantined %s",
            f"{counts[f'{what}_in']:,}",
            what,
            f"{counts[scored]:,}",
            f"{sum(bad.values()):,}",
            bad or "",
        )
    logger.info("%s", storage.join(folder, MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
