"""Passes of the jobs run in this process, over pools whose scores are drawn and not computed."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs import cli, pipeline, score, score_plan
from jobs.publish_scores import publish_scores
from scar_core.pool.rows import SIDECAR_SCHEMA, check_pairs
from scar_core.pool.sidecars import write_sidecar
from scar_core.pool.units import Unit, read_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def travelled(thing: Any) -> Any:  # noqa: ANN401
    """As another process gets it."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - its own bytes


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process, over many small chunks; as through Ray, all is pickled."""

    def run(stage: Any, items: Any, **options: Any) -> Any:  # noqa: ANN401
        for item in items:
            yield travelled(stage(travelled(item), **options))

    def fold(stage: Any, items: Any, merge: Any, **options: Any) -> Any:  # noqa: ANN401
        parts = list(run(stage, items, **options))
        return merge([merge(parts[start::3]) for start in range(3) if parts[start::3]])

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "fold", fold)
    monkeypatch.setattr(cli, "connected", lambda **_: nullcontext())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4})
    small_chunks(monkeypatch)


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows are many chunks, ranges and files."""
    monkeypatch.setattr("jobs.passes.CHUNK_ROWS", 40)
    monkeypatch.setattr("jobs.passes.TASKS_PER_CPU", 99)
    monkeypatch.setattr("jobs.find_copies.CHUNK_ROWS", 50)
    monkeypatch.setattr("jobs.select_rows.PICKED_ROWS", 50)
    monkeypatch.setattr("jobs.verify.PICKED_ROWS", 50)
    monkeypatch.setattr("scar_core.selection.groups.FETCHED_ROWS", 20)


def publish_drawn(
    config: score.ScoreConfig,
    draw: Callable[[Unit, list[bytes | None]], Any],
    *,
    tokens: Callable[[bytes], int] = lambda _: 0,
) -> str:
    """Publish scores that `draw` gives for units and their content hashes; where.

    `tokens` gives a content's, most of them in its response.
    """
    plan = score_plan.make_plan(config)
    files = {file.path: file for file in plan.files}
    sidecars = []
    for unit in plan.units:
        bounds = (unit.row_start, unit.row_start + unit.rows)
        (table,) = read_ranges(files[unit.path], [bounds])
        pairs = check_pairs(table, plan.columns)
        drawn = draw(unit, pairs.hashes).tolist()
        lengths = [tokens(content) if content else 0 for content in pairs.hashes]
        columns = {
            "row": range(*bounds),
            "score": [s if h else None for s, h in zip(drawn, pairs.hashes, strict=True)],
            "content_hash": pairs.hashes,
            "reason": pairs.reasons,
            "instruction_tokens": [length // 5 for length in lengths],
            "response_tokens": [length - length // 5 - length // 3 for length in lengths],
            "cut_tokens": [length // 3 for length in lengths],
        }
        table = pa.table(columns, schema=SIDECAR_SCHEMA)
        sidecars.append(write_sidecar(config.out, unit=unit, key=plan.key, table=table))
    return publish_scores(config, plan, sidecars)
