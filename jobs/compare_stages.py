"""What runs on the workers of a comparison of two runs: passes over sidecars, no pool file.

compare_chunk  units of both runs  →  rows that stayed, entered and left; scores on a grid

Array suffixes: N rows of some units, E edges and B bins of the grid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from scar_core.errors import AccessError, InputError, SchemaError, StoreError
from scar_core.selection.drift import histogram
from scar_core.selection.order import SidecarColumns
from scar_core.selection.precision import open_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scar_core.pool.changes import Fate, Segment
    from scar_core.pool.units import Unit
    from scar_core.selection.radix import Cut


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A unit of a run, and where its scores are."""

    ordinal: int
    """Its place in (path, row) order among the units of its run."""
    unit: Unit
    sidecar: str
    """Path or URL, from any machine."""
    rescored: tuple[str, ...] = ()
    """Files with rows of it that were scored again in fp32."""


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What both runs selected."""

    before: Cut
    now: Cut


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of the rows of some units between two runs."""

    rows: dict[Fate, int] = field(default_factory=dict)
    """By the fate of their file; those of a changed file as it is now, and `gone` what is not."""
    gone: int = 0
    """Rows of files as they are no longer: removed, or changed."""
    stayed: int = 0
    """Selected by both runs."""
    entered: dict[Fate, int] = field(default_factory=dict)
    """Selected now alone."""
    left: dict[Fate, int] = field(default_factory=dict)
    """Selected before alone."""
    before_B: NDArray[np.int64] | int = 0
    """Scores of all rows of the run before, on the grid."""
    now_B: NDArray[np.int64] | int = 0
    new_B: NDArray[np.int64] | int = 0
    """Those of files that are new or changed."""
    unreadable: str = ""
    """A sidecar of the run before that could not be read; nothing else holds then."""

    def __add__(self, other: Changes) -> Changes:
        """What became of both groups of rows."""
        return Changes(
            rows=_sum(self.rows, other.rows),
            gone=self.gone + other.gone,
            stayed=self.stayed + other.stayed,
            entered=_sum(self.entered, other.entered),
            left=_sum(self.left, other.left),
            before_B=self.before_B + other.before_B,
            now_B=self.now_B + other.now_B,
            new_B=self.new_B + other.new_B,
            unreadable=self.unreadable or other.unreadable,
        )


def _sum(left: dict[Fate, int], right: dict[Fate, int]) -> dict[Fate, int]:
    return dict(Counter(left) + Counter(right))


class Side(NamedTuple):
    """One run's view of the rows of a segment; empty where its file is not in the run."""

    columns: list[SidecarColumns]
    """Of one unit after the other."""
    selected_N: NDArray[np.bool_]


class UnreadableError(InputError):
    """A sidecar of the run before cannot be read."""


def selected_mask(columns: SidecarColumns, cut: Cut) -> NDArray[np.bool_]:
    """[N] what a run selected of a unit: the one place that knows how a run selects."""
    return cut.mask(columns)


def open_sides(segment: Segment[ScoredRows], cuts: Cuts) -> tuple[Side, Side]:
    """Both views; a sidecar that both share is read once."""
    now = [_open(item) for item in segment.now]
    opened = {item.sidecar: columns for item, columns in zip(segment.now, now, strict=True)}
    after = Side(now, _masks(now, cuts.now))
    try:
        before = []
        for item in segment.before:
            read = opened[item.sidecar].read if item.sidecar in opened else _open(item).read
            # Its own ordinal: of equal rows the place decides, and that may be another now.
            before.append(SidecarColumns(read, ordinal=item.ordinal, where=item.sidecar))
        return Side(before, _masks(before, cuts.before)), after
    except (AccessError, StoreError):  # the store's fault, not that of the run before
        raise
    except (pa.ArrowException, OSError, SchemaError) as error:
        raise UnreadableError(str(error)) from error


def _open(item: ScoredRows) -> SidecarColumns:
    columns = open_columns(item.sidecar, ordinal=item.ordinal, rescored=item.rescored)
    return SidecarColumns(cache(columns.read), ordinal=item.ordinal, where=item.sidecar)


def _masks(columns: Sequence[SidecarColumns], cut: Cut) -> NDArray[np.bool_]:
    parts = [selected_mask(of_unit, cut) for of_unit in columns]
    return np.concatenate([np.zeros(0, np.bool_), *parts])


def compare_chunk(
    chunk: Sequence[Segment[ScoredRows]], *, cuts: Cuts, edges_E: NDArray[np.float64]
) -> Changes:
    """What became of the rows of some segments."""
    total = Changes()
    for segment in chunk:
        try:
            total += _compare(segment, cuts, edges_E)
        except UnreadableError as error:
            return Changes(unreadable=str(error))
    return total


def _compare(segment: Segment[ScoredRows], cuts: Cuts, edges_E: NDArray[np.float64]) -> Changes:
    before, now = open_sides(segment, cuts)
    now_B = _on_grid(now, edges_E)
    fate = segment.fate
    # The same rows under one scoring key have the same scores.
    before_B = now_B if fate == "same" else _on_grid(before, edges_E)
    if fate == "same":
        both_N = before.selected_N & now.selected_N
        stayed = int(both_N.sum())
    else:
        stayed = 0
    return Changes(
        rows={fate: len(now.selected_N)},
        gone=0 if fate == "same" else len(before.selected_N),
        stayed=stayed,
        entered={fate: int(now.selected_N.sum()) - stayed},
        left={fate: int(before.selected_N.sum()) - stayed},
        before_B=before_B,
        now_B=now_B,
        new_B=now_B if fate in ("new", "changed") else 0 * now_B,
    )


def _on_grid(side: Side, edges_E: NDArray[np.float64]) -> NDArray[np.int64]:
    counts_B = np.zeros(len(edges_E) + 1, np.int64)
    for columns in side.columns:
        scores_N = columns.scores.to_numpy(zero_copy_only=False)
        counts_B += histogram(scores_N[columns.eligible_N], edges_E)
    return counts_B
