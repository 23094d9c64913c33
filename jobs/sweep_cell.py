"""One training of a sweep, on a worker: trained, measured on what it never saw, stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jobs import cli
from scar_core import storage
from scar_core.manifest import to_json
from scar_core.ranker.checkpoint import new_ranker
from scar_core.ranker.encoding import TextTokenizer
from scar_core.training.accuracy import ALL, accuracy_rows, mean_accuracy
from scar_core.training.augment import one_length
from scar_core.training.batches import gate_quadruples
from scar_core.training.deal import deal
from scar_core.training.epochs import train
from scar_core.training.heldout import HeldOut, held_out
from scar_core.training.losses import LossConfig
from scar_core.training.split import at_most_per_source, split_by_instruction
from scar_core.training.trainer import TrainingConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs.train_inputs import TrainConfig
    from scar_core.training.deal import Dealt
    from scar_core.training.losses import GateConfig
    from scar_core.training.quadruples import Quadruple


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and what it is measured on."""

    row: str
    """Its row of the table."""
    column: str
    """Its column, or the source that is left out of the training and measured on."""
    config: TrainConfig
    """The recipe with this cell's change; its seed is the cell's."""
    leave_out: bool = False
    """Train without the source `column` and measure on it; else measure on the test side."""
    own_only: bool = False
    """Train only on rows with an instruction of their own."""
    without_referenced: bool = False
    """Train as if no quadruple had a referenced response."""
    measured_by: TrainConfig
    """Whose gate says which pairs are measured: one for a whole table, so that rows compare."""


class Task(NamedTuple):
    """A cell on its way to a worker."""

    cell: Cell
    path: str
    """Where its result goes."""
    measure_quads: int
    threads: int


def run_cell(task: Task, quadruples: list[Quadruple]) -> None:
    """Train one cell, measure it, and store what was measured."""
    import torch  # noqa: PLC0415 - the driver needs none
    from accelerate import Accelerator  # noqa: PLC0415 - as above

    cell, config = task.cell, task.cell.config
    torch.set_num_threads(task.threads)
    start = time.monotonic()
    learned_from, measured = parts_of(cell, quadruples, limit=task.measure_quads)
    ranker, tokenizer = new_ranker(config.encoder, linear_dim=config.linear_dim, seed=config.seed)
    dealt = deal(
        learned_from,
        config,
        TextTokenizer(tokenizer, max_tokens=config.max_tokens),
        set_apart=[*measured, *map(one_length, measured)],
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    trained = train(
        ranker.to(accelerator.device),
        dealt.data,
        dealt.sides,
        config=cli.part_of(config, TrainingConfig),
        loss=cli.part_of(config, LossConfig),
        seed=config.seed,
        accelerator=accelerator,
        report=lambda _: None,
    )
    result = {
        "row": cell.row,
        "column": cell.column,
        "seed": config.seed,
        "train_quadruples": len(dealt.sides.train),
        "train_pairs": int(dealt.data.kept_QK[dealt.sides.train].sum()),
        "steps": len(trained.losses),
        "best_epoch": trained.best.epoch,
        **_measured(measured, dealt, trained.best.score_QR, cell.measured_by),
        "seconds": round(time.monotonic() - start, 1),
    }
    storage.write_bytes(task.path, to_json(result, indent=None))


def _measured(
    measured: list[Quadruple], dealt: Dealt, score_QR: NDArray[np.float32], gate: GateConfig
) -> dict[str, Any]:
    """Accuracies on the rows set apart, which are on the test side: whole ones, then cut ones."""
    whole, cut = np.split(dealt.sides.test, 2)
    pairs_QK = gate_quadruples(measured, gate).kept_QK
    found = held_out(
        score_QR[whole],
        dealt.data.characters_QR[whole],
        pairs_QK,
        score_QR[cut],
        dealt.data.kept_QK[cut] & pairs_QK,
    )
    rows = accuracy_rows(
        score_QR[whole],
        dealt.data.characters_QR[whole],
        pairs_QK,
        [item.source for item in measured],
    )
    return {
        "mean_accuracy": mean_accuracy(score_QR[whole], pairs_QK),
        "by_kind": {row.kind: row.accuracy for row in rows if row.kind != ALL},
        "by_source": {row.source: row.accuracy for row in rows if row.source != ALL},
        "won": found.won_QM.tolist(),
        "pairs": found.pairs_QM.tolist(),
    }


def parts_of(
    cell: Cell, quadruples: list[Quadruple], *, limit: int
) -> tuple[list[Quadruple], list[Quadruple]]:
    """The quadruples that a cell trains on, and those that it is measured on.

    Measured are rows with an instruction of their own that pass the table's gate; whatever shares
    an instruction with them is not trained on.
    """
    if cell.leave_out:
        kept_back = {row for row, item in enumerate(quadruples) if item.source == cell.column}
    else:
        kept_back = set(split_by_instruction(quadruples, cell.config).test)
    passed_Q = _passed(quadruples, cell.measured_by)
    candidates = [
        row for row in sorted(kept_back) if passed_Q[row] and quadruples[row].instruction_is_own
    ]
    rows = at_most_per_source(quadruples, candidates, limit=limit, seed=0)
    families = {quadruples[row].family for row in kept_back}
    learned = [
        _without_referenced(item) if cell.without_referenced else item
        for row, item in enumerate(quadruples)
        if row not in kept_back
        and item.family not in families
        and (item.instruction_is_own or not cell.own_only)
    ]
    passed = _passed(learned, cell.config)
    return (
        [item for item, ok in zip(learned, passed, strict=True) if ok],
        [quadruples[row] for row in rows],
    )


def _passed(quadruples: list[Quadruple], gate: GateConfig) -> list[bool]:
    """Whether a pair of each passes the gate."""
    kept_QK = gate_quadruples(quadruples, gate).kept_QK
    return [bool(kept_K.any()) for kept_K in kept_QK]


def _without_referenced(quadruple: Quadruple) -> Quadruple:
    human, _, direct = quadruple.responses
    return replace(quadruple, responses=(human, None, direct))


def held_out_of(result: dict[str, Any]) -> HeldOut:
    """What a cell measured, as it was."""
    return HeldOut(np.array(result["won"]), np.array(result["pairs"]))
