"""Why a row was selected or not: its score, rank and threshold, from sidecars and picked/ alone.

Ranks are exact, among all rows that could be selected. The pool is read for the row's texts, for
its group, and to look for a value of a column.
"""

from __future__ import annotations

import re
import secrets
import sys
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs import cli, pipeline
from jobs.explain_stages import (
    Found,
    Standing,
    merge_found,
    merge_standings,
    seek_chunk,
    stand_chunk,
)
from jobs.explain_text import render, why
from jobs.find_copies import mark, scratch
from jobs.passes import chunks_of
from jobs.scored_pool import Scores, known_scores, open_scores, reopened
from jobs.select_stages import ScoredUnit, bounds, columns_of, labelled
from jobs.selected_rows import SelectedRows, open_selection
from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.manifest import to_json
from scar_core.pool.quarantine import message_of
from scar_core.pool.rows import HASH_BYTES
from scar_core.pool.units import read_ranges
from scar_core.selection.labels import check_label_column
from scar_core.selection.precision import list_rescored
from scar_core.selection.report import shorten
from scar_core.store_checks import check_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.before import Before
    from scar_core.selection.order import Placed


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Explain what became of a row."""

    run: str
    """A selection; of a curation, its newest one. With --dedup it must be writable: tasks pass on
    what they find there, for a while."""
    row: str
    """PATH:NUMBER, a file's path in the pool and a row of it, from 0; or a content hash, 32
    hexadecimal digits; or with --column a value."""
    column: str | None = None
    """Column of the pool, text or whole numbers, in which --row is looked for."""
    neighbours: int = 3
    """Rows to show before and behind it in rank, at least 0."""
    json: bool = False
    """One JSON object instead of text."""

    def __post_init__(self) -> None:
        """Refuse fewer neighbours than none."""
        if self.neighbours < 0:
            raise ValueError(f"neighbours must be at least 0, got {self.neighbours}")


def explain(config: ExplainConfig, selection: Before) -> dict[str, Any]:
    """What became of a row, as --json prints it.

    Raises:
        InputError: there is no such row, or what the run was made from is gone.
    """
    scores = _scores(config, selection)
    scored, offset, rows = _find(config, scores)
    (columns,) = columns_of([scored])
    path, row = scored.unit.path, scored.unit.row_start + offset
    chosen = SelectedRows(selection)
    told: dict[str, Any] = {
        "run": selection.folder.rpartition("/")[2],
        "keep": selection.manifest["config"]["keep"],
        "path": path,
        "row": row,
        "rows_found": rows,
        "threshold": selection.manifest["threshold"],
        "selected_with": chosen.score_of(path, row),
    }
    if columns.scored_N[offset]:
        placed = columns.placed(offset)
        told |= {"score": placed.score, "content_hash": placed.content_hash.hex()}
        told |= _standing(config, selection, scores, placed, chosen)
    else:
        told |= _quarantine(scores, scored, offset)
    told |= _group(selection, scores, scored, offset)
    told |= _texts(scores, path, row)
    return told | {"status": _status(told), "why": why(told)}


def _scores(config: ExplainConfig, selection: Before) -> Scores:
    """The scores that were selected from, with what was scored again."""
    made_from = selection.read_scores()
    place = selection.manifest["inputs"][0]["manifest"]
    folder = storage.locate(place, base=selection.folder).rpartition("/")[0]
    scores = known_scores(folder) if config.column is None else open_scores(folder)
    again = list_rescored(
        storage.locate(made_from["files_below"], base=folder), key_id=made_from["key_id"]
    )
    units = [replace(one, rescored=tuple(again.get(one.unit.id, ()))) for one in scores.units]
    return replace(scores, units=units)


def _find(config: ExplainConfig, scores: Scores) -> tuple[ScoredUnit, int, int]:
    """The row's unit, its offset there, and how many rows were found."""
    if config.column is None and (match := re.fullmatch(r"(.+):([0-9]+)", config.row)):
        return *_at(scores, match[1], int(match[2])), 1
    wanted = config.row
    if config.column is not None:
        check_label_column(scores.files, config.column, flag="--column")
    elif not re.fullmatch(rf"[0-9a-fA-F]{{{2 * HASH_BYTES}}}", wanted):
        raise InputError(
            f"--row {wanted!r}: wanted PATH:NUMBER, or a content hash of {2 * HASH_BYTES} "
            "hexadecimal digits. For a value pass its column with --column."
        )
    found: Found = pipeline.fold(
        seek_chunk, chunks_of(scores.units), merge_found, wanted=wanted, column=config.column
    )
    if not found.rows:
        where = "scored row with this content" if config.column is None else "row has this value"
        raise InputError(
            f"--row {wanted!r}: no {where}, of {scores.manifest['counts']['rows_in']:,} rows in "
            f"{len(scores.files):,} files."
        )
    ordinal, offset = found.places[0]
    return scores.units[ordinal], offset, found.rows


def _at(scores: Scores, path: str, row: int) -> tuple[ScoredUnit, int]:
    units = scores.units
    starts = [(one.unit.path, one.unit.row_start) for one in units]
    index = bisect_right(starts, (path, row)) - 1
    if index >= 0 and units[index].unit.path == path:
        start, stop = bounds(units[index].unit)
        if row < stop:
            return units[index], row - start
        raise InputError(f"--row {path}:{row}: the file has {stop:,} rows, counted from 0.")
    for bad in scores.manifest["inputs"][1]["quarantined"]:
        if bad["path"] == path:
            raise InputError(
                f"--row {path}:{row}: the whole file is quarantined ({bad['reason']}): "
                f"{bad['message']}"
            )
    raise InputError(
        f"--row {path}:{row}: no file {path!r} among the {len(scores.files):,} that were scored; "
        f"the first is {scores.files[0].path!r}. Paths are relative to the pool."
    )


def _standing(
    config: ExplainConfig, selection: Before, scores: Scores, placed: Placed, chosen: SelectedRows
) -> dict[str, Any]:
    """Rank and neighbours; of a copy that was left out, where its content's best row is."""
    without_copies = selection.manifest["config"].get("dedup") == "exact"
    with _without_copies(selection, scores.units, marked=without_copies) as units:
        if without_copies:
            (columns,) = columns_of([units[placed.ordinal]])
            if not columns.eligible_N[placed.offset]:
                return _copied(scores, units, placed)
        found: Standing = pipeline.fold(
            stand_chunk,
            chunks_of(units),
            partial(merge_standings, neighbours=config.neighbours),
            placed=placed,
            neighbours=config.neighbours,
        )
    before = found.near.above[:-1]
    behind = found.near.below[: config.neighbours]
    ranked = [*enumerate(before, found.up_to - len(before)), *enumerate(behind, found.up_to + 1)]
    return {
        "rank": found.up_to,
        "eligible": found.eligible,
        "better_than_percent": 100 * (found.eligible - found.up_to) / found.eligible,
        "neighbours": [
            {"rank": rank, **_place(scores, other), "score": other.score}
            | {"selected": chosen.score_of(*_place(scores, other).values()) is not None}
            for rank, other in ranked
        ],
    }


@contextmanager
def _without_copies(
    selection: Before, units: list[ScoredUnit], *, marked: bool
) -> Iterator[Sequence[ScoredUnit]]:
    """The units, with marks at copies of better rows for the length of a block, if asked for."""
    if not marked:
        yield units
        return
    check_writable(selection.folder)
    with scratch(selection.folder, name=f"scratch-{secrets.token_hex(4)}") as exchange:
        yield mark(units, folder=exchange, which="copies")


def _copied(scores: Scores, units: Sequence[ScoredUnit], placed: Placed) -> dict[str, Any]:
    found: Found = pipeline.fold(
        seek_chunk,
        chunks_of([replace(one, marks=None) for one in units]),
        merge_found,
        wanted=placed.content_hash.hex(),
        column=None,
    )
    for ordinal, offset in found.places:
        (columns,) = columns_of([units[ordinal]])
        if columns.eligible_N[offset]:
            return {"copy_of": _place(scores, columns.placed(offset))}
    return {"copy_of": {}}


def _place(scores: Scores, placed: Placed) -> dict[str, Any]:
    unit = scores.units[placed.ordinal].unit
    return {"path": unit.path, "row": unit.row_start + placed.offset}


def _quarantine(scores: Scores, scored: ScoredUnit, offset: int) -> dict[str, Any]:
    (columns,) = columns_of([scored])
    reason = columns.read("reason")[offset].as_py() or "score_nan"
    try:
        message = message_of(reason, scores.columns)
    except (KeyError, ValueError):  # what a sidecar's reason says by itself
        message = reason.replace("_", " ")
    return {"score": None, "quarantine": {"reason": reason, "message": message}}


def _group(selection: Before, scores: Scores, scored: ScoredUnit, offset: int) -> dict[str, Any]:
    column = selection.manifest["config"].get("per")
    if column is None:
        return {}
    file = reopened(scores, scored.unit.path)
    ((_, labels),) = labelled([replace(scored, file=file)], column)
    name = labels.names[int(labels.codes_N[offset])]
    entries = [one for one in selection.manifest["groups"] if one["group"] == name]
    return {"group": {"column": column, **(entries[0] if entries else {"group": name})}}


def _texts(scores: Scores, path: str, row: int) -> dict[str, Any]:
    """The row's texts, where the pool still has them."""
    names = [scores.columns.instruction_column, scores.columns.response_column]
    try:
        (table,) = read_ranges(reopened(scores, path), [(row, row + 1)], columns=names)
    except (AccessError, StoreError):
        raise
    except InputError as error:
        return {"texts": None, "texts_missing": str(error)}
    values = [table[name].cast("binary")[0].as_py() for name in names]
    texts = [None if one is None else shorten(one.decode(errors="replace")) for one in values]
    return {"texts": dict(zip(("instruction", "response"), texts, strict=True))}


def _status(told: dict[str, Any]) -> str:
    if told["selected_with"] is not None:
        return "selected"
    return "quarantined" if told["score"] is None else "not_selected"


def job(argv: Sequence[str]) -> None:
    """Parse, look, and say what became of the row."""
    config = cli.parse(
        ExplainConfig, argv, prog="jobs.explain", description=__doc__ or "", positional=("run",)
    )
    selection = open_selection(config.run)
    with cli.connected(quiet=config.json):
        told = explain(config, selection)
    text = to_json(told).decode().rstrip("\n") if config.json else render(told)
    print(text)  # noqa: T201 - the job's result


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
