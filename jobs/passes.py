"""Passes over all sidecars: the selection that the scores there are lead to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from jobs import pipeline
from jobs import select_stages as stages
from scar_core.selection.keep import Decision, Keep, KeepAbove, decide
from scar_core.selection.radix import Counts, merge_surveys
from scar_core.selection.report import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit
    from scar_core.selection.order import Prefix

# Rows whose sidecars one task reads: enough that Ray's 15 ms a task do not count.
CHUNK_ROWS = 500_000
TASKS_PER_CPU = 4


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A selection by the scores that there are."""

    keep: Keep
    counts: Counts
    decision: Decision

    @property
    def eligible(self) -> int:
        """Rows with a score."""
        return self.counts.eligible

    @property
    def boundary(self) -> float | None:
        """The score that separates selected rows from others; None where nothing does."""
        if isinstance(self.keep, KeepAbove):
            return self.keep.score
        return None if self.decision.cut.selected == self.eligible else self.decision.cut.threshold


def judge(units: Sequence[ScoredUnit], keep: Keep) -> Judged:
    """Select by the units' effective scores; nothing is written."""
    chunks = chunks_of(units)

    def scan(prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
        return reduce(np.add, pipeline.run(stages.scan_chunk, chunks, prefixes=list(prefixes)))

    survey = merge_surveys(pipeline.run(stages.survey_chunk, chunks))
    decision = decide(survey, scan, keep, probabilities=QUANTILES)
    return Judged(keep=keep, counts=survey.counts, decision=decision)


def chunks_of(units: Sequence[ScoredUnit]) -> list[list[ScoredUnit]]:
    """The units in shares that suit the connected cluster; each task of a pass takes one."""
    import ray  # noqa: PLC0415

    tasks = max(1, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    rows = sum(scored.unit.rows for scored in units)
    return list(stages.consecutive(units, rows=max(CHUNK_ROWS, rows // tasks)))
