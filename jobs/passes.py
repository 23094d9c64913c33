"""Passes over all sidecars: the selection that the scores there are lead to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jobs import pipeline
from jobs import select_stages as stages
from scar_core.selection.bands import BandRule, Bands, Cap, bands_of, rows_by_band, within_cap
from scar_core.selection.drift import grid
from scar_core.selection.groups import GroupCuts, GroupSearch, merge_fetched, merge_tallies
from scar_core.selection.keep import Decision, Keep, KeepAbove, KeepCount, decide
from scar_core.selection.labels import Groups
from scar_core.selection.policies import describe
from scar_core.selection.quotas import GroupRule, quotas
from scar_core.selection.report import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from jobs.select_stages import ScoredUnit, Surveyed
    from scar_core.selection.budget import Fitting
    from scar_core.selection.labels import GroupRows
    from scar_core.selection.order import Prefix, Worth
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


class Boundary(NamedTuple):
    """Where a row's place in the order decides."""

    groups: Groups | Bands | None
    at_G: NDArray[np.float64]
    """By group, the score, or other worth, that parts rows from others; NaN where nothing does."""


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
    budget: Fitting | None = None
    """What fits into a budget of tokens, where that is kept."""
    cap: Cap | None = None
    """Of length bands."""
    worth: Worth | None = None
    """What rows are ordered by; None: their scores."""
    band_rows: tuple[int, ...] = ()
    """Eligible rows of each band."""

    @property
    def eligible(self) -> int:
        """Rows that can be selected."""
        return int(self.cap.cuts.selected) if self.cap else self.counts.eligible

    @property
    def policy(self) -> dict[str, Any]:
        """What was asked for beside groups and copies, for a manifest; `at` is where it ends."""
        told: dict[str, Any] = {}
        if self.worth is not None:
            told["order"] = describe(self.worth) | {"at": self.cut.threshold}
        if self.budget is not None:
            told["tokens"] = self.budget.tokens
        if self.cap is not None:
            within, at = self.cap.cuts.selected_G.tolist(), self.cap.cuts.thresholds
            names = self.cap.bands.names
            told["length_bands"] = [
                {"band": name, "eligible": rows, "within_cap": within_rows, "cap_at": threshold}
                for name, rows, within_rows, threshold in zip(
                    names, self.band_rows, within, at, strict=True
                )
            ]
        return told

    @property
    def boundaries(self) -> list[Boundary]:
        """All that decides which rows are selected."""
        found = [Boundary(self.groups, self.boundaries_G)]
        if self.budget is not None and self.budget.stopped_by is not None:
            found.append(Boundary(None, np.array([self.budget.stopped_by])))
        if self.cap is not None:
            bands, cuts = self.cap
            parted = zip(self.band_rows, cuts.selected_G.tolist(), cuts.thresholds, strict=True)
            at = [np.nan if t is None or n == rows else t for rows, n, t in parted]
            found.append(Boundary(bands, np.array(at, np.float64)))
        return found

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


def judge(
    units: Sequence[ScoredUnit],
    keep: Keep,
    rule: GroupRule | None = None,
    *,
    bands: BandRule | None = None,
    worth: Worth | None = None,
) -> Judged:
    """Select by the units' effective scores; nothing is written.

    Args:
        units: with what rows are ordered by.
        keep: what to keep.
        rule: how groups share it.
        bands: the cap of length bands.
        worth: what rows are ordered by; their scores where None.

    Raises:
        InputError: a rule cannot be met, or the column that it names holds no labels.
    """
    per = rule.column if rule else None
    chunks = chunks_of(units)
    whole = _survey(chunks, per)
    cap: Cap | None = None
    band_rows: Sequence[int] = ()
    capped = whole
    if bands is not None:
        cap, band_rows, keep = _capped(chunks, keep, bands)
        chunks = [[replace(scored, cap=cap) for scored in chunk] for chunk in chunks]
        capped = _survey(chunks, per)
    wanted = None if rule or keep == KeepCount(0) else keep
    decision = _decide(chunks, capped, wanted, quantiles=bands is None)
    judged = Judged(
        keep=keep,
        worth=worth,
        counts=whole.survey.counts,
        cut=decision.cut,
        quantiles=_quantiles(units, decision, plain=bands is None),
        budget=decision.budget,
        cap=cap,
        band_rows=tuple(band_rows),
    )
    return (
        judged if rule is None else _divided(judged, chunks, keep, rule, whole=whole, capped=capped)
    )


def _survey(chunks: Sequence[Sequence[ScoredUnit]], per: str | None) -> Surveyed:
    merge = partial(stages.merge_surveyed, per=per)
    surveyed: Surveyed = pipeline.fold(stages.survey_chunk, chunks, merge, per=per)
    return surveyed


def _decide(
    chunks: Sequence[Sequence[ScoredUnit]],
    surveyed: Surveyed,
    keep: Keep | None,
    *,
    quantiles: bool,
) -> Decision:
    def over(stage: Callable[..., NDArray[np.int64]], prefixes: Sequence[Prefix]) -> Any:  # noqa: ANN401
        return pipeline.fold(stage, chunks, _add, prefixes=list(prefixes))

    return decide(
        surveyed.survey,
        partial(over, stages.scan_chunk),
        keep,
        probabilities=QUANTILES if quantiles else (),
        weigh=partial(over, stages.weigh_chunk),
    )


def _quantiles(
    units: Sequence[ScoredUnit], decision: Decision, *, plain: bool
) -> tuple[float, ...]:
    """Quantiles of all scores, whatever rows are ordered by and take part."""
    if plain and not any(scored.worth for scored in units):
        return decision.quantiles
    chunks = chunks_of([replace(scored, worth=None, cap=None) for scored in units])
    return _decide(chunks, _survey(chunks, None), None, quantiles=True).quantiles


def _capped(
    chunks: Sequence[Sequence[ScoredUnit]], keep: Keep, rule: BandRule
) -> tuple[Cap, list[int], Keep]:
    """Where each band is full, the eligible rows of each, and what is kept of those within."""
    found = pipeline.fold(stages.lengths_chunk, chunks, merge_tallies)
    bands = bands_of(rule, found)
    eligible = rows_by_band(bands, found)
    within, keep = within_cap(keep, rule, bands=bands, eligible=eligible)
    return Cap(bands, _search(chunks, bands, eligible=eligible, wanted=within)), eligible, keep


def _divided(
    judged: Judged,
    chunks: Sequence[Sequence[ScoredUnit]],
    keep: Keep,
    rule: GroupRule,
    *,
    whole: Surveyed,
    capped: Surveyed,
) -> Judged:
    """The selection divided among groups; their quotas are of the rows within the cap."""
    groups, rows = _numbered(rule.column, whole.groups)
    eligible = [capped.groups[name].eligible for name in groups.names]
    wanted = quotas(keep, rule, names=groups.names, eligible=eligible)
    cuts = _search(chunks, groups, eligible=eligible, wanted=wanted)
    rows = [entry._replace(eligible=n) for entry, n in zip(rows, eligible, strict=True)]
    entries = zip(groups.names, rows, wanted, cuts.thresholds, strict=True)
    shares = tuple(GroupShare(*entry) for entry in entries)
    return replace(judged, cut=cuts, groups=groups, shares=shares)


def _add(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return reduce(np.add, parts)


def _numbered(column: str, found: dict[str, GroupRows]) -> tuple[Groups, list[GroupRows]]:
    names = tuple(sorted(found))
    return Groups(column=column, names=names), [found[name] for name in names]


def _search(
    chunks: Sequence[Sequence[ScoredUnit]],
    groups: Groups | Bands,
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
