"""A seeded storm: real pools on a real S3 server, three Ray nodes, and a fault in every run.

Each run is interrupted at a random moment, resumed where it did not end well by itself, and
compared with an undisturbed run: rows, order, counts. Exits with 1 if a single row differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.fault_proxy import Proxy, fault_proxy
from tests.jobs_harness import ROOT
from tests.ray_cluster import Job, RayCluster, kill_process, three_nodes
from tests.s3_server import BUCKET, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import s3fs

DATA = ROOT.parent / "shared/data"
POOLS = ("pool_human", "pool_llm_misc", "pool_t0_50k")
BASE = f"s3://{BUCKET}/storm"
PART = 40
"""Every so many-th row makes the small pool."""
UNIT_ROWS = {"part": 32, "whole": 1280}
"""About 100 units of either pool."""
SIDECAR_PUT = re.compile(rb"PUT \S*/sidecars/[0-9a-f]+/([0-9a-f]+)\.parquet")
TRIES = 3

STORE_FAULTS: dict[str, dict[str, float]] = {
    "S3 throttles (503)": {"slow_down": 0.3},
    "S3 resets": {"cut_request": 0.15, "cut_response": 0.15},
    "S3 loses answers": {"lost_answer": 0.2},
    "S3 is slow": {"delay_seconds": 1.0},
    "S3 is down": {"down": True},
}
FAULTS = (
    "kill -9 driver",
    "kill -9 actor",
    "kill -9 node",
    "node leaves, one joins",
    "cut uploads",
    *STORE_FAULTS,
)


@dataclass(kw_only=True)
class Outcome:
    """What became of one run."""

    fault: str
    by_itself: bool = False
    recovered: bool = False
    lost: int = 0
    doubled: int = 0
    differs: list[str] = field(default_factory=list)
    twice: int = 0
    """Units whose finished sidecar was written again."""
    resumes: int = 0

    @property
    def right(self) -> bool:
        """Whether it ended as if nothing had happened."""
        return self.recovered and not (self.lost or self.doubled or self.differs)


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
            *("--pool", f"{BASE}/{pool}", "--ranker", f"{BASE}/ranker", "--keep", "10%"),
            *("--out", f"{BASE}/{name}", "--unit-rows", str(UNIT_ROWS[pool])),
            *("--max-tokens", "32", "--actors", "1:2"),
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
        root = f"{BUCKET}/storm/{name}"
        latest = json.loads(self.store.cat_file(f"{root}/latest.json"))
        run = f"{root}/{latest['run']}"
        manifest = json.loads(self.store.cat_file(f"{run}/manifest.json"))
        files = [f"{run}/{e['path']}" for e in manifest["files"] if e["path"].endswith(".parquet")]
        rows = ds.dataset(files, filesystem=self.store, format="parquet").to_table()
        scores = json.loads(self.store.cat_file(f"{root}/scores/latest.json"))
        published = json.loads(self.store.cat_file(f"{root}/scores/{scores['manifest']}"))
        counts = {"selection": manifest["counts"], "scores": published["counts"]}
        return Result(rows=rows, counts=counts, units=len(published["files"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Blow, print the table; 0 if every run ended right."""
    parser = argparse.ArgumentParser(prog="tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of faults and moments (default 1)")
    parser.add_argument("--runs", type=int, default=28, help="interrupted runs (default 28)")
    parser.add_argument(
        "--whole", type=int, default=2, help="how many, the last, take all rows (default 2)"
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the real pools (default ../shared/data)"
    )
    options = parser.parse_args(argv)
    if not options.data.exists():
        print(f"skipped: the real pools are not there ({options.data})")
        return 0
    os.environ.update(
        RAY_AUTH_MODE="disabled", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", HF_HUB_OFFLINE="1"
    )
    with ExitStack() as stack:
        storm = _set_up(stack, options.seed, data=options.data)
        outcomes: list[Outcome] = []
        # Also of a storm that is broken off.
        stack.callback(lambda: print(table_of(outcomes), flush=True))
        for number, fault in enumerate(_deck(storm.rng, options.runs)):
            pool = "part" if number < options.runs - options.whole else "whole"
            if pool not in storm.references:
                _run_undisturbed(storm, pool)
            outcomes.append(_blow(storm, f"run-{number}", fault, pool))
    return 0 if all(outcome.right for outcome in outcomes) else 1


def _deck(rng: random.Random, runs: int) -> list[str]:
    """Each fault about equally often, in random order."""
    deck: list[str] = []
    while len(deck) < runs:
        deck += rng.sample(FAULTS, len(FAULTS))
    return deck[:runs]


def _set_up(stack: ExitStack, seed: int, *, data: Path) -> Storm:
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

    store.put(str(tiny_ranker_dir(folder)), f"{BUCKET}/storm/ranker", recursive=True)
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
        store.put_file(str(folder / f"{name}.parquet"), f"{BUCKET}/storm/part/{name}.parquet")
        store.put_file(str(data / f"{name}.parquet"), f"{BUCKET}/storm/whole/{name}.parquet")


def _run_undisturbed(storm: Storm, pool: str) -> None:
    started = time.monotonic()
    job = storm.start(f"undisturbed-{pool}", pool)
    if job.wait(seconds=1800):
        raise RuntimeError(f"the undisturbed run failed:\n{job.told()}")
    result = storm.references[pool] = storm.result(f"undisturbed-{pool}")
    counts = result.counts["selection"]
    print(
        f"undisturbed, {pool}: {counts['rows_in']:,} rows in {result.units} units, "
        f"{counts['selected']:,} selected, {time.monotonic() - started:.0f} s",
        flush=True,
    )


def _blow(storm: Storm, name: str, fault: str, pool: str) -> Outcome:
    """One run with its fault, resumed if need be, compared."""
    started = time.monotonic()
    outcome = Outcome(fault=fault)
    storm.cluster.restore()
    storm.proxy.forget()
    job = storm.start(name, pool)
    moment = _wait_for_the_moment(storm, job, fault, units=storm.references[pool].units)
    _strike(storm, job, name, fault)
    code = job.wait(seconds=900)
    storm.proxy.faults.clear()
    if fault not in STORE_FAULTS:  # there the client repeats its own puts, too
        outcome.twice = sum(times > 1 for times in storm.puts().values())
    outcome.by_itself = code == 0
    while code and outcome.resumes < TRIES:
        outcome.resumes += 1
        code = _resume(storm, name, pool, outcome)
    outcome.recovered = code == 0
    if outcome.recovered:
        compare(storm.result(name), storm.references[pool], outcome)
    _report(storm, name, outcome, f"{pool}, {moment}, {time.monotonic() - started:.0f} s")
    return outcome


def _resume(storm: Storm, name: str, pool: str, outcome: Outcome) -> int:
    """Start again on a calm day; its exit code."""
    time.sleep(2)  # what a killed driver left behind notices that it is gone
    storm.cluster.restore()
    finished = _finished(storm, name)
    storm.proxy.forget()
    code = storm.start(name, pool).wait(seconds=900)
    outcome.twice += sum(unit in finished for unit in storm.puts())
    return code


def _finished(storm: Storm, name: str) -> set[bytes]:
    """Units with a whole sidecar."""
    finished = set()
    for path in storm.store.glob(f"{BUCKET}/storm/{name}/scores/sidecars/*/*.parquet"):
        try:
            pq.read_table(pa.BufferReader(storm.store.cat_file(path)))
        except pa.ArrowInvalid:
            continue
        finished.add(Path(path).stem.encode())
    return finished


def _wait_for_the_moment(storm: Storm, job: Job, fault: str, *, units: int) -> str:
    """Let a random share of the work be done first; when it was, in words."""
    if fault == "kill -9 actor":  # there are none before and after
        done = storm.rng.randrange(1, units * 8 // 10)
    else:
        done = storm.rng.randrange(-units // 10, units + units // 5)
    pause = storm.rng.uniform(0, 6)
    if done < 0:
        time.sleep(pause)
        return f"{pause:.1f} s after the start"
    _until(job, lambda: len(storm.puts()) >= min(done, units))
    if done <= units:
        return f"at unit {done}"
    time.sleep(pause / 2)
    return f"{pause / 2:.1f} s after the last unit"


def _until(job: Job, happened: Callable[[], bool]) -> None:
    """Wait for it, or for the end of the job."""
    while job.running and not happened():
        time.sleep(0.02)


def _strike(storm: Storm, job: Job, name: str, fault: str) -> None:
    """Let the fault happen; store faults end by themselves after some seconds."""
    if fault in STORE_FAULTS:
        storm.proxy.faults.set(**STORE_FAULTS[fault])
        calm = time.monotonic() + storm.rng.uniform(4, 20)
        _until(job, lambda: time.monotonic() > calm)
        storm.proxy.faults.clear()
    elif fault == "kill -9 actor":
        _until(job, lambda: bool(storm.cluster.scorers()))
        for pid in storm.rng.sample(sorted(storm.cluster.scorers()), 1) if job.running else ():
            kill_process(pid)
    elif fault in {"kill -9 node", "node leaves, one joins"}:
        nodes = sorted(storm.cluster.workers, key=lambda node: str(node.node_id))
        storm.cluster.kill_node(storm.rng.choice(nodes))
        if fault != "kill -9 node":
            time.sleep(storm.rng.uniform(0, 10))
            storm.cluster.restore()
    else:
        job.kill()
        if fault == "cut uploads":
            _cut_objects(storm, name)


def _cut_objects(storm: Storm, name: str) -> None:
    """Leave the first half of some sidecars and output files, as a store without atomic puts."""
    time.sleep(2)  # a writer that outlives its driver must not make them whole again
    everything = storm.store.find(f"{BUCKET}/storm/{name}")
    found = sorted(path for path in everything if path.endswith(".parquet"))
    for path in storm.rng.sample(found, min(3, len(found))):
        whole = storm.store.cat_file(path)
        storm.store.pipe_file(path, whole[: storm.rng.randrange(len(whole))])


def compare(found: Result, wanted: Result, outcome: Outcome) -> None:
    """Rows, order and counts against those of the undisturbed run, into the outcome."""
    there = Counter(found.rows["row_id"].to_pylist())
    due = Counter(wanted.rows["row_id"].to_pylist())
    outcome.lost = sum((due - there).values())
    outcome.doubled = sum((there - due).values())
    if not found.rows.equals(wanted.rows):
        outcome.differs.append("rows or order")
    if found.counts != wanted.counts:
        outcome.differs.append(f"counts {found.counts}, not {wanted.counts}")


def _report(storm: Storm, name: str, outcome: Outcome, when: str) -> None:
    end = "by itself" if outcome.by_itself else f"after {outcome.resumes} resumes"
    print(
        f"{name}: {outcome.fault}, {when}: {'right' if outcome.right else 'WRONG'} {end}, "
        f"{outcome.twice} units twice {'; '.join(outcome.differs)}",
        flush=True,
    )
    if not outcome.right:
        print((storm.folder / f"{name}.log").read_text("utf-8", errors="replace")[-5000:])


def table_of(outcomes: Sequence[Outcome]) -> str:
    """The storm in one table: a line per fault, and the sum."""
    titles = ("times", "by itself", "resumed", "not", "rows lost", "doubled", "differ", "twice")
    lines = [f"{'fault':24}" + "".join(f"{title:>11}" for title in titles)]
    for fault in (*FAULTS, "all"):
        of_fault = [o for o in outcomes if fault in (o.fault, "all")]
        numbers = (
            len(of_fault),
            sum(o.by_itself for o in of_fault),
            sum(o.recovered and not o.by_itself for o in of_fault),
            sum(not o.recovered for o in of_fault),
            sum(o.lost for o in of_fault),
            sum(o.doubled for o in of_fault),
            sum(bool(o.differs) for o in of_fault),
            sum(o.twice for o in of_fault),
        )
        lines.append(f"{fault:24}" + "".join(f"{number:>11,}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
