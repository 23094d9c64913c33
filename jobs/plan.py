"""Say what scoring a pool would take before anything is paid for; nothing is written."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.actors import parse_actors
from jobs.plan_figures import cost_of, counts_of, sizes_of, time_of
from jobs.plan_text import render
from jobs.score import ScoreInput
from jobs.score_plan import look_at
from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import to_json
from scar_core.pool.files import Imports
from scar_core.pool.imports import make_copies
from scar_core.selection.keep import KeepAbove, KeepTokens, parse_keep
from scar_core.store_checks import check_readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.score_plan import Plan
    from jobs.throughput import Throughput
    from jobs.token_sample import TokenSample
    from scar_core.pool.imports import Import, Outcome

logger = logging.getLogger("scar_curate")

LEAST_SAMPLE_ROWS = 128
# Of files that are no Parquet; a core takes about a minute.
MOST_IMPORT_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ScoreInput):
    """Estimate a run of `score` or `curate`."""

    out: str | None = None
    """Directory of the curation, as jobs.curate has it: what is scored there already is known.
    Nothing is written to it; it need not be there."""
    scores: str | None = None
    """Scores directory (the --out of jobs.score), if not the one in --out; one is needed."""
    keep: str | None = None
    """What would be selected, for the size of the output: 10%, 2500 or 'score>=1.5'."""
    sample_rows: int = 2048
    """Rows that are tokenized to estimate all others, about; at least 128. More make intervals
    narrower: four times the rows, half as wide."""
    seed: int = 0
    """Of the sample, at least 0: the same rows every time."""
    measure: bool = False
    """Time scoring actors of the kind that is asked for, with sampled rows: one, where there is a
    cluster (RAY_ADDRESS) or GPUs; else as many as this machine would run side by side."""
    measure_seconds: float = 30.0
    """How long they are timed, about, above 0."""
    tokens_per_second: float | None = None
    """Tokens that one actor encodes in a second, above 0; by default what the last run recorded."""
    price: float | None = None
    """Of one actor for an hour, in any currency, at least 0."""
    json: bool = False
    """Print JSON in place of text."""

    def __post_init__(self) -> None:
        """Refuse what cannot be estimated."""
        ScoreInput.__post_init__(self)
        if self.out is None and self.scores is None:
            raise ValueError("pass --out or --scores; nothing is written to either")
        if self.keep is not None:
            parse_keep(self.keep)
        if self.sample_rows < LEAST_SAMPLE_ROWS:
            raise ValueError(
                f"sample_rows must be at least {LEAST_SAMPLE_ROWS}, got {self.sample_rows}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("measure_seconds", "tokens_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value:g}")
        if self.measure and self.tokens_per_second is not None:
            raise ValueError("measure and tokens_per_second do not go together")
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"price must be at least 0, got {self.price:g}")

    @property
    def scores_folder(self) -> str:
        """Where sidecars are looked for."""
        return self.scores or storage.join(storage.absolute(str(self.out)), "scores")


def estimate(config: PlanConfig) -> dict[str, Any]:
    """What a run would do, take and cost, as --json prints it.

    Raises:
        ScarError: as the job itself would, before it starts; or as `measured` does.
    """
    with TemporaryDirectory(prefix="scar-plan-") as aside:
        return _estimated(config, aside)


def _estimated(config: PlanConfig, aside: str) -> dict[str, Any]:
    places = (config.out, config.scores)
    check_readable([*config.pool, config.ranker, *filter(None, places)])
    _check_out(config)
    started = time.perf_counter()
    importing = Imports(
        scores=storage.absolute(config.scores_folder), config=config, make=_import_few, aside=aside
    )
    plan = look_at(config, scores=config.scores_folder, importing=importing)
    planned_seconds = time.perf_counter() - started
    missing = plan.missing
    sample = _sampled(config, plan)
    report = counts_of(config, plan, sample)
    measuring = config.measure and bool(missing)
    throughput = None if measuring else _known(config, plan)
    # Ray starts actors, and says for how many there is room.
    counting = throughput is not None and bool(missing) and parse_actors(config.actors) is None
    started = time.perf_counter()
    with cli.connected() if measuring or counting else nullcontext():
        if measuring:
            ready_seconds = planned_seconds + time.perf_counter() - started
            throughput = _measured(config, plan, sample, ready_seconds)
        report["throughput"] = throughput and asdict(throughput)
        report["time"] = throughput and time_of(config, missing, sample, throughput)
    report["cost"] = cost_of(config, report["time"])
    report["sizes"] = sizes_of(config, plan, report)
    report["notes"] = _notes(config, plan, report)
    return report


def _import_few(tasks: Sequence[Import]) -> Iterator[Outcome]:
    """Copies of files that are no Parquet, for the length of a plan, on this machine.

    Raises:
        InputError: they are too large for that.
    """
    size = sum(task.info.size_bytes for task in tasks)
    if size > MOST_IMPORT_BYTES:
        raise InputError(
            f"{len(tasks):,} files of the pool, {size / 2**20:,.0f} MiB, are no Parquet and were "
            f"not imported yet; a plan imports {MOST_IMPORT_BYTES >> 20} MiB at most, and keeps "
            "none. Plan for some of them, or start the run: it imports them first."
        )
    return make_copies(tasks)


def _check_out(config: PlanConfig) -> None:
    """Raise InputError for a scores directory that is taken for a curation."""
    if config.scores is None and storage.is_folder(storage.join(str(config.out), "sidecars")):
        raise InputError(
            f"--out {config.out}: holds sidecars, so it is the --out of jobs.score. Pass it as "
            "--scores."
        )


def _sampled(config: PlanConfig, plan: Plan) -> TokenSample:
    from jobs.token_sample import sample_tokens  # noqa: PLC0415 - torch

    return sample_tokens(
        plan, columns=plan.columns, ranker=config.ranker, rows=config.sample_rows, seed=config.seed
    )


def _measured(
    config: PlanConfig, plan: Plan, sample: TokenSample, ready_seconds: float
) -> Throughput:
    from jobs.throughput import measured  # noqa: PLC0415 - as above

    ranker, seconds = config.ranker, config.measure_seconds
    return measured(
        config, plan, sample, ranker=ranker, seconds=seconds, ready_seconds=ready_seconds
    )


def _known(config: PlanConfig, plan: Plan) -> Throughput | None:
    """What is given, or else recorded; None where neither is."""
    from jobs.throughput import Throughput, recorded  # noqa: PLC0415 - as above

    if config.tokens_per_second is not None:
        rate = config.tokens_per_second
        return Throughput(source="given", tokens_per_second=rate, start_seconds=None, details={})
    return recorded(config.scores_folder, key=plan.key, config=config)


def _notes(config: PlanConfig, plan: Plan, report: dict[str, Any]) -> list[str]:
    """What a person should know before the run."""
    notes = []
    spent, throughput, left = report["time"], report["throughput"], report["left"]["units"]
    if not left:
        notes.append("Everything is scored; a run publishes, or selects, and needs no actors.")
    elif throughput is None:
        notes.append(
            "No throughput is known, so there is no time and no cost. Pass --measure, or "
            "--tokens-per-second; later the manifest of a run with this ranker and such actors "
            "has it."
        )
    elif throughput["start_seconds"] is None:
        notes.append("Start-up (Ray, workers, the ranker) is not in the time; --measure adds it.")
    if spent and spent["actors"] > left:
        notes.append(
            f"{left:,} units are left, so no more than as many actors work; for more, "
            "use smaller --unit-rows from the first run on."
        )
    if report["sample"]["reasons"] and config.on_bad_row == "fail":
        notes.append("Sampled rows cannot be scored: with --on-bad-row fail a run stops there.")
    bad = report["pool"]["quarantined_rows"]["estimate"]
    if bad > config.max_bad_ratio * plan.rows:
        notes.append("More rows would be quarantined than --max-bad-ratio allows: a run fails.")
    if plan.key.precision == "bf16":
        notes.append("A selection scores rows near the cut again in fp32; that is not in the time.")
    keep = parse_keep(config.keep) if config.keep else None
    if isinstance(keep, KeepTokens):
        notes.append("How many rows fit into the budget of tokens is known only after scoring.")
    if isinstance(keep, KeepAbove):
        notes.append("How many rows reach a score is known only after scoring.")
    return notes


def job(argv: Sequence[str]) -> None:
    """Parse, estimate, print."""
    config = cli.parse(PlanConfig, argv, prog="jobs.plan", description=__doc__ or "")
    report = estimate(config)
    text = to_json(report).decode().rstrip("\n") if config.json else render(report)
    print(text)  # noqa: T201 - the job's result


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
