"""This run against the one before: rows that entered and left, drift, rows that are new.

Which rows a run selected follows from its cut and its sidecars, so two runs are compared by passes
over sidecars in tasks; no row is held by the driver. By place a row entered or left if it is
selected in one run alone, where a place is a row of a file with one fingerprint. By content a row
is new if no row of the same instruction and response was selected before, wherever it lay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import compare_stages as stages
from jobs import pipeline
from jobs.before import (
    Before,
    Gone,
    below,
    check_since,
    fingerprints_of,
    other_key,
    read_quantiles,
    scored_rows,
)
from jobs.compare_stages import Changes, Cuts, ScoredRows, UnreadableError
from jobs.news import News, find_new
from jobs.passes import CHUNK_ROWS
from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.manifest import MANIFEST_NAME
from scar_core.pool.changes import FileChanges, Segment, match_files, segments
from scar_core.selection.drift import drift, grid
from scar_core.selection.radix import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.passes import Judged
    from jobs.scored_pool import Scores
    from jobs.select_stages import ScoredUnit
    from scar_core.pool.changes import Fate
    from scar_core.selection.groups import GroupCuts


@dataclass(frozen=True, kw_only=True)
class Against:
    """What to hold a selection against."""

    before: Before | Gone | None = None
    """The run that `latest.json` named; None where nothing was published before."""
    only_new: bool = False
    """Whether only rows that are new, by content, are written."""

    def __post_init__(self) -> None:
        """Refuse what cannot be told."""
        if self.only_new:
            check_since(self.before)


def compare(
    against: Against,
    scores: Scores,
    units: Sequence[ScoredUnit],
    judged: Judged,
    *,
    folder: str,
) -> News:
    """Hold a selection against the run before.

    A run before that cannot be compared is said so in the report; it is no error, unless rows
    are to be left out because of it.

    Args:
        against: the run before, and whether rows are left out.
        scores: that were selected from.
        units: of them, with what was scored again.
        judged: the selection.
        folder: of this run.

    Raises:
        InputError: rows are to be left out, and what was selected before cannot be read.
        IncompleteError: rows are missing in the comparison.
    """
    before, cut = against.before, judged.cut
    if isinstance(before, Gone):
        return News(report={"before": {"not_comparable": str(before)}})
    if before is None:
        return _without_before(_now(units), _plain(cut)) if against.only_new else News()
    named = _named(before)
    if not isinstance(cut, Cut) or any(scored.marks for scored in units):
        apart = "this run keeps rows per group, or leaves out copies; only plain ones are compared"
        return News(report={"before": {**named, "not_comparable": apart}})
    try:
        news = _hold_against(
            before, only_new=against.only_new, scores=scores, units=units, judged=judged, cut=cut
        )
    except InputError as error:
        if against.only_new:
            raise
        out = before.folder.rsplit("/", 2)[0]
        return News(report={"before": {**named, "not_comparable": below(out, str(error))}})
    return replace(
        news,
        report={"before": {**named, **news.report}},
        inputs=[] if news.wanted is None else [_input(before, folder)],
    )


def _hold_against(
    before: Before,
    *,
    only_new: bool,
    scores: Scores,
    units: Sequence[ScoredUnit],
    judged: Judged,
    cut: Cut,
) -> News:
    """What became of the run before; its report is that part alone.

    Raises:
        InputError: what was selected before cannot be read.
        IncompleteError: rows are missing in the comparison.
    """
    manifest = before.read_scores()
    reason = other_key(manifest["key"], scores.manifest["key"])
    old = scored_rows(manifest, before.scores_folder)
    pair = Pair.of(old, _now(units), Cuts(before=before.cut, now=cut), paired=reason is None)
    told = {"not_comparable": reason} if reason else _tell(pair, before, judged)
    wanted = None
    if only_new:
        wanted = find_new(pair.chunks, pair.cuts, selected_before=before.selected)
    return News(report=told, wanted=wanted)


def _plain(cut: Cut | GroupCuts) -> Cut:
    """The cut of a run that may leave out known rows: such runs keep no groups."""
    assert isinstance(cut, Cut)  # noqa: S101 - the config refuses both together
    return cut


def _without_before(now: Sequence[ScoredRows], cut: Cut) -> News:
    """Every selected row is new."""
    nothing = Cut(selected=0, digits=())
    pair = Pair.of([], now, Cuts(before=nothing, now=cut), paired=False)
    return News(wanted=find_new(pair.chunks, pair.cuts, selected_before=0))


def _now(units: Sequence[ScoredUnit]) -> list[ScoredRows]:
    return [
        ScoredRows(ordinal=u.ordinal, unit=u.unit, sidecar=u.sidecar, rescored=u.rescored)
        for u in units
    ]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs over one growing pool."""

    files: FileChanges
    chunks: list[list[Segment[ScoredRows]]]
    """All units of both, in shares for tasks."""
    cuts: Cuts

    @classmethod
    def of(
        cls,
        before: Sequence[ScoredRows],
        now: Sequence[ScoredRows],
        cuts: Cuts,
        *,
        paired: bool,
    ) -> Pair:
        """Match two runs; not `paired`, no row of one is taken to be a row of the other."""
        there = fingerprints_of(before) if paired else {}
        files = match_files(there, fingerprints_of(now))
        return cls(files=files, chunks=list(_chunks(segments(files, before, now))), cuts=cuts)


def _chunks(items: Iterator[Segment[ScoredRows]]) -> Iterator[list[Segment[ScoredRows]]]:
    chunk: list[Segment[ScoredRows]] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += item.rows
        if held >= CHUNK_ROWS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _tell(pair: Pair, before: Before, judged: Judged) -> dict[str, Any]:
    """What became of files, rows, selection and scores.

    Raises:
        InputError: the run before cannot be read, or its selection cannot be found again.
        IncompleteError: the selection of this run is not what the comparison sees.
    """
    edges_E = grid(judged.quantiles)
    changes = reduce(
        add,
        pipeline.run(stages.compare_chunk, pair.chunks, cuts=pair.cuts, edges_E=edges_E),
        Changes(),
    )
    if changes.unreadable:
        raise UnreadableError(changes.unreadable)
    found_before = changes.stayed + sum(changes.left.values())
    found_now = changes.stayed + sum(changes.entered.values())
    if found_now != judged.cut.selected:
        raise IncompleteError(
            f"{judged.cut.selected:,} rows are selected, the comparison with the run "
            f"before sees {found_now:,}. Select again when no other job writes there."
        )
    if found_before != before.selected:
        # Rows were scored again since, with errors beyond the bound of that run.
        raise InputError(
            f"{before.folder}: selected {before.selected:,} rows, by the scores that are there now "
            f"{found_before:,}."
        )
    return {
        "files": _told_files(pair.files),
        "rows": {
            "new": changes.rows.get("new", 0),
            "changed": changes.rows.get("changed", 0),
            "gone": changes.gone,
        },
        "selection": {
            "stayed": changes.stayed,
            "entered": _reasons(changes.entered),
            "left": _reasons(changes.left),
        },
        "score_quantiles": read_quantiles(before),
        "drift": {
            "pool": _told_drift(changes.before_B, changes.now_B),
            "new_rows": _told_drift(changes.before_B, changes.new_B),
        },
    }


def _told_files(files: FileChanges) -> dict[str, int]:
    return {
        "new": len(files.new),
        "changed": len(files.changed),
        "removed": len(files.removed),
        "same": len(files.same),
        "moved": files.moved,
    }


_REASONS: dict[Fate, str] = {
    "new": "new_file",
    "changed": "changed_file",
    "removed": "removed_file",
    "same": "threshold_moved",
}


def _reasons(rows: dict[Fate, int]) -> dict[str, int]:
    """Rows by why they are selected in one run alone, reasons without any left out."""
    return {reason: rows[fate] for fate, reason in _REASONS.items() if rows.get(fate)}


def _told_drift(before_B: Any, now_B: Any) -> dict[str, Any] | None:  # noqa: ANN401 - 0 or an array
    found = drift(np.atleast_1d(before_B), np.atleast_1d(now_B))
    return None if found is None else {"psi": found.psi, "ks": found.ks, "large": found.is_large}


def _named(before: Before) -> dict[str, Any]:
    return {
        "run": before.folder.rpartition("/")[2],
        "created": before.manifest["created"],
        "keep": before.manifest["config"]["keep"],
        "selected": before.selected,
        "threshold": before.manifest["threshold"],
    }


def _input(before: Before, folder: str) -> dict[str, Any]:
    manifest = storage.join(before.folder, MANIFEST_NAME)
    return {
        "kind": "selection",
        "manifest": storage.portable(manifest, base=folder),
        "sha256": sha256(storage.read_bytes(manifest)).hexdigest(),
    }
