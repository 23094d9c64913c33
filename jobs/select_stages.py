"""What runs on the workers of a selection: passes over sidecars.

survey_chunk   sidecars  →  their counts, the first histogram of their keys, rows by group
scan_chunk     sidecars  →  histograms of a further digit
weigh_chunk    sidecars  →  the same, tokens in place of rows
lengths_chunk  sidecars  →  rows by length
moments_chunk  sidecars  →  sums of columns that are to be combined
pairs_chunk    sidecars  →  pairs of numbers that lie on Pareto fronts
tally_chunk    sidecars  →  rows of each group by their next bits
fetch_chunk    sidecars  →  the rows between which groups' cuts lie
sample_chunk   sidecars  →  rows by which bf16 errors are measured
near_chunk     sidecars  →  rows that bf16 errors could carry over a boundary
errors_chunk   sidecars  →  the largest error seen
tell_chunk     sidecars  →  the selected rows as a file, shares by source, best and worst rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from scar_core import storage
from scar_core.errors import IncompleteError
from scar_core.selection import groups as by_group
from scar_core.selection.bands import Bands, lengths
from scar_core.selection.budget import token_histograms
from scar_core.selection.combine import Combined, moments, numbers_of, values_of_term
from scar_core.selection.drift import histogram
from scar_core.selection.extremes import Extremes, extremes, merge_extremes
from scar_core.selection.fronts import Fronts, distinct_pairs
from scar_core.selection.labels import (
    GroupRows,
    Groups,
    Labels,
    count_groups,
    labels_of,
    merge_groups,
)
from scar_core.selection.order import Prefix, SidecarColumns
from scar_core.selection.picked import Picked, picked_path, picked_rows, write_picked
from scar_core.selection.precision import (
    Errors,
    Rescored,
    errors_of,
    open_columns,
    read_rescored,
    rows_near,
    sample_rows,
)
from scar_core.selection.quotas import MOST_GROUPS
from scar_core.selection.radix import Cut, Survey, histograms, merge_surveys, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile
    from scar_core.pool.units import Unit
    from scar_core.selection.bands import Cap
    from scar_core.selection.order import Worth

    Rows = dict[int, NDArray[np.int32]]
    """Offsets within a unit, by its ordinal."""


class Marks(NamedTuple):
    """Where it says which rows of a unit are marked: a bit a row, from a whole byte on."""

    path: str
    first_byte: int


class Near(NamedTuple):
    """Where it says which rows of a unit are in clusters of near-duplicates."""

    path: str
    batch: int
    """Number of the unit's batch there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredUnit:
    """A unit and where its scores are."""

    ordinal: int
    """Its place in (path, row) order among all units; part of a row's key."""
    unit: Unit
    file: PoolFile
    """Whose rows these are."""
    sidecar: str
    """Path or URL, from any machine."""
    rescored: tuple[str, ...] = ()
    """Files with rows of it that were scored again in fp32."""
    marks: Marks | None = None
    """Its rows that are copies of better ones, where copies are left out."""
    near: Near | None = None
    """Its rows that are nearly the same as others, where they were looked for."""
    worth: Worth | None = None
    """What rows are ordered by; their scores where None."""
    cap: Cap | None = None
    """Where each length band is full."""


class Surveyed(NamedTuple):
    """What the first pass finds."""

    survey: Survey
    groups: dict[str, GroupRows]
    """Empty without a column to group by."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a cut does to some units."""

    picked: list[Picked]
    """The selected rows, in files that are there, in (path, row) order."""
    spread_B: NDArray[np.int64]
    """All scores, on the grid."""
    sources: dict[str, tuple[int, int]] | None
    """(rows, selected rows) by source; empty where the files have no such column; None: too many
    sources to tell them apart."""
    by_group_G: NDArray[np.int64]
    """Selected rows of each group; all of them where there is one group."""
    extremes: Extremes
    lowest: float | None
    """The lowest selected score; None where nothing is selected."""
    by_band_B: NDArray[np.int64]
    """Selected rows of each length band; none where no band has a cap."""


def columns_of(
    units: Iterable[ScoredUnit], *, groups: Groups | Bands | None = None
) -> Iterator[SidecarColumns]:
    """The sidecars of some units with effective scores, opened one after the other."""
    held = list(units)
    others = iter(_numbers_of(held))
    if isinstance(groups, Groups):
        for scored, labels in labelled(held, groups.column):
            yield _open(scored, groups.number(labels), next(others))
        return
    for scored in held:
        columns = _open(scored, None, next(others))
        if groups is not None:
            columns.group_by(groups.number(columns))
        yield columns


def _open(
    scored: ScoredUnit, groups_N: NDArray[np.int32] | None, numbers: dict[str, NDArray[np.float32]]
) -> SidecarColumns:
    columns = open_columns(
        scored.sidecar,
        ordinal=scored.ordinal,
        rescored=scored.rescored,
        copies_N=marked(scored),
        worth=scored.worth,
        numbers=numbers,
        place=(scored.unit.path, scored.unit.row_start),
        near=None if scored.near is None else partial(_near_rows, *scored.near),
    )
    if scored.cap is not None:
        scored.cap.apply(columns)
    columns.group_by(groups_N)
    return columns


def _numbers_of(units: Sequence[ScoredUnit]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What each unit's worth needs of the pool: those columns alone, each file opened once."""
    for (file, worth), of_file in groupby(units, key=lambda scored: (scored.file, scored.worth)):
        ranges = [bounds(scored.unit) for scored in of_file]
        if worth is None or not worth.columns:
            yield from ({} for _ in ranges)
        else:
            yield from numbers_of(file, ranges, columns=worth.columns)


def labelled(units: Iterable[ScoredUnit], column: str) -> Iterator[tuple[ScoredUnit, Labels]]:
    """Units with their labels, read from the pool: that column alone, each file opened once."""
    for file, of_file in groupby(units, key=lambda scored: scored.file):
        held = list(of_file)
        ranges = [bounds(scored.unit) for scored in held]
        yield from zip(held, labels_of(file, ranges, column=column), strict=True)


def bounds(unit: Unit) -> tuple[int, int]:
    """(first row, row after the last) of a unit."""
    return unit.row_start, unit.row_start + unit.rows


def marked(scored: ScoredUnit) -> NDArray[np.bool_] | None:
    """[N] a unit's marked rows; None where it has no marks."""
    if scored.marks is None:
        return None
    first, rows = scored.marks.first_byte, scored.unit.rows
    bits = np.frombuffer(_mark_file(scored.marks.path), np.uint8, -(-rows // 8), first)
    return np.unpackbits(bits, count=rows).view(np.bool_)


def _near_rows(path: str, batch: int) -> pa.RecordBatch:
    with pa.ipc.open_file(pa.BufferReader(_near_file(path))) as reader:
        return reader.get_batch(batch)


@lru_cache(maxsize=2)
def _near_file(path: str) -> bytes:
    """Read once for all units of a chunk; no two runs share a path."""
    return storage.read_bytes(path)


@lru_cache(maxsize=2)
def _mark_file(path: str) -> bytes:
    """Read once for all units of a chunk; no two runs share a path."""
    return storage.read_bytes(path)


def consecutive(units: Sequence[ScoredUnit], *, rows: int) -> Iterator[list[ScoredUnit]]:
    """Units that follow each other, about so many rows at a time."""
    chunk: list[ScoredUnit] = []
    held = 0
    for scored in units:
        if chunk and held + scored.unit.rows > rows:
            yield chunk
            chunk, held = [], 0
        chunk.append(scored)
        held += scored.unit.rows
    yield chunk


def survey_chunk(chunk: Sequence[ScoredUnit], *, per: str | None = None) -> Surveyed:
    """The first pass over some units; `per` is the column to group by.

    Raises:
        IncompleteError: a sidecar has another number of rows than its unit.
        InputError: the column holds no labels, or too many.
    """
    found: list[dict[str, GroupRows]] = []
    labels = iter(labelled(chunk, per)) if per else None

    def checked() -> Iterator[SidecarColumns]:
        for scored, columns in zip(chunk, columns_of(chunk), strict=True):
            if len(columns) != scored.unit.rows:
                raise IncompleteError(
                    f"{scored.sidecar}: holds {len(columns):,} rows, its unit {scored.unit.rows:,}."
                    " Score again: only what is broken is done anew."
                )
            if per and labels:
                counted = count_groups(columns, next(labels)[1], column=per)
                found[:] = [merge_groups([*found, counted], column=per)]
            yield columns

    total = survey(checked())
    return Surveyed(total, found[0] if found else {})


def merge_surveyed(parts: Iterable[Surveyed], *, per: str | None = None) -> Surveyed:
    """What the first pass found of all units; a part at a time."""
    total = Surveyed(merge_surveys([]), {})
    for part in parts:
        total = Surveyed(
            merge_surveys([total.survey, part.survey]),
            merge_groups([total.groups, part.groups], column=per or ""),
        )
    return total


def scan_chunk(chunk: Sequence[ScoredUnit], *, prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
    """One more pass: the histograms of some units' keys under each prefix."""
    return histograms(columns_of(chunk), prefixes)


def weigh_chunk(chunk: Sequence[ScoredUnit], *, prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
    """One more pass: as `scan_chunk`, tokens in place of rows."""
    return token_histograms(columns_of(chunk), prefixes)


def lengths_chunk(chunk: Sequence[ScoredUnit]) -> by_group.Tally:
    """Eligible rows of some units by their tokens."""
    return lengths(columns_of(chunk))


def moments_chunk(chunk: Sequence[ScoredUnit], *, combined: Combined) -> list[NDArray[np.int64]]:
    """The moments of each term, over the rows that have all of them."""
    found = [moments(np.zeros(0, np.float32)) for _ in combined.terms]
    for columns in columns_of(chunk):
        for index, term in enumerate(combined.terms):
            found[index] += moments(values_of_term(columns, term)[columns.eligible_N])
    return found


def pairs_chunk(chunk: Sequence[ScoredUnit], *, fronts: Fronts) -> NDArray[np.uint64]:
    """Distinct pairs of two numbers."""
    return distinct_pairs(columns_of(chunk), fronts)


def tally_chunk(
    chunk: Sequence[ScoredUnit], *, groups: Groups | Bands, probe: by_group.Probe
) -> by_group.Tally:
    """One more pass: rows under each group's prefix by their next bits."""
    return by_group.tally(columns_of(chunk, groups=groups), probe)


def fetch_chunk(
    chunk: Sequence[ScoredUnit], *, groups: Groups | Bands, probe: by_group.Probe
) -> by_group.Fetched:
    """The last pass: the rows under each group's prefix."""
    return by_group.fetch(columns_of(chunk, groups=groups), probe)


def sample_chunk(chunk: Sequence[ScoredUnit], *, share: float) -> Rows:
    """Rows of the sample by which bf16 errors are measured, less those scored again already."""
    return _rows_of(chunk, lambda columns, again: sample_rows(columns, again, share=share))


def near_chunk(
    chunk: Sequence[ScoredUnit],
    *,
    boundaries_G: NDArray[np.float64],
    bound: float,
    groups: Groups | Bands | None = None,
) -> Rows:
    """Rows within the bound of their group's boundary, less those scored again already."""
    return _rows_of(
        chunk,
        lambda columns, again: rows_near(columns, again, boundaries_G=boundaries_G, bound=bound),
        groups=groups,
    )


def marked_chunk(chunk: Sequence[ScoredUnit]) -> Rows:
    """Marked rows, less those scored again already."""

    def pick(columns: SidecarColumns, again: Rescored) -> NDArray[np.int32]:
        picked_N = columns.scored_N & ~columns.eligible_N
        picked_N[again.offsets_M] = False
        return np.flatnonzero(picked_N).astype(np.int32)

    return _rows_of(chunk, pick)


def _rows_of(
    chunk: Sequence[ScoredUnit],
    pick: Callable[[SidecarColumns, Rescored], NDArray[np.int32]],
    *,
    groups: Groups | Bands | None = None,
) -> Rows:
    """What is picked of each unit's bf16 scores."""
    found = {}
    rough = [replace(scored, rescored=()) for scored in chunk]
    for scored, columns in zip(chunk, columns_of(rough, groups=groups), strict=True):
        rows_M = pick(columns, read_rescored(scored.rescored))
        if len(rows_M):
            found[scored.ordinal] = rows_M
    return found


def errors_chunk(chunk: Sequence[ScoredUnit]) -> Errors:
    """How far the bf16 scores of some units are from fp32, where both are known."""
    errors = Errors(0, 0.0)
    for scored in chunk:
        if scored.rescored:
            columns = SidecarColumns.open(scored.sidecar, ordinal=scored.ordinal)
            errors += errors_of(columns, read_rescored(scored.rescored))
    return errors


def tell_chunk(
    chunk: Sequence[ScoredUnit],
    *,
    cut: Cut | by_group.GroupCuts,
    source_column: str,
    folder: str,
    edges_E: NDArray[np.float64],
    groups: Groups | None = None,
) -> Told:
    """What a cut does to some units; writes which rows it selects below the run's folder."""
    masks: dict[int, NDArray[np.bool_]] = {}
    by_group_G = np.zeros(len(groups.names) if groups else 1, np.int64)
    by_band_B = np.zeros(1, np.int64)
    lowest: list[float] = []
    spread_B = np.zeros(len(edges_E) + 1, np.int64)

    def selected() -> Iterator[pa.Table]:
        nonlocal by_band_B
        for scored, columns in zip(chunk, columns_of(chunk, groups=groups), strict=True):
            mask_N = masks[columns.ordinal] = cut.mask(columns)
            np.add.at(by_group_G, columns.groups_N[mask_N], 1)
            if mask_N.any():
                lowest[:] = [min(*lowest, float(columns.scores_N[mask_N].min()), math.inf)]
            if scored.cap is not None:
                bands = scored.cap.bands
                counted_B = np.bincount(bands.number(columns)[mask_N], minlength=len(bands.names))
                by_band_B = by_band_B + counted_B
            spread_B[:] += spread(columns, edges_E)
            yield picked_rows(scored.unit, columns, mask_N)

    ordinals = [scored.ordinal for scored in chunk]
    picked = write_picked(folder, picked_path(ordinals[0]), selected(), ordinals=ordinals)
    sources: dict[str, tuple[int, int]] | None = {}
    having = [scored for scored in chunk if _names_sources(scored, source_column)]
    for scored, labels in labelled(having, source_column):
        sources = merge_sources([sources, _count_sources(labels, masks[scored.ordinal])])
    return Told(
        picked=picked,
        spread_B=spread_B,
        sources=sources,
        by_group_G=by_group_G,
        extremes=extremes(columns_of(chunk, groups=groups), cut),
        lowest=min(lowest, default=None),
        by_band_B=by_band_B,
    )


def spread(columns: SidecarColumns, edges_E: NDArray[np.float64]) -> NDArray[np.int64]:
    """[B] the scores of a unit on a grid, copies of better rows too."""
    scores_N = columns.scores.to_numpy(zero_copy_only=False)
    return histogram(scores_N[columns.scored_N], edges_E)


def _names_sources(scored: ScoredUnit, column: str) -> bool:
    """Whether a file tells its rows' source; lists and structs are no names."""
    schema = scored.file.schema
    return column in schema.names and not pa.types.is_nested(schema.field(column).type)


def _count_sources(labels: Labels, mask_N: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    size = len(labels.names)
    rows = np.bincount(labels.codes_N, minlength=size).tolist()
    selected = np.bincount(labels.codes_N[mask_N], minlength=size).tolist()
    return dict(zip(labels.names, zip(rows, selected, strict=True), strict=True))


def merge_sources(
    parts: Iterable[dict[str, tuple[int, int]] | None],
) -> dict[str, tuple[int, int]] | None:
    """(rows, selected rows) of all parts by source; None once there are too many sources."""
    total: dict[str, tuple[int, int]] = {}
    for part in parts:
        if part is None:
            return None
        for name, (rows, selected) in part.items():
            before = total.get(name, (0, 0))
            total[name] = (before[0] + rows, before[1] + selected)
        if len(total) > MOST_GROUPS:
            return None
    return total


def merge_told(parts: Iterable[Told]) -> Told:
    """What a cut does to all units; a part at a time."""
    picked: list[Picked] = []
    spread_B = np.zeros(1, np.int64)
    sources: dict[str, tuple[int, int]] | None = {}
    ends = Extremes([], [], [], [])
    by_group_G = by_band_B = np.zeros(1, np.int64)
    lowest: list[float] = []
    for part in parts:
        by_band_B = by_band_B + part.by_band_B
        lowest += [] if part.lowest is None else [part.lowest]
        by_group_G = by_group_G + part.by_group_G
        spread_B = spread_B + part.spread_B
        picked += part.picked
        sources = merge_sources([sources, part.sources])
        ends = merge_extremes([ends, part.extremes])
    return Told(
        picked=sorted(picked, key=lambda part: part.url),
        spread_B=spread_B,
        sources=sources,
        by_group_G=by_group_G,
        extremes=ends,
        lowest=min(lowest, default=None),
        by_band_B=by_band_B,
    )
