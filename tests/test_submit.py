"""`ray job submit` for real: a head node on loopback, the README's command, logs and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.jobs_harness import ROOT, manifest_of, write_pool
from tests.ray_cluster import head_node
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def token_environment() -> dict[str, str]:
    """As a user's shell with token authentication, which is Ray's default, and a token."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {
        **kept,
        # As in an activated environment: a job runs the `python` that its head node finds.
        "PATH": f"{Path(RAY).parent}{os.pathsep}{kept['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-for-this-test-alone-0123456",
    }


@pytest.fixture(scope="module")
def cluster(token_environment: dict[str, str]) -> Iterator[str]:
    # A short path: the names of Ray's sockets lie below it.
    folder = Path("/tmp") / f"scar-ray-{os.getpid()}"  # noqa: S108 - as above
    flags = {"num-cpus": 3, "object-store-memory": 200_000_000, "temp-dir": folder}
    with head_node(flags, token_environment) as (_, address):
        yield address
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as a user uploads it: the packages, no environment."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("jobs", "scar_core"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def submit(
    address: str, checkout: Path, environment: dict[str, str], *command: str
) -> subprocess.CompletedProcess[str]:
    """The README's command: its logs are followed to the end."""
    for _ in range(30):
        done = subprocess.run(
            [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *command],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        # A dashboard answers some seconds before its node can take jobs.
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)
    return done


def test_the_readmes_command_runs_on_a_cluster(
    tmp_path: Path, cluster: str, checkout: Path, token_environment: dict[str, str]
) -> None:
    """The same command as on a laptop; its report is in the job's log, its result in its place."""
    pool = write_pool(tmp_path / "pool", rows=80, files=2)
    ranker = tiny_ranker_dir(tmp_path)
    out = tmp_path / "out"
    arguments = ["--pool", str(pool), "--ranker", str(ranker), "--keep", "10%", "--out", str(out)]
    command = ["python", "-m", "jobs.curate", *arguments, "--actors", "1", "--unit-rows", "32"]
    done = submit(cluster, checkout, token_environment, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score quantiles" in done.stdout
    assert "\r" not in done.stdout
    assert "scored 80 rows in" in done.stdout
    run = out / json.loads((out / "latest.json").read_bytes())["run"]
    assert manifest_of(run)["counts"]["selected"] == 7


def test_a_wrong_path_fails_the_job_with_exit_code_2(
    tmp_path: Path,
    cluster: str,
    checkout: Path,
    token_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The submitter sees FAILED, the operator the sentence, a scheduler the code."""
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - reads its environment

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # else it wins over the address given here
    arguments = ["--pool", str(tmp_path / "nowhere"), "--ranker", "r", "--keep", "1"]
    command = ["python", "-m", "jobs.curate", *arguments, "--out", str(tmp_path / "out")]
    done = submit(cluster, checkout, token_environment, *command)
    assert done.returncode != 0
    headers = {"Authorization": f"Bearer {token_environment['RAY_AUTH_TOKEN']}"}
    newest = max(
        JobSubmissionClient(cluster, headers=headers).list_jobs(),
        key=lambda job: job.start_time or 0,
    )
    assert (newest.status, newest.driver_exit_code) == ("FAILED", 2)
    assert "nowhere" in done.stdout + done.stderr


def test_without_the_token_nothing_is_submitted(
    cluster: str, checkout: Path, token_environment: dict[str, str]
) -> None:
    """What the README says of a 401."""
    bare = {k: v for k, v in token_environment.items() if k != "RAY_AUTH_TOKEN"}
    bare["RAY_AUTH_TOKEN"] = "another-token-than-the-clusters-own-99"  # noqa: S105 - a wrong one
    done = submit(cluster, checkout, bare, "python", "-m", "jobs.curate", "--help")
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
