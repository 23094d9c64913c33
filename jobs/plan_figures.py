"""The figures of a plan: rows and tokens, time, cost, sizes; as --json prints them."""

from __future__ import annotations

from heapq import heapreplace
from typing import TYPE_CHECKING, Any

from jobs.actors import actor_bounds, parse_actors
from scar_core.pool.sample import CONFIDENCE, Interval
from scar_core.pool.sidecars import total_quarantined
from scar_core.selection.keep import KeepAbove, KeepTokens, parse_keep, rows_to_keep

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
    quarantined = total_quarantined(done)
    rows_done = sum(sidecar.unit.rows for sidecar in done)
    tokens_done = sum(sidecar.tokens for sidecar in done)
    bad_left = sample.quarantined_ratio.times(plan.rows - rows_done)
    return {
        "pool": {
            "rows": plan.rows,
            "files": len(plan.files),
            "files_quarantined": len(plan.bad_files),
            "units": len(plan.units),
            "bytes": sum(file.info.size_bytes for file in plan.files),
            "text_bytes": sum(g.text_bytes for file in plan.files for g in file.row_groups),
            "tokens": sample.tokens.plus(tokens_done)._asdict(),
            "quarantined_rows": bad_left.plus(sum(quarantined.values()))._asdict(),
        },
        "scored": {
            "rows": rows_done,
            "units": len(done),
            "tokens": tokens_done,
            "cut_tokens": sum(sidecar.cut_tokens for sidecar in done),
            "quarantined": quarantined,
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
    config: PlanConfig, missing: Sequence[Unit], sample: TokenSample, throughput: Throughput
) -> dict[str, Any]:
    """Wall time, and the time that actors are paid for; Ray must run for `--actors auto`."""
    bounds = parse_actors(config.actors) or actor_bounds(config) if missing else (0, 0)
    actors = bounds[1]
    rate = throughput.tokens_per_second
    work = sample.encoded_tokens.times(1 / rate)
    rows = sum(unit.rows for unit in missing)
    longest = work.times(busiest_rows(missing, actors) / max(rows, 1))
    wall = longest.plus(throughput.start_seconds or 0.0) if missing else longest
    hours = wall.times(actors / 3600)
    read_rate = sample.reader_seconds / max(sample.encoded_tokens.estimate, 1)
    return {
        "actors": actors,
        "wall_seconds": wall._asdict(),
        "start_seconds": throughput.start_seconds,
        "work_seconds": work._asdict(),
        "actor_hours": hours._asdict(),
        "gpu_hours": hours.times(config.gpus_per_actor)._asdict(),
        "reader_cores": read_rate * rate * min(actors, len(missing)),
    }


def cost_of(config: PlanConfig, spent: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the actors cost for as long as the run takes; None without a price or a time."""
    if config.price is None or spent is None:
        return None
    return Interval(**spent["actor_hours"]).times(config.price)._asdict()


def sizes_of(config: PlanConfig, plan: Plan, counts: dict[str, Any]) -> dict[str, Any]:
    """Bytes of all sidecars, and rows and bytes of the selected output where they can be known."""
    done, left = list(plan.finished.values()), counts["left"]
    if done:
        per_row = sum(sidecar.bytes for sidecar in done) / sum(s.unit.rows for s in done)
        missing_bytes = per_row * left["rows"]
    else:
        missing_bytes = SIDECAR_BYTES * left["units"] + SIDECAR_BYTES_PER_ROW * left["rows"]
    keep = parse_keep(config.keep) if config.keep is not None else None
    selected = None
    if keep is not None and not isinstance(keep, KeepAbove | KeepTokens):
        bad = counts["pool"]["quarantined_rows"]["estimate"]
        selected = rows_to_keep(keep, round(plan.rows - bad))
    row_bytes = sum(file.info.size_bytes for file in plan.files) / plan.rows + SCORE_BYTES
    return {
        "sidecar_bytes": round(sum(sidecar.bytes for sidecar in done) + missing_bytes),
        "selected_rows": selected,
        "selected_bytes": None if selected is None else round(selected * row_bytes),
    }
