"""A published directory that was changed afterwards is found out, whatever was changed."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, verify
from tests.jobs_harness import curate_run, manifest_of, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def home(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, a ranker, and a curation that keeps rows per group and leaves out copies."""
    del ray_session
    home = tmp_path_factory.mktemp("home")
    write_pool(home / "pool")
    tiny_ranker_dir(home).rename(home / "ranker")
    flags = ["--pool", str(home / "pool"), "--ranker", str(home / "ranker"), "--keep", "20%"]
    flags += ["--per", "source", "--dedup", "exact", "--out", str(home / "out")]
    curate_run(*flags)
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled; manifests hold no absolute path, so it can be anywhere."""
    return shutil.copytree(home, tmp_path / "copy")


def selection_of(home: Path) -> Path:
    """Its one selection."""
    (folder,) = (home / "out/selected").iterdir()
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def faults_of(home: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the job says is wrong; it ends with exit code 1 if that is anything."""
    capsys.readouterr()
    code = cli.run_job(verify.job, [str(home / "out")])
    faults = [
        line.removeprefix("FAULT  ").replace(f"{home}/", "")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("FAULT")
    ]
    assert code == (1 if faults else 0)
    return faults


def test_what_was_published_is_sound(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a ranker and scores by themselves; nothing is left behind."""
    before = sorted(home.rglob("*"))
    for folder in ("out", "out/scores"):
        assert cli.run_job(verify.job, [str(home / folder)]) == 0
    printed = capsys.readouterr().out
    rows = manifest_of(selection_of(home))["counts"]["selected"]
    assert f"{rows:,} rows, threshold" in printed
    assert printed.count("3 files, as they were when scored") == 2
    assert sorted(home.rglob("*")) == before


def test_files_that_are_not_as_published_are_named(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte that was flipped, a file that is gone, one that nobody wrote, a cut sidecar."""
    selection = selection_of(copy)
    data = bytearray((selection / "data/part-00000.parquet").read_bytes())
    data[50] ^= 1
    (selection / "data/part-00000.parquet").write_bytes(data)
    (selection / "report.json").unlink()
    shutil.copy(copy / "pool/part-0.parquet", selection / "data/part-x.parquet")
    sidecar = next((copy / "out/scores/sidecars").rglob("*.parquet"))
    sidecar.write_bytes(sidecar.read_bytes()[:-9])
    quarantine = next((copy / "out/scores/runs").rglob("rows-*.parquet"))
    quarantine.unlink()

    faults = faults_of(copy, capsys)
    wanted = {
        f"{(selection / 'data/part-00000.parquet').relative_to(copy)}: has sha256",
        f"{(selection / 'report.json').relative_to(copy)}: is missing",
        f"{(selection / 'data/part-x.parquet').relative_to(copy)}: is in no manifest",
        f"{sidecar.relative_to(copy)}: holds",
        f"{quarantine.relative_to(copy)}: is missing",
    }
    assert len(faults) == len(wanted)
    assert all(any(fault.startswith(start) for fault in faults) for start in wanted)


def test_a_manifest_that_was_edited_is_found_out(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By counts that do not close, and by sidecars that lead to something else."""
    selection = selection_of(copy)

    def other(manifest: dict[str, Any]) -> None:
        manifest["groups"][0]["threshold"] -= 0.5
        manifest["counts"]["not_selected"] += 1
        manifest["groups"][1]["quota"] += 1

    edit(selection / "manifest.json", other)
    faults = faults_of(copy, capsys)
    assert len(faults) == 3
    assert "rows went in" in faults[0]
    assert "by the sidecars s0 has the threshold" in faults[1]
    assert "by the sidecars s1 has" in faults[2]


def test_scores_that_were_swapped_with_care_are_found_out(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every checksum in order: other scores, and manifests that vouch for them."""
    selection = selection_of(copy)
    scores = copy / "out/scores"
    table = pq.read_table(sidecar := next((scores / "sidecars").rglob("*.parquet")))
    place = table.schema.get_field_index("score")
    negative = pa.array([None if x is None else -x for x in table["score"].to_pylist()])
    swapped = table.set_column(place, table.schema.field(place), negative.cast(pa.float32()))
    pq.write_table(swapped, sidecar)

    def vouch(manifest: dict[str, Any]) -> None:
        (entry,) = (e for e in manifest["files"] if sidecar.match(e["path"]))
        data = sidecar.read_bytes()
        entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}

    place_of_scores = selection / manifest_of(selection)["inputs"][0]["manifest"]
    edit(place_of_scores, vouch)
    assert faults_of(copy, capsys)[0].endswith("is not the one that was selected from.")

    def follow(manifest: dict[str, Any]) -> None:
        digest = sha256(place_of_scores.read_bytes()).hexdigest()
        manifest["inputs"][0]["sha256"] = digest

    edit(selection / "manifest.json", follow)
    faults = faults_of(copy, capsys)
    assert faults
    assert all("by the sidecars" in fault for fault in faults)


def test_a_pool_that_changed_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file of it."""
    (copy / "pool/part-0.parquet").unlink()
    shutil.copy(copy / "pool/part-1.parquet", copy / "pool/part-2.parquet")
    gone, changed = faults_of(copy, capsys)
    assert gone.startswith("pool/part-0.parquet: was scored and is gone")
    assert changed.startswith("pool/part-2.parquet: changed since it was scored")


def test_where_nothing_is_published_there_is_nothing_to_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    assert cli.run_job(verify.job, [str(tmp_path)]) == 2
    assert "nothing was published there" in capsys.readouterr().err
