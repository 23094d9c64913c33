"""How recipes do on sources that they did not train on: each source left out in turn."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import cli
from jobs.sweep import SweepConfig, read_for, recipe, run_cells, write_results
from jobs.sweep_cell import Cell, held_out_of
from scar_core.errors import InputError
from scar_core.training.heldout import MEASURES, HeldOut, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.train_inputs import TrainConfig
    from scar_core.training.quadruples import Quadruple

LEAST_QUADRUPLES = 20  # fewer say nothing of a source


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutConfig(SweepConfig):
    """Train without each source in turn, and measure on it."""

    recipes: list[str]
    """YAML files as `jobs.train --config` takes them; one or several, each a set of rows."""
    sources: list[str] = field(default_factory=list)
    """Sources to leave out; by default all with at least 20 quadruples that have an instruction
    and a direct response."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        names = Counter(PurePath(path).stem for path in self.recipes)
        if not names or max(names.values()) > 1:
            raise ValueError("recipes must name at least one file, and each by another name")


def leave_one_out(config: LeaveOneOutConfig) -> list[dict[str, Any]]:
    """Train and measure what is not there yet, write the tables; their rows.

    Raises:
        InputError: data, recipes or flags need fixing; nothing was started.
        RunError: a training broke; what the others measured is kept.
    """
    recipes = {PurePath(path).stem: recipe(path, config) for path in config.recipes}
    first = next(iter(recipes.values()))
    widest = next((made for made in recipes.values() if made.missing_instruction), first)
    read = read_for(config, widest)
    sources = chosen_sources(config, read.checked.quadruples)
    cells = [
        _cell(name, source, made, first, seed)
        for source in sources
        for name, made in recipes.items()
        for seed in range(config.seeds)
    ]
    results = run_cells(cells, config, read)
    rows = []
    for source in sources:
        for name in recipes:
            mine = [
                result
                for cell, result in zip(cells, results, strict=True)
                if (cell.row, cell.column) == (name, source)
            ]
            rows.append(_row(name, source, mine))
    recipes_used = {name: cli.resolved(replace(made, out="-")) for name, made in recipes.items()}
    write_results(config, table(rows), rows, {"recipes": recipes_used})
    return rows


def chosen_sources(config: LeaveOneOutConfig, quadruples: Sequence[Quadruple]) -> list[str]:
    """The sources to leave out, most quadruples first.

    Raises:
        InputError: a source that was asked for is not there, or no other would be left.
    """
    direct = Counter(
        item.source for item in quadruples if item.instruction_is_own and item.responses[-1]
    )
    if len({item.source for item in quadruples}) < 2:  # noqa: PLR2004 - one to leave out, one to keep
        raise InputError("all quadruples are of one source; to leave one out, bring two.")
    missing = [source for source in config.sources if source not in direct]
    if missing:
        found = ", ".join(f"{name} ({rows:,})" for name, rows in direct.most_common())
        raise InputError(
            f"--sources {' '.join(missing)}: no quadruples with an instruction and a direct "
            f"response are of that source; found {found}."
        )
    return config.sources or [
        source for source, rows in direct.most_common() if rows >= LEAST_QUADRUPLES
    ]


def _cell(name: str, source: str, made: TrainConfig, first: TrainConfig, seed: int) -> Cell:
    # Nothing is kept back to test on: the source left out is the test.
    config = replace(made, seed=seed, test_share=0.0)
    # Rows are read once for all recipes; one without a stand-in does not know those that need it.
    own_only = config.missing_instruction is None
    return Cell(
        row=name, column=source, config=config, leave_out=True, own_only=own_only, measured_by=first
    )


def _row(name: str, source: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, spread over seeds, and an interval over quadruples."""
    runs = [held_out_of(result) for result in results]
    row: dict[str, Any] = {"source": source, "recipe": name, "seeds": len(runs)}
    row["pairs"] = int(runs[0].pairs_QM[:, 0].sum())
    row["matched_pairs"] = int(runs[0].pairs_QM[:, MEASURES.index("matched_accuracy")].sum())
    for index, measure in enumerate(MEASURES):
        row |= _shares(measure, index, runs)
    row["seconds"] = round(float(np.mean([result["seconds"] for result in results])), 1)
    return row


def _shares(measure: str, index: int, runs: list[HeldOut]) -> dict[str, float | None]:
    shares = [share for run in runs if (share := run.share(index)) is not None]
    if not shares:
        return dict.fromkeys([measure, f"{measure}_sd", f"{measure}_low", f"{measure}_high"])
    low, high = interval(runs, index) or (None, None)
    spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
    return {
        measure: float(np.mean(shares)),
        f"{measure}_sd": spread,
        f"{measure}_low": low,
        f"{measure}_high": high,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person: in per cent, with 95 % intervals in brackets."""
    width = max(len("left out"), *(len(row["source"]) for row in rows))
    name = max(len("recipe"), *(len(row["recipe"]) for row in rows))
    heading = f"{'left out':<{width}}  {'recipe':<{name}}  {'pairs':>5}  {'accuracy':>16}  "
    heading += (
        f"{'longer wins':>11}  {'matched':>7}  {'accuracy there':>16}  {'cut to one length':>17}"
    )
    lines = [heading]
    lines += [
        f"{row['source']:<{width}}  {row['recipe']:<{name}}  {row['pairs']:>5,}  "
        f"{_percent(row, 'accuracy'):>16}  {_short(row['longer_wins']):>11}  "
        f"{row['matched_pairs']:>7,}  {_percent(row, 'matched_accuracy'):>16}  "
        f"{_percent(row, 'one_length_accuracy'):>17}"
        for row in rows
    ]
    return "\n".join(lines)


def _short(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _percent(row: dict[str, Any], measure: str) -> str:
    if row[measure] is None:
        return "-"
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    return f"{_short(row[measure])} [{100 * low:.0f}, {100 * high:.0f}]"


def job(argv: Sequence[str]) -> None:
    """Parse, run, and print the table."""
    config = cli.parse(
        LeaveOneOutConfig, argv, prog="jobs.leave_one_out", description=__doc__ or ""
    )
    rows = leave_one_out(config)
    print(f"\n{table(rows)}")  # noqa: T201 - the job's result


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
