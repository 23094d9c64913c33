"""What rows are ordered by, where that is not their scores: found in a pass, set at every unit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jobs import pipeline
from jobs import select_stages as stages
from jobs.passes import chunks_of
from scar_core.errors import InputError
from scar_core.selection import combine, fronts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit
    from scar_core.selection.order import Worth
    from scar_core.selection.policies import OrderRule


def ordered(
    units: Sequence[ScoredUnit], rule: OrderRule, *, rough: bool
) -> tuple[list[ScoredUnit], Worth | None]:
    """The units, with what their rows are ordered by.

    Args:
        units: of the pool.
        rule: what is asked for.
        rough: whether scores are bf16 ones.

    Raises:
        InputError: it needs fp32 scores, or a column orders nothing.
    """
    if rough and rule.columns:
        raise InputError(
            f"{rule.flag} needs the fp32 score of every row, not only of those near the cut; these "
            "are bf16 scores. Score with --precision fp32."
        )
    base: Worth | None = None
    if rule.combined is not None:
        chunks = chunks_of(_with(units, rule.combined))
        sums = pipeline.fold(stages.moments_chunk, chunks, _added, combined=rule.combined)
        base = combine.fitted(rule.combined, sums)
    elif rule.fronts is not None:
        chunks = chunks_of(_with(units, rule.fronts))
        pairs_D = pipeline.fold(stages.pairs_chunk, chunks, fronts.merge_pairs, fronts=rule.fronts)
        base = fronts.fitted(rule.fronts, pairs_D)
    worth = rule.worth(base)
    return _with(units, worth), worth


def _with(units: Sequence[ScoredUnit], worth: Worth | None) -> list[ScoredUnit]:
    return [replace(scored, worth=worth) for scored in units]


def _added(parts: Iterable[list[NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
    return [sum(sums[1:], sums[0]) for sums in zip(*parts, strict=True)]
