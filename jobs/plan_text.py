"""A plan as a person reads it: a line for each thing, from what --json prints."""

from __future__ import annotations

from datetime import timedelta
from typing import Any


def render(report: dict[str, Any]) -> str:
    """The estimate for a person, a line for each thing."""
    lines = [*_told_rows(report), *_told_time(report), *_told_sizes(report["sizes"])]
    width = max(len(name) for name, _ in lines)
    text = [f"{name:<{width}}  {value}" for name, value in lines]
    return "\n".join([*text, *(f"note: {note}" for note in report["notes"])])


def _told_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    pool, scored, left, sample = (report[name] for name in ("pool", "scored", "left", "sample"))
    bad = f", {pool['files_quarantined']:,} left out" if pool["files_quarantined"] else ""
    method = (
        "all of them"
        if sample["whole"]
        else f"{sample['rows']:,} rows of {sample['units']:,} units, seed {sample['seed']}; "
        f"intervals of {sample['confidence']:.0%}"
    )
    lines = [
        ("pool", f"{pool['rows']:,} rows, {pool['files']:,} files{bad}, {pool['units']:,} units"),
        ("  bytes", f"{pool['bytes']:,}; {pool['text_bytes']:,} of text uncompressed"),
        (
            "scored already",
            f"{scored['rows']:,} rows, {scored['units']:,} units, {scored['tokens']:,} tokens",
        ),
        ("left", f"{left['rows']:,} rows, {left['units']:,} units"),
    ]
    if not left["rows"]:
        return lines
    cut, quarantined = left["cut_ratio"], left["quarantined_ratio"]
    return [
        *lines,
        ("sampled", method),
        ("tokens left", _range(left["tokens"])),
        ("  to encode", f"{_range(left['encoded_tokens'])}: equal texts of a unit once"),
        ("  in the pool", _range(pool["tokens"])),
        ("rows cut", f"{_range(cut, '.2%')} at {report['scoring']['max_tokens']:,} tokens a text"),
        ("  tokens lost", _range(left["cut_tokens"])),
        ("quarantined", f"{_range(quarantined, '.2%')} of the rows {sample['reasons'] or ''}"),
    ]


def _told_time(report: dict[str, Any]) -> list[tuple[str, str]]:
    throughput, spent, cost = report["throughput"], report["time"], report["cost"]
    if throughput is None or not report["left"]["rows"]:
        return []
    told = ", ".join(f"{name} {value}" for name, value in throughput["details"].items())
    wall, hours = spent["wall_seconds"], spent["actor_hours"]
    start = spent["start_seconds"]
    lines = [
        (
            "throughput",
            f"{throughput['tokens_per_second']:,.0f} tokens/s an actor, {throughput['source']}"
            + (f" ({told})" if told else ""),
        ),
        (
            "wall time",
            f"{_clock(wall['estimate'])} ({_clock(wall['low'])} to {_clock(wall['high'])}) with "
            f"{spent['actors']:,} actors"
            + ("" if start is None else f", {_clock(start)} of it start-up"),
        ),
        ("actor hours", _range(hours, ",.2f")),
        ("reading", f"{spent['reader_cores']:.2f} cores of CPU keep the actors fed"),
    ]
    if spent["gpu_hours"]["estimate"]:
        lines.append(("GPU hours", _range(spent["gpu_hours"], ",.2f")))
    return lines if cost is None else [*lines, ("cost", _range(cost, ",.2f"))]


def _told_sizes(sizes: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("sidecars", f"{sizes['sidecar_bytes']:,} bytes")]
    if sizes["selected_rows"] is not None:
        rows, size = sizes["selected_rows"], sizes["selected_bytes"]
        lines.append(("selected", f"{rows:,} rows, {size:,} bytes if they are as long as others"))
    return lines


def _range(interval: dict[str, float], form: str = ",.0f") -> str:
    estimate, low, high = (interval[field] for field in ("estimate", "low", "high"))
    if low == high:
        return f"{estimate:{form}}"
    return f"{estimate:{form}} ({low:{form}} to {high:{form}})"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
