"""`--dedup near` as a job: of each planted cluster the best-scored row, whatever the layout."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, find_near, score, select_rows, verify
from tests.in_process import publish_drawn, run_here
from tests.jobs_harness import manifest_of, rows_of
from tests.test_near import planted
from tests.test_select_job import exact_scores
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

CLUSTERS = 30
TEXTS, OWNERS = planted(CLUSTERS)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process, over many chunks."""
    run_here(monkeypatch)
    monkeypatch.setattr("jobs.find_near.CHUNK_ROWS", 37)


def scored_pool(folder: Path, *, files: int, seed: int) -> Path:
    """The planted rows in some order and layout, and rows that nothing is near to."""
    rows: list[dict[str, str | None]] = [
        {"id": f"{owner}.{row}", "instruction": "Go on.", "response": text}
        for row, (text, owner) in enumerate(zip(TEXTS, OWNERS, strict=True))
    ]
    rows += [{"id": f"bad.{row}", "instruction": "Go on.", "response": None} for row in range(5)]
    rows += [{"id": f"same.{row}", "instruction": "Yes?", "response": "No."} for row in range(3)]
    random.Random(seed).shuffle(rows)
    (folder / "pool").mkdir(parents=True)
    for number in range(files):
        table = pa.Table.from_pylist(rows[number::files])
        pq.write_table(table, folder / f"pool/{number}.parquet", row_group_size=11)
    config = score.ScoreConfig(
        pool=[str(folder / "pool")],
        ranker=str(tiny_ranker_dir(folder)),
        out=str(folder / "scores"),
        unit_rows=13,
    )
    # Of a text alone, so that layouts can be compared.
    publish_drawn(config, lambda unit, hashes: exact_scores(unit, hashes).round(1))
    return folder / "scores"


def select(scores: Path, out: Path, *flags: str) -> Path:
    arguments = ["--scores", str(scores), "--out", str(out), *flags]
    assert cli.run_job(select_rows.job, arguments) == 0
    return out


def test_the_best_of_each_cluster_is_kept_in_any_layout(tmp_path: Path) -> None:
    """By the plain order of all rows; shares count clusters, the others are duplicates."""
    kept = set()
    for files, seed in ((1, 3), (4, 8)):
        scores = scored_pool(tmp_path / f"{files}", files=files, seed=seed)
        every = rows_of(select(scores, tmp_path / f"all-{files}", "--keep", "100%"))
        order = sorted(every, key=lambda row: -row["scar_score"])
        best = {row["id"].partition(".")[0]: row["scar_score"] for row in reversed(order)}
        run = select(
            *(scores, tmp_path / f"near-{files}", "--keep", "100%"),
            *("--dedup", "near", "--near-jaccard", "0.7"),
        )
        found = rows_of(run)
        assert {row["id"].partition(".")[0]: row["scar_score"] for row in found} == best
        assert len(found) == CLUSTERS + 1
        counts = manifest_of(run)["counts"]
        assert counts["duplicates"] == len(TEXTS) + 3 - len(found)
        assert counts["rows_in"] == len(TEXTS) + 3 + 5
        assert cli.run_job(verify.job, [str(run)]) == 0
        kept.add(frozenset(row["response"] for row in found))
    assert len(kept) == 1


def test_sketches_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second selection reads them; another similarity has its own."""
    scores = scored_pool(tmp_path, files=2, seed=1)
    flags = ("--keep", "10", "--dedup", "near")
    first = rows_of(select(scores, tmp_path / "a", *flags))
    with monkeypatch.context() as patch:
        patch.setattr(find_near, "sketch_units", None)  # nobody asks for it
        assert rows_of(select(scores, tmp_path / "b", *flags)) == first
    select(scores, tmp_path / "c", *flags, "--near-jaccard", "0.5")
    assert len(list((scores / "sketches").iterdir())) == 2


def test_a_similarity_that_is_none_is_refused(tmp_path: Path) -> None:
    """Above 0, below 1."""
    flags = ["--scores", "s", "--out", str(tmp_path / "o"), "--keep", "1", "--near-jaccard", "1"]
    assert cli.run_job(select_rows.job, flags) == 2
