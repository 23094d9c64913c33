"""The selected rows that are new by content, and what follows from leaving out the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import news_stages as stages
from jobs.compare_stages import UnreadableError
from jobs.pipeline import with_access
from scar_core.errors import ScarError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.compare_stages import Cuts, ScoredRows
    from jobs.select_stages import Told
    from jobs.select_write import Part
    from scar_core.pool.changes import Segment

# Content hashes of both runs that one task holds: 32 MB, some copies of it while it sorts.
SHARE_ROWS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new in a selection."""

    report: dict[str, Any] = field(default_factory=dict)
    """For report.json."""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """For the manifest: the run that decided which rows are left out."""
    wanted: dict[int, bytes] | None = None
    """Rows to write as packed bits by unit ordinal; None: all that are selected."""

    def counts(self, selected: int) -> dict[str, int]:
        """For the manifest, where rows may be left out: selected = written + known."""
        if self.wanted is None:
            return {}
        written = sum(map(_ones, self.wanted.values()))
        return {"written": written, "known": selected - written}

    def narrow(self, told: Told) -> Told:
        """What a cut does to units, less the rows that are not written."""
        if self.wanted is None:
            return told
        rows = [_ones(self.wanted.get(ordinal, b"")) for ordinal in told.ordinals_M.tolist()]
        rows_M = np.array(rows, np.int64)
        some_M = rows_M > 0
        return replace(told, ordinals_M=told.ordinals_M[some_M], selected_M=rows_M[some_M])

    def hand_out(self, parts: Sequence[Part]) -> list[Part]:
        """Output files, each with the rows of its own that are written."""
        wanted = self.wanted
        if wanted is None:
            return list(parts)
        ordinals = [[u.ordinal for u in part.units if u.ordinal in wanted] for part in parts]
        return [
            replace(part, wanted={ordinal: wanted[ordinal] for ordinal in own})
            for part, own in zip(parts, ordinals, strict=True)
        ]


def _ones(bits: bytes) -> int:
    return int.from_bytes(bits).bit_count()


def find_new(
    chunks: Sequence[Sequence[Segment[ScoredRows]]], cuts: Cuts, *, selected_before: int
) -> dict[int, bytes]:
    """The rows selected now whose content was not selected before, as packed bits by ordinal.

    Hashes travel from task to task in shares by their first bits; the driver sees places alone,
    and keeps a bit per row of units that have any.
    """
    import ray  # noqa: PLC0415

    shares = max(1, math.ceil((selected_before + cuts.now.selected) / SHARE_ROWS))
    split = ray.remote(with_access(stages.split_chunk)).options(num_returns=shares)
    found = [split.remote(chunk, cuts=cuts, shares=shares) for chunk in chunks]
    dealt = [[refs] for refs in found] if shares == 1 else found
    find = ray.remote(with_access(stages.find_new))
    waiting = [find.remote(*(refs[share] for refs in dealt)) for share in range(shares)]
    rows_of = {item.ordinal: item.unit.rows for c in chunks for s in c for item in s.now}
    masks: dict[int, NDArray[np.uint8]] = {}
    rows_before = 0
    for reference in waiting:
        found_in_share = _result(reference)
        rows_before += found_in_share.rows_before
        for ordinal, offsets_M in _by_unit(found_in_share.places_M):
            mask_N = np.zeros(rows_of[ordinal], np.bool_)
            mask_N[offsets_M] = True
            packed = np.packbits(mask_N)
            masks[ordinal] = masks[ordinal] | packed if ordinal in masks else packed
    if rows_before != selected_before:
        raise UnreadableError(
            f"the run before selected {selected_before:,} rows, by the scores that are there now "
            f"{rows_before:,}. Run once without --since latest."
        )
    return {ordinal: packed.tobytes() for ordinal, packed in masks.items()}


def _result(reference: Any) -> stages.Found:  # noqa: ANN401 - Ray has no types
    """What a task gives; an error of ours as itself, without the task's traceback."""
    import ray  # noqa: PLC0415

    try:
        found: stages.Found = ray.get(reference)
    except ScarError as error:
        raise getattr(error, "cause", error) from None
    return found


def _by_unit(places_M: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(unit ordinal, offsets) of places."""
    places_M = places_M[np.argsort(places_M[:, 0], kind="stable")]
    ordinals_U, starts_U = np.unique(places_M[:, 0], return_index=True)
    groups = np.split(places_M[:, 1], starts_U[1:])
    return zip(ordinals_U.tolist(), groups, strict=False)  # of no place one empty group
