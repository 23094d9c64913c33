"""Passes over all sidecars: the selection that the scores there are lead to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jobs import pipeline
from jobs import select_stages as stages
from scar_core.selection.drift import grid
from scar_core.selection.groups import GroupCuts, GroupSearch, merge_fetched, merge_tallies
from scar_core.selection.keep import Keep, KeepAbove, decide
from scar_core.selection.labels import Groups
from scar_core.selection.quotas import GroupRule, quotas
from scar_core.selection.report import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit, Surveyed
    from scar_core.selection.labels import GroupRows
    from scar_core.selection.order import Prefix
    from scar_core.selection.radix import Counts, Cut

# Rows whose sidecars one task reads: enough that Ray's 15 ms a task do not count.
CHUNK_ROWS = 500_000
TASKS_PER_CPU = 4


class GroupShare(NamedTuple):
    """What a group contributes."""

    group: str
    rows: GroupRows
    quota: int
    threshold: float | None
    """Its lowest selected score; None where it contributes nothing."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A selection by the scores that there are."""

    keep: Keep
    counts: Counts
    cut: Cut | GroupCuts
    quantiles: tuple[float, ...]
    groups: Groups | None = None
    """By which the selection is divided; None: it is not."""
    shares: tuple[GroupShare, ...] = ()
    """By group number; empty where there are no groups."""

    @property
    def eligible(self) -> int:
        """Rows that can be selected."""
        return self.counts.eligible

    @property
    def edges_E(self) -> NDArray[np.float64]:
        """A grid for its scores."""
        return grid(self.quantiles)

    @property
    def boundaries_G(self) -> NDArray[np.float64]:
        """By group, the score that parts selected rows from others; NaN where nothing does."""
        if isinstance(self.keep, KeepAbove):
            return np.array([self.keep.score])
        parted = [(self.cut.selected, self.eligible, self.cut.threshold)]
        if self.groups is not None:
            parted = [(s.quota, s.rows.eligible, s.threshold) for s in self.shares]
        return np.array(
            [
                np.nan if threshold is None or kept == eligible else threshold
                for kept, eligible, threshold in parted
            ],
            np.float64,
        )


def judge(units: Sequence[ScoredUnit], keep: Keep, rule: GroupRule | None = None) -> Judged:
    """Select by the units' effective scores; nothing is written.

    Raises:
        InputError: the rule cannot be met, or the column that it names holds no labels.
    """
    chunks = chunks_of(units)
    per = rule.column if rule else None

    def scan(prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = pipeline.fold(
            stages.scan_chunk, chunks, _add, prefixes=list(prefixes)
        )
        return found

    merge = partial(stages.merge_surveyed, per=per)
    surveyed: Surveyed = pipeline.fold(stages.survey_chunk, chunks, merge, per=per)
    whole = surveyed.survey
    decision = decide(whole, scan, None if rule else keep, probabilities=QUANTILES)
    if rule is None:
        return Judged(
            keep=keep, counts=whole.counts, cut=decision.cut, quantiles=decision.quantiles
        )
    groups, rows = _numbered(rule.column, surveyed.groups)
    eligible = [entry.eligible for entry in rows]
    wanted = quotas(keep, rule, names=groups.names, eligible=eligible)
    cuts = _search(chunks, groups, eligible=eligible, wanted=wanted)
    entries = zip(groups.names, rows, wanted, cuts.thresholds, strict=True)
    return Judged(
        keep=keep,
        counts=whole.counts,
        cut=cuts,
        quantiles=decision.quantiles,
        groups=groups,
        shares=tuple(GroupShare(*entry) for entry in entries),
    )


def _add(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return reduce(np.add, parts)


def _numbered(column: str, found: dict[str, GroupRows]) -> tuple[Groups, list[GroupRows]]:
    names = tuple(sorted(found))
    return Groups(column=column, names=names), [found[name] for name in names]


def _search(
    chunks: Sequence[Sequence[ScoredUnit]],
    groups: Groups,
    *,
    eligible: Sequence[int],
    wanted: Sequence[int],
) -> GroupCuts:
    """The cut of every group, in as many passes as it takes."""
    search = GroupSearch(eligible=eligible, wanted=wanted)
    while probe := search.probe():
        if probe.width:
            found = pipeline.fold(
                stages.tally_chunk, chunks, merge_tallies, groups=groups, probe=probe
            )
        else:
            found = pipeline.fold(
                stages.fetch_chunk, chunks, merge_fetched, groups=groups, probe=probe
            )
        search.take(probe, found)
    return search.cuts


def chunks_of(units: Sequence[ScoredUnit]) -> list[list[ScoredUnit]]:
    """The units in shares that suit the connected cluster; each task of a pass takes one."""
    import ray  # noqa: PLC0415

    tasks = max(1, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    rows = sum(scored.unit.rows for scored in units)
    return list(stages.consecutive(units, rows=max(CHUNK_ROWS, rows // tasks)))
