"""Where the storm blows: real pools on a real S3 server behind a proxy, three Ray nodes, jobs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.fault_proxy import Proxy, fault_proxy
from tests.ray_cluster import Job, RayCluster, three_nodes
from tests.s3_server import BUCKET, s3_server

if TYPE_CHECKING:
    from contextlib import ExitStack

    import s3fs

POOLS = ("pool_human", "pool_llm_misc", "pool_t0_50k")
PREFIX = f"{BUCKET}/storm"
PART = 40
"""Every so many-th row makes the small pool."""
UNIT_ROWS = {"part": 32, "whole": 1280}
"""About 100 units of either pool."""
SIDECAR_PUT = re.compile(rb"PUT \S*/sidecars/[0-9a-f]+/([0-9a-f]+)\.parquet")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished curation holds."""

    rows: pa.Table
    """Selected rows, in the order in which they were written."""
    counts: dict[str, Any]
    units: int


@dataclass(kw_only=True)
class Storm:
    """Where it blows."""

    cluster: RayCluster
    proxy: Proxy
    store: s3fs.S3FileSystem
    """Past the proxy."""
    folder: Path
    rng: random.Random
    references: dict[str, Result] = field(default_factory=dict)
    """By pool, what an undisturbed run gives."""
    job: Job | None = None
    """The newest."""

    def start(self, name: str, pool: str) -> Job:
        """A curation of a pool of its own output prefix, begun or gone on with."""
        self.job = Job(
            *("--pool", f"s3://{PREFIX}/{pool}", "--ranker", f"s3://{PREFIX}/ranker"),
            *("--keep", "10%", "--out", f"s3://{PREFIX}/{name}"),
            *("--unit-rows", str(UNIT_ROWS[pool]), "--max-tokens", "32", "--actors", "1:2"),
            address=self.cluster.address,
            log=self.folder / f"{name}.log",
        )
        return self.job

    def stop(self) -> None:
        """Leave no job running; one that ended well is none."""
        if self.job is not None and self.job.running:
            self.job.kill()

    def puts(self) -> Counter[bytes]:
        """How often each unit's sidecar was put since the proxy forgot."""
        found = (SIDECAR_PUT.match(head) for head in list(self.proxy.heads))
        return Counter(match[1] for match in found if match)

    def result(self, name: str) -> Result:
        """The newest selection of a finished curation."""
        root = f"{PREFIX}/{name}"
        latest = json.loads(self.store.cat_file(f"{root}/latest.json"))
        run = f"{root}/{latest['run']}"
        manifest = json.loads(self.store.cat_file(f"{run}/manifest.json"))
        files = [f"{run}/{e['path']}" for e in manifest["files"] if e["path"].endswith(".parquet")]
        rows = ds.dataset(files, filesystem=self.store, format="parquet").to_table()
        scores = json.loads(self.store.cat_file(f"{root}/scores/latest.json"))
        published = json.loads(self.store.cat_file(f"{root}/scores/{scores['manifest']}"))
        counts = {"selection": manifest["counts"], "scores": published["counts"]}
        return Result(rows=rows, counts=counts, units=len(published["files"]))

    def finished(self, name: str) -> set[bytes]:
        """Units with a whole sidecar."""
        finished = set()
        for path in self.store.glob(f"{PREFIX}/{name}/scores/sidecars/*/*.parquet"):
            try:
                pq.read_table(pa.BufferReader(self.store.cat_file(path)))
            except (pa.ArrowException, OSError):
                continue
            finished.add(Path(path).stem.encode())
        return finished

    def run_undisturbed(self, pool: str) -> None:
        """What the runs of a pool are compared with."""
        started = time.monotonic()
        job = self.start(f"undisturbed-{pool}", pool)
        if job.wait(seconds=1800):
            raise RuntimeError(f"the undisturbed run failed:\n{job.told()}")
        result = self.references[pool] = self.result(f"undisturbed-{pool}")
        counts = result.counts["selection"]
        print(
            f"undisturbed, {pool}: {counts['rows_in']:,} rows in {result.units} units, "
            f"{counts['selected']:,} selected, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def set_up(stack: ExitStack, seed: int, *, data: Path) -> Storm:
    """Server, proxy, cluster, pools and ranker; all of it goes when the stack closes."""
    folder = Path(tempfile.mkdtemp(prefix="scar-storm-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = stack.enter_context(s3_server(folder / "s3"))
    proxy = stack.enter_context(fault_proxy(server.port, seed=seed))
    # Nodes hand them to their workers; the jobs of this process have them, too.
    os.environ.update(server.environment(endpoint=proxy.endpoint))
    store = server.filesystem()
    _upload_pools(data, folder, store)
    from tests.tiny import tiny_ranker_dir  # noqa: PLC0415 - `--help` must not wait for torch

    store.put(str(tiny_ranker_dir(folder)), f"{PREFIX}/ranker", recursive=True)
    storm = Storm(
        cluster=stack.enter_context(three_nodes()),
        proxy=proxy,
        store=store,
        folder=folder,
        rng=random.Random(seed),
    )
    stack.callback(storm.stop)
    return storm


def _upload_pools(data: Path, folder: Path, store: s3fs.S3FileSystem) -> None:
    """The pools as they are, and a part of each."""
    for name in POOLS:
        table = pq.read_table(data / f"{name}.parquet")
        part = table.take(pa.array(range(0, table.num_rows, PART)))
        pq.write_table(part, folder / f"{name}.parquet")
        store.put_file(str(folder / f"{name}.parquet"), f"{PREFIX}/part/{name}.parquet")
        store.put_file(str(data / f"{name}.parquet"), f"{PREFIX}/whole/{name}.parquet")
