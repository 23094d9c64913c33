"""Score a pool: Ray Data around `Scorer`, one sidecar per unit, finished units never again."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

from jobs import cli, pipeline
from jobs.progress import Progress
from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.manifest import (
    MANIFEST_NAME,
    follow_pointer,
    new_run_id,
    publish,
    read_manifest,
    write_pointer,
)
from scar_core.rows import PairColumns
from scar_core.sidecars import (
    ScoringKey,
    Sidecar,
    find_finished,
    sidecar_entry,
    total_quarantined,
)
from scar_core.units import PoolFile, Unit, UnitConfig, open_pool, plan_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.score_stages import ScoredSidecar

logger = logging.getLogger("scar_curate")

# Consecutive units of a file are read by one task, so that a huge row group is not decoded from
# its start for each of them; more than this and the cores would wait for one reader.
UNITS_PER_READ = 8
READER_CPUS = 0.5
WRITER_CPUS = 0.1


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PairColumns, UnitConfig):
    """Score every row of a pool with a ranker."""

    pool: list[str]
    """Parquet files, folders and globs; one or several."""
    ranker: str
    """Ranker directory, or the hub name of one that scar-tool published."""
    out: str
    """Scores directory; finished units found there are not scored again."""
    max_tokens: int = 512
    """Tokens of a text that the encoder sees, special tokens included, at least 3."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 where the processor has it."""
    actors: str = "auto"
    """Scoring actors, each with its own copy of the model: a number, MIN:MAX, or `auto`: one per
    free CPU, or per GPU share where --gpus-per-actor is given."""
    gpus_per_actor: float = 0.0
    """GPUs of one actor; 0 scores on CPUs; a fraction lets actors share a GPU."""
    cpus_per_actor: float = 1.0
    """CPUs, and threads, of one actor that scores on CPUs; an actor with a GPU reserves none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        PairColumns.__post_init__(self)
        UnitConfig.__post_init__(self)
        if self.max_tokens < 3:  # noqa: PLR2004 - two special tokens and one of the text
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}")
        if self.gpus_per_actor < 0 or self.cpus_per_actor <= 0:
            raise ValueError("gpus_per_actor must be at least 0 and cpus_per_actor above 0")
        parse_actors(self.actors)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to score, and what is scored already."""

    files: list[PoolFile]
    units: list[Unit]
    """In (path, row) order."""
    key: ScoringKey
    finished: dict[str, Sidecar]
    """By unit id."""

    @property
    def missing(self) -> list[Unit]:
        """Units without a finished sidecar, in (path, row) order."""
        return [unit for unit in self.units if unit.id not in self.finished]

    @property
    def rows(self) -> int:
        """Rows of the pool."""
        return sum(unit.rows for unit in self.units)


def parse_actors(text: str) -> tuple[int, int] | None:
    """(least, most) actors, or None for `auto`; ValueError where it is neither."""
    if text == "auto":
        return None
    low, _, high = text.partition(":")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        bounds = (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"actors must be a number, MIN:MAX or auto, got {text!r}")
    return bounds


def make_plan(config: ScoreConfig) -> Plan:
    """Read footers and list sidecars; nothing is started and nothing written.

    Raises:
        InputError: the pool or the ranker needs fixing.
    """
    from scar_core.checkpoint import check_ranker, ranker_fingerprint  # noqa: PLC0415 - torch

    check_ranker(config.ranker)
    files = open_pool(config.pool, config)
    units = plan_units(files, config)
    key = ScoringKey(
        ranker=ranker_fingerprint(config.ranker),
        instruction_column=config.instruction_column,
        response_column=config.response_column,
        max_row_bytes=config.max_row_bytes,
        max_tokens=config.max_tokens,
        precision=config.precision,
    )
    finished = find_finished(storage.absolute(config.out), units, key)
    plan = Plan(files=files, units=units, key=key, finished=finished)
    logger.info(
        "pool: %s rows in %s files, %s units; %s units are scored already",
        f"{plan.rows:,}",
        f"{len(files):,}",
        f"{len(units):,}",
        f"{len(finished):,}",
    )
    return plan


def score(config: ScoreConfig, plan: Plan) -> str:
    """Score what is missing and publish; the directory of the scores' manifest.

    Raises:
        InputError: this machine cannot run the actors that are asked for.
        IncompleteError: a unit came back without a sidecar, or counts do not close.
    """
    finished = dict(plan.finished)
    waiting = Waiting()
    if plan.missing:
        missing_rows = sum(unit.rows for unit in plan.missing)
        with cli.connected():
            progress = Progress(total_rows=plan.rows, done_rows=plan.rows - missing_rows)
            for result in _run(config, plan):
                sidecar = result.sidecar
                finished[sidecar.unit.id] = sidecar
                waiting.add(result)
                progress.advance(rows=sidecar.unit.rows, tokens=sidecar.tokens)
            progress.finish()
        logger.info("actors waited %.1f%% of the time for their next unit", 100 * waiting.ratio)
    lost = [unit for unit in plan.units if unit.id not in finished]
    if lost:
        raise IncompleteError(
            f"{len(lost):,} of {len(plan.units):,} units have no sidecar, the first: "
            f"{lost[0].path} from row {lost[0].row_start:,}. Start again to score them."
        )
    return _publish(config, plan, [finished[unit.id] for unit in plan.units])


@dataclass
class Waiting:
    """How actors spent their time after their first unit."""

    waited_seconds: float = 0.0
    worked_seconds: float = 0.0

    def add(self, result: ScoredSidecar) -> None:
        """Count one unit."""
        self.waited_seconds += result.waited_seconds
        self.worked_seconds += result.worked_seconds

    @property
    def ratio(self) -> float:
        """Share of the time spent waiting, in [0, 1]."""
        return self.waited_seconds / max(self.waited_seconds + self.worked_seconds, 1e-9)


def _run(config: ScoreConfig, plan: Plan) -> Iterator[ScoredSidecar]:
    """The pipeline: read and tokenize on CPUs, score on actors, write on CPUs; as it finishes."""
    from ray.data import ActorPoolStrategy  # noqa: PLC0415 - a run that has nothing to score starts no Ray

    from jobs import score_stages as stages  # noqa: PLC0415 - torch

    low, high = actor_bounds(config)
    ranker = stored_ranker(config.ranker)
    on_gpu = config.gpus_per_actor > 0
    scored = (
        pipeline.source(read_tasks(plan))
        .map_batches(
            stages.read_and_tokenize,
            fn_kwargs={"ranker": ranker, "columns": config, "max_tokens": config.max_tokens},
            batch_size=1,
            num_cpus=READER_CPUS,
        )
        .map_batches(
            stages.ScoreUnits,
            fn_constructor_kwargs={
                "ranker": ranker,
                "precision": config.precision,
                "threads": None if on_gpu else max(1, round(config.cpus_per_actor)),
            },
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=low, max_size=high),
            num_cpus=0 if on_gpu else config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        .map_batches(
            stages.write_sidecars,
            fn_kwargs={"scores": storage.absolute(config.out), "key": plan.key},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WRITER_CPUS,
        )
    )
    yield from pipeline.results(scored)


def stored_ranker(ranker: str) -> str:
    """A ranker's place as any worker may use it: a hub name stays what it is."""
    return storage.absolute(ranker) if storage.is_folder(ranker) else ranker


def actor_bounds(config: ScoreConfig) -> tuple[int, int]:
    """(least, most) actors that the connected cluster is asked for.

    Raises:
        InputError: this machine's own Ray can never start that many.
    """
    import ray  # noqa: PLC0415

    there = ray.cluster_resources()
    if config.gpus_per_actor > 0:
        free, each, what = there.get("GPU", 0.0), config.gpus_per_actor, "GPUs"
    else:
        # Readers and writers need their share, or the actors wait for ever.
        free = there.get("CPU", 0.0) - READER_CPUS - WRITER_CPUS
        each, what = config.cpus_per_actor, "CPUs"
    room = int(free / each)
    bounds = parse_actors(config.actors) or (max(1, room), max(1, room))
    if bounds[0] > room:
        message = (
            f"--actors {config.actors} with {each:g} {what} each needs {bounds[0] * each:g} {what}"
            f"; the cluster has {free:g} beside its readers."
        )
        if "RAY_ADDRESS" not in os.environ:
            raise InputError(f"{message} Ask for fewer actors or a smaller share.")
        logger.warning("%s Waiting for it to grow.", message)
    return bounds


def read_tasks(plan: Plan) -> list[Any]:
    """The missing units, up to UNITS_PER_READ of a file together, in (path, row) order."""
    from jobs.score_stages import ReadTask  # noqa: PLC0415 - torch

    files = {file.path: file for file in plan.files}
    tasks = []
    for path, units in groupby(plan.missing, key=lambda unit: unit.path):
        while chunk := tuple(islice(units, UNITS_PER_READ)):
            tasks.append(ReadTask(file=files[path], units=chunk))
    return tasks


def _publish(config: ScoreConfig, plan: Plan, sidecars: list[Sidecar]) -> str:
    """Publish the scores of this pool, unless the newest ones are the very same."""
    scores = storage.absolute(config.out)
    set_id = sha256("".join(unit.id for unit in plan.units).encode()).hexdigest()
    newest = follow_pointer(scores)
    if newest is not None:
        manifest = read_manifest(newest, kind="scores")
        if (manifest["set"], manifest["key_id"]) == (set_id, plan.key.id):
            return newest
    run = f"runs/{new_run_id()}"
    folder = storage.join(scores, run)
    quarantined = total_quarantined(sidecars)
    publish(
        folder,
        kind="scores",
        config={
            **asdict(config),
            "pool": [storage.portable(path, base=folder) for path in config.pool],
            "ranker": portable_ranker(config.ranker, base=folder),
            "out": storage.portable(scores, base=folder),
        },
        inputs=[
            {"kind": "ranker", "fingerprint": plan.key.ranker},
            {"kind": "pool", "files": [_pool_entry(file, folder) for file in plan.files]},
        ],
        counts={
            "rows_in": plan.rows,
            "scored": sum(sidecar.scored for sidecar in sidecars),
            "quarantined": quarantined,
            "tokens": sum(sidecar.tokens for sidecar in sidecars),
            "cut_tokens": sum(sidecar.cut_tokens for sidecar in sidecars),
        },
        files=[sidecar_entry(sidecar) for sidecar in sidecars],
        files_below="../..",
        key=asdict(plan.key),
        key_id=plan.key.id,
        set=set_id,
    )
    write_pointer(scores, run, kind="scores")
    return folder


def portable_ranker(ranker: str, *, base: str) -> str:
    """A ranker's place as a manifest may name it."""
    return storage.portable(ranker, base=base) if storage.is_folder(ranker) else ranker


def _pool_entry(file: PoolFile, folder: str) -> dict[str, Any]:
    return {
        "path": file.path,
        "url": storage.portable(file.url, base=folder),
        "fingerprint": file.fingerprint,
        "rows": file.rows,
    }


def job(argv: Sequence[str]) -> None:
    """Parse, score, and say where the scores are."""
    config = cli.parse(ScoreConfig, argv, prog="jobs.score", description=__doc__ or "")
    folder = score(config, make_plan(config))
    counts = read_manifest(folder, kind="scores")["counts"]
    logger.info(
        "%s rows in, %s scored, %s quarantined %s; %s",
        f"{counts['rows_in']:,}",
        f"{counts['scored']:,}",
        f"{sum(counts['quarantined'].values()):,}",
        counts["quarantined"] or "",
        storage.join(folder, MANIFEST_NAME),
    )


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
