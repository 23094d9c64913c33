"""Chats through the whole job, on a real Ray: as one process scores them, no row lost."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, verify
from jobs.guarded import Fault, Guarded
from jobs.score_stages import _of_rows
from scar_core.library import score_rows
from scar_core.pool.pieces import Pieces
from scar_core.pool.rows import PairColumns
from scar_core.scoring import Scorer, ScoringConfig
from tests.jobs_harness import curate_run, manifest_of, rows_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

MOST = 24
FLAGS = ("--turns", "mean", "--long", "windows", "--max-tokens", str(MOST), "--unit-rows", "7")


def chats(rows: int, *, seed: int) -> list[list[dict[str, Any]] | None]:
    """Chats of one to four turns, some with a system message, some too long, two that are none."""
    rng = np.random.default_rng(seed)
    made: list[list[dict[str, Any]] | None] = []
    for row in range(rows):
        chat = [{"role": "system", "content": "Be brief."}] if row % 3 == 0 else []
        for turn in range(1 + row % 4):
            words = [f"w{n}" for n in rng.integers(0, 50, 60 if row % 5 == 0 else 6)]
            chat.append({"role": "user", "content": f"question {row} {turn}"})
            chat.append({"role": "assistant", "content": " ".join(words)})
        made.append(chat)
    made[4], made[9] = None, [{"role": "user", "content": "nobody answers"}]
    return made


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    for number in range(2):
        table = pa.table({"id": np.arange(20), "messages": chats(20, seed=number)})
        pq.write_table(table, folder / f"part-{number}.parquet")
    return folder


@pytest.mark.usefixtures("ray_session")
def test_chats_are_curated_as_one_process_scores_them(
    pool: Path, ranker: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shape found and said, turns and windows reduced, rows untouched, all of it on record."""
    out = tmp_path / "out"
    where = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(out))
    with caplog.at_level(logging.INFO):
        run = curate_run(*where, *FLAGS, "--keep", "10")
    assert "rows read as messages: messages (role/content), turns mean" in caplog.text
    scores = out / "scores" / json.loads((out / "scores/latest.json").read_bytes())["run"]
    manifest = manifest_of(scores)
    for name, value in (("format", "messages"), ("turns", "mean"), ("long", "windows")):
        assert manifest["config"][name] == manifest["key"][name] == value
    assert manifest["counts"]["quarantined"] == {"chat_null": 2, "no_response": 2}
    scorer = Scorer.load(str(ranker), config=ScoringConfig(max_tokens=MOST))
    columns = PairColumns(turns="mean", long="windows")
    expected: dict[tuple[str, int], Any] = {}
    for path in sorted(pool.glob("*.parquet")):
        one = score_rows(pq.read_table(path), scorer, columns=columns).table.to_pylist()
        expected |= {(path.name, row["row"]): row for row in one}
    found = {
        (entry["pool_file"], row["row"]): row
        for entry in manifest["files"]
        for row in pq.read_table(scores / "../.." / entry["path"]).to_pylist()
    }
    assert found.keys() == expected.keys()
    for place, row in found.items():
        assert row["turn_scores"] == pytest.approx(expected[place].pop("turn_scores"), abs=1e-5)
        assert row.pop("score") == pytest.approx(expected[place].pop("score"), abs=1e-5)
        del row["turn_scores"]
    assert found == expected
    cut = sum(row["cut_tokens"] > 0 for row in found.values())
    report = json.loads((run / "report.json").read_bytes())
    assert report["cut_rows"] == manifest["counts"]["cut_rows"] == cut > 0
    assert len(rows_of(run)) == 10
    schema = pq.read_schema(next((run / "data").glob("*.parquet")))
    assert schema.field("messages").type == pq.read_schema(pool / "part-0.parquet").field(1).type
    assert cli.run_job(verify.job, [str(out)]) == 0


@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_chats_in_bf16_select_what_fp32_selects(
    pool: Path, ranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows near the cut are scored again with all their pieces."""
    monkeypatch.setattr("jobs.rescore.SAMPLE_ROWS", 8)
    ids = {}
    for precision in ("fp32", "bf16"):
        where = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(tmp_path / precision))
        run = curate_run(*where, *FLAGS, "--keep", "12", "--precision", precision)
        ids[precision] = [row["id"] for row in rows_of(run)]
    assert ids["fp32"] == ids["bf16"]
    told = manifest_of(run)["precision"]
    assert told["rescored_rows"] > 0
    assert told["largest_error"] < 0.1


def test_a_fault_of_a_piece_is_its_rows() -> None:
    """The first one is told; the other rows keep their scores."""
    pieces = Pieces(
        np.array([0, 1, 1, 2, 2], np.int32),
        np.array([0, 0, 1, 0, 0], np.int32),
        np.array([5, 5, 5, 1, 3], np.int32),
    )
    first, second = Fault("crashed", "one"), Fault("failed", "two")
    scores = np.array([7, np.nan, np.nan, 2, 6], np.float32)
    faults, good, reduced = _of_rows(Guarded(scores, {1: first, 2: second}), pieces, turns="mean")
    assert faults == {1: first}
    assert good.tolist() == [0, 2]
    assert reduced.scores_K.tolist() == [7, 5]
    everything = Guarded(scores, dict.fromkeys(range(5), first))
    faults, good, reduced = _of_rows(everything, pieces, turns="mean")
    assert (sorted(faults), len(good), len(reduced.scores_K)) == ([0, 1, 2], 0, 0)
