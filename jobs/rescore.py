"""Score again in fp32 what decides a selection by bf16 scores; `precision` proves it enough."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import pipeline
from jobs import select_stages as stages
from jobs.actors import WRITER_CPUS, ActorConfig, few_tasks, scored_units
from jobs.events import tell
from jobs.find_copies import mark
from jobs.passes import chunks_of
from scar_core.errors import RunError
from scar_core.selection.precision import SAMPLE_ROWS, Errors, list_rescored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from jobs.passes import Judged
    from jobs.select_stages import ScoredUnit
    from scar_core.pool.rows import PairColumns

    Rows = dict[int, NDArray[np.int32]]
    """Rows to score again: offsets within the unit, by its ordinal."""

logger = logging.getLogger("scar_curate")

# Scoring rows again moves the threshold a little, and other rows come within the bound. Some rows
# more at once save a round, and with it the start of the actors.
MARGIN = 1.5
MOST_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Rescorer:
    """How rows are scored again, and where their scores go."""

    scores: str
    """The scores directory."""
    key_id: str
    """Of the bf16 scores."""
    ranker: str
    columns: PairColumns
    max_tokens: int
    actors: ActorConfig

    def refresh(self, units: Sequence[ScoredUnit]) -> list[ScoredUnit]:
        """The units with all rows that were scored again so far."""
        found = list_rescored(self.scores, key_id=self.key_id)
        return [replace(scored, rescored=tuple(found.get(scored.unit.id, ()))) for scored in units]

    def score_again(self, units: Sequence[ScoredUnit], rows: Rows) -> int:
        """Score some rows in fp32 and store them; how many."""
        from jobs.read_stage import ReadTask  # noqa: PLC0415 - torch
        from jobs.score_stages import write_rescored_rows  # noqa: PLC0415 - torch

        tasks = []
        for file, group in groupby(
            (scored for scored in units if scored.ordinal in rows), key=lambda scored: scored.file
        ):
            of_file = list(group)
            tasks.append(
                ReadTask(
                    file=file,
                    units=tuple(scored.unit for scored in of_file),
                    offsets=tuple(rows[scored.ordinal] for scored in of_file),
                )
            )
        scored = scored_units(
            tasks,
            ranker=self.ranker,
            columns=self.columns,
            max_tokens=self.max_tokens,
            precision="fp32",
            actors=self.actors,
            name="score_again",
        )
        written = pipeline.stage(
            scored,
            write_rescored_rows,
            fn_kwargs={"scores": self.scores, "key_id": self.key_id},
            batch_format="pyarrow",
            compute=few_tasks(),
            num_cpus=WRITER_CPUS,
        )
        return sum(pipeline.results(written))


def score_repeated(
    rescorer: Rescorer, units: Sequence[ScoredUnit], folder: str
) -> tuple[list[ScoredUnit], int]:
    """Score again all rows whose content comes several times; the units with them, how many now.

    Only then is it known which row of a content is its best.
    """
    current = mark(rescorer.refresh(units), folder=folder, which="repeated")
    rows = _find(current, stages.marked_chunk)
    if not rows:
        return rescorer.refresh(units), 0
    logger.info("%s rows share their content", f"{sum(map(len, rows.values())):,}")
    added = rescorer.score_again(current, rows)
    tell("rows_rescored", rows=added)
    return rescorer.refresh(units), added


def settle(
    rescorer: Rescorer,
    units: Sequence[ScoredUnit],
    judge: Callable[[Sequence[ScoredUnit]], Judged],
    *,
    already: int = 0,
) -> tuple[list[ScoredUnit], Judged, dict[str, Any]]:
    """Score rows again until those near the boundary all are.

    Args:
        rescorer: scores rows again.
        units: of the pool, scored in bf16; copies marked by effective scores.
        judge: selects by the units' effective scores.
        already: rows that this run has scored again before.

    Returns:
        The units with all that was scored again, what `judge` makes of them, and for the manifest:
        rows scored both ways, those of this run, the largest error seen, and the bound.

    Raises:
        RunError: the boundary does not settle.
    """
    current = rescorer.refresh(units)
    judged = judge(current)
    rows = _find(current, stages.sample_chunk, share=SAMPLE_ROWS / max(judged.counts.eligible, 1))
    new_rows = already
    for _ in range(MOST_ROUNDS):
        if rows:
            added = rescorer.score_again(current, rows)
            new_rows += added
            tell("rows_rescored", rows=added)
            current = rescorer.refresh(units)
            judged = judge(current)
        errors = reduce(add, pipeline.run(stages.errors_chunk, chunks_of(current)), Errors(0, 0.0))
        rows = _near(current, judged, bound=errors.bound)
        if not rows:
            logger.info(
                "%s rows scored again in fp32, %s of them now; largest error %.3g",
                f"{errors.rows:,}",
                f"{new_rows:,}",
                errors.largest,
            )
            return current, judged, _record(errors, new_rows)
    raise RunError(
        f"after {MOST_ROUNDS} rounds {sum(map(len, rows.values())):,} rows are still within "
        f"{errors.bound:.3g} of the threshold. Score with --precision fp32."
    )


def _near(units: Sequence[ScoredUnit], judged: Judged, *, bound: float) -> Rows:
    """Rows to score again because they lie within the bound, and then some more beside them."""

    def within(distance: float) -> Rows:
        found: Rows = {}
        for groups, at_G in judged.boundaries:
            near: dict[str, Any] = {"boundaries_G": at_G, "groups": groups, "bound": distance}
            for ordinal, rows in _find(units, stages.near_chunk, **near).items():
                found[ordinal] = np.union1d(found.get(ordinal, rows), rows).astype(np.int32)
        return found

    return within(bound * MARGIN) if within(bound) else {}


def _find(units: Sequence[ScoredUnit], stage: Callable[..., Rows], **options: Any) -> Rows:  # noqa: ANN401
    """Rows to score again, of all units."""
    found: Rows = {}
    for part in pipeline.run(stage, chunks_of(units), **options):
        found.update(part)
    return found


def _record(errors: Errors, new_rows: int) -> dict[str, Any]:
    return {
        "scores": "bf16",
        "rescored_rows": errors.rows,
        "rescored_now": new_rows,
        "largest_error": errors.largest,
        "bound": errors.bound,
    }
