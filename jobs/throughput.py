"""How many tokens a second one scoring actor encodes: measured here, recorded, or given."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jobs import pipeline
from jobs.actors import actor_bounds, parse_actors, stored_ranker
from jobs.guarded import GuardedScorer
from scar_core import storage
from scar_core.errors import InputError, RunError, ScarError
from scar_core.manifest import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from jobs.actors import ActorConfig
    from jobs.guarded import Load
    from jobs.score_plan import Plan
    from jobs.token_sample import TokenSample
    from scar_core.pool.sidecars import ScoringKey
    from scar_core.ranker.encoding import TokenRows

# Kernels are chosen and memory is found at the first texts.
WARM_UP_ROWS = 32
FIRST_ROWS = 64
PIECES = 4
"""At least so many; larger pieces overshoot where a machine gets slower meanwhile."""
RUNS_LOOKED_AT = 5
"""Published runs in which a rate is looked for: one that scored nothing has none."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Of one actor."""

    source: Literal["measured", "recorded", "given"]
    tokens_per_second: float
    """Through the encoder, equal texts of a unit once. On CPUs reading and tokenizing are in it:
    they take the same cores."""
    start_seconds: float | None
    """From the command to the first text: Ray, workers, the ranker; None: not known."""
    details: dict[str, Any]
    """Where it is from."""


class Pace(NamedTuple):
    """What one actor did while it was timed."""

    rows: int
    tokens: int
    """That went through the encoder."""
    seconds: float

    def and_(self, more: Pace) -> Pace:
        """Both, one after the other."""
        return Pace(self.rows + more.rows, self.tokens + more.tokens, self.seconds + more.seconds)


class TimedScorer:
    """A scoring actor's guarded scorer, and a clock."""

    def __init__(self, *, load: Load, stall_seconds: float) -> None:
        self.fault: ScarError | None = None
        try:
            self.scorer = GuardedScorer(load, stall_seconds=stall_seconds)
        except ScarError as error:
            self.fault = error  # Ray takes what a constructor raises for a dead actor

    def loaded(self) -> ScarError | None:
        """Why there is no scorer; None where there is one."""
        return self.fault

    def pace(
        self, instructions: TokenRows, responses: TokenRows, *, seconds: float, seed: int
    ) -> Pace:
        """Score rows in random order for about so many seconds."""
        rng = np.random.default_rng(seed)
        rows = len(instructions)

        def score(count: int) -> Pace:
            picked = rng.choice(rows, min(count, rows), replace=False)
            before, started = self.scorer.work, time.perf_counter()
            self.scorer.score_tokens(instructions.take(picked), responses.take(picked))
            tokens = self.scorer.work.encoded_tokens - before.encoded_tokens
            return Pace(len(picked), tokens, time.perf_counter() - started)

        score(WARM_UP_ROWS)
        done = score(FIRST_ROWS)
        while done.seconds < seconds:
            piece_seconds = min(seconds / PIECES, seconds - done.seconds)
            more = score(1 + int(piece_seconds * done.rows / done.seconds))
            done = done.and_(more)
        return done


def measured(
    config: ActorConfig,
    plan: Plan,
    sample: TokenSample,
    *,
    ranker: str,
    seconds: float,
    ready_seconds: float,
) -> Throughput:
    """Time an actor with the sampled rows, where the connected Ray starts it.

    On this machine's CPUs as many actors are timed side by side as a run would have here, because
    neighbours slow each other down; else one.

    Args:
        config: the actors.
        plan: how rows are scored.
        sample: of these rows.
        ranker: as the job takes it.
        seconds: for about so long.
        ready_seconds: what it took to plan and to start Ray, as the job does, too.

    Raises:
        InputError: no sampled row can be scored.
        RunError: no actor starts, or it dies.
    """
    if not len(sample.instructions):
        raise InputError(
            f"none of {sample.rows:,} sampled rows can be scored ({sample.reasons}), so nothing "
            "can be measured. Check --instruction-column and --response-column."
        )
    started = time.perf_counter()
    actors = _start_actors(config, _loader(config, plan, ranker))
    start_seconds = time.perf_counter() - started + ready_seconds
    paces = _paces(actors, sample, seconds=seconds)
    scored_seconds = sum(pace.seconds for pace in paces)
    tokens = sum(pace.tokens for pace in paces)
    on_cpu = config.gpus_per_actor == 0
    reading = sample.reader_seconds / max(sample.encoded_tokens.estimate, 1) if on_cpu else 0.0
    return Throughput(
        source="measured",
        tokens_per_second=1 / (scored_seconds / max(tokens, 1) + reading),
        start_seconds=round(start_seconds, 1),
        details={
            "actors_side_by_side": len(paces),
            "rows": sum(pace.rows for pace in paces),
            "tokens": tokens,
            "seconds": round(max(pace.seconds for pace in paces), 1),
            "tokens_per_second_without_reading": round(tokens / scored_seconds, 1),
        },
    )


def _loader(config: ActorConfig, plan: Plan, ranker: str) -> Load:
    from jobs.score_stages import load_scorer  # noqa: PLC0415 - torch

    return partial(
        load_scorer,
        ranker=stored_ranker(ranker),
        max_tokens=plan.key.max_tokens,
        precision=plan.key.precision,
        threads=config.threads,
    )


def _start_actors(config: ActorConfig, load: Load) -> list[Any]:
    """Actors that have loaded the ranker.

    Raises:
        ScarError: whatever kept the ranker from being loaded.
        RunError: there is no room for an actor.
    """
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    count = 1
    if config.gpus_per_actor == 0 and "RAY_ADDRESS" not in os.environ:
        room = actor_bounds(replace(config, actors="auto"))[1]
        count = min(room, (parse_actors(config.actors) or (0, room))[1])
    remote = ray.remote(pipeline.with_access(TimedScorer)).options(
        num_cpus=config.reserved_cpus, num_gpus=config.gpus_per_actor
    )
    options = {"load": load, "stall_seconds": config.batch_timeout_seconds}
    actors = [remote.remote(**options) for _ in range(count)]
    asked = [actor.loaded.remote() for actor in actors]
    ready, waiting = ray.wait(asked, num_returns=count, timeout=60 * config.patience_minutes)
    if waiting:
        raise RunError(
            f"no actor of {config.reserved_cpus:g} CPUs and {config.gpus_per_actor:g} GPUs "
            f"started within {config.patience_minutes:g} minutes. Ask for less, or wait until the "
            "cluster has room."
        )
    for fault in _answers(ready):
        if fault is not None:
            raise fault
    return actors


def _paces(actors: list[Any], sample: TokenSample, *, seconds: float) -> list[Pace]:
    texts = (sample.instructions, sample.responses)
    running = [
        actor.pace.remote(*texts, seconds=seconds, seed=seed) for seed, actor in enumerate(actors)
    ]
    return _answers(running)


def _answers(references: list[Any]) -> list[Any]:
    import ray  # noqa: PLC0415 - as above
    from ray.exceptions import RayActorError, RayTaskError  # noqa: PLC0415 - as above

    try:
        answers: list[Any] = ray.get(references)
    except RayActorError as error:
        raise RunError(f"an actor died while it was timed: {error}") from error
    except RayTaskError as error:
        if isinstance(error.cause, ScarError):
            raise error.cause from error
        raise
    return answers


def recorded(scores: str, *, key: ScoringKey, config: ActorConfig) -> Throughput | None:
    """What the newest run in a scores directory achieved with this ranker and such actors."""
    folder = storage.join(storage.absolute(scores), "runs")
    runs = sorted(storage.list_folders(folder), reverse=True)
    published = (run for run in runs if storage.exists(storage.join(folder, run, MANIFEST_NAME)))
    for run in islice(published, RUNS_LOOKED_AT):
        manifest = read_manifest(storage.join(folder, run), kind="scores")
        scoring, actors = manifest.get("scoring") or {}, manifest["config"]
        alike = all(
            actors.get(name) == getattr(config, name)
            for name in ("gpus_per_actor", "cpus_per_actor")
        )
        if manifest["key_id"] == key.id and alike and scoring.get("actor_seconds"):
            return Throughput(
                source="recorded",
                tokens_per_second=scoring["encoded_tokens"] / scoring["actor_seconds"],
                start_seconds=None,
                details={"run": run, "rows": scoring["rows"], "tokens": scoring["encoded_tokens"]},
            )
    return None
