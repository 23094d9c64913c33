"""Does memory stay flat when the pool grows tenfold? `jobs.curate` on both, its processes watched.

    python -m tests.bench.memory [--rows 12000]

A tiny random encoder scores, so that what is measured is the pipeline's and not the model's. The
figures are the highest sums of proportional set sizes, sampled twice a second: of the driver, and
of it together with all that it started, Ray's own processes and its object store among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.scoring import DATA, POOLS, read_pairs
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.peers import Pairs

FILE_ROWS = 6000


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a pool; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=12_000, help="pairs of the smaller pool")
    parser.add_argument("--data", nargs="+", type=Path, default=[DATA / name for name in POOLS])
    parser.add_argument("--out", type=Path, default=Path("bench-memory.json"))
    args = parser.parse_args(argv)
    pairs = read_pairs(args.data)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ranker = tiny_ranker_dir(Path(folder))
        for times in (1, 10):
            place = Path(folder) / str(times)
            write_pool(place / "pool", pairs, rows=times * args.rows)
            found = {"rows": times * args.rows, **watch(ranker, place)}
            print("  ".join(f"{name} {value:,.0f}" for name, value in found.items()), flush=True)
            results.append(found)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def write_pool(folder: Path, pairs: Pairs, *, rows: int) -> None:
    """Real pairs, drawn again and again, each with its number so that no two rows are equal."""
    folder.mkdir(parents=True)
    picked = np.random.default_rng(0).integers(len(pairs), size=rows)
    for start in range(0, rows, FILE_ROWS):
        part = [(row, *pairs[row]) for row in picked[start : start + FILE_ROWS]]
        table = pa.table(
            {
                "instruction": [
                    f"{start + place}: {one}" for place, (_, one, _) in enumerate(part)
                ],
                "response": [two for _, _, two in part],
                "source": [f"s{row % 7}" for row, _, _ in part],
            }
        )
        pq.write_table(table, folder / f"{start:09d}.parquet", row_group_size=2000)


def watch(ranker: Path, place: Path) -> dict[str, float]:
    """Peaks in MiB while a pool is curated, and how long that took."""
    begun = time.monotonic()
    job = subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs.curate", "--pool", str(place / "pool")),
            *("--ranker", str(ranker), "--keep", "10%", "--out", str(place / "out")),
        ],
        stdout=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    driver = psutil.Process(job.pid)
    peaks = {"driver_mib": 0.0, "all_mib": 0.0}
    while job.poll() is None:
        sizes = {"driver_mib": pss_mib([driver])}
        sizes["all_mib"] = sizes["driver_mib"] + pss_mib(children_of(driver))
        peaks = {name: max(peaks[name], sizes[name]) for name in peaks}
        time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"the job ended with {job.returncode}")
    return {**peaks, "seconds": time.monotonic() - begun}


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """All that a process started; none where it has just ended."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def pss_mib(processes: Sequence[psutil.Process]) -> float:
    """Memory of processes, what several share counted once."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended between listing and looking
            continue
    return total / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
