"""The figures of a plan: rows and tokens, time, cost, sizes; as --json prints them."""

from __future__ import annotations

from heapq import heapreplace
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.actors import actor_bounds, parse_actors
from scar_core.pool.sample import CONFIDENCE, Interval
from scar_core.pool.sidecars import total_quarantined
from scar_core.selection.keep import KeepAbove, parse_keep, rows_to_keep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.plan import PlanConfig
    from jobs.score_plan import Plan
    from jobs.throughput import Throughput
    from jobs.token_sample import TokenSample
    from scar_core.pool.units import Unit

# Of sidecars of 2,048 and of 32,768 rows: tests/bench/RESULTS.md.
SIDECAR_BYTES = 2_800
SIDECAR_BYTES_PER_ROW = 29.7
SCORE_BYTES = 4


def counts_of(config: PlanConfig, plan: Plan, sample: TokenSample) -> dict[str, Any]:
    """Rows, units and tokens: of the pool, scored, left."""
    done = [plan.finished[unit.id] for unit in plan.units if unit.id in plan.finished]
    rows_done = sum(sidecar.unit.rows for sidecar in done)
    tokens_done = sum(sidecar.tokens for sidecar in done)
    return {
        "pool": {
            "rows": plan.rows,
            "files": len(plan.files),
            "files_quarantined": len(plan.bad_files),
            "units": len(plan.units),
            "bytes": sum(file.info.size_bytes for file in plan.files),
            "text_bytes": sum(g.text_bytes for file in plan.files for g in file.row_groups),
            "tokens": sample.tokens.plus(tokens_done)._asdict(),
        },
        "scored": {
            "rows": rows_done,
            "units": len(done),
            "tokens": tokens_done,
            "cut_tokens": sum(sidecar.cut_tokens for sidecar in done),
            "quarantined": total_quarantined(done),
        },
        "left": {
            "rows": plan.rows - rows_done,
            "units": len(plan.units) - len(done),
            "tokens": sample.tokens._asdict(),
            "encoded_tokens": sample.encoded_tokens._asdict(),
            "cut_tokens": sample.cut_tokens._asdict(),
            "cut_ratio": sample.cut_ratio._asdict(),
            "quarantined_ratio": sample.quarantined_ratio._asdict(),
        },
        "sample": {
            "rows": sample.rows,
            "units": sample.units,
            "whole": sample.whole,
            "reasons": sample.reasons,
            "seed": config.seed,
            "confidence": CONFIDENCE,
        },
        "scoring": {name: getattr(plan.key, name) for name in ("max_tokens", "precision")},
    }


def busiest_rows(units: Sequence[Unit], actors: int) -> int:
    """Rows of the actor that gets most, where each takes the next unit when it is free."""
    loads = [0] * max(1, min(actors, len(units)))
    for unit in units:
        heapreplace(loads, loads[0] + unit.rows)
    return max(loads)


def time_of(
    config: PlanConfig, plan: Plan, sample: TokenSample, throughput: Throughput
) -> dict[str, Any]:
    """Wall time, and the time that actors are paid for."""
    actors = _actors(config) if plan.missing else 0
    rate = throughput.tokens_per_second
    work = sample.encoded_tokens.times(1 / rate)
    rows = sum(unit.rows for unit in plan.missing)
    longest = work.times(busiest_rows(plan.missing, actors) / max(rows, 1))
    wall = longest.plus(throughput.start_seconds or 0.0) if plan.missing else longest
    hours = wall.times(actors / 3600)
    read_rate = sample.reader_seconds / max(sample.encoded_tokens.estimate, 1)
    return {
        "actors": actors,
        "wall_seconds": wall._asdict(),
        "start_seconds": throughput.start_seconds,
        "work_seconds": work._asdict(),
        "actor_hours": hours._asdict(),
        "gpu_hours": hours.times(config.gpus_per_actor)._asdict(),
        "reader_cores": read_rate * rate * min(actors, len(plan.missing)),
    }


def _actors(config: PlanConfig) -> int:
    """The most that --actors asks for; `auto` asks Ray, here or on the cluster."""
    bounds = parse_actors(config.actors)
    if bounds is not None:
        return bounds[1]
    with cli.connected():
        return actor_bounds(config)[1]


def cost_of(config: PlanConfig, spent: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the actors cost for as long as the run takes; None without a price or a time."""
    if config.price is None or spent is None:
        return None
    return Interval(**spent["actor_hours"]).times(config.price)._asdict()


def sizes_of(config: PlanConfig, plan: Plan, sample: TokenSample) -> dict[str, Any]:
    """Bytes of all sidecars, and rows and bytes of the selected output where they can be known."""
    done = list(plan.finished.values())
    missing_rows = sum(unit.rows for unit in plan.missing)
    if done:
        per_row = sum(sidecar.bytes for sidecar in done) / sum(s.unit.rows for s in done)
        missing_bytes = per_row * missing_rows
    else:
        missing_bytes = SIDECAR_BYTES * len(plan.missing) + SIDECAR_BYTES_PER_ROW * missing_rows
    keep = parse_keep(config.keep) if config.keep is not None else None
    selected = None
    if keep is not None and not isinstance(keep, KeepAbove):
        bad = sum(total_quarantined(done).values())
        eligible = plan.rows - bad - sample.quarantined_ratio.estimate * missing_rows
        selected = rows_to_keep(keep, round(eligible))
    row_bytes = sum(file.info.size_bytes for file in plan.files) / plan.rows + SCORE_BYTES
    return {
        "sidecar_bytes": round(sum(sidecar.bytes for sidecar in done) + missing_bytes),
        "selected_rows": selected,
        "selected_bytes": None if selected is None else round(selected * row_bytes),
    }
