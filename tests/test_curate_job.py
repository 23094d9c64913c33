"""The main job on a real Ray: exact, complete, resumable, the same for any number of workers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import cli, curate, score, select_rows
from scar_core.pool.rows import content_hash
from scar_core.scoring import Scorer
from tests.jobs_harness import (
    ROOT,
    curate_run,
    manifest_of,
    rows_of,
    write_pool,
)
from tests.tiny import tiny_ranker_dir

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pools") / "pool")


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, pool: Path, ranker: Path) -> Path:
    """An output directory with one finished run at 10 %."""
    out = tmp_path_factory.mktemp("curated")
    arguments = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(out))
    curate_run(*arguments, "--keep", "10%", "--unit-rows", "32")
    return out


def newest(out: Path) -> Path:
    """The newest selection of a curation."""
    return Path(out / json.loads((out / "latest.json").read_bytes())["run"])


def expected_ids(pool: Path, ranker: Path, *, share: float) -> tuple[list[int], int]:
    """Ids of the best share and the number of rows that have a score: a plain loop and a sort."""
    scorer = Scorer.load(str(ranker))
    ranked = []
    for path in sorted(pool.glob("*.parquet")):
        for position, row in enumerate(pq.read_table(path).to_pylist()):
            try:
                instruction, response = row["instruction"].decode(), row["response"].decode()
            except (AttributeError, UnicodeDecodeError):
                continue
            if instruction.strip() and response.strip():
                score = scorer.score([(instruction, response)])[0]
                place = (path.name, position)
                ranked.append((-score, content_hash(instruction, response), place, row["id"]))
    ranked.sort()
    return [row[-1] for row in ranked[: math.floor(share * len(ranked))]], len(ranked)


def test_the_selected_rows_are_those_of_a_plain_loop_and_sort(
    curated: Path, pool: Path, ranker: Path
) -> None:
    """Ray, units, sidecars and radix change nothing about which rows are the best."""
    ids, eligible = expected_ids(pool, ranker, share=0.1)
    assert {row["id"] for row in rows_of(newest(curated))} == set(ids)
    assert manifest_of(newest(curated))["counts"]["scored"] == eligible


def test_output_rows_are_the_input_rows_and_a_score(curated: Path, pool: Path) -> None:
    """Every column and type is untouched, bytes and nested ones too; order is the pool's."""
    files = sorted((newest(curated) / "data").glob("*.parquet"))
    assert pq.read_schema(files[0]).names[:-1] == pq.read_schema(pool / "part-0.parquet").names
    by_id = {
        row["id"]: row for path in pool.glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    kept = rows_of(newest(curated))
    assert [{**by_id[row["id"]], "scar_score": row["scar_score"]} for row in kept] == kept
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)


def test_every_row_is_accounted_for(curated: Path) -> None:
    """Rows in = selected + not selected + quarantined, each reason as planted."""
    counts = manifest_of(newest(curated))["counts"]
    assert counts["quarantined"] == {
        "instruction_null": 3,
        "response_empty": 3,
        "response_not_text": 3,
        "response_null": 3,
    }
    assert counts["rows_in"] == 300
    assert counts["selected"] + counts["not_selected"] + 12 == 300
    assert counts["selected"] == math.floor(0.1 * 288)


def test_a_manifest_vouches_for_every_file_and_names_no_machine(curated: Path) -> None:
    """Size and checksum of each file hold, and no absolute path is in any JSON."""
    for folder in (newest(curated), *(curated / "scores/runs").iterdir()):
        manifest = manifest_of(folder)
        below = folder / manifest.get("files_below", ".")
        for entry in manifest["files"]:
            data = (below / entry["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (
                entry["bytes"],
                entry["sha256"],
            )
        assert str(curated) not in json.dumps(manifest)
    report = json.loads((newest(curated) / "report.json").read_bytes())
    assert sum(source["rows"] for source in report["sources"]) == 300
    assert [len(rows) for rows in report["examples"].values()] == [3, 3, 3]


def test_another_share_scores_nothing_again(curated: Path, pool: Path, ranker: Path) -> None:
    """Sidecars stay as they are; a larger share keeps every row of the smaller one."""
    before = {path: path.stat().st_mtime_ns for path in curated.glob("scores/sidecars/*/*")}
    small = {row["id"] for row in rows_of(newest(curated))}
    arguments = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(curated))
    large = curate_run(*arguments, "--keep", "50%", "--unit-rows", "32")
    after = {path: path.stat().st_mtime_ns for path in curated.glob("scores/sidecars/*/*")}
    assert before == after
    assert small < {row["id"] for row in rows_of(large)}
    assert len(list((curated / "selected").iterdir())) == 2
    assert len(list((curated / "scores/runs").iterdir())) == 1


def test_one_worker_and_four_give_the_same_bytes(
    tmp_path: Path, curated: Path, pool: Path, ranker: Path
) -> None:
    """Also with the files named one by one, in another order."""
    files = [str(pool / f"part-{number}.parquet") for number in (2, 0, 1)]
    out = tmp_path / "curated"
    for actors in ("1", "3"):
        run = curate_run(
            *("--pool", *files, "--ranker", str(ranker), "--out", str(out / actors)),
            *("--keep", "10%", "--unit-rows", "32", "--actors", actors),
        )
        first = min((curated / "selected").iterdir())
        for path in (first / "data").iterdir():
            assert (run / "data" / path.name).read_bytes() == path.read_bytes()
    sidecars = [
        {path.name: path.read_bytes() for path in (out / actors).glob("scores/sidecars/*/*")}
        for actors in ("1", "3")
    ]
    assert sidecars[0] == sidecars[1] != {}


def test_a_grown_pool_scores_only_what_is_new(tmp_path: Path, ranker: Path) -> None:
    """A second file is new units; those of the first stay."""
    pool = write_pool(tmp_path / "pool", rows=80, files=2)
    (pool / "part-1.parquet").rename(tmp_path / "later.parquet")
    arguments = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(tmp_path / "out"))
    curate_run(*arguments, "--keep", "5", "--unit-rows", "16")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("scores/sidecars/*/*")}
    (tmp_path / "later.parquet").rename(pool / "part-1.parquet")
    run = curate_run(*arguments, "--keep", "5", "--unit-rows", "16")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("scores/sidecars/*/*")}
    assert before.items() < after.items()
    assert manifest_of(run)["counts"]["rows_in"] == 80


def test_a_cut_sidecar_is_scored_again(tmp_path: Path, ranker: Path) -> None:
    """A file that a crash of the store left short is no result."""
    pool = write_pool(tmp_path / "pool", rows=80, files=2)
    arguments = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(tmp_path / "out"))
    first = curate_run(*arguments, "--keep", "50%", "--unit-rows", "16")
    victim = sorted((tmp_path / "out").glob("scores/sidecars/*/*"))[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    second = curate_run(*arguments, "--keep", "50%", "--unit-rows", "16")
    assert victim.read_bytes() == whole
    assert rows_of(first) == rows_of(second)


@pytest.mark.soak  # in CI tests/test_s3.py does the same in a store
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, pool: Path, ranker: Path) -> None:
    """A kill -9 in the middle; the next run keeps each finished unit, byte for byte."""
    arguments = ["--pool", str(pool), "--ranker", str(ranker), "--keep", "10%", "--unit-rows", "4"]
    out = tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.curate", *arguments, "--actors", "1", "--out", str(out)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("scores/sidecars/*/*.parquet"))) < 5:
        assert time.monotonic() < deadline, "the run wrote no sidecars"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # workers notice that their driver is gone
    finished = {p: p.stat().st_mtime_ns for p in out.glob("scores/sidecars/*/*.parquet")}
    assert not list(out.glob("selected/*/manifest.json"))
    resumed = curate_run(*arguments, "--out", str(out))
    undisturbed = curate_run(*arguments, "--out", str(tmp_path / "other"))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert rows_of(resumed) == rows_of(undisturbed)
    assert len(finished) < len(list(out.glob("scores/sidecars/*/*.parquet")))


@pytest.mark.parametrize(
    ("keep", "rows"), [("17", 17), ("100%", 288), ("1000000", 288), ("score>=1e9", 0)]
)
def test_select_rows_alone_keeps_what_it_is_asked_to(
    tmp_path: Path, curated: Path, keep: str, rows: int
) -> None:
    """Also nothing at all: then one file without rows, with the pool's columns."""
    out = tmp_path / "selected"
    arguments = ["--scores", str(curated / "scores"), "--keep", keep, "--out", str(out)]
    assert cli.run_job(select_rows.job, arguments) == 0
    assert len(rows_of(out)) == manifest_of(out)["counts"]["selected"] == rows
    assert cli.run_job(select_rows.job, arguments) == 2


def test_selecting_needs_no_torch(tmp_path: Path, curated: Path) -> None:
    """A laptop without the deep-learning stack can select."""
    code = (
        "import sys; from jobs import cli, select_rows;"
        "sys.exit(cli.run_job(select_rows.job, sys.argv[1:]) or 10 * ('torch' in sys.modules))"
    )
    arguments = ["--scores", str(curated / "scores"), "--keep", "3", "--out", str(tmp_path / "out")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "selected                               3" in done.stdout


def test_a_pool_that_changed_since_it_was_scored_is_named(tmp_path: Path, ranker: Path) -> None:
    """Old scores and new rows must not meet."""
    pool = write_pool(tmp_path / "pool", rows=80, files=2)
    scores = tmp_path / "scores"
    arguments = ["--pool", str(pool), "--ranker", str(ranker), "--out", str(scores)]
    assert cli.run_job(score.job, arguments) == 0
    table = pq.read_table(pool / "part-1.parquet")
    pq.write_table(table.slice(0, 30), pool / "part-1.parquet")
    select = ["--scores", str(scores), "--keep", "3", "--out", str(tmp_path / "out")]
    assert cli.run_job(select_rows.job, select) == 2
    assert not (tmp_path / "out").exists()


def test_curate_is_what_its_config_file_says(tmp_path: Path, curated: Path, pool: Path) -> None:
    """The manifest holds the resolved configuration."""
    assert manifest_of(newest(curated))["config"]["keep"] in ("10%", "50%")
    (tmp_path / "run.yaml").write_text(f"pool: [{pool}]\nranker: r\nkeep: 3%\nout: o\n")
    config = cli.parse(
        curate.CurateConfig,
        ["--config", str(tmp_path / "run.yaml"), "--keep", "4%"],
        prog="jobs.curate",
        description="",
    )
    assert (config.keep, config.pool, config.unit_rows) == ("4%", [str(pool)], 2048)
