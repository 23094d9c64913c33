"""How fast, and in how much memory, the radix selects; DuckDB, Polars and Ray's sort beside it.

    python tests/bench/selection.py --rows 1_000_000 10_000_000 --json build/selection.json

Contenders take turns on the same files and two cores, each run in a process of its own, and must
select the same rows. Files are in the page cache. Memory is a process's peak resident set; of
Ray's workers it holds the pages of the object store that they touched. Bytes are what went through
read calls: who maps files into memory shows few. CPU seconds are of all processes (of Ray, without
its own servers), and steadier than the clock on a busy machine. `--skip` leaves contenders out that
would not finish; one that takes longer than `--minutes` is ended and reported as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scar_core.pool.files import PoolFile
from scar_core.pool.rows import HASH_BYTES, SIDECAR_SCHEMA
from scar_core.pool.units import Unit
from scar_core.selection.keep import decide, parse_keep
from scar_core.selection.order import DIGIT_VALUES, SidecarColumns
from scar_core.selection.radix import histograms, merge_surveys, survey
from scar_core.storage import FileInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit
    from scar_core.selection.order import Prefix
    from scar_core.selection.radix import Cut, Survey

WORKERS = 2
CHUNKS_PER_WORKER = 4
DUCKDB_MEMORY = "2GB"
MIB = 2**20
REASONS = ["too_large"]

Chunk = list[tuple[int, str]]
"""(ordinal, path) of some sidecars."""


class Usage(NamedTuple):
    """What a process took so far."""

    peak_bytes: int
    read_bytes: int


class Found(NamedTuple):
    """A contender's answer; two with equal count and sum chose the same rows."""

    selected: int
    place_sum: int
    """Sum of ordinal * 2**20 + offset over the selected rows."""
    seconds: dict[str, float]
    """By stage."""
    workers: list[Usage]
    """Of the processes that it started, once per task."""


def usage(process: int | str = "self") -> Usage:
    """Of a process; not `getrusage`, whose peak is inherited from the process that spawned."""
    status = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    counters = Path(f"/proc/{process}/io").read_text("utf-8").splitlines()
    io = dict(line.split(": ") for line in counters)
    return Usage(int(peak_kib) * 1024, int(io["rchar"]))


# The sidecars.


def write_sidecar(sized: tuple[int, int], *, folder: str, decimals: int | None) -> None:
    """The sidecar (ordinal, rows) as the score job writes it; some NaN, some without a score."""
    ordinal, rows = sized
    draw = np.random.default_rng(ordinal)
    scores = draw.normal(size=rows)
    if decimals is not None:
        scores = scores.round(decimals)
    scores[draw.random(rows) < 0.001] = np.nan
    missing = (draw.random(rows) < 0.01) & (ordinal % 10 == 0)
    hashes = pa.py_buffer(draw.bytes(HASH_BYTES * rows))
    columns = [
        pa.array(np.arange(rows)),
        pa.array(scores.astype(np.float32), mask=missing, from_pandas=False),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(HASH_BYTES), rows, [None, hashes]),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8), mask=~missing), REASONS),
        *(pa.array(draw.integers(1, 512, rows), pa.int32()) for _ in range(3)),
    ]
    table = pa.Table.from_arrays(columns, schema=SIDECAR_SCHEMA)
    path = f"{folder}/{ordinal:07d}.parquet"
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def write_sidecars(folder: str, *, rows: int, unit_rows: int, decimals: int | None) -> list[str]:
    """Sidecars of `unit_rows` rows, or of 4,096 to 65,536 where it is 0; their paths in order."""
    draw = np.random.default_rng(rows)
    sizes: list[int] = []
    while (left := rows - sum(sizes)) > 0:
        sizes.append(min(unit_rows or int(draw.integers(4_096, 65_537)), left))
    write = partial(write_sidecar, folder=folder, decimals=decimals)
    with spawn_pool(WORKERS) as pool:
        list(pool.map(write, enumerate(sizes), chunksize=16))
    return [f"{folder}/{ordinal:07d}.parquet" for ordinal in range(len(sizes))]


def spawn_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


# The radix: what a worker does with a chunk, and the driver.


def open_chunk(chunk: Chunk) -> Iterator[SidecarColumns]:
    for ordinal, path in chunk:
        yield SidecarColumns.open(path, ordinal=ordinal)


def survey_chunk(chunk: Chunk) -> Survey:
    return survey(open_chunk(chunk))


def scan_chunk(chunk: Chunk, *, prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
    return histograms(open_chunk(chunk), prefixes)


def select_chunk(chunk: Chunk, *, cut: Cut) -> tuple[int, int]:
    """Count and place sum of a chunk's selected rows."""
    selected, place_sum = 0, 0
    for columns in open_chunk(chunk):
        offsets = np.flatnonzero(cut.mask(columns))
        selected += len(offsets)
        place_sum += columns.ordinal * 2**20 * len(offsets) + int(offsets.sum())
    return selected, place_sum


def tracked(chunk: Chunk, *, stage: Callable[[Chunk], Any]) -> tuple[Any, Usage]:
    """What a stage gives for a chunk, and the worker's peak and bytes read meanwhile."""
    before = usage()
    result = stage(chunk)
    after = usage()
    return result, Usage(after.peak_bytes, after.read_bytes - before.read_bytes)


def run_radix(paths: list[str], keep: str) -> Found:
    """Survey, passes, and one more pass for the selected rows, over a pool of processes."""
    clock = Clock()
    step = -(-len(paths) // (WORKERS * CHUNKS_PER_WORKER))
    numbered = list(enumerate(paths))
    chunks = [numbered[first : first + step] for first in range(0, len(paths), step)]
    workers: list[Usage] = []
    spawn = multiprocessing.get_context("spawn")
    # Nobody starts before all are there: the time that processes take is told apart.
    all_there = spawn.Barrier(WORKERS).wait
    with ProcessPoolExecutor(WORKERS, mp_context=spawn, initializer=all_there) as pool:

        def run(stage: Callable[[Chunk], Any]) -> Iterator[Any]:
            for result, taken in pool.map(partial(tracked, stage=stage), chunks):
                workers.append(taken)
                yield result

        def scan(prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
            total = np.zeros((len(prefixes), DIGIT_VALUES), np.int64)
            for part in run(partial(scan_chunk, prefixes=prefixes)):
                total += part
            clock.lap(f"pass {len(clock.seconds)}")
            return total

        list(pool.map(usage_of, range(WORKERS)))
        clock.lap("start")
        first = merge_surveys(run(survey_chunk))
        clock.lap("pass 1")
        cut = decide(first, scan, parse_keep(keep)).cut
        found = list(run(partial(select_chunk, cut=cut)))
        clock.lap("select")
    return Found(sum(n for n, _ in found), sum(s for _, s in found), clock.seconds, workers)


def usage_of(_: int) -> Usage:
    return usage()


# The jobs' own passes: the same radix as Ray Data map stages, merged in a tree.


def run_jobs(paths: list[str], keep: str) -> Found:
    """`judge` as a selection runs it, and one more pass for the selected rows."""
    from jobs import pipeline  # noqa: PLC0415 - Ray's memory is its own
    from jobs.passes import chunks_of, judge  # noqa: PLC0415
    from jobs.select_stages import ScoredUnit  # noqa: PLC0415

    with on_ray() as (clock, workers):
        units = [
            ScoredUnit(ordinal=ordinal, unit=unit, file=POOL_FILE, sidecar=path)
            for ordinal, (path, unit) in enumerate(zip(paths, units_of(paths), strict=True))
        ]
        clock.lap("open")
        judged = judge(units, parse_keep(keep))
        clock.lap("judge")
        found = pipeline.fold(select_units, chunks_of(units), add_pairs, cut=judged.cut)
        clock.lap("select")
    return Found(found[0], found[1], clock.seconds, workers)


POOL_FILE = PoolFile(
    path="pool.parquet",
    info=FileInfo(path="pool.parquet", size_bytes=0, stamp=""),
    fingerprint="",
    schema=pa.schema([]),
    row_groups=(),
)
"""No pass without groups reads the pool."""


def units_of(paths: list[str]) -> Iterator[Unit]:
    """What a scores manifest says of each sidecar."""
    for path in paths:
        rows = pq.read_metadata(path).num_rows
        yield Unit(path="pool.parquet", row_start=0, rows=rows, fingerprint="")


def select_units(chunk: Sequence[ScoredUnit], *, cut: Cut) -> tuple[int, int]:
    return select_chunk([(scored.ordinal, scored.sidecar) for scored in chunk], cut=cut)


def add_pairs(parts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = [(0, 0), *parts]
    return sum(n for n, _ in pairs), sum(s for _, s in pairs)


@contextmanager
def on_ray() -> Iterator[tuple[Clock, list[Usage]]]:
    """A local Ray of two CPUs; what its workers took is listed at the end of the block."""
    import ray  # noqa: PLC0415 - its memory is its own

    from jobs import cli  # noqa: PLC0415

    # A spawned process knows this file by a name that Ray's workers cannot import.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    clock, workers, done = Clock(), [], Event()  # type: Clock, list[Usage], Event
    with cli.connected(local_cpus=WORKERS):
        clock.lap("start")
        watcher = Thread(target=watch, args=(workers, done))
        watcher.start()
        try:
            yield clock, workers
        finally:
            done.set()
            watcher.join()


def watch(workers: list[Usage], done: Event) -> None:
    """Look at this process's Ray workers twice a second until done; a usage for each."""
    import psutil  # noqa: PLC0415

    seen: dict[int, Usage] = {}
    ended = False
    while not ended:
        ended = done.wait(0.5)
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline()[0].startswith("ray::"):
                    seen[process.pid] = usage(process.pid)
            except (psutil.Error, OSError, IndexError, StopIteration):
                continue  # it has just ended
    workers += seen.values()


def run_ray_sort(paths: list[str], keep: str) -> Found:
    """Exact top k as Ray Data's own operators give it: filter, sort by all keys, limit."""
    import ray  # noqa: PLC0415

    with on_ray() as (clock, workers):
        read = ray.data.read_parquet(
            paths, columns=["row", "score", "content_hash"], include_paths=True
        )
        good = read.map_batches(ray_keys, batch_format="pyarrow", batch_size=None)
        k = int(good.count() * parse_keep(keep).share)  # type: ignore[union-attr]
        clock.lap("count")
        keys = ["score", "high", "low", "place"]
        best = good.sort(keys, descending=[True, False, False, False]).limit(k)
        found = (best.count(), int(best.sum("place")))
        clock.lap("select")
    return Found(*found, clock.seconds, workers)


def ray_keys(table: pa.Table) -> pa.Table:
    """Eligible rows and their keys, as numbers that Ray can sort by."""
    table = table.filter(pc.and_(table["score"].is_valid(), pc.invert(pc.is_nan(table["score"]))))
    hashes = table["content_hash"].combine_chunks()
    held = np.frombuffer(hashes.buffers()[1], ">u8")[2 * hashes.offset :].reshape(-1, 2)
    ordinals = [int(Path(path).stem) for path in table["path"].to_pylist()]
    place = np.array(ordinals, np.int64) * 2**20 + table["row"].to_numpy()
    return pa.table(
        {
            "score": table["score"],
            "high": held[: len(hashes), 0].astype(np.uint64),
            "low": held[: len(hashes), 1].astype(np.uint64),
            "place": place,
        }
    )


class Clock:
    """Seconds of one stage after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


# The others.

ELIGIBLE = "score IS NOT NULL AND NOT isnan(score)"


def run_duckdb(paths: list[str], keep: str, *, by_threshold: bool) -> Found:
    """Exact top k: one ORDER BY over all keys, or the k-th score first and ties afterwards."""
    import duckdb  # noqa: PLC0415 - its memory is its own

    clock = Clock()
    share = parse_keep(keep).share  # type: ignore[union-attr]
    with duckdb.connect() as connection, tempfile.TemporaryDirectory() as spill:
        connection.execute(f"SET memory_limit='{DUCKDB_MEMORY}'; SET threads={WORKERS}")
        connection.execute(f"SET temp_directory='{spill}'")
        files = f"read_parquet('{Path(paths[0]).parent}/*.parquet', filename=true)"
        good = f"FROM {files} WHERE {ELIGIBLE}"
        (k,) = _one(
            connection, f"SELECT count(*) * {share.numerator} // {share.denominator} {good}"
        )
        clock.lap("count")
        best = f"SELECT filename, row {good}"
        ties = "content_hash, filename, row"
        if by_threshold:
            kth = f"SELECT score {good} ORDER BY score DESC LIMIT 1 OFFSET {k - 1}"
            (threshold,) = _one(connection, kth)
            last = f"'{np.float32(threshold)!s}'::FLOAT"
            (above,) = _one(connection, f"SELECT count(*) {good} AND score > {last}")
            query = (
                f"{best} AND score > {last} UNION ALL "
                f"({best} AND score = {last} ORDER BY {ties} LIMIT {k - above})"
            )
        else:
            query = f"{best} ORDER BY score DESC, {ties} LIMIT {k}"
        place = "parse_filename(filename, true)::BIGINT * 1048576 + row"
        found = _one(connection, f"SELECT count(*), sum({place}) FROM ({query})")  # noqa: S608 - ours
        clock.lap("select")
    return Found(int(found[0]), int(found[1]), clock.seconds, [])


def _one(connection: Any, query: str) -> tuple[Any, ...]:  # noqa: ANN401 - DuckDB has no types
    row: tuple[Any, ...] = connection.execute(query).fetchone()
    return row


def run_polars(paths: list[str], keep: str) -> Found:
    """Exact top k by one sort over all keys, streaming."""
    os.environ["POLARS_MAX_THREADS"] = str(WORKERS)
    pl = importlib.import_module("polars")
    clock = Clock()
    share = parse_keep(keep).share  # type: ignore[union-attr]
    score = pl.col("score")
    pool = pl.scan_parquet(paths, include_file_paths="path")
    good = pool.filter(score.is_not_null() & score.is_not_nan())
    k = int(good.select(pl.len()).collect(engine="streaming").item() * share)
    clock.lap("count")
    keys = ["score", "content_hash", "path", "row"]
    best = good.select(keys).sort(keys, descending=[True, False, False, False]).head(k)
    ordinal = pl.col("path").str.extract(r"(\d+)\.parquet$").cast(pl.Int64)
    total = best.select(pl.len(), (ordinal * 2**20 + pl.col("row")).sum().alias("sum"))
    found = total.collect(engine="streaming").row(0)
    clock.lap("select")
    return Found(int(found[0]), int(found[1]), clock.seconds, [])


CONTENDERS: dict[str, tuple[str, Callable[[list[str], str], Found]]] = {
    "jobs": ("ray", run_jobs),
    "radix": ("numpy", run_radix),
    "duckdb, order by": ("duckdb", partial(run_duckdb, by_threshold=False)),
    "duckdb, threshold": ("duckdb", partial(run_duckdb, by_threshold=True)),
    "polars, sort": ("polars", run_polars),
    "ray.data, sort": ("ray", run_ray_sort),
}
"""By name: the module that it needs, and what runs it."""


# The comparison.


def measure(name: str, paths: list[str], keep: str) -> dict[str, Any]:
    """Run a contender in this process and say what it took."""
    before, cpu_before = usage(), sum(os.times()[:4])
    found = CONTENDERS[name][1](paths, keep)
    after, cpu_after = usage(), sum(os.times()[:4])
    return {
        "contender": name,
        "selected": found.selected,
        "place_sum": found.place_sum,
        "seconds": sum(found.seconds.values()),
        "cpu_seconds": cpu_after - cpu_before,
        "stage_seconds": found.seconds,
        "driver_peak_mib": after.peak_bytes / MIB,
        "worker_peak_mib": max((worker.peak_bytes for worker in found.workers), default=0) / MIB,
        "read_mib": (
            after.read_bytes - before.read_bytes + sum(w.read_bytes for w in found.workers)
        )
        / MIB,
    }


def compare(
    paths: list[str], keep: str, *, repeats: int, skip: Sequence[str], minutes: float
) -> list[dict[str, Any]]:
    """Every contender, in turns; the runs of median time."""
    names = [
        name
        for name, (module, _) in CONTENDERS.items()
        if importlib.util.find_spec(module) and name not in skip
    ]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in [name for name in names if name in runs]:
            run = run_alone(name, paths, keep, minutes=minutes)
            if run is None:
                del runs[name]
            else:
                runs[name].append(run)
    answers = {(run["selected"], run["place_sum"]) for of in runs.values() for run in of}
    if len(answers) != 1:
        raise SystemExit(f"contenders do not agree: {answers}")
    return [
        min(of, key=lambda run: abs(run["seconds"] - median(r["seconds"] for r in of)))
        for of in runs.values()
    ]


def run_alone(name: str, paths: list[str], keep: str, *, minutes: float) -> dict[str, Any] | None:
    """A contender's run in a process of its own; None if it ends badly or takes too long."""
    pool = spawn_pool(1)
    future = pool.submit(measure, name, paths, keep)
    try:
        return future.result(timeout=minutes * 60)
    except Exception as error:  # noqa: BLE001 - whatever a contender dies of is its result
        print(f"{name}: did not finish: {type(error).__name__} {str(error)[:200]}", flush=True)
        for process in list(pool._processes.values()):  # noqa: SLF001 - the only way to end it
            process.kill()
        return None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def show(rows: int, results: Sequence[dict[str, Any]]) -> None:
    """One line a contender."""
    columns = ("seconds", "cpu_seconds", "driver_peak_mib", "worker_peak_mib", "read_mib")
    print(f"\n{rows:,} rows, {results[0]['selected']:,} selected, the same by all")
    print(f"{'':18}" + "".join(f"{column:>16}" for column in columns) + "  stages")
    for result in results:
        stages = ", ".join(f"{name} {s:.2f}" for name, s in result["stage_seconds"].items())
        numbers = "".join(f"{result[column]:16.2f}" for column in columns)
        print(f"{result['contender']:18}{numbers}  {stages}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Write sidecars, compare, print a table and store the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--unit-rows", type=int, default=0, help="of a sidecar; 0: 4,096 to 65,536")
    parser.add_argument("--keep", default="10%", help="a share")
    parser.add_argument("--decimals", type=int, help="round scores, so that many tie")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=30, help="that a run may take")
    parser.add_argument("--folder", help="where sidecars are put for the time of a comparison")
    parser.add_argument("--json", type=Path, default=Path("build/bench-selection.json"))
    args = parser.parse_args(argv)
    options = {name: value for name, value in vars(args).items() if name not in ("rows", "json")}
    packages = ("numpy", "pyarrow", "ray", "duckdb", "polars")
    versions = {name: version(name) for name in packages if importlib.util.find_spec(name)}
    runs: dict[int, list[dict[str, Any]]] = {}
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            paths = write_sidecars(
                folder, rows=rows, unit_rows=args.unit_rows, decimals=args.decimals
            )
            runs[rows] = compare(
                paths, args.keep, repeats=args.repeats, skip=args.skip, minutes=args.minutes
            )
        show(rows, runs[rows])
    report = {"python": platform.python_version(), **versions, "options": options, "runs": runs}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
