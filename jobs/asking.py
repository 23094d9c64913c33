"""Requests to an LLM through Ray: what is answered already, what is left, dealt to actors."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.answers import read_answers, unit_id
from jobs.ask_actor import AskActor
from jobs.endpoint import KEPT, estimated_tokens
from jobs.endpoint_config import EndpointConfig
from jobs.events import EventsConfig
from jobs.pipeline import as_raised
from jobs.progress import Progress
from scar_core import storage, stores
from scar_core.errors import RunError, ScarError
from scar_core.processes import own_process
from scar_core.training.quadruples import QuadrupleColumns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jobs.answers import Request
    from jobs.ask_actor import AskedUnit
    from jobs.endpoint import Outcome
    from jobs.endpoint_config import ApiKey

logger = logging.getLogger("scar_curate")

# Of one part, and of what an actor is given at once.
UNIT_REQUESTS = 64
# It waits, and hardly computes.
ACTOR_CPUS = 0.1
RESTARTS = 3
STALL_MINUTES = 30.0


@dataclass(frozen=True, kw_only=True)
class AskConfig(QuadrupleColumns, EndpointConfig, EventsConfig):
    """What is asked about, and where answers go."""

    quads: list[str]
    """Rows to ask about: .jsonl, .json (both also .gz) or .parquet files, folders, globs, or the
    name of a data set of the `datasets` library; one or several."""
    out: str
    """Directory to publish, a path or URL; it must not hold a published one."""
    work: str | None = None
    """Folder of the answers, by default answers/ in --out. No request is made that has an answer
    there, of whatever run; one run at a time holds it."""
    actors: int = 1
    """Processes that send requests, at least 1; each takes its share of the limits. One is enough
    for hundreds of requests at a time."""
    limit: int | None = None
    """Take only the first rows, so many, at least 1; for a trial."""
    dry_run: bool = False
    """Print one request as it would be sent, and estimates of tokens and cost; ask nothing, write
    nothing."""
    max_bad_ratio: float = 0.5
    """Largest share of rows that may be quarantined, in [0, 1]; with more nothing is published."""
    lease_seconds: float = 120.0
    """A run that shows no sign of life for so long loses --work to the next one; at least 1."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        QuadrupleColumns.__post_init__(self)
        EndpointConfig.__post_init__(self)
        for name in ("actors", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.max_bad_ratio <= 1:
            raise ValueError(f"max_bad_ratio must be in [0, 1], got {self.max_bad_ratio}")
        if not self.lease_seconds >= 1:
            raise ValueError(f"lease_seconds must be at least 1, got {self.lease_seconds}")

    @property
    def work_folder(self) -> str:
        """Where answers are."""
        return storage.absolute(self.work or storage.join(storage.absolute(self.out), "answers"))


@dataclass(kw_only=True)
class Asked:
    """What became of all requests, and what it took."""

    outcomes: dict[str, Outcome]
    """By key: of answers and of failures."""
    from_before: int
    """Requests that had an answer when this run began."""
    tries: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    """Tries that were followed by another one, by reason."""

    def counts(self, config: EndpointConfig) -> dict[str, Any]:
        """For a manifest: requests, tokens and cost."""
        reasons = Counter(outcome.reason for outcome in self.outcomes.values())
        answers = [outcome for outcome in self.outcomes.values() if outcome.reason in KEPT]
        sent = sum(answer.tokens_in or 0 for answer in answers)
        got = sum(answer.tokens_out or 0 for answer in answers)
        return {
            "requests": len(self.outcomes),
            "answered_before": self.from_before,
            "tries": self.tries,
            "repeated": dict(sorted(self.retries.items())),
            "outcomes": dict(sorted(reasons.items())),
            "tokens_in": sent,
            "tokens_out": got,
            "answers_without_token_counts": sum(a.tokens_in is None for a in answers),
            "cost": round(config.cost(sent, got), 6),
        }


def ask_all(requests: Mapping[str, Request], config: AskConfig, key: ApiKey) -> Asked:
    """The outcome of every request; those that have an answer in the work folder are not sent.

    Raises:
        EndpointError: no request can be answered.
        RunError: the endpoint stopped answering, or actors died.
    """
    kept = read_answers(config.work_folder)
    outcomes = {name: kept[name] for name in requests if name in kept}
    asked = Asked(outcomes=outcomes, from_before=len(outcomes))
    missing = [request for name, request in requests.items() if name not in outcomes]
    logger.info("%s requests, %s answered before", f"{len(requests):,}", f"{len(outcomes):,}")
    if not missing:
        return asked
    with cli.connected():
        progress = Progress(
            total_rows=len(requests), done_rows=len(outcomes), told="asked {} requests"
        )
        for unit in _asked_units(missing, config, key):
            asked.outcomes |= unit.outcomes
            asked.tries += unit.tries
            asked.retries += unit.retries
            tokens = sum((o.tokens_in or 0) + (o.tokens_out or 0) for o in unit.outcomes.values())
            progress.advance(rows=len(unit.outcomes), tokens=tokens)
        progress.finish()
    if lost := requests.keys() - asked.outcomes.keys():
        raise RunError(f"{len(lost):,} requests came back without an outcome. This is a bug.")
    return asked


def _asked_units(
    requests: Sequence[Request], config: AskConfig, key: ApiKey
) -> Iterator[AskedUnit]:
    """Units as they are finished, dealt to actors; each has so many that no place is idle."""
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    actors = min(config.actors, config.concurrency)
    # Through the object store: an argument would stay in the records that Ray keeps of actors.
    secrets = ray.put((key, stores.carried()))
    remote = ray.remote(AskActor).options(
        num_cpus=ACTOR_CPUS, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    driver = own_process()
    pool = [
        remote.remote(_plain(config), secrets, config.work_folder, actors, driver)
        for _ in range(actors)
    ]
    units = _units(requests)
    ahead = 1 + -(-config.concurrency // (actors * UNIT_REQUESTS))
    stall_seconds = 60 * STALL_MINUTES
    if config.requests_per_minute is not None:  # what it allows is no standstill
        stall_seconds += 60 * ahead * actors * UNIT_REQUESTS / config.requests_per_minute
    owner = {}
    for actor in pool * ahead:
        for unit in islice(units, 1):
            owner[actor.ask_unit.remote(unit_id(unit), unit)] = actor
    while owner:
        done, _ = ray.wait(list(owner), num_returns=1, timeout=stall_seconds)
        if not done:
            raise RunError(
                f"no unit of {UNIT_REQUESTS} requests ended within {stall_seconds / 60:.0f} "
                "minutes: the limits are too low for that, or the cluster has no room for an "
                "actor. Start again: answers are kept."
            )
        actor = owner.pop(done[0])
        yield _result(done[0])
        for unit in islice(units, 1):
            owner[actor.ask_unit.remote(unit_id(unit), unit)] = actor


def _plain(config: AskConfig) -> EndpointConfig:
    """What of the config an actor needs."""
    names = EndpointConfig.__dataclass_fields__
    return EndpointConfig(**{name: getattr(config, name) for name in names})


def _units(requests: Iterable[Request]) -> Iterator[list[Request]]:
    rest = iter(requests)
    while unit := list(islice(rest, UNIT_REQUESTS)):
        yield unit


def _result(reference: Any) -> AskedUnit:  # noqa: ANN401 - Ray's
    """What an actor gave, or raised, as itself."""
    import ray  # noqa: PLC0415 - as above
    from ray.exceptions import RayActorError  # noqa: PLC0415 - as above

    try:
        result: AskedUnit = ray.get(reference)
    except RayActorError as error:
        raise RunError(
            f"an actor that asks died {RESTARTS + 1} times. Start again: answers are kept. {error}"
        ) from error
    except ScarError as error:
        raise as_raised(error) from error
    return result


def describe(requests: Mapping[str, Request], config: AskConfig) -> str:
    """One request as it would be sent, and what all would take, roughly."""
    kept = read_answers(config.work_folder)
    left = [request for name, request in requests.items() if name not in kept]
    lines = [f"{len(requests):,} requests, {len(requests) - len(left):,} answered before"]
    if left:
        for message in left[0].messages():
            lines += ["", f"[{message['role']}]", message["content"]]
        sent = sum(estimated_tokens(request.messages()) for request in left)
        most = len(left) * config.answer_tokens
        lines += [
            "",
            f"about {sent:,} tokens to send (a quarter of the characters), at most {most:,} back",
            (
                f"cost: {config.cost(sent, 0):,.2f} to {config.cost(sent, most):,.2f} "
                "(--price-in, --price-out)"
            ),
        ]
    return "\n".join(lines)
