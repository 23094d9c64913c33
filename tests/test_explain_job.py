"""What became of a row, against a plain sort of the whole pool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from jobs import cli, explain, score
from jobs.explain_stages import cut_at
from jobs.scored_pool import known_scores
from scar_core import storage
from scar_core.selection.order import Placed
from tests.in_process import publish_drawn, run_here
from tests.jobs_harness import rows_of, write_pool
from tests.test_select_job import exact_scores, select, tokens_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published scores of 300 rows with many ties, copies and bad rows."""
    folder = tmp_path_factory.mktemp("explain")
    pool = write_pool(folder / "pool")
    config = score.ScoreConfig(
        pool=[str(pool)],
        ranker=str(tiny_ranker_dir(folder)),
        out=str(folder / "scores"),
        unit_rows=32,
    )
    publish_drawn(config, exact_scores, tokens=tokens_of)
    return folder / "scores"


def ranked(scores: Path) -> list[tuple[str, int, float, str]]:
    """(path, row, score, content hash) of all scored rows, best first: a plain sort."""
    opened = known_scores(next((scores / "runs").iterdir()).as_posix())
    rows = []
    for scored in opened.units:
        with storage.open_input(scored.sidecar) as file:
            for row in pq.read_table(file).to_pylist():
                if row["score"] is not None:
                    key = (-row["score"], row["content_hash"], scored.unit.path, row["row"])
                    rows.append(key)
    return [(path, row, -score, content.hex()) for score, content, path, row in sorted(rows)]


def told(capsys: pytest.CaptureFixture[str], run: Path, row: str, *flags: str) -> Row:
    capsys.readouterr()
    assert cli.run_job(explain.job, [str(run), "--row", row, "--json", *flags]) == 0
    found: Row = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process, over many chunks."""
    run_here(monkeypatch)


def test_rank_percentile_and_neighbours_are_those_of_a_sorted_pool(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best, the worst, both sides of the cut, where ties are, and one in the middle."""
    order = ranked(scores)
    run = select(scores, tmp_path / "run", "--keep", "40")
    for rank in (1, 2, 39, 40, 41, 42, 150, len(order) - 1, len(order)):
        path, row, its_score, content = order[rank - 1]
        found = told(capsys, run, f"{path}:{row}", "--neighbours", "4")
        assert (found["rank"], found["eligible"]) == (rank, len(order))
        assert found["better_than_percent"] == pytest.approx(100 * (len(order) - rank) / len(order))
        assert (found["score"], found["content_hash"]) == (its_score, content)
        assert found["status"] == ("selected" if rank <= 40 else "not_selected")
        beside = [n for n in range(max(rank - 4, 1), min(rank + 4, len(order)) + 1) if n != rank]
        assert [
            (n["rank"], n["path"], n["row"], n["score"], n["selected"]) for n in found["neighbours"]
        ] == [(n, *order[n - 1][:3], n <= 40) for n in beside]


def test_a_person_reads_why(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kept, below the threshold, tied with it, and quarantined."""
    order = ranked(scores)
    keep = next(n for n in range(30, 200) if order[n][2] == order[n - 1][2])
    run = select(scores, tmp_path / "run", "--keep", str(keep))
    for rank, why in ((1, "the threshold"), (keep + 1, "smaller"), (len(order), "below the thr")):
        path, row = order[rank - 1][:2]
        assert cli.run_job(explain.job, [str(run), "--row", f"{path}:{row}"]) == 0
        text = capsys.readouterr().out
        assert why in text
        assert f"→{rank:>12,}" in text
        assert "\nI: " in text
    assert cli.run_job(explain.job, [str(run), "--row", "part-0.parquet:3"]) == 0
    text = capsys.readouterr().out
    assert "part-0.parquet:3: quarantined in run" in text
    assert "(response_null): 'response' is null." in text


def test_a_row_is_found_by_its_content_or_by_a_column(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of several; how many there are is told."""
    run = select(scores, tmp_path / "run", "--keep", "40")
    by_place = told(capsys, run, "part-1.parquet:19")
    by_content = told(capsys, run, by_place["content_hash"])
    assert by_content.pop("rows_found") == 2  # row 20 is a copy
    assert by_content == {name: v for name, v in by_place.items() if name != "rows_found"}
    assert told(capsys, run, "1019", "--column", "id") == by_place
    assert told(capsys, run, "s1", "--column", "source")["rows_found"] == 99


def test_groups_and_copies(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row's group with its quota and threshold; a copy, and the row that is kept for it."""
    flags = ("--keep", "10%", "--per", "source", "--dedup", "exact")
    run = select(scores, tmp_path / "run", *flags)
    first, second = (told(capsys, run, f"part-1.parquet:{row}") for row in (19, 20))
    copy, kept = (first, second) if "copy_of" in first else (second, first)
    assert copy["copy_of"] == {"path": kept["path"], "row": kept["row"]}
    assert "comes first in order" in copy["why"]
    assert kept["eligible"] == len({content for *_, content in ranked(scores)})
    manifest = json.loads((run / "manifest.json").read_bytes())
    entry = next(one for one in manifest["groups"] if one["group"] == kept["group"]["group"])
    assert kept["group"] == {"column": "source", **entry}
    assert f"of its group '{entry['group']}'" in kept["why"]
    assert not list(run.glob("scratch*"))


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        ("--keep 40 --sample-temperature 0.5 --seed 3", "worth"),
        ("--keep 40 --combine score:1+id:-0.5", "worth"),
        ("--keep 40 --pareto score id", "worth"),
        ("--keep 2k-tokens", "fill the budget"),
        ("--keep 8% --length-bands 40,60 --max-per-length-band 9", "Its length band"),
        ("--keep 60% --max-per-cluster 1 --sample-temperature 0.5", "worth"),
        ("--keep 100% --dedup near --near-jaccard 0.5", "is nearly the same"),
    ],
)
def test_what_is_told_of_rows_is_what_their_policy_did(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, left_out: str
) -> None:
    """Rows in rank are kept up to some rank; who has none is told why; nothing stays behind."""
    run = select(scores, tmp_path / "run", *flags.split())
    manifest = json.loads((run / "manifest.json").read_bytes())
    some = [divmod(row["id"], 1000) for row in rows_of(run)[:30:10]]
    places = [*some, *((n % 3, 13 * n % 100) for n in range(8)), (0, 19), (0, 20)]
    rows = [told(capsys, run, f"part-{part}.parquet:{row}") for part, row in places]
    kept = [row for row in rows if row["status"] == "selected"]
    others = [row for row in rows if row["status"] == "not_selected"]
    assert kept
    assert any(left_out in row["why"] for row in others)
    selected = manifest["counts"]["selected"]
    assert all(row["rank"] <= selected for row in kept)
    assert all(row["rank"] > selected for row in others if "rank" in row)
    for row in kept:
        by = row["ordered_by"]
        before = [one[by] for one in row["neighbours"] if one["rank"] < row["rank"]]
        own = row["score"] if by == "score" else row["order"]["worth"]
        assert all(worth >= own for worth in before)
    for row in others:
        if (better := row.get("copy_of")) is not None:
            assert "copy_of" not in told(capsys, run, f"{better['path']}:{better['row']}")
    assert not list(run.glob("scratch*"))


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ("part-9.parquet:0", "no file 'part-9.parquet' among the 3 that were scored"),
        ("part-0.parquet:100", "the file has 100 rows, counted from 0"),
        ("0" * 32, "no scored row with this content, of 300 rows in 3 files"),
        ("what", "wanted PATH:NUMBER, or a content hash of 32"),
        ("77777 --column id", "no row has this value"),
        ("7 --column nested", "wanted text or whole numbers"),
        ("7 --neighbours=-1", "neighbours must be at least 0"),
    ],
)
def test_an_unknown_row_is_exit_code_2(
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: str,
    why: str,
) -> None:
    """With a sentence that says what is there."""
    run = select(scores, tmp_path / "run", "--keep", "40")
    assert cli.run_job(explain.job, [str(run), "--row", *argv.split()]) == 2
    assert why in capsys.readouterr().err


def test_a_row_is_explained_when_the_pool_is_gone(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but its texts."""
    run = select(scores, tmp_path / "run", "--keep", "40")
    before = told(capsys, run, "part-2.parquet:1")
    pool = scores.parent / "pool"
    pool.rename(scores.parent / "moved")
    try:
        found = told(capsys, run, "part-2.parquet:1")
        text = cli.run_job(explain.job, [str(run), "--row", "part-2.parquet:1"])
    finally:
        (scores.parent / "moved").rename(pool)
    assert text == 0
    assert "no texts: " in capsys.readouterr().out
    assert before.pop("texts")["instruction"]
    assert found.pop("texts") is None
    assert "is gone" in found.pop("texts_missing")
    assert found == before


def test_a_rows_key_is_a_cut() -> None:
    """Digit by digit, most significant first."""
    cut = cut_at(Placed(0x01020304, bytes(range(16)), 0x00050006, 0x00070008))
    assert cut.digits[:3] == (0x0102, 0x0304, 0x0001)
    assert cut.digits[-4:] == (5, 6, 7, 8)
