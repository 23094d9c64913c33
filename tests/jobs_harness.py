"""Pools, rankers and runs that the tests of jobs share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from jobs import cli, curate

ROOT = Path(__file__).parent.parent


def write_pool(folder: Path, *, rows: int = 300, files: int = 3, seed: int = 7) -> Path:
    """A pool with every awkward row: nulls, empties, duplicates, bytes that are not text."""
    rng = random.Random(seed)
    words = ["the", "a", "list", "of", "steps", "def", "naïve", "数据", "🙂", "because", "then"]
    folder.mkdir(parents=True)
    for number in range(files):
        instructions: list[bytes | None] = []
        responses: list[bytes | None] = []
        for row in range(rows // files):
            length = 1 if row % 11 == 0 else rng.randint(2, 60)
            instructions.append(" ".join(rng.choices(words, k=6)).encode())
            responses.append(" ".join(rng.choices(words, k=length)).encode())
        responses[3], responses[5], instructions[7] = None, b"  \n", None
        responses[9] = b"caf\xe9 in Latin-1"
        instructions[20], responses[20] = instructions[19], responses[19]
        table = pa.table(
            {
                "id": pa.array(range(number * 1000, number * 1000 + rows // files)),
                "instruction": pa.array(instructions, pa.binary()).cast(pa.binary()),
                "response": pa.array(responses, pa.binary()),
                "source": pa.array([f"s{row % 3}" for row in range(rows // files)]),
                "nested": pa.array([{"tags": [str(row)]} for row in range(rows // files)]),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=40)
    return folder


def curate_run(*argv: str) -> Path:
    """Run `jobs.curate` in this process; the directory of its selection."""
    assert cli.run_job(curate.job, argv) == 0
    out = Path(argv[argv.index("--out") + 1])
    run: str = json.loads((out / "latest.json").read_bytes())["run"]
    return out / run


def manifest_of(folder: Path) -> dict[str, Any]:
    """A published directory's manifest."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The selected rows, in the order in which they were written."""
    rows: list[dict[str, Any]] = ds.dataset(run / "data", format="parquet").to_table().to_pylist()
    return rows
