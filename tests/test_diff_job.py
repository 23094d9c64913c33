"""Two selections told apart, against plain sets of the rows that they list."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, diff, score
from tests.in_process import publish_drawn, run_here
from tests.jobs_harness import write_pool
from tests.test_select_job import exact_scores, select
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]
Place = tuple[str, int]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scores of a pool, and of the same with a file each new, changed, gone and moved."""
    folder = tmp_path_factory.mktemp("diff")
    ranker = tiny_ranker_dir(folder)
    first = write_pool(folder / "first", rows=400, files=4)
    second = folder / "second"
    shutil.copytree(first, second)
    table = pq.read_table(second / "part-1.parquet")
    pq.write_table(table.slice(0, 90), second / "part-1.parquet")
    (second / "part-2.parquet").unlink()
    (second / "moved").mkdir()
    (second / "part-3.parquet").rename(second / "moved/part-3.parquet")
    pq.write_table(table.slice(10, 60), second / "part-9.parquet")
    outs = []
    for pool in (first, second):
        out = folder / f"scores-{pool.name}"
        config = score.ScoreConfig(pool=[str(pool)], ranker=str(ranker), out=str(out), unit_rows=32)
        publish_drawn(config, exact_scores)
        outs.append(out)
    return outs[0], outs[1]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process, over many chunks."""
    run_here(monkeypatch)


def places(run: Path) -> set[Place]:
    tables = [pq.read_table(path, columns=["path", "row"]) for path in run.glob("picked/*")]
    columns = pa.concat_tables(tables).to_pydict().values()
    return set(zip(*columns, strict=True))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> Row:
    capsys.readouterr()
    assert cli.run_job(diff.job, [*argv, "--json"]) == 0
    found: Row = json.loads(capsys.readouterr().out)
    return found


def test_entered_and_left_are_those_of_plain_sets(
    nights: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason that the row's file gives, and every row listed once."""
    first, second = nights
    a = select(first, tmp_path / "a", "--keep", "80")
    b = select(second, tmp_path / "b", "--keep", "80")
    found = told(capsys, str(a), str(b), "--out", str(tmp_path / "diff"))

    def now(place: Place) -> Place:
        moved = place[0] == "part-3.parquet"
        return ("moved/part-3.parquet", place[1]) if moved else place

    same = {"part-0.parquet", "part-3.parquet"}
    before = {now(place) for place in places(a) if place[0] in same}
    after = places(b)
    stayed = before & after
    assert found["stayed"] == len(stayed) > 0
    reasons = Counter(
        {"part-1.parquet": "changed_file", "part-9.parquet": "new_file"}.get(p, "threshold_moved")
        for p, _ in after - stayed
    )
    assert found["entered"]["reasons"] == reasons
    assert set(reasons) == {"changed_file", "new_file", "threshold_moved"}
    gone = Counter(p for p, _ in places(a))
    assert found["left"]["reasons"]["removed_file"] == gone["part-2.parquet"]
    assert found["left"]["reasons"]["changed_file"] == gone["part-1.parquet"]
    assert found["left"]["rows"] == len(places(a)) - len(stayed)
    for name, wanted in (("entered", after - stayed), ("left", None)):
        rows = [pq.read_table(tmp_path / "diff" / e["path"]) for e in found[name]["files"]]
        listed = pa.concat_tables(rows).to_pylist()
        assert Counter(row["reason"] for row in listed) == found[name]["reasons"]
        if wanted is not None:
            assert {(row["path"], row["row"]) for row in listed} == wanted
        best = sorted((row["score"] for row in listed), reverse=True)[:5]
        assert [row["score"] for row in found[name]["examples"]] == best
    assert json.loads((tmp_path / "diff/diff.json").read_bytes()) == found
    assert cli.run_job(diff.job, [str(a), str(b), "--out", str(tmp_path / "diff")]) == 2
    assert "already holds a diff" in capsys.readouterr().err


def test_other_settings_are_the_reason_where_files_are_the_same(
    nights: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which, a person reads; how rows are written is none."""
    a = select(nights[0], tmp_path / "a", "--keep", "80")
    b = select(nights[0], tmp_path / "b", "--keep", "60", "--file-megabytes", "9")
    found = told(capsys, str(a), str(b))
    assert found["settings"] == {"keep": ["80", "60"]}
    assert found["left"]["reasons"] == {"other_policy": 20}
    assert found["entered"]["rows"] == 0
    back = told(capsys, str(b), str(a))
    assert back["entered"]["examples"] == found["left"]["examples"]
    assert cli.run_job(diff.job, [str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "left                      20   20 other policy" in text
    same = told(capsys, str(a), str(a))
    assert (same["stayed"], same["left"]["rows"], same["settings"]) == (80, 0, {})


def test_what_is_no_selection_is_refused(
    nights: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a selection whose list of rows is not there any more."""
    a = select(nights[0], tmp_path / "a", "--keep", "80")
    assert cli.run_job(diff.job, [str(a), str(tmp_path / "none")]) == 2
    next(a.glob("picked/*")).unlink()
    assert cli.run_job(diff.job, [str(a), str(a)]) == 2
    assert "lists rows that the run selected" in capsys.readouterr().err
