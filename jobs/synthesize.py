"""Let an LLM write `referenced` and `direct` responses to instructions that people answered."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from jobs import cli
from jobs.answers import Request, make_request
from jobs.asked_quads import run_asking
from jobs.asking import AskConfig
from jobs.prompting import load_prompt
from jobs.publish_quads import Fault, FilledTable, log_summary
from scar_core import storage
from scar_core.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.asked_quads import Planned
    from jobs.asking import Asked
    from jobs.prompting import Prompt
    from scar_core.training.quadruple_tables import QuadrupleRow

logger = logging.getLogger("scar_curate")

FIELDS = {"referenced": ("instruction", "human"), "direct": ("instruction",)}
"""What an LLM is shown for a role."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(AskConfig):
    """Let an LLM write responses."""

    roles: list[Literal["referenced", "direct"]]
    """Responses to write: referenced (the human's rewritten), direct (the LLM's own), or both."""
    existing: Literal["keep", "replace"] = "keep"
    """keep: only responses that are missing, null or blank, are written. replace: all are."""
    referenced_prompt: str = "referenced"
    """Prompt for referenced responses: the name of one that comes with the package, or a file."""
    direct_prompt: str = "direct"
    """Prompt for direct responses, likewise."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        AskConfig.__post_init__(self)
        if not self.roles or not set(self.roles) <= set(FIELDS):
            raise ValueError(f"roles must be referenced, direct or both, got {self.roles}")


def synthesize(config: SynthesizeConfig) -> dict[str, Any] | None:
    """Ask for what is missing and publish; the manifest, None of a dry run.

    Raises:
        ScarError: as `run_asking` does.
    """
    prompts: dict[str, Prompt] = {
        role: load_prompt(getattr(config, f"{role}_prompt"), fields=FIELDS[role])
        for role in dict.fromkeys(config.roles)
    }
    return run_asking(
        config,
        job="synthesize",
        prompts=prompts,
        plan_row=lambda row: plan_row(row, config, prompts),
        fill=lambda planned, asked: fill_table(planned, config, asked),
    )


def plan_row(
    row: QuadrupleRow, config: SynthesizeConfig, prompts: Mapping[str, Prompt]
) -> dict[str, Request] | Fault:
    """What to ask for a row by role, or why the row is left out."""
    requests = {}
    for role, prompt in prompts.items():
        if role in row.texts and config.existing == "keep":
            continue
        if missing := [name for name in FIELDS[role] if name not in row.texts]:
            return Fault(f"{missing[0]}_missing", f"there is nothing to write {role} from")
        texts = {name: row.texts[name] for name in FIELDS[role]}
        requests[role] = make_request(prompt, texts, model=config.model, sampling=config.sampling())
    return requests


def fill_table(planned: Planned, config: SynthesizeConfig, asked: Asked) -> FilledTable:
    """The table with the responses in their columns; a row that lacks one is left out."""
    bad = dict(planned.bad)
    columns = {}
    for role in dict.fromkeys(config.roles):
        values = [row.texts.get(role) for row in planned.table.rows]
        for number, keys in enumerate(planned.keys):
            if role not in keys:
                continue
            outcome = asked.outcomes[keys[role]]
            answered = outcome.reason == "answered"
            values[number] = outcome.text if answered else None
            if not answered:
                told = "" if outcome.reason == "cut" else outcome.text
                bad.setdefault(number, Fault(outcome.reason, f"{role}: {told}".rstrip(": ")))
        columns[getattr(config, f"{role}_column")] = pa.array(values, pa.string())
    return FilledTable(origin=planned.table, columns=columns, bad=bad, counts={})


def job(argv: Sequence[str]) -> None:
    """Parse, ask, and say where the quadruples are."""
    config = cli.parse(SynthesizeConfig, argv, prog="jobs.synthesize", description=__doc__ or "")
    manifest = synthesize(config)
    if manifest is not None:
        log_summary(manifest)
        logger.info("%s", storage.join(storage.absolute(config.out), MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
