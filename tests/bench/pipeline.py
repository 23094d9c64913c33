"""Does the pipeline keep up? `jobs.score` against bare Scorers on the same cores, in turns.

    python -m tests.bench.pipeline [--rows 4096] [--rounds 3]

A bare Scorer a core scores units that are in memory already; `jobs.score` reads, tokenizes, scores
and writes the same units with one actor a core. Its rate is that between the first and the last
sidecar of a round, so that Ray's start and the loading of models, a constant of a run, do not
count; they are printed beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scar_core.scoring import Scorer, ScoringConfig
from tests.bench.scoring import DATA, POOLS, make_models, read_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.peers import Pairs

UNIT_ROWS = 256
"""Small, so that a round of some thousand rows has many."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a round and the medians; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="pairs of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--data", nargs="+", type=Path, default=[DATA / name for name in POOLS])
    parser.add_argument("--out", type=Path, default=Path("bench-pipeline.json"))
    args = parser.parse_args(argv)
    args.device, args.token_budget = "cpu", None
    cores = sorted(os.sched_getaffinity(0))
    pairs = read_pairs(args.data)
    order = np.random.default_rng(0).permutation(len(pairs))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        ranker = make_models("minilm", Path(folder) / "models", args).ranker
        # Jobs take only rankers whose training has finished.
        (Path(ranker) / "manifest.json").write_text(json.dumps({"kind": "ranker", "version": 1}))
        for number in range(args.rounds):
            chosen = [pairs[i] for i in order[number * args.rows : (number + 1) * args.rows]]
            place = Path(folder) / str(number)
            turns = [
                partial(bare, ranker, chosen, len(cores), args.precision),
                partial(piped, ranker, chosen, len(cores), args.precision, place),
            ]
            found: dict[str, float] = {}
            for turn in turns[:: 1 if number % 2 == 0 else -1]:
                found |= turn()
            found["ratio"] = found["pipeline_tokens_per_second"] / found["bare_tokens_per_second"]
            print("  ".join(f"{name} {value:,.3f}" for name, value in found.items()), flush=True)
            rounds.append(found)
    medians = {name: median(found[name] for found in rounds) for name in rounds[0]}
    print("median: " + "  ".join(f"{name} {value:,.3f}" for name, value in medians.items()))
    args.out.write_text(json.dumps({"rounds": rounds, "medians": medians}, indent=1) + "\n")
    return 0


def bare(ranker: str, pairs: Pairs, cores: int, precision: str) -> dict[str, float]:
    """Tokens a second of one Scorer a core; each has its share of the units, longest-lived counts."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores) as pool:
        shares = [(ranker, pairs[core::cores], precision) for core in range(cores)]
        pool.map(warm_up, shares, chunksize=1)
        start = time.perf_counter()
        tokens = pool.map(score_share, shares, chunksize=1)
        seconds = time.perf_counter() - start
    return {"bare_tokens_per_second": sum(tokens) / seconds}


_SCORERS: dict[str, Scorer] = {}


def warm_up(share: tuple[str, Pairs, str]) -> None:
    """Load the model of this process and score a little, and stay long enough for one a process."""
    ranker, pairs, precision = share
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = ScoringConfig(precision="bf16" if precision == "bf16" else "fp32")
    _SCORERS[ranker] = Scorer.load(ranker, config=config)
    _SCORERS[ranker].score(pairs[:32])
    time.sleep(2)


def score_share(share: tuple[str, Pairs, str]) -> int:
    """Tokenize and score unit after unit; the tokens of all."""
    ranker, pairs, _ = share
    scorer = _SCORERS[ranker]
    total = 0
    for start in range(0, len(pairs), UNIT_ROWS):
        unit = pairs[start : start + UNIT_ROWS]
        columns = [scorer.tokenizer.tokenize(list(column)) for column in zip(*unit, strict=True)]
        scorer.score_tokens(*columns)
        total += sum(len(column.ids_T) for column in columns)
    return total


def piped(ranker: str, pairs: Pairs, cores: int, precision: str, folder: Path) -> dict[str, float]:
    """Tokens a second of `jobs.score` between its first sidecar and its last."""
    folder.mkdir()
    columns: dict[str, Any] = dict(
        zip(("instruction", "response"), map(list, zip(*pairs, strict=True)), strict=True)
    )
    pq.write_table(pa.table(columns), folder / "pool.parquet")
    begun = time.time()
    subprocess.run(
        [
            *(sys.executable, "-m", "jobs.score", "--pool", str(folder / "pool.parquet")),
            *("--ranker", ranker, "--out", str(folder / "scores"), "--precision", precision),
            *("--actors", str(cores), "--unit-rows", str(UNIT_ROWS)),
        ],
        check=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    sidecars = sorted(
        (folder / "scores/sidecars").rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns
    )
    times = [path.stat().st_mtime for path in sidecars]
    tokens = [tokens_of(path) for path in sidecars]
    # Each actor's first unit was under way when the first sidecar came.
    steady = sum(tokens[cores:]) / (times[-1] - times[cores - 1])
    return {
        "pipeline_tokens_per_second": steady,
        "seconds_to_first_sidecar": times[0] - begun,
        "seconds": times[-1] - begun,
    }


def tokens_of(sidecar: Path) -> int:
    """Tokens that the encoder was given for a unit."""
    table = pq.read_table(sidecar, columns=["instruction_tokens", "response_tokens"])
    return int(sum(np.sum(column) for column in table.columns))


if __name__ == "__main__":
    raise SystemExit(main())
