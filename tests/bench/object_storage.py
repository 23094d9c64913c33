"""s3fs against pyarrow's S3FileSystem, on a real server: python tests/bench/object_storage.py.

The four things a run does with a store. Interleaved; medians of seconds, and their ratio. Over
loopback, and with a delay before each request as a store at some distance has.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fault_proxy import fault_proxy
from tests.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 16
FILES = 64
SIDECARS = 200
COLUMNS = ["instruction", "response"]


class Arrow:
    """pyarrow's client, in C++."""

    def __init__(self, endpoint: str) -> None:
        self.fs = fs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region="us-east-1",
            scheme="http",
            endpoint_override=endpoint.partition("://")[2],
        )

    def open(self, path: str, size: int | None = None) -> Any:  # noqa: ANN401 - a file
        del size  # it asks for itself
        return self.fs.open_input_file(path)

    def get(self, path: str) -> bytes:
        with self.fs.open_input_file(path) as file:
            return bytes(file.read())

    def put(self, path: str, data: bytes) -> None:
        with self.fs.open_output_stream(path) as file:
            file.write(data)

    def upload(self, local: str, path: str) -> None:
        fs.copy_files(
            local, path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.fs
        )


class Python:
    """s3fs, on aiobotocore."""

    def __init__(self, endpoint: str) -> None:
        self.fs = s3fs.S3FileSystem(
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            endpoint_url=endpoint,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def open(self, path: str, size: int | None = None) -> Any:  # noqa: ANN401 - a file
        return self.fs.open(path, "rb", cache_type="none", size=size)

    def get(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(path, max_concurrency=1))

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    def upload(self, local: str, path: str) -> None:
        self.fs.put_file(local, path)


Client = Arrow | Python


def footers(client: Client, *, size: int) -> None:
    """Footers of many files, as planning reads them."""

    def footer(number: int) -> int:
        with (
            client.open(f"{BUCKET}/pool/{number}", size=size) as file,
            pq.ParquetFile(file) as parquet,
        ):
            return int(parquet.metadata.num_rows)

    with ThreadPoolExecutor(THREADS) as threads:
        assert sum(threads.map(footer, range(FILES))) > 0


def columns(client: Client, *, pre_buffer: bool = False) -> None:
    """Two columns of one row group of a large file, as a reading task does."""
    with (
        client.open(f"{BUCKET}/large") as file,
        pq.ParquetFile(file, buffer_size=4 * 2**20, pre_buffer=pre_buffer) as parquet,
    ):
        batches = parquet.iter_batches(1024, row_groups=[1], columns=COLUMNS, use_threads=False)
        assert sum(batch.num_rows for batch in batches) > 0


def output(client: Client, *, local: str) -> None:
    """A file of 64 MB from this machine into the store."""
    client.upload(local, f"{BUCKET}/output")


def sidecars_in(client: Client) -> None:
    """Many small files written."""
    data = os.urandom(60_000)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda i: client.put(f"{BUCKET}/side/{i}", data), range(SIDECARS)))


def sidecars_out(client: Client) -> None:
    """Many small files read."""
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = threads.map(lambda i: len(client.get(f"{BUCKET}/side/{i}")), range(SIDECARS))
        assert set(sizes) == {60_000}


def pool_table(rows: int) -> pa.Table:
    """Texts that do not compress to nothing, and a payload."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{rng.integers(1 << 30)}" for _ in range(20_000)])
    texts = [" ".join(words[rng.integers(0, len(words), 60)]) for _ in range(rows)]
    return pa.table({"instruction": [t[:120] for t in texts], "response": texts, "payload": texts})


def measure(what: Callable[[Client], None], clients: dict[str, Client], rounds: int) -> None:
    """Interleaved; the table's line."""
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(rounds + 1):
        for name, client in clients.items():
            start = time.perf_counter()
            what(client)
            if number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shown = "  ".join(f"{name} {value:7.3f}" for name, value in medians.items())
    print(
        f"  {getattr(what, '__name__', ''):14} {shown}  ratio {medians['s3fs'] / medians['pyarrow']:5.2f}"
    )


def main() -> None:
    """Start a server, fill it, measure, print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        store = server.filesystem()
        local = str(Path(folder) / "local.parquet")
        pq.write_table(pool_table(1000), local)
        size = Path(local).stat().st_size
        for number in range(FILES):
            store.put_file(local, f"{BUCKET}/pool/{number}")
        pq.write_table(pool_table(40_000), local, row_group_size=10_000)
        store.put_file(local, f"{BUCKET}/large")
        Path(local).write_bytes(os.urandom(64 * 2**20))

        def buffered(client: Client) -> None:
            columns(client, pre_buffer=True)

        def footers_(client: Client) -> None:
            footers(client, size=size)

        def output_(client: Client) -> None:
            output(client, local=local)

        with fault_proxy(server.port) as proxy:
            for delay in (0.0, 0.02):
                proxy.faults.set(delay_seconds=delay)
                endpoint = proxy.endpoint if delay else server.endpoint
                print(f"seconds, {delay * 1000:.0f} ms before each request")
                clients: dict[str, Client] = {"s3fs": Python(endpoint), "pyarrow": Arrow(endpoint)}
                for what in (footers_, columns, buffered, output_, sidecars_in, sidecars_out):
                    before = dict(proxy.counts)
                    measure(what, clients, rounds)
                    if delay:
                        made = proxy.counts.get("requests", 0) - before.get("requests", 0)
                        print(f"    {made / (rounds + 1):.0f} requests a round, both together")


if __name__ == "__main__":
    main()
