"""Steps per CPU second of a training, beside scar-tool's own trainer on the same batches.

    python -m tests.bench.training --quads quads.jsonl.gz --encoder ENCODER

Both start from the same weights, without dropout, and take the same batches in turn; every step's
losses are compared. One thread. The tokenizing that scar-tool does in each step is in its figures,
and the one pass that ours does beforehand is in ours, as if there were one epoch.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from scar_core.ranker.checkpoint import new_ranker
from scar_core.ranker.encoding import TextTokenizer
from scar_core.training.batches import epoch_batches, gate_quadruples, tokenize_quadruples
from scar_core.training.losses import GateConfig, LossConfig
from scar_core.training.quadruple_files import read_quadruples
from scar_core.training.quadruples import Quadruple, QuadrupleColumns
from scar_core.training.split import sample
from scar_core.training.trainer import Trainer, TrainingConfig, linear_schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LINEAR_DIM = 512


def scar_tool(
    encoder: str, weights: dict[str, torch.Tensor], quadruples: list[Quadruple], steps: int
) -> Callable[[NDArray[np.int64]], float]:
    """A step of scar-tool's trainer on these rows, from these weights; its loss."""
    from style_ranker.ranker import train as theirs  # noqa: PLC0415  - not everywhere installed

    theirs.tqdm = lambda rows, **_: rows  # no progress bars of one step each

    settings = SimpleNamespace(
        encoder_name=encoder,
        hidden_dim=weights["output_layer.0.weight"].shape[1] // 2,
        linear_dim=LINEAR_DIM,
        max_text_length=512,
        learning_rate=2e-5,
        disentangle=True,
        disentangle_loss_weight=0.1,
        constraint_mode="none",
        constraint_min=5.0,
        constraint_max=10.0,
        display_interval=10**9,
    )
    trainer = theirs.StyleRankerTrainer(settings)
    trainer.model.load_state_dict(weights)
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    schedule = linear_schedule(trainer.optimizer, steps=steps, warmup_share=0.1)
    # Its filter looks up every judge's score, whatever it makes of them.
    scores: dict[str, Any] = dict.fromkeys(("direct", "referenced", "human"), _AnyScore())

    def step(rows_B: NDArray[np.int64]) -> float:
        texts = [
            (
                quadruples[row].instruction,
                *[item.text for item in quadruples[row].responses if item],
            )
            for row in rows_B
        ]
        return float(
            trainer.train_epoch([tuple(map(list, zip(*texts, strict=True)))], schedule, scores)
        )

    return step


class _AnyScore(dict[str, float]):
    def __missing__(self, key: str) -> float:
        return 7.0


def compare(args: argparse.Namespace) -> None:
    """Run both in turn, print the medians and the largest difference of losses."""
    torch.set_num_threads(1)
    checked, _ = read_quadruples([args.quads], QuadrupleColumns())
    whole = [item for item in checked.quadruples if None not in item.responses]
    quadruples = sample(whole, limit=args.steps * args.batch_size, seed=args.seed)
    ranker, tokenizer = new_ranker(args.encoder, linear_dim=LINEAR_DIM, seed=args.seed)
    weights = {name: value.clone() for name, value in ranker.state_dict().items()}
    theirs = scar_tool(args.encoder, weights, quadruples, args.steps)
    start = time.process_time()
    gate = GateConfig(gate="none")
    data = tokenize_quadruples(
        quadruples,
        gate_quadruples(quadruples, gate).kept_QK,
        TextTokenizer(tokenizer, max_tokens=512),
    )
    tokenizing = (time.process_time() - start) / args.steps
    ours = Trainer(
        ranker,
        data,
        steps=args.steps,
        config=TrainingConfig(batch_size=args.batch_size, batching=args.batching),
        loss=LossConfig(),
        accelerator=Accelerator(cpu=True),
    )
    batches = epoch_batches(
        np.arange(len(quadruples)), batch_size=args.batch_size, seed=args.seed, epoch=1
    )
    print(f"batches of {args.batch_size}, {ours.batching}, {data.tokens_Q.mean():.0f} tokens a row")
    take_turns(batches, ours=ours.step, theirs=theirs, tokenizing=tokenizing)


def take_turns(
    batches: list[NDArray[np.int64]],
    *,
    ours: Callable[[NDArray[np.int64]], float],
    theirs: Callable[[NDArray[np.int64]], float],
    tokenizing: float,
) -> None:
    """Give each batch to both, the first one in turn; print what it cost."""
    seconds: dict[str, list[float]] = {"ours": [], "scar-tool": []}
    gaps = []
    for number, rows_B in enumerate(batches):
        losses = {}
        turns = [("ours", ours), ("scar-tool", theirs)]
        for name, step in turns if number % 2 else turns[::-1]:
            start = time.process_time()
            losses[name] = step(rows_B)
            seconds[name].append(time.process_time() - start + tokenizing * (name == "ours"))
        gaps.append(abs(losses["ours"] - losses["scar-tool"]))
        print(number, losses, {name: round(values[-1], 2) for name, values in seconds.items()})
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["scar-tool"], strict=True)]
    for name, values in seconds.items():
        print(f"{name}: {1 / median(values):.3f} steps per CPU second (median of {len(values)})")
    print(f"ratio: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"losses differ by at most {max(gaps):.1e}")


def main() -> None:
    """Parse and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quads", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--batch-size", type=int, default=4, help="scar-tool's default is 4")
    parser.add_argument("--batching", choices=["auto", "padded"], default="auto")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
