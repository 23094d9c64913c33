"""What a run tells: events as JSON lines, metrics on a node's port, progress as plain lines."""

from __future__ import annotations

import json
import logging
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from jobs import cli, curate, events, metrics, progress, score, select_rows
from jobs.events import EventsConfig, recording, tell
from jobs.metrics import COUNTERS, GAUGES, UNIT_SECONDS
from tests.jobs_harness import ROOT, manifest_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

    from tests.watched import Watched


def events_in(file: Path) -> list[dict[str, Any]]:
    """The events of a file; each line is one."""
    lines = file.read_text().splitlines()
    assert lines
    return [json.loads(line) for line in lines]


def told(job_events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one event of this name."""
    (event,) = [event for event in job_events if event["event"] == name]
    return event


# Two real runs, their events and their metrics


def test_a_run_tells_what_its_manifest_says(watched: Watched) -> None:
    """From its start to its end, in order."""
    (file,) = (watched.out / "events").glob(f"{watched.first.name}.jsonl")
    seen = events_in(file)
    counts = manifest_of(watched.first)["counts"]
    assert {(event["run"], event["job"]) for event in seen} == {(watched.first.name, "curate")}
    times = [datetime.fromisoformat(event["time"]) for event in seen]
    assert times == sorted(times)
    assert all(event["time"].endswith("Z") for event in seen)
    assert (seen[0]["event"], seen[-1]["event"]) == ("run_started", "run_finished")
    assert told(seen, "plan_made")["units"] == 9
    started = told(seen, "scoring_started")
    assert (started["units"], started["rows"]) == (9, 120)
    assert told(seen, "scoring_finished")["rows"] == 120
    assert told(seen, "rows_quarantined")["reasons"] == counts["quarantined"]
    assert told(seen, "rows_selected")["selected"] == counts["selected"]
    assert told(seen, "pointer_written")["latest"] == f"selected/{watched.first.name}"
    published = [event for event in seen if event["event"] == "run_published"]
    assert [event["kind"] for event in published] == ["scores", "selection"]
    assert published[1]["counts"] == counts
    assert "unit_scored" not in {event["event"] for event in seen}


def test_the_metrics_port_tells_what_the_run_did(watched: Watched) -> None:
    """Of the second night what is new alone, the drift from the first, and nothing missing."""
    now = watched.values(watched.second)
    seen = events_in(watched.out / f"events/{watched.second.name}.jsonl")
    started, scoring = told(seen, "scoring_started"), told(seen, "scoring_finished")
    drift = told(seen, "compared")["before"]["drift"]["new_rows"]
    quarantined = {reason: rows for (_, reason), rows in now.items() if reason}
    assert (started["units"], started["rows"]) == (3, 40)
    assert sum(quarantined.values()) == 4
    assert now == now | {
        ("scar_rows_scored_total", ""): 36,
        ("scar_units_done_total", ""): 3,
        ("scar_tokens_total", ""): scoring["tokens"],
        (f"{UNIT_SECONDS}_count", ""): 3,
        ("scar_units_left", ""): 0,
        ("scar_rows_left", ""): 0,
        ("scar_rows_selected", ""): told(seen, "rows_selected")["selected"],
    }
    assert now["scar_drift_psi", ""] == pytest.approx(drift["psi"])
    padding = now["scar_computed_tokens_total", ""] / now["scar_encoded_tokens_total", ""]
    assert padding == pytest.approx(scoring["computed_per_encoded_token"], abs=1e-4)
    for counted in ("scar_actor_work_seconds_total", "scar_rows_rescored_total"):
        assert now[counted, ""] > 0
    assert {name for name, _ in now} >= {*COUNTERS, *GAUGES}


def test_the_counters_of_a_run_that_is_over_stay_its_own(watched: Watched) -> None:
    """Another run in the same process adds nothing to them."""
    counts = manifest_of(watched.first)["counts"]
    now = watched.values(watched.first)
    assert now["scar_rows_scored_total", ""] == counts["scored"]
    reasons = {reason: rows for (_, reason), rows in now.items() if reason}
    assert reasons == counts["quarantined"]


def test_ray_shows_each_stage_by_the_name_of_its_work(watched: Watched) -> None:
    """In its dashboard and its metrics: no `apply`, no lambda, no path of a class."""
    labels = [sample.labels for sample in watched.samples if "operator" in sample.labels]
    datasets = {re.sub(r"_[0-9A-Za-z]+_\d+$", "", label["dataset"]) for label in labels}
    stages = {re.sub(r"_\d+$", "", label["operator"]) for label in labels} - {"Input"}
    assert {"score", "score_again", "scan_chunk", "write_part"} <= datasets
    assert {"read_and_tokenize", "ScoreUnits", "write_sidecars", "scan_chunk", "write_part"} <= {
        stage.removeprefix("MapBatches(").removesuffix(")") for stage in stages
    }
    for name in datasets | stages:
        assert re.fullmatch(r"(MapBatches\()?[A-Za-z_]+\)?", name)
        assert not re.search(r"\b(apply|join|lambda|dataset)\b", name)


class Recorded:
    """In place of Ray: what is set, and when it was last."""

    def __init__(self, told: list[tuple[str, float]], name: str) -> None:
        self.told, self.name = told, name

    def set(self, value: float) -> None:
        """Take note of it."""
        self.told.append((self.name, value))


def test_a_gauge_is_set_again_until_its_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets one that is not, and a unit may take longer than that."""
    sets: list[tuple[str, float]] = []
    monkeypatch.setattr(metrics, "SECONDS_BETWEEN_SETS", 0.01)
    monkeypatch.setattr(metrics, "_is_connected", lambda: True)
    monkeypatch.setattr(metrics.RayMetrics, "_metric", lambda _, name: Recorded(sets, name))
    with recording(EventsConfig(events="none"), job="j", run="r"):
        tell("scoring_started", units=7, rows=70)
        deadline = time.monotonic() + 60
        while len(sets) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert set(sets) == {("scar_units_left", 7), ("scar_rows_left", 70)}
    after = len(sets)
    time.sleep(0.1)
    assert len(sets) == after


def test_metrics_are_named_by_prometheus_conventions() -> None:
    """Counters end in _total, units are base units, nothing else ends in _total."""
    for name in COUNTERS:
        assert re.fullmatch(r"scar_[a-z_]+_total", name), name
    for name in (*GAUGES, UNIT_SECONDS):
        assert re.fullmatch(r"scar_[a-z_]+", name), name
        assert not name.endswith("_total"), name
    names = " ".join([*COUNTERS, *GAUGES, UNIT_SECONDS])
    assert not re.search(r"_(ms|millis|minutes|kb|mb)(_| |$)", names)


# Events


def test_every_event_is_documented_and_every_documented_one_is_told() -> None:
    """The list in jobs/events.py is the schema."""
    documented = set(re.findall(r"^([a-z_]+)  +\S", events.__doc__ or "", re.MULTILINE))
    sources = [path.read_text("utf-8") for path in (ROOT / "jobs").glob("*.py")]
    used = {name for text in sources for name in re.findall(r'\btell\(\s*"([a-z_]+)"', text)}
    assert documented | {"unit_scored"} == used


@pytest.mark.parametrize("job", [curate.job, score.job])
def test_a_failed_run_says_so_where_it_was_asked_to(tmp_path: Path, job: Any) -> None:  # noqa: ANN401
    """The last event is run_failed, with the exit code; nothing is started."""
    arguments = ["--pool", str(tmp_path / "missing"), "--ranker", str(tiny_ranker_dir(tmp_path))]
    arguments += ["--out", str(tmp_path / "out"), "--events", str(tmp_path / "events")]
    arguments += ["--keep", "10%"] if job is curate.job else []
    assert cli.run_job(job, arguments) == 2
    (file,) = (tmp_path / "events").iterdir()
    first, last = events_in(file)
    assert first["event"] == "run_started"
    assert (last["event"], last["error"], last["exit_code"]) == ("run_failed", "InputError", 2)
    assert "matches no file that can be read" in last["message"]
    assert not (tmp_path / "out").exists()


def test_a_place_for_events_that_cannot_be_written_stops_a_run_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and which flag."""
    (tmp_path / "file").write_text("no folder")
    arguments = ["--scores", str(tmp_path), "--keep", "1", "--out", str(tmp_path / "out")]
    arguments += ["--events", str(tmp_path / "file")]
    assert cli.run_job(select_rows.job, arguments) == 2
    assert "--events" in capsys.readouterr().err


def test_events_that_cannot_be_written_later_fail_no_run_and_are_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; what waited is written as soon as it can be, in order."""
    folder = tmp_path / "events"
    with recording(EventsConfig(events=str(folder)), job="j", run="r"):
        (folder / "r.jsonl").unlink()
        folder.rmdir()
        folder.write_text("in the way")
        tell("progress", rows_done=1)
        tell("progress", rows_done=2)
        assert caplog.text.count("events cannot be written") == 1
        folder.unlink()
    names = [event.get("rows_done", event["event"]) for event in events_in(folder / "r.jsonl")]
    assert names == [1, 2, "run_finished"]


def test_events_that_are_missing_at_the_end_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not silently."""
    folder = tmp_path / "events"
    with recording(EventsConfig(events=str(folder)), job="j", run="r"):
        (folder / "r.jsonl").unlink()
        folder.rmdir()
        folder.write_text("in the way")
        tell("progress", rows_done=1)
    assert "2 events are missing" in caplog.text


def test_an_object_is_put_whole_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Object stores cannot append; a reader sees whole lines from the first on."""
    memory = fsspec.filesystem("memory")
    url, path = "memory://put-now-and-then", "/put-now-and-then/r.jsonl"
    with recording(EventsConfig(events=url), job="j", run="r"):
        assert memory.cat(path).count(b"\n") == 1  # the first event at once
        for number in range(50):
            tell("progress", rows_done=number)
        assert memory.cat(path).count(b"\n") == 1
        later = time.monotonic() + 3600
        monkeypatch.setattr(time, "monotonic", lambda: later)
        tell("progress", rows_done=50)
        assert memory.cat(path).count(b"\n") == 52
        monkeypatch.undo()
        tell("progress", rows_done=51)
    lines = [json.loads(line) for line in memory.cat(path).splitlines()]
    assert [line["rows_done"] for line in lines if "rows_done" in line] == list(range(52))
    assert lines[-1]["event"] == "run_finished"
    memory.rm("/put-now-and-then", recursive=True)


def test_infinite_numbers_are_text_that_json_readers_take(tmp_path: Path) -> None:
    """JSON has no infinity."""
    with recording(EventsConfig(events=str(tmp_path)), job="j", run="r"):
        tell("progress", threshold=float("-inf"))
    assert told(events_in(tmp_path / "r.jsonl"), "progress")["threshold"] == "-inf"


def test_nothing_is_recorded_where_nobody_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notebook that calls parts of a job sees no events, and `none` writes none."""
    tell("progress", rows_done=1)
    with recording(EventsConfig(events="none"), job="j", run="r", default=str(tmp_path)):
        tell("plan_made", units=1, units_done=0)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


# Progress


def test_progress_is_lines_that_a_log_can_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One record per line, no carriage return, never more than one in ten seconds."""
    caplog.set_level(logging.INFO, logger="scar_curate")
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    counter = progress.Progress(total_rows=1000, done_rows=200)
    for second in range(1, 31):
        clock[0] = float(second)
        counter.advance(rows=20, tokens=4000)
    counter.finish()
    lines = [record.message for record in caplog.records if record.name == "scar_curate"]
    assert len(lines) == 4
    assert not any("\r" in line or "\n" in line for line in lines)
    assert lines[0] == (
        "scored 400 of 1,000 rows (40.0%), 20.0 rows/s, 4,000 tokens/s, 0:00:30 left"
    )
    assert lines[-1] == "scored 600 rows in 0:00:30: 20.0 rows/s, 4,000 tokens/s"
