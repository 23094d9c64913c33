"""The doctor finds what is wrong, says what to do, hangs on nothing and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from jobs import cli, doctor
from jobs.actors import ActorConfig, actor_bounds
from jobs.checks import looks, places
from jobs.checks.alike import SIGNED_REQUEST_SECONDS, clocks_finding, versions_finding
from jobs.checks.facts import Disk, Facts, Software
from jobs.checks.findings import Held, Limited
from jobs.checks.looks import Look
from jobs.checks.nodes import IN_TIME, Cluster, Node, NodeProbe, asked
from jobs.checks.room import Growth, disk_finding, object_store_finding, resources_finding
from jobs.doctor import DoctorConfig
from scar_core import storage, stores
from scar_core.errors import InputError
from scar_core.store_checks import take_away
from tests.fault_proxy import fault_proxy
from tests.jobs_harness import ROOT, write_pool
from tests.ray_cluster import head_with_autoscaler, three_nodes
from tests.s3_server import (
    BUCKET,
    OPEN_BUCKET,
    READER_KEY,
    READER_SECRET,
    SECRET_KEY,
    S3Server,
)
from tests.tiny import cut_weights, tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Checks = dict[str, dict[str, str]]

PATIENT = ("--check-seconds", "120")
"""Where an answer is expected: a machine that is busy is not wrong."""
MIB = 2**20
GIB = 2**30


@pytest.fixture(autouse=True)
def no_options() -> Iterator[None]:
    """Options that a test sets end with it."""
    yield
    stores.set_options(None)


def doctor_run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Checks:
    """What `jobs.doctor --json` prints in this process, by check, and its exit code."""
    capsys.readouterr()
    found = cli.run_job(doctor.job, [*argv, "--json"])
    printed = capsys.readouterr()
    assert found == code, printed.out + printed.err
    return checks_of(printed.out)


def checks_of(printed: str) -> Checks:
    """The findings by check; nothing else is printed, and no check twice."""
    result = json.loads(printed)
    checks = {finding.pop("check"): finding for finding in result["checks"]}
    assert len(checks) == len(result["checks"])
    return checks


def statuses(checks: Checks) -> dict[str, str]:
    """By check how it went."""
    return {name: finding["status"] for name, finding in checks.items()}


def as_process(
    *argv: str, environment: Mapping[str, str], seconds: float = 400.0
) -> subprocess.CompletedProcess[str]:
    """`python -m jobs.doctor` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.doctor", *argv],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


# Whole runs


@pytest.mark.usefixtures("ray_session")
def test_all_is_well_where_a_run_would_be(
    tmp_path: Path, s3: S3Server, s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every check has a finding, none fails, nothing is left in the store and no secret told."""
    client = s3.filesystem()
    client.put(f"{write_pool(tmp_path / 'pool')}/", f"{s3_folder}/pool/", recursive=True)
    client.put(f"{tiny_ranker_dir(tmp_path)}/", f"{s3_folder}/ranker/", recursive=True)
    flags = ["--pool", f"{s3_folder}/pool/*.parquet", "--ranker", f"{s3_folder}/ranker"]
    flags += ["--out", f"{s3_folder}/out", "--keep", "10%", "--actors", "2", *PATIENT]
    before = client.find(BUCKET)
    checks = doctor_run(capsys, *flags)
    bad = {name: finding for name, finding in checks.items() if finding["status"] != "ok"}
    assert bad.keys() <= {"disk", "object store"}, bad  # those are this machine's
    assert [*checks] == [
        *("ray", "versions", "resources", "object store", "disk", "pool", "ranker", "out"),
        *("clocks", "pool from nodes", "ranker from nodes", "out from nodes", "ranker scores"),
    ]
    assert "3 files" in checks["pool"]["found"]
    assert client.find(BUCKET) == before
    assert SECRET_KEY not in json.dumps(checks)


@pytest.mark.usefixtures("ray_session")
def test_all_that_is_wrong_is_found_in_one_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut ranker, more GPUs than there are, a pool without the column, no place for results."""
    pool, ranker = write_pool(tmp_path / "pool"), tiny_ranker_dir(tmp_path)
    cut_weights(ranker)
    flags = ["--pool", str(pool), "--instruction-column", "question", "--ranker", str(ranker)]
    flags += ["--actors", "4", "--gpus-per-actor", "1", "--out", str(ranker / "config.json/out")]
    checks = doctor_run(capsys, *flags, *PATIENT, code=2)
    told = statuses(checks)
    assert {name for name, status in told.items() if status == "failed"} == {
        *("resources", "pool", "out", "ranker scores")
    }
    assert "no autoscaler" in checks["resources"]["found"]
    assert "'question'" in checks["pool"]["found"]
    assert "nothing can be stored below" in checks["out"]["found"]
    assert "model.safetensors is damaged" in checks["ranker scores"]["found"]
    assert told["out from nodes"] == told["pool from nodes"] == "skipped"
    assert told["ranker from nodes"] == "ok"


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_hangs_is_a_line_and_not_a_wait(
    s3: S3Server, s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes the time of one check, and no node is sent after it."""
    with fault_proxy(s3.port) as proxy:
        proxy.faults.set(delay_seconds=3600.0)
        options = json.dumps({"s3": s3.options(endpoint=proxy.endpoint)})
        flags = ("--out", f"{s3_folder}/out", "--storage-options", options)
        checks = doctor_run(capsys, *flags, "--check-seconds", "4", code=2)
        assert (checks["out"]["status"], checks["out"]["found"]) == (
            *("failed", "no answer within 4 s"),
        )
        assert checks["out from nodes"]["status"] == "skipped"
        assert checks["left behind"]["found"] == f"perhaps a file in {s3_folder}/out"
        assert proxy.counts["requests"] > 0


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_cannot_be_used_as_it_must_be_is_told(
    s3: S3Server, s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong keys, a right to read alone, no such bucket; a put over what is there is a warning."""
    reader = {"key": READER_KEY, "secret": READER_SECRET}
    for out, options, status, told in (
        (f"{s3_folder}/out", {"secret": "wrong"}, "failed", "the store refuses"),
        (f"{s3_folder}/out", reader, "failed", "the store refuses"),
        ("s3://no-such-bucket/out", {}, "failed", "there is no bucket 'no-such-bucket'"),
    ):
        given = json.dumps({"s3": {**s3.options(), **options}})
        flags = ("--out", out, "--storage-options", given, *PATIENT)
        checks = doctor_run(capsys, *flags, code=2)
        assert (checks["out"]["status"], told in checks["out"]["found"]) == (status, True), checks
        assert checks["out from nodes"]["status"] == "skipped"
        assert checks["pool"]["status"] == "skipped"
    with fault_proxy(s3.port) as proxy:
        proxy.faults.set(drop_header=b"if-none-match")
        given = json.dumps({"s3": {"anon": True, "endpoint_url": proxy.endpoint}})
        out = s3_folder.replace(BUCKET, OPEN_BUCKET, 1)
        checks = doctor_run(capsys, "--out", out, "--storage-options", given, *PATIENT)
    assert checks["out"]["status"] == "warning"
    assert "Start one run at a time" in checks["out"]["next"]
    assert checks["out from nodes"]["status"] == "ok"
    assert s3.filesystem().find(OPEN_BUCKET) == []


@pytest.mark.usefixtures("ray_session")
def test_a_node_where_something_is_not_installed_says_what() -> None:
    """One line, not Ray's page: what cannot be imported there is named."""
    import ray  # noqa: PLC0415 - only tests that ask for it pay for it

    ghost = ModuleType("only_the_driver_has_it")
    ghost.Probe = type("Probe", (NodeProbe,), {"__module__": ghost.__name__})  # type: ignore[attr-defined]
    sys.modules[ghost.__name__] = ghost
    actor = ray.remote(ghost.Probe).remote()
    answers, faults = asked(
        {"n": actor}, lambda actor: actor.facts.remote(), until=time.monotonic() + 60
    )
    assert answers == {}
    assert faults["n"].endswith("ModuleNotFoundError: No module named 'only_the_driver_has_it'")
    assert "\n" not in faults["n"]
    del sys.modules[ghost.__name__]


def test_a_ray_that_does_not_answer_is_a_line_and_not_a_wait(tmp_path: Path) -> None:
    """What needs no Ray is checked all the same; exit code 2."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        flags = ("--out", str(tmp_path / "out"), "--check-seconds", "3")
        done = as_process(*flags, environment={"RAY_ADDRESS": address})
    assert done.returncode == 2, done.stderr
    lines = {line[9:29].strip(): line for line in done.stdout.splitlines()}
    assert re.match(r"failed +ray +the cluster at 127\.0\.0\.1:\d+ is not reached", lines["ray"])
    assert lines["out"].startswith("ok ")
    assert {line.split()[0] for name, line in lines.items() if name not in {"ray", "out"}} == {
        "skipped"
    }
    assert "1 of 10 checks failed: ray." in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_without_a_cluster_it_starts_a_ray_of_its_own_as_a_run_does(tmp_path: Path) -> None:
    """And asks of it what a run would: more actors than this machine has room for are refused."""
    local = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    flags = ("--out", str(tmp_path / "out"))
    command = str(Path(sys.executable).parent / "scar-curate")
    done = subprocess.run(
        [command, "doctor", *flags, *PATIENT, "--actors", "1000", "--json"],
        cwd=ROOT,
        env=local,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 2, done.stderr
    checks = checks_of(done.stdout)
    told = statuses(checks)
    assert [name for name, status in told.items() if status == "failed"] == ["resources"]
    assert "a Ray of this machine: 1 node" in checks["ray"]["found"]
    assert told["out from nodes"] == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_every_node_of_a_cluster_is_asked(tmp_path: Path) -> None:
    """Three nodes: all look at the places, and a lost one is not asked for."""
    pool, ranker = write_pool(tmp_path / "pool"), tiny_ranker_dir(tmp_path)
    flags = ("--pool", str(pool), "--ranker", str(ranker), "--out", str(tmp_path / "out"))
    with three_nodes() as cluster:
        reach = {"RAY_ADDRESS": cluster.address}
        done = as_process(*flags, *PATIENT, "--json", environment=reach)
        assert done.returncode == 0, done.stdout + done.stderr
        checks = checks_of(done.stdout)
        assert "3 nodes, 4 CPUs" in checks["ray"]["found"]
        assert "on 3 nodes" in checks["versions"]["found"]
        assert "all 2 that work read it and put a file" in checks["out from nodes"]["found"]
        assert checks["clocks"]["status"] == "ok"
        cluster.kill_node(cluster.workers[0])
        deadline = time.monotonic() + 240
        found = ""
        while "2 nodes, 2 CPUs" not in found:
            assert time.monotonic() < deadline, found
            done = as_process(*flags[-2:], *PATIENT, "--json", environment=reach)
            found = checks_of(done.stdout)["ray"]["found"]
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "the node read it and put a file" in checks_of(done.stdout)["out from nodes"]["found"]
        )


@pytest.mark.soak
def test_an_autoscaler_is_seen_and_is_not_made_to_start_a_node(tmp_path: Path) -> None:
    """Ray's own: one node with a GPU may come, and none does for the doctor."""
    group = {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0}
    folder = Path(tempfile.mkdtemp(prefix="scar-", dir="/tmp"))  # a short path, for sockets
    flags = ("--ranker", str(tiny_ranker_dir(tmp_path)), "--gpus-per-actor", "1", "--json")
    with head_with_autoscaler(folder, cpus=2, group={**group, "max_workers": 1}) as address:
        reach = {"RAY_ADDRESS": address}
        deadline, next_step = time.monotonic() + 240, ""
        while "An autoscaler is at work" not in next_step:  # it tells nothing at first
            assert time.monotonic() < deadline, next_step
            done = as_process(*flags, *PATIENT, environment=reach)
            checks = checks_of(done.stdout)
            next_step = checks["resources"]["next"]
        assert done.returncode == 0, done.stdout + done.stderr
        assert checks["resources"]["status"] == "warning"
        assert "none with 1 GPU has room now" in checks["ranker scores"]["found"]
        time.sleep(15)  # it looks every second
        done = as_process(*PATIENT, "--json", environment=reach)
        assert "1 node, 2 CPUs, 0 GPUs" in checks_of(done.stdout)["ray"]["found"]
    shutil.rmtree(folder, ignore_errors=True)


# Flags


def test_the_flags_of_a_curation_are_those_of_its_doctor() -> None:
    """A command line, or a YAML file, is checked by changing one word; what is wrong is told."""
    argv = ["--pool", "a", "b", "--ranker", "r", "--keep", "5%", "--out", "o", "--since", "latest"]
    config = cli.parse(DoctorConfig, argv, prog="jobs.doctor", description="")
    assert (config.pool, config.keep, config.since) == (["a", "b"], "5%", "latest")
    for wrong in (["--keep", "5%5"], ["--actors", "none"], ["--check-seconds", "0"]):
        with pytest.raises(InputError):
            cli.parse(DoctorConfig, wrong, prog="jobs.doctor", description="")


# Places


def test_a_folder_that_a_node_does_not_share_is_told(tmp_path: Path) -> None:
    """The driver's file is looked for, not any file: another one, or none, is another folder."""
    tried = places.try_folder(str(tmp_path / "out"))
    task = places.Visit.of("out", tried, str(tmp_path / "out"))
    assert places.visits([task], seconds=60) == {"out": (True, "")}
    assert task.sample is not None
    storage.write_bytes(task.sample.path, b"another")
    well, why = places.visits([task], seconds=60)["out"]
    assert not well
    assert "is another file than the driver's" in why
    assert tried.trial is not None
    assert take_away(tried.trial)
    well, why = places.visits([task], seconds=60)["out"]
    assert not well
    assert "that all nodes share" in why
    assert list(tmp_path.iterdir()) == []


def look_at(folder: Path, attempt: Callable[[], places.Tried]) -> Look:
    """A look, as the doctor takes it, that is given up at once."""
    return Look(name="out", work=Limited(attempt, seconds=0.0), folder=str(folder))


def test_a_role_that_may_not_delete_is_told_what_stays(tmp_path: Path) -> None:
    """The file is small, its name says whose it is."""
    trial = places.try_folder(str(tmp_path)).trial
    assert trial is not None
    gone = replace(trial, path=str(tmp_path / "elsewhere"))
    look = look_at(tmp_path, lambda: places.Tried(found="", trial=gone))
    left = looks.taken_away([look], seconds=10)
    assert left == str(tmp_path / "elsewhere")
    assert places.visits_finding("out", {"n": (True, left)}, wrote=True).status == "warning"


def test_a_file_that_is_put_when_time_is_up_is_taken_away_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that was given up goes on: it is waited for a moment, and named if it takes longer."""
    goes_on, late = threading.Event(), []

    def slow() -> places.Tried:
        goes_on.wait()
        late.append(places.try_folder(str(tmp_path)))
        return late[0]

    look = look_at(tmp_path, slow)
    with pytest.raises(TimeoutError):
        look.work.result()
    monkeypatch.setattr(looks, "LATE_SECONDS", 0.0)
    left = looks.taken_away([look], seconds=10)
    assert left == f"perhaps a file in {tmp_path}"
    monkeypatch.setattr(looks, "LATE_SECONDS", 60.0)
    goes_on.set()
    assert looks.taken_away([look], seconds=10) == ""
    assert len(late) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_when_the_doctor_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C while Ray is reached, before anybody asked what the looks found."""
    seen: list[Path] = []

    @contextmanager
    def stopped(*, seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        while not (there := [*tmp_path.glob(".scar-*")]):
            assert time.monotonic() < deadline
        seen.extend(there)
        if seen:
            raise KeyboardInterrupt
        yield

    monkeypatch.setattr(doctor, "reached", stopped)
    config = DoctorConfig(out=str(tmp_path / "out"), check_seconds=60.0)
    with pytest.raises(KeyboardInterrupt):
        list(doctor.diagnose(config))
    assert seen
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(looks, "take_away", lambda trial: not trial)
    with pytest.raises(KeyboardInterrupt):
        list(doctor.diagnose(config))
    assert f"Left behind: {tmp_path}/.scar-" in caplog.text


def test_what_a_ray_is_started_in_lives_as_long_as_it_is_held() -> None:
    """Linux ends it with the thread that started it; one that comes too late is left at once."""
    comes = threading.Event()
    seen: Queue[threading.Thread] = Queue()

    @contextmanager
    def context() -> Iterator[None]:
        comes.wait()
        seen.put(threading.current_thread())
        yield
        seen.put(threading.current_thread())

    held = Held(context())
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        held.entered(seconds=0.0)
    comes.set()
    held.entered(seconds=60.0)
    thread = seen.get(timeout=60)
    assert thread.is_alive()
    held.leave()
    assert seen.get(timeout=0) is thread
    comes.clear()
    late = Held(context())
    late.leave()
    comes.set()
    assert seen.get(timeout=60) is seen.get(timeout=60)


# What facts mean


def software(**changes: Any) -> Software:  # noqa: ANN401 - any field
    packages = {"scar-curate": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}
    return Software(
        python=changes.pop("python", "3.11.9"),
        code=changes.pop("code", "c"),
        packages={**packages, **{k.replace("_", "-"): v for k, v in changes.items()}},
    )


def cluster_of(*nodes: Mapping[str, float], **facts: Any) -> Cluster:  # noqa: ANN401 - any field
    """Nodes that all see the same."""
    roomy = Disk(folder="/tmp", total_bytes=1000 * GIB, free_bytes=500 * GIB)  # noqa: S108 - none is
    seen = {"software": software(), "spill": roomy, "temporary": roomy, "shared_memory_bytes": None}
    listed = [
        Node(id=str(index), name=f"node-{index}", resources=resources)
        for index, resources in enumerate(nodes)
    ]
    return Cluster(
        nodes=listed,
        driver=software(),
        facts={node.id: Facts(**{**seen, **facts}) for node in listed},
    )


@pytest.mark.parametrize(
    ("theirs", "status", "told"),
    [
        (software(), "ok", "scar-curate 0.1.0, ray 2.60.0, Python 3.11.9 on 2 nodes"),
        (software(ray="2.59.0"), "failed", "node-0 and 1 more: ray 2.59.0, here 2.60.0"),
        (software(scar_curate=""), "failed", "scar-curate is not installed, here 0.1.0"),
        (software(code="d"), "failed", "sources of scar-curate that differ"),
        (software(python="3.12.1"), "failed", "Python 3.12.1, here 3.11.9"),
        (software(python="3.11.2"), "warning", "Python 3.11.2, here 3.11.9"),
        (software(torch="2.12.0"), "warning", "torch 2.12.0, here 2.13.0"),
    ],
)
def test_versions_must_agree_where_a_run_needs_it(theirs: Software, status: str, told: str) -> None:
    """Ray, Python's minor version and this project; of what only moves scores it is a warning."""
    finding = versions_finding(cluster_of({"CPU": 1}, {"CPU": 1}, software=theirs))
    assert (finding.status, told in finding.found) == (status, True), finding


def test_a_node_that_does_not_answer_is_told() -> None:
    """As one that runs something else."""
    cluster = cluster_of({"CPU": 1}, {"CPU": 1})
    del cluster.facts["1"]
    cluster.silent["1"] = IN_TIME
    assert "node-1: no answer in time (--check-seconds)" in versions_finding(cluster).found


@pytest.mark.parametrize(
    ("nodes", "store", "status"),
    [
        ({"n": (-0.001, 0.002)}, (-0.4, 0.7), "ok"),
        ({"n": (-30.0, 30.0)}, (-0.4, 0.7), "ok"),  # a slow call proves nothing
        ({"n": (7.9, 8.1)}, (-0.4, 0.7), "warning"),
        ({"n": (0.0, 0.1)}, (-70.0, -69.0), "warning"),
        ({"n": (0.0, 0.1)}, (950.0, 951.0), "failed"),
        ({"n": (500.0, 500.1)}, (-450.0, -449.0), "failed"),
    ],
)
def test_clocks_are_held_against_each_other_as_far_as_they_are_known(
    nodes: dict[str, tuple[float, float]], store: tuple[float, float], status: str
) -> None:
    """S3 refuses what is signed 15 minutes off; nothing else of a run compares clocks."""
    assert SIGNED_REQUEST_SECONDS == 900
    assert clocks_finding(nodes, {"s3://bucket/out": store}).status == status
    # A file system of this machine signs nothing.
    local = clocks_finding(nodes, {"/data/out": store}).status
    assert local == ("warning" if status == "failed" else status)


NO_GROWTH = Growth(at_work=False)
GPU_GROUP = Growth(at_work=True, groups=[({"CPU": 8.0, "GPU": 4.0}, 2)])
ENDLESS = Growth(at_work=True, groups=[({"CPU": 8.0}, math.inf)])
GPU_NODE = {"CPU": 8.0, "GPU": 4.0}
TWO_GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("asked", "nodes", "growth", "status"),
    [
        ({"actors": "2"}, [{"CPU": 3.0}], NO_GROWTH, "ok"),
        ({"actors": "auto"}, [{"CPU": 3.0}], NO_GROWTH, "ok"),
        # Two are started of the nine; not on a Ray of one's own, see below.
        ({"actors": "9"}, [{"CPU": 2.0}], NO_GROWTH, "warning"),
        # Readers need half a CPU of the three.
        ({"actors": "3"}, [{"CPU": 3.0}], NO_GROWTH, "warning"),
        # Three shares of 0.6 would need a third GPU.
        ({"gpus_per_actor": 0.6, "actors": "3"}, [TWO_GPUS], NO_GROWTH, "warning"),
        ({"gpus_per_actor": 0.6, "actors": "2"}, [TWO_GPUS], NO_GROWTH, "ok"),
        # Enough CPUs in all, but no node with four.
        ({"cpus_per_actor": 4.0}, [{"CPU": 2.0}, {"CPU": 2.0}], NO_GROWTH, "failed"),
        ({"gpus_per_actor": 1.0}, [{"CPU": 3.0}], NO_GROWTH, "failed"),
        ({"gpus_per_actor": 1.0, "actors": "4"}, [GPU_NODE], NO_GROWTH, "ok"),
        ({"gpus_per_actor": 0.25, "actors": "16"}, [GPU_NODE], NO_GROWTH, "ok"),
        # GPUs alone: nobody could read for them.
        ({"gpus_per_actor": 1.0, "actors": "4"}, [{"GPU": 4.0}], NO_GROWTH, "failed"),
        ({"gpus_per_actor": 1.0}, [{"CPU": 0.5, "GPU": 4.0}], NO_GROWTH, "failed"),
        # None now, eight at most.
        ({"gpus_per_actor": 1.0, "actors": "8"}, [{"CPU": 0.0}], GPU_GROUP, "ok"),
        ({"gpus_per_actor": 1.0, "actors": "9"}, [{"CPU": 0.0}], GPU_GROUP, "warning"),
        ({"gpus_per_actor": 8.0}, [{"CPU": 0.0}], GPU_GROUP, "failed"),
        ({"actors": "99"}, [{"CPU": 1.0}], ENDLESS, "ok"),
        # An autoscaler that does not tell its limits.
        ({"gpus_per_actor": 1.0}, [{"CPU": 1.0}], Growth(at_work=True), "warning"),
    ],
)
def test_resources_are_there_or_may_come_or_it_is_told(
    asked: dict[str, Any], nodes: list[dict[str, float]], growth: Growth, status: str
) -> None:
    """What would wait for ever has failed; what would only be smaller is a warning."""
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    config = ActorConfig(**asked)
    finding = resources_finding(config, nodes, total, growth, own_ray=False)
    assert finding.status == status, finding
    assert bool(finding.next) == (status != "ok")


@pytest.mark.parametrize(
    ("asked", "node", "status"),
    [
        ({"actors": "2"}, {"CPU": 3.0}, "ok"),
        ({"actors": "3"}, {"CPU": 3.0}, "failed"),  # 2 cores
        ({"actors": "8"}, {"CPU": 9.0}, "ok"),
        ({"actors": "9"}, {"CPU": 9.0}, "failed"),  # 8 cores
        ({"cpus_per_actor": 2.0, "actors": "4"}, {"CPU": 9.0}, "ok"),
        ({"cpus_per_actor": 9.0}, {"CPU": 9.0}, "failed"),
        ({"gpus_per_actor": 0.6, "actors": "2"}, TWO_GPUS, "ok"),
        ({"gpus_per_actor": 0.6, "actors": "3"}, TWO_GPUS, "failed"),
        ({"gpus_per_actor": 1.0}, {"CPU": 0.5, "GPU": 1.0}, "failed"),
        ({"gpus_per_actor": 1.0}, {"CPU": 1.0, "GPU": 1.0}, "ok"),
    ],
)
def test_what_a_ray_of_ones_own_refuses_the_doctor_refuses(
    asked: dict[str, Any], node: dict[str, float], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never grows: the job ends with exit code 2, and so does the doctor; and only then."""
    import ray  # noqa: PLC0415 - only tests that ask for it pay for it

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node}])
    config = ActorConfig(**asked)
    finding = resources_finding(config, [node], node, NO_GROWTH, own_ray=True)
    assert finding.status == status, finding
    assert bool(finding.next) == (status != "ok")
    with nullcontext() if status == "ok" else pytest.raises(InputError):
        actor_bounds(config)


def test_an_actor_is_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: of two nodes with 8 CPUs each holds two actors of 3, though 15.5 are for five."""
    import ray  # noqa: PLC0415 - as above

    node = {"CPU": 8.0}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node}] * 2)
    assert actor_bounds(ActorConfig(cpus_per_actor=3.0)) == (4, 4)


def test_what_is_busy_is_told() -> None:
    """The job waits for it."""
    config, nodes = ActorConfig(actors="2"), [{"CPU": 3.0}]
    busy = resources_finding(config, nodes, {"CPU": 1.0}, NO_GROWTH, own_ray=False)
    assert (busy.status, "for 1 of them beside" in busy.found) == ("warning", True)


def test_an_object_store_holds_units_of_the_longest_rows() -> None:
    """By hand: 2,048 rows of 2 texts of 512 tokens of 4 bytes, and 64: 8.1 MiB; five an actor."""
    config = DoctorConfig(actors="2")
    roomy, small = 82 * MIB, 80 * MIB
    for store, status in ((roomy, "ok"), (small, "warning")):
        cluster = cluster_of({"CPU": 4.0, "object_store_memory": store})
        assert object_store_finding(config, cluster).status == status
    in_files = cluster_of({"CPU": 4.0, "object_store_memory": roomy}, shared_memory_bytes=64 * MIB)
    assert "shared memory is smaller" in object_store_finding(config, in_files).found


@pytest.mark.parametrize(
    ("free_gib", "status"), [(60.0, "ok"), (50.5, "warning"), (49.0, "failed")]
)
def test_a_disk_takes_what_the_object_store_spills(free_gib: float, status: str) -> None:
    """Ray stops at 95 %: of 1,000 GiB the last 50 count for nothing."""
    disk = Disk(folder="/ray", total_bytes=1000 * GIB, free_bytes=math.floor(free_gib * GIB))
    cluster = cluster_of({"CPU": 4.0, "object_store_memory": 2 * GIB}, spill=disk)
    finding = disk_finding(cluster)
    assert finding.status == status, finding
