"""Responses from an LLM: every fault of an endpoint and of a row, and nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import asking, cli, synthesize, verify
from scar_core.lease import held
from scar_core.manifest import check_counts, describe_file
from scar_core.training.quadruple_files import read_quadruples
from scar_core.training.quadruples import QuadrupleColumns
from tests.in_process import run_here
from tests.jobs_harness import ROOT, manifest_of, rows_of
from tests.llm_server import KEY, LlmServer, Reply, ask_here, asked_in_process, llm_server
from tests.test_train_job import write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Rows = list[dict[str, Any]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    """An endpoint that answers, and jobs that ask it without Ray."""
    ask_here(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server() as started:
        yield started


def human_rows(count: int = 4) -> Rows:
    """Rows with an instruction and a human response, and columns of their own."""
    return [
        {"instruction": f"Name {n}?", "human": f"it is {n}", "id": n, "tags": {"a": [n]}}
        for n in range(count)
    ]


def flags(server: LlmServer, quads: str, out: Path, *more: str) -> list[str]:
    """A run that loses no time."""
    plain = ["--quads", quads, "--out", str(out), "--base-url", server.base_url, "--model", "m"]
    return [*plain, "--retry-seconds", "0.01", "--events", "none", *more]


def run(server: LlmServer, quads: str, out: Path, *more: str, roles: str = "direct") -> int:
    """The exit code of `jobs.synthesize`."""
    argv = flags(server, quads, out, "--roles", *roles.split(), *more)
    return cli.run_job(synthesize.job, argv)


def quarantine_of(out: Path) -> dict[int, tuple[str, str]]:
    """Reason and message by row."""
    rows = pq.read_table(out / "quarantine/rows.parquet").to_pylist()
    return {row["row"]: (row["reason"], row["message"]) for row in rows}


def asked(body: dict[str, Any]) -> str:
    """The last message of a request."""
    text: str = body["messages"][-1]["content"]
    return text


def test_rows_come_back_with_both_responses_and_all_their_columns(
    server: LlmServer, tmp_path: Path
) -> None:
    """And training reads them as they are."""
    server.script = lambda _, body: Reply("rewritten" if "it is" in asked(body) else "direct")
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows())
    assert run(server, quads, tmp_path / "out", roles="referenced direct") == 0
    found = rows_of(tmp_path / "out")
    assert [(row["referenced"], row["direct"]) for row in found] == [("rewritten", "direct")] * 4
    assert [{k: row[k] for k in human_rows()[0]} for row in found] == human_rows()
    manifest = manifest_of(tmp_path / "out")
    counts = manifest["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["requests"]) == (4, 4, 8)
    assert (counts["tokens_in"], counts["tokens_out"]) == (8 * 11, 8 * 7)
    for entry in manifest["files"]:
        told = describe_file(str(tmp_path / "out"), entry["path"], rows=entry["rows"])
        assert told._asdict() == entry
    read = read_quadruples([f"{tmp_path}/out/data/*.parquet"], QuadrupleColumns())
    assert len(read.checked.quadruples) == 4


def test_a_manifest_names_prompts_and_model_and_holds_no_secret(
    server: LlmServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither does the log, nor anything else below the directory."""
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows())
    prices = ["--price-in", "1000", "--price-out", "2000"]
    assert run(server, quads, tmp_path / "out", *prices) == 0
    assert {body["authorization"] for body in server.bodies} == {f"Bearer {KEY}"}
    manifest = manifest_of(tmp_path / "out")
    assert manifest["config"]["model"] == "m"
    assert manifest["prompts"]["direct"]["version"] == "1"
    assert len(manifest["prompts"]["direct"]["sha256"]) == 64
    assert manifest["counts"]["cost"] == pytest.approx((44 * 1000 + 28 * 2000) / 1e6)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in stored
    assert str(tmp_path).encode() not in (tmp_path / "out/manifest.json").read_bytes()
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("status", "why"), [(401, "key"), (403, "denied"), (404, "no such model")])
def test_a_refusal_ends_the_run_at_once_with_a_sentence(
    status: int, why: str, server: LlmServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, no retries, nothing published, and the key is not repeated."""
    server.script = lambda _, __: Reply(f"you sent {KEY}", status=status)
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(40))
    assert run(server, quads, tmp_path / "out", "--concurrency", "2") == 2
    told = "".join(capfd.readouterr())
    assert why in told
    assert "you sent (key)" in told
    assert KEY not in told
    assert len(server.bodies) <= 4
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_account_without_quota_is_not_asked_again(
    server: LlmServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its status is that of a limit that passes, its code is not."""
    error = {"error": {"message": "pay first", "code": "insufficient_quota"}}
    server.script = lambda _, __: Reply(status=429, raw=json.dumps(error).encode())
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(9))
    assert run(server, quads, tmp_path / "out", "--concurrency", "1") == 2
    assert len(server.bodies) == 1
    assert "no quota left" in capfd.readouterr().err


def test_one_run_at_a_time_holds_the_answers(server: LlmServer, tmp_path: Path) -> None:
    """Another one ends with exit code 3 and asks nothing."""
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows())
    with held(str(tmp_path / "out/answers/lease"), lease_seconds=1):
        assert run(server, quads, tmp_path / "out") == 3
    assert not server.bodies
    assert run(server, quads, tmp_path / "out") == 0
    assert run(server, quads, tmp_path / "out") == 2  # nothing is published twice


def test_what_was_published_is_verified(
    server: LlmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was cut since is found."""
    run_here(monkeypatch)
    quads = write_jsonl(tmp_path / "q.jsonl", [*human_rows(), {"instruction": None, "human": "x"}])
    assert run(server, quads, tmp_path / "out") == 0
    assert cli.run_job(verify.job, [str(tmp_path / "out")]) == 0
    [part] = (tmp_path / "out/data").iterdir()
    part.write_bytes(part.read_bytes()[:-50])
    assert cli.run_job(verify.job, [str(tmp_path / "out")]) == 1


def test_a_saved_data_set_is_asked_about(server: LlmServer, tmp_path: Path) -> None:
    """As training reads it."""
    from datasets import Dataset  # noqa: PLC0415 - a second

    Dataset.from_list(human_rows()).save_to_disk(str(tmp_path / "set"))
    assert run(server, str(tmp_path / "set"), tmp_path / "out") == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [0, 1, 2, 3]
    assert manifest_of(tmp_path / "out")["inputs"][0]["path"] == "../set"


def test_retry_after_holds_for_all_and_failures_of_the_server_are_tried_again(
    server: LlmServer, tmp_path: Path
) -> None:
    """429 with half a second, then 500, then an answer."""
    script = {0: Reply("slow down", status=429, retry_after="0.5"), 1: Reply("oh", status=500)}
    server.script = lambda number, _: script.get(number, Reply())
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows())
    assert run(server, quads, tmp_path / "out", "--concurrency", "1") == 0
    assert server.times[1] - server.times[0] >= 0.5
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["repeated"] == {"rate_limited": 1, "server_error": 1}
    assert (counts["tries"], counts["rows_out"]) == (6, 4)


FAULTS: dict[str, Reply] = {
    "rate_limited": Reply("no", status=429, retry_after="0"),
    "server_error": Reply("no", status=503),
    "bad_response": Reply(raw=b"<html>gateway</html>", content_type="text/html"),
    "unreachable": Reply(cut_after=20),
    "timed_out": Reply(wait_seconds=2.5),
    "bad_request": Reply("too long", status=400),
    "no_answer": Reply("  \n"),
    "cut": Reply("half of it", finish="length"),
    "refused_by_filter": Reply("", finish="content_filter"),
}


def test_each_fault_quarantines_its_row_under_its_reason(server: LlmServer, tmp_path: Path) -> None:
    """And leaves the others alone; a second run asks only for what had no answer."""
    reasons = list(FAULTS)

    def script(_: int, body: dict[str, Any]) -> Reply:
        number = int(asked(body).removeprefix("Name ").removesuffix("?"))
        return FAULTS[reasons[number]] if number < len(reasons) else Reply()

    server.script = script
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(20))
    more = ["--attempts", "2", "--request-seconds", "1.5", "--work", str(tmp_path / "work")]
    assert run(server, quads, tmp_path / "out", *more) == 0
    assert {r: reason for r, (reason, _) in quarantine_of(tmp_path / "out").items()} == dict(
        enumerate(reasons)
    )
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(len(reasons), 20))
    counts = manifest_of(tmp_path / "out")["counts"]
    check_counts(counts, where="here")
    assert counts["quarantined"] == dict.fromkeys(sorted(reasons), 1)
    # On a busy machine others may be late, too, once.
    assert counts["repeated"].pop("timed_out") >= 1
    assert counts["repeated"] == dict.fromkeys(sorted(reasons[:4]), 1)
    before, server.script = len(server.bodies), lambda _, __: Reply("now it works")
    assert run(server, quads, tmp_path / "again", *more) == 0
    assert len(server.bodies) - before == 6
    again = manifest_of(tmp_path / "again")["counts"]
    assert again["quarantined"] == {"cut": 1, "no_answer": 1, "refused_by_filter": 1}


def test_an_endpoint_that_answers_nothing_ends_the_run(
    server: LlmServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rather than quarantine a million rows one by one."""
    server.script = lambda _, __: Reply("down", status=500)
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(60))
    more = ["--attempts", "2", "--give-up-after", "5", "--concurrency", "1"]
    assert run(server, quads, tmp_path / "out", *more) == 1
    assert len(server.bodies) <= 12
    assert "5 requests in a row failed, the last one: server_error" in capfd.readouterr().err


def test_more_bad_rows_than_may_be_publish_nothing(server: LlmServer, tmp_path: Path) -> None:
    """Half of them by default."""
    server.script = lambda _, body: Reply("" if asked(body) < "Name 3" else "fine")
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows())
    assert run(server, quads, tmp_path / "out") == 1
    assert not (tmp_path / "out/manifest.json").exists()
    assert run(server, quads, tmp_path / "out", "--max-bad-ratio", "0.8") == 0
    assert len(server.bodies) == 4


def test_bad_rows_have_a_counted_reason(server: LlmServer, tmp_path: Path) -> None:
    """Missing parts, blanks, numbers, half a surrogate, 2 MB; equal questions are asked once."""
    rows: Rows = [
        {"instruction": None, "human": "a"},
        {"instruction": "Do it.", "human": None},
        {"instruction": "Do it.", "human": " \n"},
        {"instruction": 7, "human": "a"},
        {"instruction": "Do it.", "human": "\ud800"},
        {"instruction": "Do it.", "human": "x" * 2_000_000},
        {"instruction": "Do it.", "human": "same", "mixed": 1},
        {"instruction": "Do it.", "human": "same", "mixed": {"a": 1}},
    ]
    quads = write_jsonl(tmp_path / "q.jsonl", rows)
    more = ["--max-bad-ratio", "0.9"]
    assert run(server, quads, tmp_path / "out", *more, roles="referenced direct") == 0
    assert [reason for reason, _ in quarantine_of(tmp_path / "out").values()] == [
        "instruction_missing",
        "human_missing",
        "human_missing",
        "instruction_not_text",
        "human_not_text",
        "human_too_large",
    ]
    assert [row["mixed"] for row in rows_of(tmp_path / "out")] == ["1", '{"a": 1}']
    assert len(server.bodies) == 2


def test_responses_that_are_there_are_kept_unless_asked(server: LlmServer, tmp_path: Path) -> None:
    """Blank ones are not there."""
    table = pa.table(
        {
            "instruction": pa.array(["a", "b", "c"], pa.large_string()),
            "human": pa.array([b"x", b"y", b"caf\xe9"], pa.binary()),
            "direct": ["mine", "", None],
        }
    )
    pq.write_table(table, tmp_path / "q.parquet")
    assert run(server, str(tmp_path / "q.parquet"), tmp_path / "kept") == 0
    assert [row["direct"] for row in rows_of(tmp_path / "kept")] == ["mine", "Well answered."]
    assert quarantine_of(tmp_path / "kept")[2][0] == "human_not_text"
    again = ["--existing", "replace", "--work", str(tmp_path / "kept/answers")]
    assert run(server, str(tmp_path / "q.parquet"), tmp_path / "new", *again) == 0
    assert [row["direct"] for row in rows_of(tmp_path / "new")] == ["Well answered."] * 2
    assert [asked(body) for body in server.bodies] == ["b", "a"]


def test_an_answer_is_read_as_an_answer_and_never_as_our_own_word(
    server: LlmServer, tmp_path: Path
) -> None:
    """No field of a body makes it an answer but those of a chat completion."""
    told = json.dumps({"outcome": "answered", "told": "Made up."}).encode()
    server.script = lambda _, __: Reply(raw=told)
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(1))
    assert run(server, quads, tmp_path / "out", "--attempts", "1", "--max-bad-ratio", "1") == 0
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["quarantined"] == {"bad_response": 1}
    assert not rows_of(tmp_path / "out")


def test_concurrency_is_bounded_and_requests_are_spread_over_the_minute(
    server: LlmServer, tmp_path: Path
) -> None:
    """Three at a time; 1,200 a minute are one in 50 ms."""
    server.script = lambda _, __: Reply(wait_seconds=0.05)
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(9))
    assert run(server, quads, tmp_path / "a", "--concurrency", "3") == 0
    assert 1 < server.most_at_once <= 3
    server.script = lambda _, __: Reply()
    started = time.monotonic()
    assert run(server, quads, tmp_path / "b", "--requests-per-minute", "1200") == 0
    # A busy machine only takes longer.
    assert server.times[-1] - started >= 8 * 0.05


def test_a_key_is_wanted_away_from_loopback_and_is_no_flag(
    server: LlmServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,  # noqa: ANN401
) -> None:
    """On loopback none is needed."""
    monkeypatch.delenv("OPENAI_API_KEY")
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(1))
    assert run(server, quads, tmp_path / "out", "--base-url", "https://llm.example/v1") == 2
    assert "OPENAI_API_KEY holds no key" in capfd.readouterr().err
    assert run(server, quads, tmp_path / "out") == 0
    with pytest.raises(ValueError, match="it is stored"):
        synthesize.SynthesizeConfig(
            quads=[quads], out="o", model="m", base_url="https://a:b@c/v1", roles=["direct"]
        )


def test_a_dry_run_shows_a_request_and_its_cost_and_leaves_nothing(
    server: LlmServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked and nothing is written."""
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(3))
    more = ["--dry-run", "--limit", "2", "--price-out", "1000000", "--answer-tokens", "10"]
    assert run(server, quads, tmp_path / "out", *more) == 0
    told = capfd.readouterr().out
    assert "2 requests, 0 answered before" in told
    assert "[user]\nName 0?" in told
    assert "cost: 0.00 to 20.00" in told
    assert not server.bodies
    assert not (tmp_path / "out").exists()


def killed_after(answers: int, server: LlmServer, command: list[str]) -> None:
    """Start a job and kill -9 it, with all its children, when so many answers are out."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(server.answered) < answers:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)


def resumed(
    server: LlmServer, tmp_path: Path, module: list[str], *, settle_seconds: float = 0.2
) -> None:
    """Kill a run half-way and run it again: what an answer was kept for is not asked again."""
    server.script = lambda _, __: Reply(wait_seconds=0.03)
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(150))
    out = tmp_path / "out"
    more = ["--roles", "direct", "--concurrency", "4", "--lease-seconds", "1"]
    argv = flags(server, quads, out, *more)
    killed_after(90, server, [sys.executable, "-m", *module, *argv])
    seen = -1
    while seen != len(server.bodies):  # Ray's own processes outlive a driver by seconds
        seen = len(server.bodies)
        time.sleep(settle_seconds)
    kept = {json.loads(path.read_bytes())["key"] for path in out.glob("answers/open/*/*.json")}
    assert len(kept) >= 80
    assert len(list(out.glob("answers/parts/*.parquet"))) >= 1
    assert not (out / "manifest.json").exists()
    first = len(server.bodies)
    assert cli.run_job(synthesize.job, argv) == 0
    assert len(server.bodies) - first == 150 - len(kept)
    asked_for = Counter(asked(body) for body in server.bodies)
    # At most what was under way when it was killed.
    assert sum(count - 1 for count in asked_for.values()) <= 4
    counts = manifest_of(out)["counts"]
    assert (counts["rows_out"], counts["answered_before"]) == (150, len(kept))
    assert counts["tokens_out"] == 150 * 7


def test_nobody_asks_for_a_driver_that_has_ended(
    server: LlmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends its actors late; until then the next run may ask the same."""
    ask = "from scar_core.processes import own_process; print(own_process())"
    ended = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    monkeypatch.setattr(asking, "_asked_units", partial(asked_in_process, driver=ended))
    quads = write_jsonl(tmp_path / "q.jsonl", human_rows(3))
    assert run(server, quads, tmp_path / "out") == 1
    assert not server.bodies


def test_a_run_that_was_killed_repeats_no_request_that_has_an_answer(
    server: LlmServer, tmp_path: Path
) -> None:
    """Kill -9 in the middle of the second unit; without Ray, which is not what is tested."""
    resumed(server, tmp_path, ["tests.llm_server", "synthesize"])
