"""The door to files on a real S3 server: one winner, no parts, retries, access told early."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem

from jobs import cli, curate, score, select_rows, train
from scar_core import storage, store_checks, stores
from scar_core.errors import AccessError, StoreError
from scar_core.pool.files import open_pool
from scar_core.pool.rows import PairColumns
from tests.fault_proxy import Proxy, fault_proxy
from tests.jobs_harness import ROOT
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def proxy(s3: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the AWS variables lead to."""
    assert s3_folder
    with fault_proxy(s3.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture(autouse=True)
def no_options() -> Iterator[None]:
    """Options that a test sets end with it."""
    yield
    stores.set_options(None)


# Only where none is


def test_of_many_puts_one_wins(s3_folder: str) -> None:
    """Eight at once, ten times, on one key each; the object holds what the winner brought."""
    with ThreadPoolExecutor(8) as threads:
        for race in range(10):
            path = storage.join(s3_folder, str(race))

            def put(racer: int, path: str = path) -> bool:
                return storage.write_bytes_if_absent(path, b"%d" % racer)

            won = list(threads.map(put, range(8)))
            assert sum(won) == 1
            assert storage.read_bytes(path) == b"%d" % won.index(True)


def test_a_put_whose_answer_is_lost_is_not_lost(s3_folder: str, proxy: Proxy) -> None:
    """Neither a winner that thinks it lost, nor two winners."""
    proxy.faults.set(lost_answer=0.5, match=b"PUT ")
    for number in range(10):
        path = storage.join(s3_folder, str(number))
        assert storage.write_bytes_if_absent(path, b"first")
        assert not storage.write_bytes_if_absent(path, b"second")
        assert storage.read_bytes(path) == b"first"
    assert proxy.counts["lost_answer"] > 0


class Careless(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes a conditional put for any other."""

    protocol = "careless"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        """Overwrite, whatever is asked for."""
        del mode
        super().pipe_file(path, value)


class Refusing(Careless):
    """A store that does not know conditional puts, and says so."""

    protocol = "refusing"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        """Refuse what is not known."""
        if mode == "create":
            raise NotImplementedError
        super().pipe_file(path, value)


@pytest.mark.parametrize("store", [Careless, Refusing])
def test_a_store_without_conditional_puts_is_told_and_overwrites_nothing(
    store: type[Careless], caplog: pytest.LogCaptureFixture
) -> None:
    """What is published stays; that a race would go unnoticed is said at the start."""
    fsspec.register_implementation(store.protocol, store, clobber=True)
    folder = f"{store.protocol}://bucket/out"
    store_checks.check_writable(folder)
    assert "Start one run at a time" in caplog.text
    assert storage.list_files(folder) == []
    path = storage.join(folder, "manifest.json")
    assert storage.write_bytes_if_absent(path, b"first")
    assert not storage.write_bytes_if_absent(path, b"second")
    assert storage.read_bytes(path) == b"first"


def test_a_check_leaves_nothing_and_warns_of_nothing(
    s3: S3Server, s3_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S3 knows conditional puts; memory too."""
    store_checks.check_writable(s3_folder)
    store_checks.check_writable("memory://checked")
    assert not caplog.text
    found = s3.filesystem().find(s3_folder, detail=True)
    assert [name for name, info in found.items() if info["type"] == "file"] == []


# Whole or not at all, and again


@pytest.mark.parametrize(
    "faults",
    [
        {"slow_down": 0.3},
        {"cut_request": 0.3},
        {"cut_response": 0.3, "match": b"GET "},
        {"lost_answer": 0.3},
    ],
    ids=lambda faults: next(iter(faults)),
)
def test_faults_are_outlasted(s3_folder: str, proxy: Proxy, faults: dict[str, Any]) -> None:
    """Every file is written, listed and read as it is, however often a store stumbles."""
    proxy.faults.set(**faults)
    names = [f"{number:02d}" for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        paths = [storage.join(s3_folder, name) for name in names]
        list(threads.map(lambda path: storage.write_bytes(path, path.encode() * 500), paths))
        read = list(threads.map(storage.read_bytes, paths))
    assert read == [path.encode() * 500 for path in paths]
    assert [info.path for info in storage.list_files(s3_folder)] == paths
    with storage.open_input(paths[0]) as file:
        file.seek(100)
        assert file.read(50) == read[0][100:150]
    assert proxy.counts[next(iter(faults))] > 0


def test_a_large_file_is_put_in_parts_that_appear_together(s3_folder: str, proxy: Proxy) -> None:
    """Also when the answer to the last request, which joins the parts, is lost."""
    path, block = storage.join(s3_folder, "large"), os.urandom(2**20)
    proxy.faults.set(lost_answer=1.0, most=2, match=b"large?uploadId")
    with storage.open_output(path) as file:
        for _ in range(40):
            file.write(block)
    with storage.open_input(path) as file:
        assert all(file.read(2**20) == block for _ in range(40))
        assert file.read() == b""
    assert proxy.counts["lost_answer"] == 2


def test_an_upload_that_the_store_no_longer_knows_is_made_again() -> None:
    """Some stores answer so when the parts are joined already and the answer was lost."""

    class Forgetful(MemoryFileSystem):  # type: ignore[misc]
        protocol = "forgetful"
        calls: ClassVar[list[str]] = []

        def put_file(self, lpath: str, rpath: str, **options: object) -> None:
            self.calls.append(rpath)
            if len(self.calls) == 1:
                cause = ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")
                raise FileNotFoundError("no such upload") from cause
            super().put_file(lpath, rpath, **options)

    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    with storage.open_output("forgetful://bucket/a") as file:
        file.write(b"whole")
    assert storage.read_bytes("forgetful://bucket/a") == b"whole"
    assert len(Forgetful.calls) == 2


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(s3_folder: str) -> None:
    """Old and new bytes never meet in one table."""
    path = storage.join(s3_folder, "a")
    storage.write_bytes(path, b"old" * 100)
    with storage.open_input(path) as file:
        assert file.read(3) == b"old"
        storage.write_bytes(path, b"new" * 100)
        with pytest.raises(OSError, match="no longer exists"):
            file.read(3)


# Few requests


def test_a_large_folder_is_listed_in_pages(s3: S3Server, s3_folder: str, proxy: Proxy) -> None:
    """No file is asked for by itself, in a folder or a glob."""
    files = {f"{s3_folder}/pool/dt={n % 3}/{n:04d}.parquet": b"" for n in range(1100)}
    s3.filesystem().pipe(files)
    for pattern in (f"{s3_folder}/pool", f"{s3_folder}/pool/dt=*/*.parquet"):
        proxy.forget()
        assert len(storage.list_files(pattern)) == 1100
        assert proxy.counts["requests"] <= 7, proxy.heads
        assert not [head for head in proxy.heads if b".parquet " in head and b"%2A" not in head]


def test_a_footer_is_two_requests_and_a_small_file_one(s3_folder: str, proxy: Proxy) -> None:
    """What is listed is not asked for its size again; a footer is parsed, then hashed."""
    table = pa.table({"instruction": ["a"] * 9, "response": ["b"] * 9})
    for number in range(20):
        with storage.open_output(f"{s3_folder}/pool/{number}.parquet") as file:
            pq.write_table(table, file)
    proxy.forget()
    assert len(open_pool([f"{s3_folder}/pool"], PairColumns())) == 20
    of_files = [head for head in proxy.heads if b".parquet" in head]
    assert len(of_files) == 40
    assert not [head for head in of_files if head.startswith(b"HEAD")]
    proxy.forget()
    assert storage.read_bytes(f"{s3_folder}/pool/0.parquet")
    assert len(proxy.heads) == 1


# Access


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{free}"}, "Could not connect"),
        ({"bucket": "no-such-bucket"}, "no bucket 'no-such-bucket'"),
    ],
    ids=["secret", "key", "endpoint", "bucket"],
)
@pytest.mark.parametrize("part", ["pool", "ranker", "out"])
def test_a_store_that_cannot_be_reached_is_a_sentence_before_any_actor(  # noqa: PLR0917
    s3_folder: str,
    tmp_path: Path,
    change: dict[str, str],
    told: str,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, one line, no Ray: for input, ranker and output, whatever is wrong."""
    bucket = change.get("bucket")
    for name, value in change.items():
        monkeypatch.setenv(name, value.format(free=free_ports(1)[0]))

    def never(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cli, "connected", never)
    places = {name: str(tmp_path / name) for name in ("pool", "ranker", "out")}
    places[part] = f"s3://{bucket}/{part}" if bucket else f"{s3_folder}/{part}"
    argv = [text for name, place in places.items() for text in (f"--{name}", place)]
    assert cli.run_job(curate.job, [*argv, "--keep", "1"]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "error" in text]
    assert told in line
    assert SECRET_KEY not in line


def test_every_job_looks_before_it_starts(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not the main job alone."""
    assert s3_folder
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    out = ["--out", "s3://scar/out"]
    jobs: dict[Callable[..., None], list[str]] = {
        score.job: ["--pool", "s3://scar/pool", "--ranker", "r"],
        select_rows.job: ["--scores", "s3://scar/scores", "--keep", "1"],
        train.job: ["--quads", "s3://scar/quads.jsonl", "--encoder", "e"],
    }
    for job, argv in jobs.items():
        assert cli.run_job(job, [*argv, *out]) == 2
        assert "the store refuses" in capfd.readouterr().err


@pytest.mark.parametrize("error", [AccessError("a: refused"), StoreError("a: silent")])
def test_an_error_of_a_store_travels(error: AccessError | StoreError) -> None:
    """From a worker to the driver, as itself; callers that expect an OSError get one."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - just made
    assert (type(again), str(again)) == (type(error), str(error))
    assert isinstance(error, OSError)
    assert error.exit_code == (2 if isinstance(error, AccessError) else 1)


# Options


def test_options_lead_to_a_store_and_win_over_variables(
    s3: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every store, or by scheme."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessError):
        storage.write_bytes(f"{s3_folder}/a", b"1")
    for options in (s3.options(), {"s3": s3.options(), "gs": {"token": "anon"}}):
        stores.set_options(options)
        storage.write_bytes(f"{s3_folder}/a", b"1")
    storage.write_bytes("memory://plain/a", b"1")  # by scheme: not memory's


def test_options_travel_and_show_themselves_to_nobody(
    s3: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that carries another one's access needs no variables of its own."""
    access = pickle.loads(pickle.dumps(stores.carried()))  # noqa: S301 - just made
    for name in s3.environment():
        monkeypatch.delenv(name)
    stores.carry(access)
    storage.write_bytes(f"{s3_folder}/a", b"1")
    stores.set_options(s3.options())
    for shown in (access, stores.carried(), cli.StorageOptions(s3.options())):
        assert SECRET_KEY not in repr(shown)
        assert ACCESS_KEY not in repr(shown)


@pytest.mark.parametrize("way", ["flag", "file", "config"])
def test_options_are_a_flag_a_file_or_in_the_config(
    tmp_path: Path, s3: S3Server, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No config holds them, and `--print-config` hides them."""
    text = json.dumps({"s3": s3.options()})
    (tmp_path / "o.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(f"storage_options: {text}\n")
    flags = {
        "flag": ["--storage-options", text],
        "file": ["--storage-options", str(tmp_path / "o.yaml")],
        "config": ["--config", str(tmp_path / "run.yaml")],
    }[way]
    argv = [*flags, "--pool", "p", "--ranker", "r", "--out", "o"]
    config = cli.parse(score.ScoreConfig, argv, prog="jobs.score", description="")
    assert stores.carried().of("s3") == s3.options()
    assert SECRET_KEY not in json.dumps(cli.resolved(config))
    with pytest.raises(SystemExit):
        cli.parse(score.ScoreConfig, [*argv, "--print-config"], prog="jobs.score", description="")
    printed = capsys.readouterr().out
    assert "hidden" in printed
    assert SECRET_KEY not in printed


@pytest.mark.parametrize("text", ["[secret-1]", "{secret: secret-1", "secret-1"])
def test_options_that_are_none_are_refused_unseen(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence with exit code 2 that does not repeat them."""
    argv = ["--storage-options", text, "--pool", "p", "--ranker", "r", "--out", "o"]
    with pytest.raises(SystemExit) as caught:
        cli.parse(score.ScoreConfig, argv, prog="jobs.score", description="")
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "storage options are" in told
    assert "secret-1" not in told


def test_any_scheme_gets_its_options_and_no_other_ones() -> None:
    """Stores that fsspec knows are reached alike; nothing but S3 is given AWS's variables."""

    class Elsewhere(MemoryFileSystem):  # type: ignore[misc]
        protocol = "elsewhere"
        given: ClassVar[list[object]] = []

        def __init__(self, token: str = "", **options: object) -> None:
            self.given.append((token, options.keys() - {"use_listings_cache"}))
            super().__init__()

    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    stores.set_options({"elsewhere": {"token": "t"}, "s3": {"key": "k"}})
    storage.write_bytes("elsewhere://bucket/a", b"1")
    assert Elsewhere.given == [("t", set())]


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("gs://bucket/out", None, "gcsfs"),
        ("nowhere://bucket/out", None, "Protocol not known"),
        ("s3://scar/out", {"no_such_option": 1}, "no_such_option"),
        ("s3://scar/out", {"endpoint_url": "no-url"}, "Invalid endpoint"),
    ],
)
def test_options_and_schemes_that_make_no_sense_are_a_sentence(
    s3_folder: str, url: str, options: dict[str, Any] | None, told: str
) -> None:
    """Not a traceback."""
    assert s3_folder
    stores.set_options(options)
    with pytest.raises(AccessError, match=told):
        store_checks.check_writable(url)


def test_every_stage_carries_the_access() -> None:
    """There is one way to hand work to workers, and it takes the access along."""
    users = [
        path.name for path in (ROOT / "jobs").rglob("*.py") if ".map_batches(" in path.read_text()
    ]
    assert users == ["pipeline.py"]
