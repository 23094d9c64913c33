"""The ranker on an actor of the size asked for: loaded as a scoring actor does, one pair scored."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import pipeline
from jobs.actors import room_on_node, stored_ranker
from jobs.checks.findings import Finding
from jobs.checks.nodes import asked
from jobs.checks.room import ActorSize
from jobs.score_plan import resolved_precision
from scar_core.errors import RankerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.doctor import DoctorConfig
    from jobs.score import ScoreConfig

PAIR = (
    "Name three primary colours.",
    "Three primary colours are red, yellow and blue; painters mix the others from them.",
)
CHECK = "ranker scores"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What an actor found when it loaded a ranker."""

    score: float
    device: str
    precision: str
    load_seconds: float


class RankerProbe:
    """What loads a ranker and scores one pair."""

    def awake(self) -> None:
        """Return as soon as the actor has its place."""

    def load(self, config: ScoreConfig, ranker: str) -> Loaded:
        """Load and score as a scoring actor of this config would.

        Raises:
            RankerError: it cannot be used, or gives no finite score.
        """
        from jobs.score_stages import load_scorer  # noqa: PLC0415 - torch
        from scar_core.ranker.checkpoint import check_ranker  # noqa: PLC0415 - torch

        logging.disable(logging.INFO)  # the doctor's own lines tell it
        started = time.perf_counter()
        check_ranker(ranker)
        scorer = load_scorer(
            ranker=ranker,
            max_tokens=config.max_tokens,
            precision=resolved_precision(config),
            threads=config.threads,
        )
        loaded_seconds = time.perf_counter() - started
        score = float(scorer.score([PAIR])[0])
        if not math.isfinite(score):
            raise RankerError(f"{ranker}: gives {score} to a plain pair. Train it again.")
        return Loaded(
            score=score,
            device=str(scorer.device),
            precision=scorer.stats.precision,
            load_seconds=loaded_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Started:
    """An actor at work on a ranker."""

    actor: Any
    awake: Any
    """Ray's reference to what is there as soon as the actor has its place."""
    loaded: Any
    """To its answer."""
    as_asked: bool
    """It has the size that the flags ask for."""


def start_ranker(
    config: DoctorConfig, nodes: Sequence[Mapping[str, float]], available: Mapping[str, float]
) -> Started:
    """Start an actor that loads the ranker.

    A size that has no room now is not asked for: an autoscaler would start a node for it. A small
    actor on a CPU loads the ranker then.
    """
    import ray  # noqa: PLC0415 - `--help` must not wait for Ray

    size = ActorSize.of(config)
    fits = any(room_on_node(config, node) for node in nodes) and size.free(available) > 0
    options = {"num_cpus": 0.0}
    if fits:
        options["num_gpus" if size.kind == "GPU" else "num_cpus"] = size.amount
    actor = ray.remote(pipeline.with_access(RankerProbe)).options(**options).remote()
    return Started(
        actor=actor,
        awake=actor.awake.remote(),
        loaded=actor.load.remote(config.score_config(), stored_ranker(config.ranker)),
        as_asked=fits,
    )


def ranker_finding(config: DoctorConfig, started: Started, *, until: float) -> Finding:
    """What became of it by a time."""
    import ray  # noqa: PLC0415 - as above

    size = ActorSize.of(config)
    answers, faults = asked({CHECK: started.actor}, lambda _: started.loaded, until=until)
    if faults:
        where, advice = f"an actor with {size}", ""
        if not ray.wait([started.awake], timeout=0)[0]:
            where, advice = f"{where} did not start", "See what it waits for in `ray status`."
        elif faults[CHECK].startswith("no answer"):
            advice = "A large model, or a slow store or disk: allow more --check-seconds."
        found = f"{where}: {faults[CHECK]}"
        return Finding(check=CHECK, status="failed", found=found, next=advice)
    loaded: Loaded = answers[CHECK]
    found = (
        f"loaded on {loaded.device} in {loaded.load_seconds:.1f} s, {loaded.precision}; "
        f"a plain pair scores {loaded.score:.3f}"
    )
    if not started.as_asked:
        return Finding(
            check=CHECK,
            status="warning",
            found=f"{found}; but on a small actor: none with {size} has room now",
            next="See `resources`; start again when there is room to see it there.",
        )
    if size.kind == "GPU" and loaded.device == "cpu":
        return Finding(
            check=CHECK,
            status="warning",
            found=f"{found}; but torch sees no GPU in an actor to which Ray gave one",
            next="Install a torch for GPUs there, or check the driver: it would score on CPUs.",
        )
    return Finding(check=CHECK, status="ok", found=found)
