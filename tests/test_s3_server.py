"""The S3 server and the proxy that other tests rely on do what those take for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import s3fs
from aiohttp import ClientPayloadError
from botocore.exceptions import HTTPClientError

from tests.fault_proxy import Proxy, fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3_server import S3Server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with fault_proxy(s3.port) as running:
        yield running


def impatient(s3: S3Server, proxy: Proxy) -> s3fs.S3FileSystem:
    """A client that tries everything once."""
    once = type("Once", (s3fs.S3FileSystem,), {"retries": 1})
    options = s3.options(endpoint=proxy.endpoint)
    config = {"retries": {"total_max_attempts": 1}}
    return once(**options, config_kwargs=config, skip_instance_cache=True)


def test_a_wrong_secret_is_refused(s3: S3Server) -> None:
    """Authentication is on."""
    wrong = s3fs.S3FileSystem(**{**s3.options(), "secret": "wrong"}, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        wrong.pipe_file(f"{s3.new_folder()}/a", b"1")


def test_a_quiet_proxy_is_not_noticed(s3: S3Server, proxy: Proxy) -> None:
    """Signatures hold, large bodies and listings pass."""
    folder, data = s3.new_folder(), bytes(range(256)) * 2**16
    client = impatient(s3, proxy)
    client.pipe_file(f"{folder}/a", data, chunksize=5 * 2**20)
    assert client.cat_file(f"{folder}/a") == data
    assert [name.rpartition("/")[2] for name in client.find(folder)] == ["a"]
    assert proxy.counts["requests"] == len(proxy.heads) >= 5


@pytest.mark.parametrize("fault", ["slow_down", "cut_request", "lost_answer"])
def test_a_fault_is_felt_and_only_a_lost_answer_was_carried_out(
    s3: S3Server, proxy: Proxy, fault: str
) -> None:
    """What a client that does not retry sees of each fault, and what the store holds then."""
    path = f"{s3.new_folder()}/a"
    proxy.faults.set(match=b"PUT ", **{fault: 1.0})
    with pytest.raises((OSError, HTTPClientError), match=r"Slow|injected|Connection was closed"):
        impatient(s3, proxy).pipe_file(path, b"1")
    assert proxy.counts[fault] >= 1  # aiohttp tries once more by itself
    assert s3.filesystem().exists(path) == (fault == "lost_answer")


def test_an_answer_is_cut_in_its_middle(s3: S3Server, proxy: Proxy) -> None:
    """A reader must notice that bytes are missing."""
    path = f"{s3.new_folder()}/a"
    s3.filesystem().pipe_file(path, b"x" * 1000)
    proxy.faults.set(match=b"GET ", cut_response=1.0)
    with pytest.raises((HTTPClientError, ClientPayloadError), match=r"not completed|Connection"):
        impatient(s3, proxy).cat_file(path)
    proxy.faults.clear()
    assert impatient(s3, proxy).cat_file(path) == b"x" * 1000
