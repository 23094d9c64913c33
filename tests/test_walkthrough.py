"""The walk-through sees what is wrong, runs what the manifests say, and leaves nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.s3_server import BUCKET
from tests.walk_checks import Checks, check_run, check_secrets, check_turned_away
from tests.walk_processes import MARK, end_marked, marked
from tests.walk_steps import Step
from tests.walk_world import CURATED, World, growth, the_sample
from tests.walkthrough import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = "20261101T000000Z-abcdef"
FOLDER = f"{CURATED}/selected/{RUN}"
COUNTS = {"rows_in": 30, "selected": 2, "not_selected": 26, "quarantined": {"response_null": 2}}


def put(store: Any, path: str, value: object) -> None:  # noqa: ANN401 - fsspec has no types
    store.pipe_file(path, json.dumps(value).encode())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A bucket in memory that holds one run, as it should be."""
    store = fsspec.filesystem("memory")
    store.rm(BUCKET, recursive=True) if store.exists(BUCKET) else None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"row_id": ["a", "b"]}), sink)
    data = sink.getvalue().to_pybytes()
    store.pipe_file(f"{FOLDER}/data/part-0.parquet", data)
    files = [{"path": "data/part-0.parquet", "sha256": sha256(data).hexdigest()}]
    put(store, f"{FOLDER}/manifest.json", {"counts": COUNTS, "files": files})
    put(store, f"{FOLDER}/report.json", {"before": {"rows": {"new": 7}}})
    put(store, f"{CURATED}/latest.json", {"run": f"selected/{RUN}"})
    lines = [{"event": "scoring_finished", "rows": 7}, {"event": "run_finished"}]
    store.pipe_file(f"{CURATED}/events/{RUN}.jsonl", "\n".join(map(json.dumps, lines)).encode())
    return World(
        folder=tmp_path,
        store=store,
        dashboard="http://127.0.0.1:1",
        token="T",  # noqa: S106 - no secret
        rows=30,
        unscorable=2,
    )


def found_wrong(world: World) -> list[str]:
    checks = Checks()
    check_run(world, checks, RUN, new=7)
    return [claim.partition(": ")[2].partition(":")[0] for claim in checks.wrong]


def test_a_run_that_is_right_is_found_right(world: World) -> None:
    """Else the cases below would prove nothing."""
    assert found_wrong(world) == []


def lose_a_row(world: World) -> None:
    changed = COUNTS | {"not_selected": 25}
    put(world.store, f"{FOLDER}/manifest.json", {"counts": changed, "files": []})


def change_a_file(world: World) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"row_id": ["a", "a"]}), sink)
    world.store.pipe_file(f"{FOLDER}/data/part-0.parquet", sink.getvalue().to_pybytes())


def name_another_run(world: World) -> None:
    put(world.store, f"{CURATED}/latest.json", {"run": "selected/another"})


def tell_of_other_rows(world: World) -> None:
    put(world.store, f"{FOLDER}/report.json", {"before": {"rows": {"new": 8}}})


def grow_unseen(world: World) -> None:
    world.rows += 1


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lose_a_row, ["selected + not selected + quarantined"]),
        (change_a_file, ["data/part-0.parquet", "rows written once"]),
        (name_another_run, ["latest.json names it"]),
        (tell_of_other_rows, ["new rows in the report"]),
        (grow_unseen, ["rows in", "selected + not selected + quarantined"]),
    ],
)
def test_what_is_off_is_told(
    world: World, spoil: Callable[[World], None], wrong: list[str]
) -> None:
    """Each of the checks can fail, and names what it looked at."""
    spoil(world)
    assert found_wrong(world) == wrong


def test_only_the_run_that_met_the_lease_may_have_failed(world: World) -> None:
    """Once, with exit code 3; it published nothing."""
    failed = {"event": "run_failed", "error": "LeaseError", "exit_code": 3}
    put(world.store, f"{CURATED}/events/second.jsonl", failed)
    checks = Checks()
    check_turned_away(world, checks, published=1)
    assert checks.wrong == []
    put(world.store, f"{CURATED}/events/third.jsonl", failed | {"exit_code": 1})
    check_turned_away(world, checks, published=2)
    assert [claim.partition(":")[0] for claim in checks.wrong] == [
        "runs that failed",
        "selections published",
    ]


def test_a_secret_is_found_wherever_it_is(world: World, tmp_path: Path) -> None:
    """In an object, in a log."""
    (tmp_path / "a.log").write_text("nothing")
    checks = Checks()
    assert check_secrets(world, checks, ["s3cret"], [tmp_path]) == (5, 1)
    assert checks.wrong == []
    (tmp_path / "a.log").write_text("key=s3cret")
    put(world.store, f"{CURATED}/events/second.jsonl", {"key": "s3cret"})
    check_secrets(world, checks, ["s3cret"], [tmp_path])
    assert "a.log" in checks.wrong[0]
    assert "second.jsonl" in checks.wrong[0]


def test_a_night_is_what_the_cronjob_runs(world: World) -> None:
    """Word by word, but for the places; nothing that a user has to fill in is left."""
    world.write_config()
    config = world.config / "curate.yaml"
    night = world.nightly()
    assert str(night) == (
        f"ray job submit --address=http://127.0.0.1:1 -- python -m jobs.curate --config {config} "
        "--wait"
    )
    assert night.environment == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "T"}
    second = world.entrypoint("raycronjob-curate.yaml")
    assert second.command == night.command[:-1]
    for path in world.config.iterdir():
        assert "BUCKET" not in path.read_text("utf-8")


def test_a_pool_grows_by_rows_that_it_does_not_have(tmp_path: Path) -> None:
    """Each night's rows are new by content, and one of them cannot be scored."""
    sample = the_sample(tmp_path)
    tables = [sample, *growth(sample, [50, 70])]
    assert [table.num_rows for table in tables] == [650, 50, 70]
    assert [table["response"].null_count for table in tables] == [1, 1, 1]
    assert len({table.schema for table in tables}) == 1
    pairs = [(row["instruction"], row["response"]) for t in tables for row in t.to_pylist()]
    assert len(set(pairs)) == len(set(pairs[:650])) + 50 + 70


def test_a_night_that_is_due_while_the_last_one_runs_starts_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The newest that was missed does, the ones before it do not: as `Forbid` has it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    told: list[Step] = []
    walk: Any = SimpleNamespace(tell=told.append)
    schedule = Schedule(60)
    strikes = []
    for night_seconds in (30, 140, 10, 10):
        schedule.wait(walk)
        strikes.append(clock.now - 1000)
        clock.now += night_seconds
    assert strikes == [0, 60, 200, 240]
    [step] = told
    assert step.outcome.startswith("due 20 s ago")
    assert step.outcome.endswith("1 more skipped")


def test_a_step_is_a_line_of_a_table() -> None:
    """What there is no number for stays empty."""
    step = Step(name="night 1", outcome="done", new=1200, seconds=61.2)
    assert str(step) == "| night 1 | 1,200 |  |  | 61 | done |"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_what_bears_the_mark_is_ended_and_nothing_else() -> None:
    """A process of the same kind without the mark lives on."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen(command, env={**os.environ, MARK: "walk-test.node"})
    other = subprocess.Popen(command, env={**os.environ, MARK: "another"})
    try:
        while not marked("walk-test"):
            assert ours.poll() is None
        end_marked("walk-test")
        assert ours.wait(10) == -9
        assert other.poll() is None
    finally:
        ours.kill()
        other.kill()
        other.wait()
