"""Real quadruples and real pools through the very commands that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.sample.__main__ import encoder_folder
from tests.jobs_harness import ROOT, manifest_of, rows_of

if TYPE_CHECKING:
    from pathlib import Path

DATA = ROOT.parent / "shared/data"
POOLS = ("pool_human", "pool_llm_misc", "pool_t0_50k")

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")


def run(module: str, *argv: str) -> str:
    """A job as its own process; what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, done.stderr)
    return done.stdout


def train_and_curate(folder: Path, pool: str, *training: str) -> Path:
    """A ranker from the real quadruples, then a tenth of a pool; the selection's directory."""
    ranker, out = folder / "ranker", folder / "curated"
    quads = ["--quads", str(DATA / "quads_dev.jsonl.gz"), "--encoder", str(encoder_folder())]
    run("jobs.train", *quads, "--keep-unjudged", *training, "--out", str(ranker))
    arguments = ["--pool", pool, "--ranker", str(ranker), "--keep", "10%", "--out", str(out)]
    report = run("jobs.curate", *arguments)
    assert "score quantiles" in report
    selection: str = json.loads((out / "latest.json").read_bytes())["run"]
    return out / selection


def test_a_part_of_the_real_data_is_trained_on_and_curated(tmp_path: Path) -> None:
    """2,000 rows of the three pools: counts close, scores are ordered as selected."""
    for name in POOLS:
        table = pq.read_table(DATA / f"{name}.parquet")
        step = table.num_rows // 667
        part = table.take(pa.array(range(0, step * 667, step)))
        (tmp_path / "pool").mkdir(exist_ok=True)
        pq.write_table(part, tmp_path / f"pool/{name}.parquet")
    selection = train_and_curate(
        tmp_path, str(tmp_path / "pool"), "--limit-quads", "60", "--max-steps", "3"
    )
    counts = manifest_of(selection)["counts"]
    assert counts["rows_in"] == 2001
    assert counts["selected"] == counts["scored"] // 10 == len(rows_of(selection))
    assert (
        min(row["scar_score"] for row in rows_of(selection)) == manifest_of(selection)["threshold"]
    )


@pytest.mark.soak
def test_all_of_the_real_data_is_trained_on_and_curated(tmp_path: Path) -> None:
    """All quadruples, one epoch; all 126,371 rows of the pools."""
    selection = train_and_curate(tmp_path, str(DATA / "pool_*.parquet"), "--epochs", "1")
    counts = manifest_of(selection)["counts"]
    assert counts["rows_in"] == 126_371
    assert counts["selected"] == counts["scored"] // 10 == len(rows_of(selection))
