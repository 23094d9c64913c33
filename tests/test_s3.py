"""Whole jobs on a real S3 server: the same rows as locally, through kills, damage and faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, curate, select_rows
from scar_core import storage, stores
from tests.fault_proxy import fault_proxy
from tests.jobs_harness import ROOT, curate_run, manifest_of, rows_of, write_pool
from tests.s3_server import SECRET_KEY, S3Server
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("ray_session")

UNIT = ("--unit-rows", "32", "--keep", "10%")


@dataclass(frozen=True)
class Stored:
    """A pool, a ranker and a curation on the server; nothing in the environment leads there."""

    server: S3Server
    folder: str
    options: str
    """A file for --storage-options."""
    steps: list[dict[str, tuple[Any, str]]] = field(default_factory=list)
    """The sidecars after the first run, after two of them were damaged, after the second run."""

    def run(self, *extra: str, out: str = "out") -> str:
        """Curate; the URL of the selection."""
        places = ("--pool", f"{self.folder}/pool", "--ranker", f"{self.folder}/ranker")
        argv = (*places, "--out", f"{self.folder}/{out}", "--storage-options", self.options)
        assert cli.run_job(curate.job, (*argv, *UNIT, *extra)) == 0
        return self.newest(out)

    def newest(self, out: str = "out") -> str:
        """The selection that `latest.json` names."""
        pointer = self.read(f"{self.folder}/{out}/latest.json")
        return f"{self.folder}/{out}/{json.loads(pointer)['run']}"

    def read(self, url: str) -> bytes:
        """An object's content, by a client of its own."""
        return bytes(self.server.filesystem().cat_file(url))

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The selected rows of a run."""
        names = sorted(self.server.filesystem().find(f"{run}/data"))
        tables = [pq.read_table(pa.BufferReader(self.read(name))) for name in names]
        return [row for table in tables for row in table.to_pylist()]

    def manifest(self, run: str) -> dict[str, Any]:
        """The manifest of a run."""
        manifest: dict[str, Any] = json.loads(self.read(f"{run}/manifest.json"))
        return manifest

    def sidecars(self, out: str = "out") -> dict[str, tuple[Any, str]]:
        """Time and etag of each sidecar by name."""
        found = self.server.filesystem().find(f"{self.folder}/{out}/scores/sidecars", detail=True)
        return {
            name: (info["LastModified"], info["ETag"])
            for name, info in found.items()
            # s3fs gives the folder itself where the first file comes while it looks.
            if info["type"] == "file"
        }


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(pool, ranker) on this machine."""
    folder = tmp_path_factory.mktemp("parts")
    return write_pool(folder / "pool"), tiny_ranker_dir(folder)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, parts: tuple[Path, Path]) -> Path:
    """The selection of a local run."""
    out = str(tmp_path_factory.mktemp("local") / "out")
    return curate_run("--pool", str(parts[0]), "--ranker", str(parts[1]), "--out", out, *UNIT)


@pytest.fixture(scope="module", autouse=True)
def no_variables() -> Iterator[None]:
    """Whatever reaches the server does so by options that travel with the tasks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield
    stores.set_options(None)


@pytest.fixture(scope="module")
def stored(
    s3: S3Server, parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Stored:
    """Ranker and pool on the server; one run, then two sidecars damaged, a file more, another run.

    One sidecar is cut, one is another unit's.
    """
    folder, client = s3.new_folder(), s3.filesystem()
    client.put(f"{parts[1]}/", f"{folder}/ranker/", recursive=True)
    for number in (0, 1):
        client.put_file(str(parts[0] / f"part-{number}.parquet"), f"{folder}/pool/{number}.parquet")
    options = tmp_path_factory.mktemp("options") / "s3.yaml"
    options.write_text(json.dumps({"s3": s3.options()}))
    ready = Stored(s3, folder, str(options))
    ready.run()
    ready.steps.append(ready.sidecars())
    cut, foreign, other, *_ = sorted(ready.steps[0])
    client.pipe_file(cut, ready.read(cut)[:1000])
    client.pipe_file(foreign, ready.read(other))
    client.put_file(str(parts[0] / "part-2.parquet"), f"{folder}/pool/2.parquet")
    ready.steps.append(ready.sidecars())
    ready.run()
    ready.steps.append(ready.sidecars())
    return ready


def test_a_run_on_s3_keeps_what_a_local_one_does(stored: Stored, local: Path) -> None:
    """Pool, ranker, scores and output in a store: the same rows, the same counts."""
    run = stored.newest()
    assert stored.rows(run) == rows_of(local) != []
    manifest = stored.manifest(run)
    assert manifest["counts"] == manifest_of(local)["counts"]
    for entry in manifest["files"]:
        assert len(stored.read(f"{run}/{entry['path']}")) == entry["bytes"]


def test_a_secret_is_in_no_file_and_no_log(
    stored: Stored, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in what a run stores, nor in what it prints, nor in what Ray writes down."""
    import ray  # noqa: PLC0415

    stored.run("--keep", "20%")
    out, err = capfd.readouterr()
    assert "selected" in out
    assert SECRET_KEY not in out + err + caplog.text
    client = stored.server.filesystem()
    written = client.find(f"{stored.folder}/out")
    assert len(written) > 10
    assert not [name for name in written if SECRET_KEY.encode() in client.cat_file(name)]
    session = Path(ray._private.worker._global_node.get_session_dir_path())  # noqa: SLF001 - no public way
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert logs
    assert not [path for path in logs if SECRET_KEY.encode() in path.read_bytes()]


def test_only_what_is_new_or_damaged_is_scored(stored: Stored) -> None:
    """A cut sidecar and a foreign one are written again as they were, and those of the new file."""
    first, damaged, second = ({n: etag for n, (_, etag) in step.items()} for step in stored.steps)
    assert len({name for name in first if damaged[name] != first[name]}) == 2
    assert first.items() < second.items()
    touched = {n for n in first if stored.steps[2][n][0] != stored.steps[0][n][0]}
    assert touched <= {name for name in first if damaged[name] != first[name]}


def test_a_replaced_pool_object_is_named_until_it_is_back(
    stored: Stored, local: Path, parts: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Old scores and new rows never meet; the same content put again is the same file."""
    client, url = stored.server.filesystem(), f"{stored.folder}/pool/1.parquet"
    out = f"{stored.folder}/again"
    argv = ["--scores", f"{stored.folder}/out/scores", "--keep", "10%", "--out", out]
    with pytest.MonkeyPatch.context() as patch:  # select_rows by AWS variables, for once
        for name, value in stored.server.environment().items():
            patch.setenv(name, value)
        client.put_file(str(parts[0] / "part-2.parquet"), url)
        assert cli.run_job(select_rows.job, argv) == 2
        assert "pool/1.parquet: changed since it was scored" in capfd.readouterr().err
        assert storage.list_files(out) == []
        client.put_file(str(parts[0] / "part-1.parquet"), url)
        assert cli.run_job(select_rows.job, argv) == 0
        assert cli.run_job(select_rows.job, argv) == 2  # it is published
    assert stored.rows(out) == rows_of(local)


def test_faults_change_nothing_but_the_time(stored: Stored, local: Path) -> None:
    """Throttling, resets, cut and lost answers, all at once, from the listing to the manifest."""
    with fault_proxy(stored.server.port, seed=3) as proxy:
        Path(stored.options).with_name("proxy.yaml").write_text(
            json.dumps(stored.server.options(endpoint=proxy.endpoint))
        )
        proxy.faults.set(
            slow_down=0.05,
            cut_request=0.05,
            cut_response=0.05,
            lost_answer=0.05,
            delay_seconds=0.005,
        )
        options = str(Path(stored.options).with_name("proxy.yaml"))
        run = Stored(stored.server, stored.folder, options).run(out="faults")
        kinds = ("slow_down", "cut_request", "cut_response", "lost_answer")
        assert all(proxy.counts.get(kind) for kind in kinds), proxy.counts
    assert stored.rows(run) == rows_of(local)
    assert stored.manifest(run)["counts"] == manifest_of(local)["counts"]
    inside = f"{run.removeprefix('s3://')}/"
    names = [name.removeprefix(inside) for name in stored.server.filesystem().find(run)]
    assert sorted(names) == [
        "README.md",
        "axolotl.yaml",
        "data/part-00000.parquet",
        "dataset_info.json",
        "manifest.json",
        "picked/part-0000000000.parquet",
        "report.json",
        "spread.json",
        "train_trl.py",
    ]


def test_a_killed_run_goes_on_where_it_was(stored: Stored, local: Path) -> None:
    """A kill -9 of the driver in the middle: finished units stay, the end is the same."""
    argv = ["--pool", f"{stored.folder}/pool", "--ranker", f"{stored.folder}/ranker"]
    argv += ["--out", f"{stored.folder}/killed", "--keep", "10%", "--unit-rows", "8"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.curate", *argv, "--actors", "1"],
        cwd=ROOT,
        env={**environment, **stored.server.environment()},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while len(stored.sidecars("killed")) < 3:
        assert time.monotonic() < deadline, "the run wrote no sidecars"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # workers notice that their driver is gone
    finished = stored.sidecars("killed")
    assert not stored.server.filesystem().find(f"{stored.folder}/killed/selected")
    resumed = stored.rows(stored.run("--unit-rows", "8", out="killed"))
    # Other units are other batches, which move a score by float noise.
    kept = rows_of(local)
    scores = [[row.pop("scar_score") for row in rows] for rows in (resumed, kept)]
    assert resumed == kept
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert finished.items() < stored.sidecars("killed").items()
