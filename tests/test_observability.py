"""What a run tells: events as JSON lines, metrics on a node's port, progress as plain lines."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import cli, curate, events, progress, score, select_rows
from jobs.events import EventsConfig, recording, tell
from jobs.metrics import COUNTERS, GAUGES, UNIT_SECONDS
from tests.jobs_harness import ROOT, curate_run, manifest_of, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path


NOT_IN_THIS_RUN = {"scar_rows_rescored_total"}
"""Its scores are fp32."""


def events_in(file: Path) -> list[dict[str, Any]]:
    """The events of a file; each line is one."""
    lines = file.read_text().splitlines()
    assert lines
    return [json.loads(line) for line in lines]


def told(job_events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one event of this name."""
    (event,) = [event for event in job_events if event["event"] == name]
    return event


# A real run, its events and its metrics


def scrape(run: str) -> dict[tuple[str, str], float]:
    """What this node offers to Prometheus of a run of ours: by name and reason."""
    import ray  # noqa: PLC0415

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix("ray_"), sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("run") == run
    }


@pytest.mark.usefixtures("ray_session")
def test_a_run_is_seen_in_events_and_on_the_metrics_port(tmp_path: Path) -> None:
    """What both tell is what the manifest says."""
    pool = write_pool(tmp_path / "pool", rows=120, files=3)
    arguments = ["--pool", str(pool), "--ranker", str(tiny_ranker_dir(tmp_path))]
    arguments += ["--out", str(tmp_path / "out"), "--keep", "10%", "--unit-rows", "16"]
    run = curate_run(*arguments, "--actors", "1")
    (file,) = (tmp_path / "out/events").iterdir()
    assert file.name == f"{run.name}.jsonl"
    seen = events_in(file)
    counts = manifest_of(run)["counts"]
    assert {(event["run"], event["job"]) for event in seen} == {(run.name, "curate")}
    times = [datetime.fromisoformat(event["time"]) for event in seen]
    assert times == sorted(times)
    assert all(event["time"].endswith("Z") for event in seen)
    assert (seen[0]["event"], seen[-1]["event"]) == ("run_started", "run_finished")
    assert told(seen, "plan_made")["units"] == 9
    assert told(seen, "scoring_finished")["rows"] == 120
    assert told(seen, "rows_quarantined")["reasons"] == counts["quarantined"]
    assert told(seen, "rows_selected")["selected"] == counts["selected"]
    assert told(seen, "pointer_written")["latest"] == f"selected/{run.name}"
    published = [event for event in seen if event["event"] == "run_published"]
    assert [event["kind"] for event in published] == ["scores", "selection"]
    assert published[1]["counts"] == counts
    assert "unit_scored" not in {event["event"] for event in seen}

    wanted = {
        ("scar_rows_scored_total", ""): counts["scored"],
        ("scar_units_done_total", ""): 9,
        ("scar_tokens_total", ""): published[0]["counts"]["tokens"],
        (f"{UNIT_SECONDS}_count", ""): 9,
        **{
            ("scar_rows_quarantined_total", reason): rows
            for reason, rows in counts["quarantined"].items()
        },
    }
    deadline = time.monotonic() + 60
    while True:  # seen some ten seconds late
        now = scrape(run.name)
        found = {key: now.get(key) for key in wanted}
        if found == wanted or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert found == wanted
    assert now["scar_units_left", ""] == 0
    assert now["scar_rows_selected", ""] == counts["selected"]
    assert now["scar_actor_work_seconds_total", ""] > 0
    assert {name for name, _ in now} >= {*COUNTERS, "scar_units_left"} - NOT_IN_THIS_RUN


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
    assert "matches no Parquet file" in last["message"]
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
