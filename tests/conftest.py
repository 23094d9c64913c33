"""What every test shares: no network, no Ray left behind, one small Ray for those that need one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import settings

# Before any import of ray, transformers or torch in a test module.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_TRAIN_V2_ENABLED="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

# No test is timed: a machine that is busy is not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.s3_server import S3Server
    from tests.watched import Watched


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray on this machine with four logical CPUs."""
    import ray  # noqa: PLC0415 - only tests that ask for it pay for it

    from jobs.cli import connected  # noqa: PLC0415

    assert not ray.is_initialized()
    os.environ.pop("RAY_ADDRESS", None)
    with connected(local_cpus=4):
        # Ray Train looks for "the" Ray of the machine; name ours, another may be running.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        yield
    os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def watched(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two nights of a curation, watched through events and metrics."""
    from tests.watched import watch_two_nights  # noqa: PLC0415 - as above

    del ray_session
    return watch_two_nights(tmp_path_factory.mktemp("watched"))


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new folder on this machine, one in fsspec's memory, and one on a real S3 server."""
    import fsspec  # noqa: PLC0415

    if request.param == "s3":
        yield request.getfixturevalue("s3_folder")
        return
    if request.param == "local":
        yield str(tmp_path / "folder")
        return
    url = f"memory://{uuid4().hex}"
    yield url
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback with authentication, for all tests of a session.

    Nothing points to it but what a test sets: `s3.environment()`, or `s3.options()`.
    """
    from tests.s3_server import s3_server  # noqa: PLC0415 - only tests that ask for it pay for it

    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_folder(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL below which nothing is stored, and the AWS variables by which it is reached."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3.new_folder()
