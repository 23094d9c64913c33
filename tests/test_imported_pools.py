"""The jobs over pools that are no Parquet: same scores, same selection, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs import cli, curate, doctor, plan, verify
from tests.jobs_harness import curate_run, manifest_of
from tests.test_formats_in import ROWS, jsonl, write_all, written
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


def arguments(tmp_path: Path, ranker: Path) -> list[str]:
    return [
        *("--pool", str(tmp_path / "pool"), "--ranker", str(ranker)),
        *("--out", str(tmp_path / "out"), "--unit-rows", "20"),
    ]


def test_every_format_gets_the_scores_and_the_selection_of_parquet(
    tmp_path: Path, ranker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pool of all formats: each file's sidecars agree, and so does what is kept of it.

    A second run scores and imports nothing; a verification follows files and copies.
    """
    everything = {n: data for n, data in written(ROWS).items() if not n.endswith(".json")}
    everything["broken.jsonl"] = jsonl(ROWS[:5]) + b'{"instruction": \n' + jsonl(ROWS[5:6])
    write_all(tmp_path / "pool", everything)
    shutil.copytree(tmp_path / "pool", tmp_path / "later")
    flags = arguments(tmp_path, ranker)
    assert cli.run_job(plan.job, [*flags, "--keep", "20%", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pool"]["rows"] == 50 * (len(everything) - 1) + 7
    assert not (tmp_path / "out").exists()

    run = curate_run(*flags, "--keep", "20%")
    counts = manifest_of(run)["counts"]
    assert counts["quarantined"] == {"not_json": 1}
    assert counts["rows_in"] == 50 * (len(everything) - 1) + 7
    scores = manifest_of(next((tmp_path / "out/scores/runs").iterdir()))
    by_file: dict[str, list[float]] = {}
    for entry in scores["files"]:
        table = pq.read_table(tmp_path / "out/scores" / entry["path"])
        by_file.setdefault(entry["pool_file"], []).extend(table["score"].to_pylist())
    broken = by_file.pop("broken.jsonl")
    assert broken == [*by_file["a.parquet"][:5], None, by_file["a.parquet"][5]]
    assert all(found == by_file["a.parquet"] for found in by_file.values())
    kept = Counter(ds.dataset(run / "picked").to_table()["path"].to_pylist())
    assert max(kept.values()) - min(kept[name] for name in by_file) <= 1

    copies = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out/scores/imported").iterdir()
    }
    curate_run(*flags, "--keep", "10%")
    assert len(list((tmp_path / "out/scores/runs").iterdir())) == 1
    assert copies == {p: p.stat().st_mtime_ns for p in (tmp_path / "out/scores/imported").iterdir()}
    assert cli.run_job(verify.job, [str(tmp_path / "out")]) == 0

    (tmp_path / "pool/b.jsonl").write_bytes(jsonl(ROWS[1:]))
    assert cli.run_job(verify.job, [str(tmp_path / "out")]) == 1
    assert "b.jsonl: changed since it was scored" in capsys.readouterr().out


@pytest.mark.soak
def test_copies_that_were_deleted_are_made_again_and_nothing_is_scored_anew(
    tmp_path: Path, ranker: Path
) -> None:
    """Sidecars belong to the file, not to its copy."""
    write_all(tmp_path / "pool", {"b.jsonl": jsonl(ROWS), "h.csv": written(ROWS)["h.csv"]})
    flags = [*arguments(tmp_path, ranker), "--keep", "20%"]
    first = curate_run(*flags)
    sidecars = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/scores/sidecars/**/*")}
    shutil.rmtree(tmp_path / "out/scores/imported")
    second = curate_run(*flags)
    assert sidecars
    assert sidecars == {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/scores/sidecars/**/*")}
    assert ds.dataset(first / "data").to_table() == ds.dataset(second / "data").to_table()


@pytest.mark.soak
def test_a_file_that_cannot_be_imported_stops_a_run_or_is_quarantined(
    tmp_path: Path, ranker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a bad Parquet file does, with its reason."""
    write_all(tmp_path / "pool", {"b.jsonl": jsonl(ROWS), "bad.csv": b'instruction,response\n"a'})
    flags = [*arguments(tmp_path, ranker), "--keep", "20%"]
    assert cli.run_job(curate.job, flags) == 2
    assert "bad.csv: cannot be read as csv" in capsys.readouterr().err
    run = curate_run(*flags, "--on-bad-file", "quarantine")
    assert manifest_of(run)["counts"]["rows_in"] == 50
    scores = manifest_of(next((tmp_path / "out/scores/runs").iterdir()))
    assert scores["counts"]["files_quarantined"] == {"not_csv": 1}


def test_the_doctor_looks_at_the_first_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns of a file that is no Parquet are checked without a copy of it."""
    pool = write_all(tmp_path, {"b.jsonl": jsonl(ROWS)}) / "b.jsonl"
    cli.run_job(doctor.job, ["--pool", str(pool)])
    assert "the first has the columns" in capsys.readouterr().out
    pool.write_bytes(jsonl([{"question": "a"}]))
    assert cli.run_job(doctor.job, ["--pool", str(pool)]) == 2
    assert "no column 'instruction'; found question" in capsys.readouterr().out
