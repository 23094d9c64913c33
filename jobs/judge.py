"""Let an LLM judge how helpful and how correct each response of quadruples is, 0 to 9."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from jobs import cli
from jobs.answers import Request, make_request
from jobs.asked_quads import run_asking
from jobs.asking import AskConfig
from jobs.endpoint import KEPT
from jobs.prompting import load_prompt
from jobs.publish_quads import Fault, FilledTable, log_summary
from jobs.verdicts import ASPECTS, formats_of, verdict_of
from scar_core import storage
from scar_core.errors import SchemaError
from scar_core.manifest import MANIFEST_NAME
from scar_core.training.quadruples import ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.asked_quads import Planned
    from jobs.asking import Asked
    from jobs.prompting import Prompt
    from scar_core.training.quadruple_tables import QuadrupleRow

logger = logging.getLogger("scar_curate")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(AskConfig):
    """Let an LLM judge responses."""

    # A verdict is one short object; models that think aloud need more.
    answer_tokens: int = 64
    """Tokens that a verdict may take, at least 1; one that is longer is unknown."""
    verdict_format: Literal["json", "text"] = "json"
    """json: the endpoint is asked to answer in JSON, by a schema or else at all, as far as it can.
    text: it is not asked. What comes is read strictly either way."""
    existing: Literal["keep", "replace"] = "keep"
    """keep: only scores that are missing are asked for. replace: all are."""
    helpfulness_prompt: str = "helpfulness"
    """Prompt for helpfulness: the name of one that comes with the package, or a file."""
    correctness_prompt: str = "correctness"
    """Prompt for correctness, likewise."""


def judge(config: JudgeConfig) -> dict[str, Any] | None:
    """Ask for the verdicts that are missing and publish; the manifest, None of a dry run.

    One request per response and aspect: an LLM that gives two grades at once makes them alike, one
    that sees several responses prefers a place, and an answer that cannot be read costs one score.
    Both prompts open with the same words and texts: a prefix cache computes those once.

    Raises:
        ScarError: as `run_asking` does.
    """
    prompts = {
        aspect: load_prompt(getattr(config, f"{aspect}_prompt"), fields=("instruction", "response"))
        for aspect in ASPECTS
    }
    return run_asking(
        config,
        job="judge",
        prompts=prompts,
        plan_row=lambda row: plan_row(row, config, prompts),
        fill=lambda planned, asked: fill_table(planned, config, asked),
    )


def plan_row(
    row: QuadrupleRow, config: JudgeConfig, prompts: Mapping[str, Prompt]
) -> dict[str, Request] | Fault:
    """What to ask about a row by column of the score, or why the row is left out."""
    if "instruction" not in row.texts:
        return Fault("instruction_missing", "there is nothing to judge responses by")
    responses = {role: row.texts[role] for role in ROLES if role in row.texts}
    if not responses:
        return Fault("no_response", "there is nothing to judge")
    requests = {}
    for role, text in responses.items():
        for aspect, prompt in prompts.items():
            column = score_column(config, role, aspect)
            if config.existing == "keep" and row.others.get(column) is not None:
                _check_score(row.others[column], column)
                continue
            requests[column] = make_request(
                prompt,
                {"instruction": row.texts["instruction"], "response": text},
                model=config.model,
                sampling=config.sampling(),
                formats=formats_of(aspect) if config.verdict_format == "json" else (None,),
            )
    return requests


def _check_score(value: object, column: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(
            f"column {column!r} holds {repr(value)[:50]}; wanted numbers from 0 to 9, or nulls. "
            "Mend it, or pass --existing replace."
        )


def score_column(config: JudgeConfig, role: str, aspect: str) -> str:
    """Where a score stands."""
    pattern: str = getattr(config, f"{aspect}_column")
    return pattern.replace("{role}", role)


def fill_table(planned: Planned, config: JudgeConfig, asked: Asked) -> FilledTable:
    """The table with the scores in their columns; a row that a request failed for is left out."""
    bad = dict(planned.bad)
    columns = {}
    unknown: Counter[str] = Counter()
    verdicts = 0
    for role in ROLES:
        for aspect in ASPECTS:
            column = score_column(config, role, aspect)
            values = [
                row.others.get(column) if config.existing == "keep" else None
                for row in planned.table.rows
            ]
            for number, keys in enumerate(planned.keys):
                if column not in keys:
                    continue
                outcome = asked.outcomes[keys[column]]
                if outcome.reason not in KEPT:
                    bad.setdefault(number, Fault(outcome.reason, f"{column}: {outcome.text}"))
                    continue
                values[number], why = verdict_of(outcome, aspect)
                verdicts += not why
                unknown.update([f"unknown_{why}"] if why else [])
            # Whole numbers, or fractions where others were there before.
            array = pa.array(values)
            columns[column] = array.cast(pa.int64()) if pa.types.is_null(array.type) else array
    counts = {"verdicts": verdicts, "unknown_verdicts": sum(unknown.values()), **unknown}
    return FilledTable(origin=planned.table, columns=columns, bad=bad, counts=counts)


def job(argv: Sequence[str]) -> None:
    """Parse, ask, and say where the quadruples are."""
    config = cli.parse(JudgeConfig, argv, prog="jobs.judge", description=__doc__ or "")
    manifest = judge(config)
    if manifest is not None:
        log_summary(manifest)
        logger.info(
            "%s verdicts, %s unknown",
            *(f"{manifest['counts'][name]:,}" for name in ("verdicts", "unknown_verdicts")),
        )
        logger.info("%s", storage.join(storage.absolute(config.out), MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
