"""This run against the one before: rows that entered and left the selection, drift of the scores.

What each selected is read from where it listed its rows, whatever its policy was and whatever was
scored again since. A row entered or left if it is selected in one run alone, where a row is a
place: a row of a file with one fingerprint. No row is held by the driver.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from jobs import compare_stages as stages
from jobs import pipeline
from jobs.before import Before, Gone, below, other_key
from jobs.compare_stages import Meeting
from jobs.passes import chunks_of
from scar_core.errors import InputError
from scar_core.pool.changes import FileChanges, match_files
from scar_core.selection.drift import drift

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.scored_pool import Scores
    from jobs.select_stages import ScoredUnit
    from scar_core.pool.changes import Fate
    from scar_core.selection.picked import Picked


def compare(
    before: Before | Gone | None,
    scores: Scores,
    units: Sequence[ScoredUnit],
    picked: Sequence[Picked],
) -> dict[str, Any]:
    """Hold a selection against the run before; for report.json.

    A run before that cannot be compared is said so; it is no error.

    Args:
        before: the run that `latest.json` named; None where nothing was published before.
        scores: that were selected from.
        units: of them, with what was scored again.
        picked: the selection.
    """
    if before is None:
        return {}
    if isinstance(before, Gone):
        return {"before": {"not_comparable": str(before)}}
    try:
        there = before.read_scores()
        reason = other_key(there["key"], scores.manifest["key"])
        told = {"not_comparable": reason} if reason else _tell(before, there, scores, units, picked)
    except InputError as error:
        out = before.folder.rsplit("/", 2)[0]
        told = {"not_comparable": below(out, str(error))}
    return {"before": {**_named(before), **told}}


def _tell(
    before: Before,
    there: dict[str, Any],
    scores: Scores,
    units: Sequence[ScoredUnit],
    picked: Sequence[Picked],
) -> dict[str, Any]:
    """What became of files, rows, selection and scores.

    Raises:
        InputError: what the run before said of itself cannot be read.
    """
    pools = [manifest["inputs"][1]["files"] for manifest in (there, scores.manifest)]
    fingerprints = [{file["path"]: file["fingerprint"] for file in pool} for pool in pools]
    files = match_files(*fingerprints)
    selected = _selection(before, files, units, picked)
    return {
        "files": _told_files(files),
        "rows": _told_rows(files, *pools),
        "selection": selected,
        "score_quantiles": before.read_quantiles(),
        "drift": _told_drift(before, files, units),
    }


def _told_files(files: FileChanges) -> dict[str, int]:
    return {
        "new": len(files.new),
        "changed": len(files.changed),
        "removed": len(files.removed),
        "same": len(files.same),
        "moved": files.moved,
    }


def _told_rows(
    files: FileChanges, before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> dict[str, int]:
    come: Counter[Fate] = Counter()
    for file in now:
        come[files.fate_now(file["path"])] += file["rows"]
    gone = sum(file["rows"] for file in before if files.fate_before(file["path"]) != "same")
    return {"new": come["new"], "changed": come["changed"], "gone": gone}


def _selection(
    before: Before, files: FileChanges, units: Sequence[ScoredUnit], picked: Sequence[Picked]
) -> dict[str, Any]:
    """Rows that both runs select, and those that one does, by reason."""
    has: Counter[Fate] = Counter()
    for part in picked:
        for ordinal, rows in zip(part.ordinals_U.tolist(), part.rows_U.tolist(), strict=True):
            has[files.fate_now(units[ordinal].unit.path)] += rows
    listed = [(part.url, part.entry) for part in picked]
    had: Counter[Fate] = Counter()
    stayed: Counter[Fate] = Counter()
    for found in pipeline.run(stages.meet, list(meetings(before, listed, files.same))):
        for path, met in found.items():
            had[files.fate_before(path)] += met.before
            stayed["same"] += met.stayed
    return {
        "stayed": stayed["same"],
        "entered": _reasons(has - stayed),
        "left": _reasons(had - stayed),
    }


def meetings(
    before: Before, now: Sequence[tuple[str, dict[str, Any]]], same: dict[str, str]
) -> Iterator[Meeting]:
    """Each file of rows selected before, with those of rows selected now that may be the same.

    Args:
        before: the run before.
        now: (url, manifest entry) of the files of rows selected now, in (path, row) order.
        same: of pool files that are the same, by path before the path now.
    """
    starts = [_first(entry) for entry in before.picked]
    starts_now = [_first(entry) for _, entry in now]
    paths = sorted(same)
    for url, low, high in zip(before.urls, starts, [*starts, None][1:], strict=True):
        held = paths[bisect_left(paths, low[0]) : bisect_right(paths, high[0]) if high else None]
        wanted: set[int] = set()
        for path in held:
            first = low[1] if path == low[0] else 0
            last = high[1] if high and path == high[0] else sys.maxsize
            begun = bisect_right(starts_now, (same[path], first))
            wanted |= {*range(max(begun - 1, 0), bisect_left(starts_now, (same[path], last)))}
        urls = tuple(now[index][0] for index in sorted(wanted))
        yield Meeting(before=url, now=urls, same={path: same[path] for path in held})


def _first(entry: dict[str, Any]) -> tuple[str, int]:
    """The place of a file's first row."""
    return entry["pool_file"], entry["row_start"]


_REASONS: dict[Fate, str] = {
    "new": "new_file",
    "changed": "changed_file",
    "removed": "removed_file",
    "same": "threshold_moved",
}


def _reasons(rows: Counter[Fate]) -> dict[str, int]:
    """Rows by why they are selected in one run alone, reasons without any left out."""
    return {reason: rows[fate] for fate, reason in _REASONS.items() if rows[fate]}


def _told_drift(
    before: Before, files: FileChanges, units: Sequence[ScoredUnit]
) -> dict[str, dict[str, Any] | None]:
    edges_E, before_B = before.read_spread()
    chunks = [
        [(scored, files.fate_now(scored.unit.path) != "same") for scored in chunk]
        for chunk in chunks_of(units)
    ]
    same_B, new_B = reduce(add, pipeline.run(stages.spread_chunk, chunks, edges_E=edges_E))
    return {"pool": _drift(before_B, same_B + new_B), "new_rows": _drift(before_B, new_B)}


def _drift(before_B: NDArray[Any], now_B: NDArray[Any]) -> dict[str, Any] | None:
    found = drift(before_B, now_B)
    return None if found is None else {"psi": found.psi, "ks": found.ks, "large": found.is_large}


def _named(before: Before) -> dict[str, Any]:
    return {
        "run": before.folder.rpartition("/")[2],
        "created": before.manifest["created"],
        "keep": before.manifest["config"]["keep"],
        "selected": before.selected,
        "threshold": before.manifest["threshold"],
    }
