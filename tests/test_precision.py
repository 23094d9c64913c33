"""bf16 scores with fp32 near the cut select what fp32 selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import cli, score, select_rows
from scar_core.pool.rows import SIDECAR_SCHEMA
from scar_core.selection.order import SidecarColumns
from scar_core.selection.precision import (
    Errors,
    Rescored,
    effective_scores,
    errors_of,
    rows_near,
    sample_rows,
)
from tests.jobs_harness import manifest_of, rows_of, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = Rescored(np.array([], np.int32), np.array([], np.float32))


def columns_of(scores: list[float | None]) -> SidecarColumns:
    """A sidecar with these scores, hashes that follow from the row, and reasons for nulls."""
    rows = len(scores)
    table = pa.table(
        {
            "row": range(rows),
            "score": scores,
            "content_hash": [
                None if value is None else (row * 7919 % 65536).to_bytes(2, "big") * 8
                for row, value in enumerate(scores)
            ],
            "reason": [None if value is not None else "response_null" for value in scores],
            "instruction_tokens": [1] * rows,
            "response_tokens": [1] * rows,
            "cut_tokens": [0] * rows,
        },
        schema=SIDECAR_SCHEMA,
    )
    return SidecarColumns.from_table(table, ordinal=0)


@settings(max_examples=60, deadline=None)
@given(
    exact=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=80),
    seed=st.integers(0, 99),
    share=st.floats(0.01, 1),
)
def test_rescoring_near_the_threshold_gives_the_fp32_selection(
    exact: list[float], seed: int, share: float
) -> None:
    """For any errors within the bound, with many ties, against a plain sort of the fp32 scores."""
    exact_N = np.array(exact, np.float32)
    error_N = np.random.default_rng(seed).uniform(-0.5, 0.5, len(exact))
    rough_N = (exact_N + error_N).astype(np.float32)
    bound = float(np.abs(rough_N.astype(float) - exact_N).max())
    keep = max(1, int(share * len(exact)))
    columns = columns_of([float(value) for value in rough_N])
    again = NOTHING
    for _ in range(len(exact) + 1):
        scores = effective_scores(pa.chunked_array([columns.scores]), again).to_numpy()
        threshold = float(np.sort(scores)[-keep])
        rows = rows_near(columns, again, boundaries_G=np.array([threshold]), bound=bound)
        if not len(rows):
            break
        offsets = np.concatenate([again.offsets_M, rows])
        again = Rescored(offsets.astype(np.int32), exact_N[offsets])

    def best(values_N: np.ndarray) -> set[int]:
        hashes = columns.hashes.tolist()
        order = sorted(range(len(values_N)), key=lambda row: (-values_N[row], hashes[row], row))
        return set(order[:keep])

    assert best(scores) == best(exact_N)


def test_effective_scores_leave_quarantined_rows_alone() -> None:
    """A null stays a null; a re-scored row has its fp32 score."""
    again = Rescored(np.array([2], np.int32), np.array([0.25], np.float32))
    scores = effective_scores(pa.chunked_array([pa.array([1.0, None, 3.0], pa.float32())]), again)
    assert scores.to_pylist() == [1.0, None, 0.25]


def test_the_bound_is_the_largest_error_seen_widened() -> None:
    """Hand-worked: errors 0.5 and 0.25; infinities that agree differ by nothing."""
    columns = columns_of([1.0, 2.0, float("inf"), None])
    again = Rescored(np.array([0, 1, 2], np.int32), np.array([1.5, 1.75, np.inf], np.float32))
    errors = errors_of(columns, again) + Errors(4, 0.125)
    assert (errors.rows, errors.largest, errors.bound) == (7, 0.5, 1.0)
    worse = Rescored(np.array([0], np.int32), np.array([np.inf], np.float32))
    assert errors_of(columns, worse).bound == float("inf")


def test_the_sample_follows_from_content_and_skips_what_is_known() -> None:
    """The same rows in every run, none twice, none without a score."""
    columns = columns_of([None, *map(float, range(1999))])
    half = sample_rows(columns, NOTHING, share=0.5)
    assert 800 < len(half) < 1200
    assert 0 not in half
    again = Rescored(half[:100], np.zeros(100, np.float32))
    assert sample_rows(columns, again, share=0.5).tolist() == half[100:].tolist()
    assert len(sample_rows(columns, NOTHING, share=7.0)) == 1999


@pytest.mark.usefixtures("ray_session")
def test_a_bf16_run_selects_what_an_fp32_run_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At three shares, through the jobs; a share asked for again scores nothing again."""
    monkeypatch.setattr("jobs.rescore.SAMPLE_ROWS", 24)
    pool = write_pool(tmp_path / "pool")
    ranker = tiny_ranker_dir(tmp_path)
    arguments = ["--pool", str(pool), "--ranker", str(ranker), "--unit-rows", "64"]
    for precision in ("fp32", "bf16"):
        flags = [*arguments, "--precision", precision, "--out", str(tmp_path / precision)]
        assert cli.run_job(score.job, flags) == 0
    for index, keep in enumerate(("1%", "10%", "50%", "10%")):
        runs = {}
        for precision in ("fp32", "bf16"):
            runs[precision] = tmp_path / f"{precision}-{index}"
            flags = ["--scores", str(tmp_path / precision), "--out", str(runs[precision])]
            assert cli.run_job(select_rows.job, [*flags, "--keep", keep]) == 0
        ids = {name: [row["id"] for row in rows_of(run)] for name, run in runs.items()}
        assert ids["fp32"] == ids["bf16"]
        precision = manifest_of(runs["bf16"])["precision"]
        assert 0 < precision["largest_error"] < precision["bound"]
        assert 24 / 2 < precision["rescored_rows"] < 288
        assert (precision["rescored_now"] == 0) == (index == 3)
