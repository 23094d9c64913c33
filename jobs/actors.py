"""Scoring actors: how many, how large, and the stages from a read task to scores."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from jobs import pipeline
from scar_core import storage
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ray.data import Dataset

    from jobs.guarded import TokenScorer
    from jobs.read_stage import ReadTask
    from scar_core.pool.quarantine import Policy
    from scar_core.pool.rows import PairColumns

logger = logging.getLogger("scar_curate")

READER_CPUS = 0.5
WRITER_CPUS = 0.1
STALLS_AT_MOST = 30
# Ray's own is for ever: a file that crashes whoever reads it would keep a run from ending.
READER_RETRIES = 20


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The actors that score."""

    actors: str = "auto"
    """Scoring actors, each with its own copy of the model: a number, MIN:MAX, or `auto`: one per
    free CPU, or per GPU share where --gpus-per-actor is given."""
    gpus_per_actor: float = 0.0
    """GPUs of one actor; 0 scores on CPUs; a fraction lets actors share a GPU."""
    cpus_per_actor: float = 1.0
    """CPUs, and threads, of one actor that scores on CPUs; an actor with a GPU reserves none."""

    batch_timeout_seconds: float = 300.0
    """An actor that finishes no batch for so long is stalled, above 0. The rows that stall it are
    found and quarantined."""

    def __post_init__(self) -> None:
        """Refuse what cannot be started."""
        if self.batch_timeout_seconds <= 0:
            raise ValueError(
                f"batch_timeout_seconds must be above 0, got {self.batch_timeout_seconds:g}"
            )
        if self.gpus_per_actor < 0 or self.cpus_per_actor <= 0:
            raise ValueError("gpus_per_actor must be at least 0 and cpus_per_actor above 0")
        parse_actors(self.actors)


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


def actor_bounds(config: ActorConfig) -> tuple[int, int]:
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


def stored_ranker(ranker: str) -> str:
    """A ranker's place as any worker may use it: a hub name stays what it is."""
    return storage.absolute(ranker) if storage.is_folder(ranker) else ranker


def scored_units(
    tasks: Sequence[ReadTask],
    *,
    ranker: str,
    columns: PairColumns,
    max_tokens: int,
    precision: Literal["fp32", "bf16"],
    actors: ActorConfig,
    on_bad_file: Policy = "fail",
    load: Callable[..., TokenScorer] | None = None,
) -> Dataset:
    """Read and tokenize on CPUs, score on actors: a row per unit, as it is finished.

    The dataset's rows are those that `score_stages.ScoreUnits` gives. `load` gives the scorer, if
    not `score_stages.load_scorer`.
    """
    from ray.data import ActorPoolStrategy, DataContext  # noqa: PLC0415

    from jobs import score_stages as stages  # noqa: PLC0415 - torch
    from jobs.read_stage import read_and_tokenize  # noqa: PLC0415 - torch

    low, high = actor_bounds(actors)
    on_gpu = actors.gpus_per_actor > 0
    place = stored_ranker(ranker)
    loaded = partial(
        load or stages.load_scorer,
        ranker=place,
        max_tokens=max_tokens,
        precision=precision,
        threads=None if on_gpu else max(1, round(actors.cpus_per_actor)),
    )
    context = DataContext.get_current()
    # A row that stalls its actor is found by some 15 time-outs, all without progress to Ray.
    patience_seconds = STALLS_AT_MOST * actors.batch_timeout_seconds
    if 0 < context.execution_no_progress_timeout_s < patience_seconds:
        context.execution_no_progress_timeout_s = patience_seconds
    tokenized = pipeline.stage(
        pipeline.source(tasks),
        read_and_tokenize,
        fn_kwargs={
            "ranker": place,
            "columns": columns,
            "max_tokens": max_tokens,
            "on_bad_file": on_bad_file,
        },
        num_cpus=READER_CPUS,
        max_retries=READER_RETRIES,
    )
    return pipeline.stage(
        tokenized,
        stages.ScoreUnits,
        fn_constructor_kwargs={"load": loaded, "stall_seconds": actors.batch_timeout_seconds},
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=low, max_size=high),
        num_cpus=0 if on_gpu else actors.cpus_per_actor,
        num_gpus=actors.gpus_per_actor,
    )
