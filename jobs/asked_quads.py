"""Quadruples that an LLM is asked about: read, planned row by row, asked, published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.asking import ask_all, describe
from jobs.endpoint_config import find_key
from jobs.events import recording, tell
from jobs.publish_quads import Fault, publish_quadruples
from scar_core import storage
from scar_core.lease import held
from scar_core.manifest import check_unpublished, new_run_id
from scar_core.store_checks import check_readable, check_writable
from scar_core.training.quadruple_tables import read_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jobs.answers import Request
    from jobs.asking import AskConfig, Asked
    from jobs.prompting import Prompt
    from jobs.publish_quads import FilledTable
    from scar_core.training.quadruple_tables import QuadrupleRow, QuadrupleTable


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One input and what is asked about it."""

    table: QuadrupleTable
    keys: list[dict[str, str]]
    """By row: what is asked for → key of the request."""
    bad: dict[int, Fault]
    """Rows that nothing can be asked about, by number."""


def run_asking(
    config: AskConfig,
    *,
    job: str,
    prompts: Mapping[str, Prompt],
    plan_row: Callable[[QuadrupleRow], dict[str, Request] | Fault],
    fill: Callable[[Planned, Asked], FilledTable],
) -> dict[str, Any] | None:
    """Read, ask for what has no answer, publish; the manifest, None of a dry run.

    Raises:
        InputError: input, flags, key or endpoint need fixing.
        RunError: the endpoint stopped answering, or too many rows are left out.
        LeaseError: another run holds the work folder.
    """
    key = find_key(config)
    folder = storage.absolute(config.out)
    check_readable([*config.quads, folder, config.work_folder])
    check_unpublished(folder)
    requests: dict[str, Request] = {}
    tables = _limited(read_tables(config.quads, config), config.limit)
    planned = [_plan(table, plan_row, requests) for table in tables]
    if config.dry_run:
        print(describe(requests, config))  # noqa: T201 - the job's result
        return None
    for place in (folder, config.work_folder):
        check_writable(place)
    lease = storage.join(config.work_folder, "lease")
    with (
        recording(config, job=job, run=new_run_id(), default=folder),
        held(lease, lease_seconds=config.lease_seconds),
    ):
        rows = sum(len(plan.keys) for plan in planned)
        tell("plan_made", files=len(planned), rows=rows, requests=len(requests))
        asked = ask_all(requests, config, key)
        filled = [fill(plan, asked) for plan in planned]
        return publish_quadruples(config, filled, asked, prompts=prompts)


def _plan(
    table: QuadrupleTable,
    plan_row: Callable[[QuadrupleRow], dict[str, Request] | Fault],
    requests: dict[str, Request],
) -> Planned:
    """What to ask about a table; requests are added to those there, equal ones are one."""
    planned = Planned(table=table, keys=[], bad={})
    for number, row in enumerate(table.rows):
        made = Fault(row.reason, "a text that cannot be sent") if row.reason else plan_row(row)
        if isinstance(made, Fault):
            planned.bad[number] = made
            made = {}
        planned.keys.append({name: request.key for name, request in made.items()})
        requests.update({request.key: request for request in made.values()})
    return planned


def _limited(tables: Iterator[QuadrupleTable], limit: int | None) -> Iterator[QuadrupleTable]:
    left = limit
    for table in tables:
        yield table if left is None else table.first(left)
        if left is not None:
            left -= len(table.rows)
            if left <= 0:
                return
