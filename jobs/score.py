"""Score a pool: Ray Data around `Scorer`, one sidecar per unit, finished units never again."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

from jobs import cli, pipeline
from jobs.actors import WRITER_CPUS, ActorConfig, few_tasks, scored_units
from jobs.progress import Progress
from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.manifest import (
    MANIFEST_NAME,
    follow_pointer,
    new_run_id,
    publish,
    read_manifest,
    write_pointer,
)
from scar_core.pool.files import PoolFile, open_pool
from scar_core.pool.rows import PairColumns
from scar_core.pool.sidecars import (
    ScoringKey,
    Sidecar,
    find_finished,
    sidecar_entry,
    total_quarantined,
)
from scar_core.pool.units import Unit, UnitConfig, plan_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.score_stages import ScoredSidecar
    from scar_core.ranker.model import RankerConfig

logger = logging.getLogger("scar_curate")

# Consecutive units of a file are read by one task, so that a huge row group is not decoded from
# its start for each of them; more than this and the cores would wait for one reader.
UNITS_PER_READ = 8


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PairColumns, UnitConfig, ActorConfig):
    """Score every row of a pool with a ranker."""

    pool: list[str]
    """Parquet files, folders and globs; one or several."""
    ranker: str
    """Ranker directory, or the hub name of one that scar-tool published."""
    out: str
    """Scores directory; finished units found there are not scored again."""
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
        UnitConfig.__post_init__(self)
        ActorConfig.__post_init__(self)
        if self.max_tokens < 8:  # noqa: PLR2004 - special tokens and a word
            raise ValueError(f"max_tokens must be at least 8, got {self.max_tokens}")


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


def resolved_precision(config: ScoreConfig) -> Literal["fp32", "bf16"]:
    """What `auto` means for these actors; CPUs are taken to be like this machine's."""
    import torch  # noqa: PLC0415

    from scar_core.ranker.linears import bf16_is_native  # noqa: PLC0415 - torch

    if config.precision != "auto":
        return config.precision
    fast = config.gpus_per_actor > 0 or bf16_is_native(torch.device("cpu"))
    return "bf16" if fast else "fp32"


def readable_tokens(asked: int, ranker: RankerConfig, *, where: str) -> int:
    """Tokens of a text that the encoder can read, at most as many as are asked for."""
    import torch  # noqa: PLC0415

    from scar_core.ranker.encoders import empty_encoder, encoder_config  # noqa: PLC0415 - torch
    from scar_core.ranker.packing import longest_text  # noqa: PLC0415 - torch

    with torch.device("meta"):  # the shape of the encoder, without its memory
        encoder = empty_encoder(encoder_config(ranker.encoder_config, where=where))
    reach = longest_text(encoder)
    if asked > reach:
        logger.info("%s: its encoder reads %s tokens, not %s", where, f"{reach:,}", f"{asked:,}")
    return min(asked, reach)


def make_plan(config: ScoreConfig) -> Plan:
    """Read footers and list sidecars; nothing is started and nothing written.

    Raises:
        InputError: the pool or the ranker needs fixing.
    """
    from scar_core.ranker.checkpoint import check_ranker, ranker_fingerprint  # noqa: PLC0415 - torch

    ranker = check_ranker(config.ranker)
    files = open_pool(config.pool, config)
    units = plan_units(files, config)
    key = ScoringKey(
        ranker=ranker_fingerprint(config.ranker),
        instruction_column=config.instruction_column,
        response_column=config.response_column,
        max_row_bytes=config.max_row_bytes,
        max_tokens=readable_tokens(config.max_tokens, ranker, where=config.ranker),
        precision=resolved_precision(config),
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
            for result in _dealt_until_done(config, plan):
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
    # Copies of a file share ids and sidecars; each keeps its own place.
    sidecars = [replace(finished[unit.id], unit=unit) for unit in plan.units]
    return _publish(config, plan, sidecars)


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


def _dealt_until_done(config: ScoreConfig, plan: Plan) -> Iterator[ScoredSidecar]:
    """As `_run`; units that went down with a part of the cluster are dealt to what is left of it.

    Raises:
        ClusterError: the cluster broke before it finished a single unit more.
    """
    from jobs.standstill import ClusterError  # noqa: PLC0415 - Ray

    finished = dict(plan.finished)
    while True:
        left = replace(plan, finished=dict(finished))
        try:
            for result in _run(config, left):
                finished[result.sidecar.unit.id] = result.sidecar
                yield result
        except ClusterError as error:
            if len(finished) == len(left.finished):
                raise
            logger.warning("%s Going on with the units that are not.", error)
        else:
            return


def _run(config: ScoreConfig, plan: Plan) -> Iterator[ScoredSidecar]:
    """Sidecars of the missing units, in the order in which they are finished."""
    from jobs.score_stages import write_sidecars  # noqa: PLC0415 - torch

    scored = scored_units(
        read_tasks(plan),
        ranker=config.ranker,
        columns=config,
        max_tokens=plan.key.max_tokens,
        precision=plan.key.precision,
        actors=config,
    )
    written = scored.map_batches(
        write_sidecars,
        fn_kwargs={"scores": storage.absolute(config.out), "key": plan.key},
        batch_size=1,
        batch_format="pyarrow",
        compute=few_tasks(),
        num_cpus=WRITER_CPUS,
    )
    yield from pipeline.results(written)


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
    run = f"runs/{new_run_id()}"
    folder = storage.join(scores, run)
    pool_files = [_pool_entry(file, folder) for file in plan.files]
    # Where the files lie, too: a pool that was moved keeps its sidecars, but not this manifest.
    whole = json.dumps([pool_files, [unit.id for unit in plan.units]])
    set_id = sha256(whole.encode()).hexdigest()
    newest = follow_pointer(scores)
    if newest is not None:
        manifest = read_manifest(newest, kind="scores")
        if (manifest["set"], manifest["key_id"]) == (set_id, plan.key.id):
            return newest
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
            {"kind": "pool", "files": pool_files},
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
