"""Night after night: what is new is scored, the report says what changed, latest.json is right."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from jobs import cli, curate
from jobs.before import open_before
from scar_core import storage
from scar_core.errors import AccessError, IncompleteError
from scar_core.manifest import (
    check_counts,
    follow_pointer,
    new_run_id,
    next_run_id,
    write_pointer,
)
from tests.jobs_harness import curate_run, manifest_of, rows_of, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "20260101T000000Z-aaaaaa", "20260102T000000Z-000000"


# The pointer


def publish_run(out: str, run: str) -> None:
    """A finished selection, as far as the pointer looks."""
    storage.write_bytes(storage.join(out, "selected", run, "manifest.json"), b"{}")


def test_an_older_run_that_finishes_later_leaves_the_pointer_alone(folder: str) -> None:
    """By when they were started, not by when they finished."""
    publish_run(folder, NEW)
    assert write_pointer(folder, f"selected/{NEW}", kind="selection") == f"selected/{NEW}"
    publish_run(folder, OLD)
    assert write_pointer(folder, f"selected/{OLD}", kind="selection") == f"selected/{NEW}"
    assert follow_pointer(folder) == storage.join(folder, "selected", NEW)


def test_two_runs_that_finish_at_once_leave_the_newer_one(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst order: the newer run is published and named between the look and the write."""
    write = storage.write_bytes
    before: list[str] = []

    def overtaken(path: str, data: bytes) -> None:
        if path.endswith("latest.json") and not before:
            before.append(path)
            publish_run(folder, NEW)
            write_pointer(folder, f"selected/{NEW}", kind="selection")
        write(path, data)

    publish_run(folder, OLD)
    monkeypatch.setattr(storage, "write_bytes", overtaken)
    assert write_pointer(folder, f"selected/{OLD}", kind="selection") == f"selected/{NEW}"
    assert before
    assert follow_pointer(folder) == storage.join(folder, "selected", NEW)


def test_only_published_runs_are_newer(folder: str) -> None:
    """Not a run that is still writing, and not a folder that somebody named."""
    storage.write_bytes(storage.join(folder, "selected", NEW, "data/a.parquet"), b"")
    publish_run(folder, "zzz-by-hand")
    publish_run(folder, OLD)
    assert write_pointer(folder, f"selected/{OLD}", kind="selection") == f"selected/{OLD}"


def test_a_run_sorts_after_the_one_it_follows() -> None:
    """Also when the clock of the machine before was ahead."""
    ahead = "20991231T235959Z-ffffff"
    assert new_run_id(after=f"s3://b/selected/{ahead}") > ahead
    assert new_run_id(after=OLD) > NEW
    assert new_run_id(after="by-hand") > NEW


def test_the_next_run_has_the_last_name(folder: str) -> None:
    """Its own, unless a run there sorts after it, finished or not; other folders do not count."""
    assert next_run_id(folder, own=NEW) == NEW
    storage.write_bytes(storage.join(folder, OLD, "manifest.json"), b"{}")
    storage.write_bytes(storage.join(folder, "zzz-by-hand", "manifest.json"), b"{}")
    assert next_run_id(folder, own=NEW) == NEW
    ahead = "20991231T235959Z-ffffff"
    storage.write_bytes(storage.join(folder, ahead, "data/a.parquet"), b"")
    assert next_run_id(folder, own=NEW) > ahead
    assert next_run_id(folder) > ahead


def test_rows_that_are_left_out_are_counted() -> None:
    """Selected = written + known."""
    counts = {"selected": 5, "written": 3, "known": 2}
    check_counts(counts, where="here")
    with pytest.raises(IncompleteError, match="written"):
        check_counts(counts | {"known": 1}, where="here")


# Runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rankers, and a pool to take files from."""
    home = tmp_path_factory.mktemp("home")
    write_pool(home / "files", rows=240, files=6)
    for seed in (0, 1):
        tiny_ranker_dir(home, seed=seed)
    return home


def add(home: Path, pool: Path, name: str, day: str) -> None:
    """Put a file of the home into a day of the pool, its time of change kept."""
    (pool / day).mkdir(parents=True, exist_ok=True)
    shutil.copy2(home / "files" / f"{name}.parquet", pool / day / f"{name}.parquet")


def content(run: Path) -> list[tuple[bytes, bytes]]:
    return [(row["instruction"], row["response"]) for row in rows_of(run)]


def before_of(run: Path) -> dict[str, Any]:
    """What a run's report says of the run before."""
    before: dict[str, Any] = json.loads((run / "report.json").read_bytes())["before"]
    return before


def night(home: Path, tmp_path: Path, *flags: str, ranker: int = 0) -> list[str]:
    """The command that runs every night."""
    return [
        *("--pool", f"{tmp_path}/pool/dt=*/", "--ranker", str(home / f"ranker-bert-{ranker}")),
        *("--out", str(tmp_path / "out"), "--keep", "25%", "--unit-rows", "16", "--actors", "1"),
        *flags,
    ]


@pytest.mark.usefixtures("ray_session")
def test_every_night_the_report_says_what_changed_and_only_new_rows_are_handed_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file each that is new, changed, removed, moved and a copy, against plain sets."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    for name, day in (("part-0", "1"), ("part-1", "1"), ("part-2", "2"), ("part-3", "2")):
        add(home, pool, name, f"dt={day}")
    first = curate_run(*night(home, tmp_path, "--since", "latest"))
    counts = manifest_of(first)["counts"]
    assert counts["written"] == counts["selected"] == len(rows_of(first)) == 36
    assert "before" not in json.loads((first / "report.json").read_bytes())

    (pool / "dt=3").mkdir()
    (pool / "dt=2/part-3.parquet").rename(pool / "dt=3/part-3.parquet")
    (pool / "dt=1/part-0.parquet").unlink()
    changed = pq.read_table(pool / "dt=1/part-1.parquet").slice(0, 30)
    pq.write_table(changed, pool / "dt=1/part-1.parquet")
    add(home, pool, "part-4", "dt=3")
    shutil.copy2(pool / "dt=2/part-2.parquet", pool / "dt=3/copy.parquet")
    capsys.readouterr()
    second = curate_run(*night(home, tmp_path))
    told = before_of(second)
    assert told["run"] == first.name
    assert told["files"] == {"new": 2, "changed": 1, "removed": 1, "same": 2, "moved": 1}
    assert told["rows"] == {"new": 80, "changed": 30, "gone": 80}
    selection = told["selection"]
    assert selection["stayed"] + sum(selection["left"].values()) == 36
    selected = manifest_of(second)["counts"]["selected"]
    assert (
        selection["stayed"] + sum(selection["entered"].values()) == selected == len(content(second))
    )
    assert selection["left"]["removed_file"] == sum(row["id"] < 1000 for row in rows_of(first))
    ids = [row["id"] for row in rows_of(second)]
    copies = len(ids) - len(set(ids))
    assert selection["entered"]["new_file"] == copies + sum(n >= 4000 for n in ids) > copies > 0

    # The same night again, with only what is new.
    edit = json.loads((out / "latest.json").read_bytes()) | {"run": f"selected/{first.name}"}
    (out / "latest.json").write_text(json.dumps(edit))
    third = curate_run(*night(home, tmp_path, "--since", "latest"))
    known = set(content(first))
    assert content(third) == [pair for pair in content(second) if pair not in known] != []
    counts = manifest_of(third)["counts"]
    assert counts["written"] + counts["known"] == counts["selected"] == selected
    assert counts["written"] == len(content(third))
    assert manifest_of(third)["inputs"][1]["manifest"] == f"../{first.name}/manifest.json"
    assert manifest_of(third)["config"]["since"] == "latest"
    printed = capsys.readouterr().out
    assert "--since latest" in printed
    assert "entered the selection" in printed
    assert max(map(len, printed.splitlines())) <= 100

    # Nothing new: nothing handed out, and a directory all the same.
    fourth = curate_run(*night(home, tmp_path, "--since", "latest"))
    assert rows_of(fourth) == []
    assert before_of(fourth)["selection"] == {"stayed": selected, "entered": {}, "left": {}}

    fifth = curate_run(
        *night(home, tmp_path, "--since", "latest", "--per", "source", "--dedup", "exact")
    )
    check_another_policy(fourth, fifth)


def check_another_policy(before: Path, now: Path) -> None:
    """What it selects alone is told to have entered, and handed out where its content is new."""
    listed = [pq.read_table(run / "picked").to_pylist() for run in (before, now)]
    known = {row["content_hash"] for row in listed[0]}
    new = [row["score"] for row in listed[1] if row["content_hash"] not in known]
    assert [row["scar_score"] for row in rows_of(now)] == new != []
    places = [{(row["path"], row["row"]) for row in rows} for rows in listed]
    told = before_of(now)["selection"]
    assert told["stayed"] == len(places[0] & places[1])
    assert told["entered"] == {"threshold_moved": len(places[1] - places[0])}
    assert told["left"] == {"threshold_moved": len(places[0] - places[1])}


@pytest.mark.usefixtures("ray_session")
def test_a_run_before_that_cannot_be_compared_is_said_to_be(home: Path, tmp_path: Path) -> None:
    """Another ranker, a list of rows or a run that is gone: no crash, and never a guess."""
    add(home, tmp_path / "pool", "part-5", "dt=1")
    out = tmp_path / "out"
    first = curate_run(*night(home, tmp_path))
    scores_of_first = first / manifest_of(first)["inputs"][0]["manifest"]
    shutil.rmtree(out / "scores/sidecars" / json.loads(scores_of_first.read_bytes())["key_id"])
    second = curate_run(*night(home, tmp_path, "--since", "latest", ranker=1))
    assert "another ranker" in before_of(second)["not_comparable"]
    # What is new by content can be told all the same, also without a score of that run.
    known = set(content(first))
    whole = curate_run(*night(home, tmp_path, ranker=1))
    assert content(second) == [pair for pair in content(whole) if pair not in known]

    shutil.rmtree(first / "picked")
    edit = json.loads((out / "latest.json").read_bytes()) | {"run": f"selected/{first.name}"}
    (out / "latest.json").write_text(json.dumps(edit))
    assert cli.run_job(curate.job, night(home, tmp_path, "--since", "latest", ranker=1)) == 2

    shutil.rmtree(first)
    # A run of a machine whose clock is ahead; the next one is the newest all the same.
    ahead = out / "selected/20991231T235959Z-ffffff/data"
    ahead.mkdir(parents=True)
    after = curate_run(*night(home, tmp_path, ranker=1))
    assert after.name > ahead.parent.name
    assert "nothing was published there" in before_of(after)["not_comparable"]
    assert str(tmp_path) not in (after / "report.json").read_text()


def test_a_store_that_refuses_is_no_run_that_is_gone(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that says "cannot be compared" would blame the run, and nobody look at the role."""
    publish_run(folder, OLD)
    write_pointer(folder, f"selected/{OLD}", kind="selection")
    read = storage.read_bytes

    def refusing(path: str) -> bytes:
        if path.endswith("manifest.json"):
            raise AccessError(f"{path}: the store refuses.")
        return read(path)

    monkeypatch.setattr(storage, "read_bytes", refusing)
    with pytest.raises(AccessError, match="the store refuses"):
        open_before(folder)


def test_what_is_new_since_a_run_that_is_gone_is_not_guessed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 before anything starts, and what to do."""
    add(home, tmp_path / "pool", "part-5", "dt=1")
    storage.write_bytes(f"{tmp_path}/out/latest.json", b'{"run": "selected/gone"}')
    assert cli.run_job(curate.job, night(home, tmp_path, "--since", "latest")) == 2
    assert "Run once without --since latest" in capsys.readouterr().err
    assert not (tmp_path / "out/scores").exists()
