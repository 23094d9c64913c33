"""Runs that overlap on one curation: one of them holds it, the others are turned away or wait."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import s3fs

from jobs import cli, curate
from scar_core import lease, storage
from scar_core.errors import InputError, LeaseError, LeaseLostError, ScarError
from scar_core.manifest import publish, write_pointer
from scar_core.processes import is_gone, own_process
from tests.fault_proxy import fault_proxy
from tests.jobs_harness import ROOT, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3_server import S3Server

LONG = 24.0
"""A lease that no pause of a busy machine lets run out; its holder shows life within 3 s."""
SHORT = 2.0
"""A lease that is waited for until it has run out."""


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of a curation, on this machine and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "curated")
    url: str = request.getfixturevalue("s3_folder")
    return url


@contextmanager
def holder(
    place: str,
    *,
    lease_seconds: float,
    clock_hours: float = 0,
    holds: bool = True,
    here: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Another process that asks for the lease of a place; by default it has got it.

    Unless it is to be `here`, it does not let on that it is a process of this machine.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.holder", place, str(lease_seconds), str(clock_hours)),
            "here" if here else "elsewhere",
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if holds:
            assert answer(process) == "held"
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hold(place: str, *, wait: bool = False) -> lease.Lease:
    """Take and release the lease; how it was got."""
    with lease.held(storage.join(place, "lease"), lease_seconds=LONG, wait=wait) as taken:
        lease.confirm()
    return taken


def publish_nothing(place: str) -> None:
    publish(storage.join(place, "run"), kind="ranker", config={}, inputs=[], counts={}, files=[])


def process_of(place: str) -> str:
    term = json.loads(storage.read_bytes(storage.join(place, "lease/terms/000000001.json")))
    return str(term["process"])


def terms(place: str) -> list[str]:
    return [
        file.path.rpartition("/")[2]
        for file in storage.list_files(storage.join(place, "lease/terms"))
    ]


def test_the_second_is_told_who_holds_it_and_since_when(place: str) -> None:
    """A scheduler reads the code 3, a person the sentence."""
    with holder(place, lease_seconds=LONG) as process:
        with pytest.raises(LeaseError) as turned_away:
            hold(place)
        assert f"process {process.pid} on {socket.gethostname()}" in str(turned_away.value)
        assert re.search(r"since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", str(turned_away.value))
        assert turned_away.value.exit_code == 3
        tell(process, "publish")
        assert answer(process) == "published", "the holder was disturbed"


def test_a_release_lets_the_next_start_at_once(place: str) -> None:
    """Runs that follow each other never wait; their terms stay, one after the other."""
    assert [hold(place).waited for _ in range(3)] == [False, False, False]
    # Each took it, confirmed it once and released it.
    assert terms(place) == [f"{number:09d}.json" for number in range(1, 10)]


def test_waiting_ends_when_the_holder_is_done(place: str) -> None:
    """With --wait a run starts late instead of not at all, however long the lease still is."""
    with holder(place, lease_seconds=LONG) as process:
        timer = threading.Timer(3, tell, [process, "end"])
        timer.start()
        assert hold(place, wait=True).waited
        timer.join()
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("place", "clock_hours"), [("local", 0), ("local", -30), ("s3", 30)], indirect=["place"]
)
def test_a_holder_that_was_killed_is_superseded(place: str, clock_hours: float) -> None:
    """Without --wait, too, after its lease; and whatever its clock said."""
    with holder(place, lease_seconds=SHORT, clock_hours=clock_hours) as process:
        process.send_signal(signal.SIGKILL)
        assert hold(place).waited


def test_a_holder_that_was_killed_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever kills a run and starts it again need not sit out an hour's lease."""
    place = str(tmp_path)
    with holder(place, lease_seconds=3600, here=True) as process:
        process.send_signal(signal.SIGSTOP)
        assert not is_gone(process_of(place)), "stopped is not gone"
        process.send_signal(signal.SIGKILL)
        assert hold(place).waited


def test_only_processes_of_this_machine_are_known_to_be_gone() -> None:
    """Another boot or another container has process ids of its own."""
    own = own_process()
    boot, namespace, pid, start = own.split()
    assert not is_gone(own)
    assert is_gone(f"{boot} {namespace} {pid} {int(start) + 1}"), "the id was given again"
    assert is_gone(f"{boot} {namespace} {2**22 + 1} {start}"), "no process has such an id"
    assert not is_gone(f"other {namespace} {2**22 + 1} {start}")
    assert not is_gone(f"{boot} pid:[1] {2**22 + 1} {start}")
    assert not is_gone("")


@pytest.mark.parametrize(("place", "clock_hours"), [("local", -30), ("s3", 30)], indirect=["place"])
def test_a_living_holder_with_a_wrong_clock_is_left_alone(place: str, clock_hours: float) -> None:
    """A lease that by somebody's clock ran out yesterday is held as long as its holder lives."""
    with (
        holder(place, lease_seconds=LONG, clock_hours=clock_hours),
        pytest.raises(LeaseError, match="is alive"),
    ):
        hold(place)


def test_of_many_that_follow_a_dead_holder_one_gets_it(place: str) -> None:
    """They all see it run out at about the same time."""
    with holder(place, lease_seconds=SHORT) as dead:
        dead.send_signal(signal.SIGKILL)
    with (
        holder(place, lease_seconds=LONG, holds=False) as a,
        holder(place, lease_seconds=LONG, holds=False) as b,
        holder(place, lease_seconds=LONG, holds=False) as c,
    ):
        answers = [answer(process) for process in (a, b, c)]
        assert sorted(answers) == ["", "", "held"]
        codes = [
            process.wait() for process, said in zip((a, b, c), answers, strict=True) if not said
        ]
        assert codes == [3, 3]


def test_a_holder_that_slept_through_its_lease_publishes_nothing(place: str) -> None:
    """Stopped, superseded, woken: it ends with code 1 and names its successor."""
    with holder(place, lease_seconds=SHORT) as process:
        process.send_signal(signal.SIGSTOP)
        with lease.held(storage.join(place, "lease"), lease_seconds=LONG):
            process.send_signal(signal.SIGCONT)
            _, told = process.communicate("publish\n")
            assert process.returncode == 1
            assert f"process {os.getpid()} on " in told.splitlines()[-1]
            assert "Nothing more is published" in told
            assert not storage.exists(storage.join(place, "run/manifest.json"))
            publish_nothing(place)  # which the one that holds it can


def test_a_holder_that_slept_but_was_not_superseded_goes_on(place: str) -> None:
    """Nobody else asked: its work is not lost for a pause."""
    with holder(place, lease_seconds=1) as process:
        process.send_signal(signal.SIGSTOP)
        threading.Event().wait(SHORT)
        process.send_signal(signal.SIGCONT)
        tell(process, "publish")
        assert answer(process) == "published"


def test_a_renewal_that_fails_stops_publishing(tmp_path: Path) -> None:
    """The folder of the lease cannot be written any more; the data could."""
    place = str(tmp_path / "curated")
    with lease.held(storage.join(place, "lease"), lease_seconds=LONG):
        (tmp_path / "curated/lease/terms").rename(tmp_path / "aside")
        (tmp_path / "curated/lease/terms").write_bytes(b"")
        with pytest.raises(LeaseLostError, match="could not be renewed") as lost:
            publish_nothing(place)
        assert lost.value.exit_code == 1
        with pytest.raises(LeaseLostError):
            write_pointer(place, "run", kind="selection")
        assert sorted(path.name for path in (tmp_path / "curated").iterdir()) == ["lease"]


def test_a_store_that_is_away_stops_publishing_until_it_is_back(
    s3: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection is cut; once it is not, the holder that nobody superseded goes on."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # else it takes half a minute to give up
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with fault_proxy(s3.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()  # else clients of other tests are used on
        with lease.held(storage.join(s3_folder, "lease"), lease_seconds=LONG):
            proxy.faults.set(down=True)
            with pytest.raises(LeaseLostError, match="could not be renewed"):
                publish_nothing(s3_folder)
            proxy.faults.clear()
            assert not storage.exists(storage.join(s3_folder, "run/manifest.json"))
            publish_nothing(s3_folder)
    s3fs.S3FileSystem.clear_instance_cache()


def test_answers_that_are_lost_neither_lose_nor_keep_a_lease(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put arrived, its answer did not: the confirmation fails, the release still counts."""
    put = storage.write_bytes_if_absent

    def lossy(path: str, data: bytes) -> bool:
        put(path, data)
        raise ConnectionError("the answer was lost")

    with lease.held(storage.join(folder, "lease"), lease_seconds=LONG) as taken:
        with monkeypatch.context() as patched:
            patched.setattr(storage, "write_bytes_if_absent", lossy)
            with pytest.raises(LeaseLostError):
                taken.confirm()
        taken.confirm()
    assert not hold(folder).waited


def test_a_file_that_is_no_term_is_named(folder: str) -> None:
    """Somebody wrote into the folder: no run may guess what it meant."""
    path = storage.join(folder, "lease/terms/000000001.json")
    storage.write_bytes(path, b"{}")
    with pytest.raises(InputError, match=re.escape(path)):
        hold(folder)


def test_without_a_lease_nothing_is_confirmed(folder: str) -> None:
    """Jobs that publish directories of their own need none."""
    publish_nothing(folder)
    assert not storage.is_folder(storage.join(folder, "lease"))


def test_curate_ends_with_code_3_before_it_starts_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line's view of it: no Ray, no scores, no run; the events tell of the refusal."""
    monkeypatch.setattr(cli, "connected", pytest.fail)
    out = tmp_path / "out"
    argv = ["--pool", str(write_pool(tmp_path / "pool", rows=80, files=2)), "--keep", "10%"]
    argv += ["--ranker", str(tiny_ranker_dir(tmp_path)), "--out", str(out)]
    with lease.held(str(out / "lease"), lease_seconds=8):
        assert cli.run_job(curate.job, argv) == 3
    told = capsys.readouterr().err
    assert f"held by process {os.getpid()}" in told
    assert "--wait" in told
    assert sorted(path.name for path in out.iterdir()) == ["events", "lease"]


def test_a_curation_that_breaks_releases_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next night's run must not wait for one that is known to be over."""

    def broken(*_: object) -> str:
        raise ScarError("broke")

    monkeypatch.setattr(curate, "score", broken)
    out = tmp_path / "out"
    argv = ["--pool", str(write_pool(tmp_path / "pool", rows=80, files=2)), "--keep", "10%"]
    argv += ["--ranker", str(tiny_ranker_dir(tmp_path)), "--out", str(out)]
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(cli, "connected", threading.Lock)
            assert cli.run_job(curate.job, argv) == 1
    assert not hold(str(out)).waited


@pytest.mark.parametrize("seconds", ["0", "0.5", "-1"])
def test_a_lease_too_short_to_be_renewed_is_refused(seconds: str) -> None:
    """Half a second of a busy machine is nothing."""
    argv = ["--pool", "p", "--ranker", "r", "--keep", "1", "--out", "o", "--lease-seconds", seconds]
    assert cli.run_job(curate.job, argv) == 2
