"""An actor that asks an LLM: many requests at a time, each answer kept as it comes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.answers import put_answer, put_part, read_open
from jobs.endpoint import KEPT, Endpoint, Traffic
from scar_core import stores
from scar_core.errors import RunError
from scar_core.processes import is_gone

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from jobs.answers import Request
    from jobs.endpoint import Outcome
    from jobs.endpoint_config import ApiKey, EndpointConfig


@dataclass(frozen=True, kw_only=True)
class AskedUnit:
    """What became of the requests of a unit."""

    outcomes: dict[str, Outcome]
    """By key."""
    tries: int
    retries: Counter[str]
    """Of this actor since the last unit it told of."""


class AskActor:
    """One endpoint client in a process of its own, as an asyncio actor of Ray.

    Args:
        config: of the endpoint.
        secrets: its key, and the access to stores.
        work: the folder of the answers.
        actors: how many share the limits.
        driver: the process that it asks for, as `own_process` names it.
    """

    def __init__(
        self,
        config: EndpointConfig,
        secrets: tuple[ApiKey, stores.Access],
        work: str,
        actors: int,
        driver: str,
    ) -> None:
        key, access = secrets
        stores.carry(access)
        self.work = work
        self.driver = driver
        self.endpoint = Endpoint(config, key, actors=actors, before_each=self._check_driver)

    def _check_driver(self) -> None:
        """Raise RunError when nobody waits for answers any more.

        Ray ends the actors of a driver that was killed, but only after a while, in which the next
        run may have begun to ask. A driver on another machine is not seen from here.
        """
        if is_gone(self.driver):
            raise RunError("the process that wanted answers has ended")

    async def ask_unit(self, unit: str, requests: Sequence[Request]) -> AskedUnit:
        """Ask what of a unit has no answer yet; where all have one, they become a part.

        Raises:
            EndpointError: no request can be answered.
            RunError: many requests in a row failed.
        """
        # Answers of this unit from before its actor was started again.
        outcomes = await asyncio.to_thread(read_open, self.work, unit)
        left = [request for request in requests if request.key not in outcomes]
        try:
            async with asyncio.TaskGroup() as group:
                asked = {r.key: group.create_task(self._ask(unit, r)) for r in left}
        except ExceptionGroup as error:
            raise _first(error) from None
        outcomes |= {key: task.result() for key, task in asked.items()}
        if all(outcome.reason in KEPT for outcome in outcomes.values()):
            await asyncio.to_thread(put_part, self.work, unit, outcomes)
        told, self.endpoint.traffic = self.endpoint.traffic, Traffic()
        return AskedUnit(outcomes=outcomes, tries=told.tries, retries=told.retries)

    async def _ask(self, unit: str, request: Request) -> Outcome:
        outcome = await self.endpoint.ask(request.messages(), request.formats)
        if outcome.reason in KEPT:
            await asyncio.to_thread(put_answer, self.work, unit, request.key, outcome)
        elif self.endpoint.failed_in_a_row >= self.endpoint.config.give_up_after:
            endpoint = self.endpoint
            raise RunError(
                f"{endpoint.config.base_url}: {endpoint.failed_in_a_row} requests in a row failed, "
                f"the last one: {outcome.reason}: {outcome.text}. Start again when the endpoint "
                "answers: answers are kept, and not asked for again."
            )
        return outcome


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of several that came at once."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
