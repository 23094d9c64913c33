"""What each part of a recipe is worth: trainings without it, on several seeds, in one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import cli
from jobs.sweep import SweepConfig, read_for, recipe, run_cells, write_results
from jobs.sweep_cell import Cell, held_out_of
from scar_core.training.heldout import MEASURES
from scar_core.training.quadruples import BEST_QUALITY, PAIR_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.train_inputs import TrainConfig

FULL, NO_GATE = "full", "without quality gate"
KINDS = [kind.name for kind in PAIR_KINDS]
COLUMNS = ("mean of kinds", *KINDS, "matched", "one length", "longer wins")
"""Accuracies: the mean over the kinds of pairs, each kind, pairs of matched length, responses cut
to one length; then what the longer response wins."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig(SweepConfig):
    """Train a recipe in full and without one part at a time; measure all on the same pairs."""

    recipe: str
    """YAML file as `jobs.train --config` takes it."""


def ablate(config: AblateConfig) -> list[dict[str, Any]]:
    """Train and measure what is not there yet, write the tables; their rows.

    Raises:
        InputError: data, recipe or flags need fixing; nothing was started.
        RunError: a training broke; what the others measured is kept.
    """
    full = recipe(config.recipe, config)
    read = read_for(config, full)
    cells = [cell for seed in range(config.seeds) for cell in cells_of(full, seed)]
    results = run_cells(cells, config, read)
    by_row: dict[str, list[dict[str, Any]]] = {}
    for cell, result in zip(cells, results, strict=True):
        by_row.setdefault(cell.row, []).append(result)
    rows = [_row(name, found) for name, found in by_row.items()]
    write_results(config, table(rows), rows, {"recipe": cli.resolved(replace(full, out="-"))})
    return rows


def cells_of(full: TrainConfig, seed: int) -> list[Cell]:
    """The rows of one seed: the recipe, then the recipe less one part.

    All are measured on the pairs that the recipe's own gate keeps among the rows that this seed
    keeps back to test on.
    """
    base = replace(full, seed=seed)
    changed = {
        FULL: base,
        # Every judged pair passes; those without judge scores, too.
        NO_GATE: replace(
            base, quality_above=-1.0, quality_below=BEST_QUALITY + 1.0, keep_unjudged=True
        ),
        "without regulariser": replace(base, regulariser_weight=0.0),
        "encoder frozen": replace(base, freeze_encoder=True),
    }
    cells = [
        Cell(row=name, column="", config=config, measured_by=full)
        for name, config in changed.items()
    ]
    without = Cell(
        row="without referenced", column="", config=base, without_referenced=True, measured_by=full
    )
    return [*cells[:3], without, *cells[3:]]


def _row(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the spread between them (sample standard deviation)."""
    row: dict[str, Any] = {"row": name, "seeds": len(results)}
    row["train_pairs"] = round(float(np.mean([result["train_pairs"] for result in results])))
    runs = [held_out_of(result) for result in results]
    matched, cut, longer = (
        MEASURES.index(measure)
        for measure in ("matched_accuracy", "one_length_accuracy", "longer_wins")
    )
    values: dict[str, list[float | None]] = {
        "mean of kinds": [result["mean_accuracy"] for result in results],
        **{kind: [result["by_kind"].get(kind) for result in results] for kind in KINDS},
        "matched": [run.share(matched) for run in runs],
        "one length": [run.share(cut) for run in runs],
        "longer wins": [run.share(longer) for run in runs],
    }
    for column, found in values.items():
        there = [value for value in found if value is not None]
        row[column] = float(np.mean(there)) if there else None
        row[f"{column} sd"] = float(np.std(there, ddof=1)) if len(there) > 1 else None
    row["seconds"] = round(float(np.mean([result["seconds"] for result in results])), 1)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person: means in per cent, the spread over seeds behind ±."""
    width = max(len(row["row"]) for row in rows)
    heading = "  ".join(f"{column:>17}" for column in COLUMNS)
    lines = [f"{'':<{width}}  {'pairs':>6}  {heading}"]
    for row in rows:
        cells = "  ".join(f"{_percent(row, column):>17}" for column in COLUMNS)
        lines.append(f"{row['row']:<{width}}  {row['train_pairs']:>6,}  {cells}")
    pairs = {row["row"]: row["train_pairs"] for row in rows}
    if pairs[FULL] == pairs[NO_GATE]:
        lines.append(
            f"The gate keeps every pair of these quadruples, so `{NO_GATE}` is `{FULL}` again: "
            "bring quadruples with judge scores."
        )
    return "\n".join(lines)


def _percent(row: dict[str, Any], column: str) -> str:
    if row[column] is None:
        return "-"
    spread = row[f"{column} sd"]
    return f"{100 * row[column]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def job(argv: Sequence[str]) -> None:
    """Parse, run, and print the table."""
    config = cli.parse(AblateConfig, argv, prog="jobs.ablate", description=__doc__ or "")
    rows = ablate(config)
    print(f"\n{table(rows)}")  # noqa: T201 - the job's result


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
