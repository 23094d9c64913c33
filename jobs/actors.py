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
from scar_core.pool.filters import Filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ray.data import Dataset, TaskPoolStrategy

    from jobs.guarded import TokenScorer
    from jobs.read_stage import ReadTask
    from scar_core.pool.quarantine import Policy
    from scar_core.pool.rows import PairColumns

logger = logging.getLogger("scar_curate")

READER_CPUS = 0.5
STALLS_AT_MOST = 30
# Ray's own is for ever: a file that crashes whoever reads it would keep a run from ending.
READER_RETRIES = 20
WRITER_CPUS = 0.05
# What a task of a selection reserves, Ray's default.
TASK_CPUS = 1.0
# Each actor on CPUs leaves a sliver of them to readers and writers, which need no more. So these
# find room on a node that is full of actors, too: where those of a lost node crowd in, actors
# would else wait for readers that wait for actors to end.
SLIVER_RATIO = 0.07
SLIVER_READER_CPUS = 0.05
# One reader feeds more actors than there are on so many CPUs, and one writer stores what they give.
# Slivers would hold many more, each a process of its own.
CPUS_PER_TASK = 8
ROUNDING = 1e-9


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
    stall_minutes: float | None = None
    """Give up scoring when nothing has moved for so many minutes, above 0; more than a unit takes.
    By default 30, or 30 times --batch-timeout-seconds if that is longer: finding a row that stalls
    its actor takes some 15 of these."""
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
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(
                f"gpus_per_actor is a share of one GPU or a whole number, got "
                f"{self.gpus_per_actor:g}"
            )
        if self.stall_minutes is not None and self.stall_minutes <= 0:
            raise ValueError(f"stall_minutes must be above 0, got {self.stall_minutes:g}")
        parse_actors(self.actors)

    @property
    def threads(self) -> int | None:
        """Of one actor that scores on CPUs; None with a GPU."""
        return None if self.gpus_per_actor > 0 else max(1, round(self.cpus_per_actor))

    @property
    def reserved_cpus(self) -> float:
        """What one actor asks the cluster for."""
        return 0.0 if self.gpus_per_actor > 0 else self.cpus_per_actor * (1 - SLIVER_RATIO)

    @property
    def patience_minutes(self) -> float:
        """How long nothing may move."""
        if self.stall_minutes is not None:
            return self.stall_minutes
        # A row that stalls its actor is found by some 15 time-outs, without progress to Ray.
        return max(pipeline.STALL_MINUTES, STALLS_AT_MOST * self.batch_timeout_seconds / 60)


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

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if config.gpus_per_actor > 0:
        each = f"{config.gpus_per_actor:g} GPUs"
        there = f"{sum(node.get('GPU', 0.0) for node in nodes):g} GPUs"
        if not any(map(takes_tasks, nodes)):
            _cannot("no node has a CPU: actors on GPUs reserve none, but all other work needs one.")
    else:
        each = f"{config.cpus_per_actor:g} CPUs"
        there = f"{_beside_readers(nodes):g} CPUs beside its readers"
    room = room_on(config, nodes)
    bounds = parse_actors(config.actors) or (max(1, room), max(1, room))
    if bounds[0] > room:
        _cannot(
            f"--actors {config.actors} with {each} each: the cluster has room for {room}, with "
            f"{there}. Ask for fewer actors or a smaller share."
        )
    # Fewer to begin with: what there is no room for would keep the readers' room, too.
    return min(bounds[0], max(1, room)), bounds[1]


def room_on(config: ActorConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Actors that find room on nodes with such resources, beside those that read for them."""
    room = sum(room_on_node(config, node) for node in nodes)
    if config.gpus_per_actor > 0:
        return room
    return max(0, min(room, int(_beside_readers(nodes) / config.cpus_per_actor)))


def room_on_node(config: ActorConfig, node: Mapping[str, float]) -> int:
    """Actors that Ray would put on one node, were there nothing else to do."""
    if config.gpus_per_actor > 0:
        return gpu_room([node.get("GPU", 0.0)], each=config.gpus_per_actor)
    return int(node.get("CPU", 0.0) / config.reserved_cpus + ROUNDING)


def takes_tasks(node: Mapping[str, float]) -> bool:
    """Whether all work but scoring can be done on a node."""
    return node.get("CPU", 0.0) >= TASK_CPUS


def _beside_readers(nodes: Iterable[Mapping[str, float]]) -> float:
    """CPUs for actors: readers and writers need their share, or the actors wait for them."""
    return sum(node.get("CPU", 0.0) for node in nodes) - READER_CPUS


def gpu_room(gpus: Iterable[float], *, each: float) -> int:
    """Actors that find room on nodes with so many GPUs.

    Ray gives an actor a share of one GPU, or whole ones of one node: of two GPUs, 0.6 each are for
    two actors, not for three.
    """
    if each > 1:
        return sum(int(node / each) for node in gpus)
    on_one = int(1 / each + ROUNDING)  # three thirds are one
    return on_one * sum(map(int, gpus))


def _cannot(message: str) -> None:
    """This machine will never have more; a cluster may grow."""
    if "RAY_ADDRESS" not in os.environ:
        raise InputError(message)
    logger.warning("%s More will start when it grows.", message)


def stored_ranker(ranker: str) -> str:
    """A ranker's place as any worker may use it: a hub name stays what it is."""
    return storage.absolute(ranker) if storage.is_folder(ranker) else ranker


def few_tasks() -> TaskPoolStrategy:
    """As many readers, or writers, as a CPU cluster needs at a time, and two at least."""
    import ray  # noqa: PLC0415

    cpus = ray.cluster_resources().get("CPU", 0.0)
    return ray.data.TaskPoolStrategy(size=2 + int(cpus) // CPUS_PER_TASK)


def scored_units(
    tasks: Sequence[ReadTask],
    *,
    ranker: str,
    columns: PairColumns,
    max_tokens: int,
    precision: Literal["fp32", "bf16"],
    actors: ActorConfig,
    on_bad_file: Policy = "fail",
    filters: Filters | None = None,
    load: Callable[..., TokenScorer] | None = None,
    name: str = "score",
) -> Dataset:
    """Read and tokenize on CPUs, score on actors: a row per unit, as it is finished.

    The dataset's rows are those that `score_stages.ScoreUnits` gives. `load` gives the scorer, if
    not `score_stages.load_scorer`. `filters` leave rows out; none do where None. Ray shows it as
    `name`.
    """
    from ray.data import ActorPoolStrategy  # noqa: PLC0415

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
        threads=actors.threads,
    )
    tokenized = pipeline.stage(
        pipeline.source(tasks, name=name, stall_minutes=actors.patience_minutes),
        read_and_tokenize,
        fn_kwargs={
            "ranker": place,
            "columns": columns,
            "max_tokens": max_tokens,
            "on_bad_file": on_bad_file,
            "filters": filters or Filters(),
        },
        compute=None if on_gpu else few_tasks(),
        num_cpus=READER_CPUS if on_gpu else SLIVER_READER_CPUS,
        max_retries=READER_RETRIES,
    )
    return pipeline.stage(
        tokenized,
        stages.ScoreUnits,
        fn_constructor_kwargs={
            "load": loaded,
            "stall_seconds": actors.batch_timeout_seconds,
            "turns": columns.turns,
        },
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=low, max_size=high),
        num_cpus=actors.reserved_cpus,
        num_gpus=actors.gpus_per_actor,
    )
