"""Why a row was selected or not: its score, rank and threshold, from sidecars and picked/ alone.

Ranks are exact, among all rows that could be selected. The pool is read for the row's texts, for
its group, and to look for a value of a column.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from jobs import cli, pipeline
from jobs.explain_stages import (
    Found,
    Standing,
    kept_chunk,
    merge_found,
    merge_standings,
    seek_chunk,
    stand_chunk,
)
from jobs.explain_text import render, why
from jobs.made_again import made_again, options_of
from jobs.passes import chunks_of
from jobs.scored_pool import Scores, known_scores, open_scores, reopened
from jobs.select_stages import ScoredUnit, bounds, columns_of, labelled
from jobs.selected_rows import SelectedRows, open_selection
from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.manifest import to_json
from scar_core.pool.pairs import check_rows
from scar_core.pool.quarantine import message_of
from scar_core.pool.rows import HASH_BYTES
from scar_core.pool.shapes import columns_read
from scar_core.pool.sidecars import MESSAGES
from scar_core.pool.units import read_ranges
from scar_core.selection.keep import KeepTokens, parse_keep
from scar_core.selection.labels import check_label_column
from scar_core.selection.precision import list_rescored
from scar_core.selection.report import shorten
from scar_core.store_checks import check_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.before import Before
    from jobs.passes import Judged
    from jobs.settled import SelectOptions
    from scar_core.selection.order import Placed, SidecarColumns


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
    options = options_of(selection.manifest)
    scores = _scores(config, selection, options)
    scored, offset, rows = _find(config, scores)
    path, row = scored.unit.path, scored.unit.row_start + offset
    chosen = SelectedRows(selection)
    told: dict[str, Any] = {
        "run": selection.folder.rpartition("/")[2],
        "keep": options.keep,
        "path": path,
        "row": row,
        "rows_found": rows,
        "threshold": selection.manifest["threshold"],
        "selected_with": chosen.score_of(path, row),
    }
    with _ordered(selection, options, scores) as (units, judged):
        (columns,) = columns_of([units[scored.ordinal]])
        told |= _scored(columns, offset)
        if (reason := columns.reason_of(offset)) is not None:
            told["quarantine"] = _quarantine(scores, scored, offset, reason)
        elif columns.copies_N is not None and columns.copies_N[offset]:
            told |= {"dedup": options.dedup, "copy_of": _copied(scores, units, columns, offset)}
        elif not columns.eligible_N[offset]:
            told["beyond_cap"] = _band(judged, columns, offset)
        else:
            # By another order, neighbours are shown with what they are ordered by.
            by = "score" if judged is None or judged.worth is None else "worth"
            told |= {"ordered_by": by}
            told |= _standing(config, scores, units, columns.placed(offset), chosen, by=by)
        told |= _policy(judged, columns, offset)
    told |= _group(selection, scores, scored, offset)
    told |= _texts(scores, path, row)
    return told | {"status": _status(told), "why": why(told)}


@contextmanager
def _ordered(
    selection: Before, options: SelectOptions, scores: Scores
) -> Iterator[tuple[Sequence[ScoredUnit], Judged | None]]:
    """The units as the run ordered them, and left some of their rows out, for a block."""
    rule, budget = options.order_rule(), isinstance(parse_keep(options.keep), KeepTokens)
    ordered_or_capped = rule.columns or rule.temperature is not None or options.band_rule()
    if not (ordered_or_capped or budget or options.most_copies is not None):
        yield scores.units, None
        return
    if options.most_copies is not None:
        check_writable(selection.folder)
    # Groups decide nothing about an order, and their column is in the pool alone.
    bare = replace(options, per=None, min_per_group=None, max_per_group=None)
    with made_again(selection.folder, bare, scores) as made:
        yield made


def _scored(columns: SidecarColumns, offset: int) -> dict[str, Any]:
    if not columns.scores[offset].is_valid:
        return {"score": None}
    content = bytes(columns.hashes[offset]).hex()
    return {"score": float(columns.scores_N[offset]), "content_hash": content}


def _band(judged: Judged | None, columns: SidecarColumns, offset: int) -> dict[str, Any]:
    """The length band that was full before the row."""
    assert judged is not None  # noqa: S101 - without a policy every scored row is eligible
    assert judged.cap is not None  # noqa: S101 - nothing else limits rows
    number = int(judged.cap.bands.number(columns)[offset])
    bands: list[dict[str, Any]] = judged.policy["length_bands"]
    return {"tokens": int(columns.tokens_N[offset]), **bands[number]}


def _policy(judged: Judged | None, columns: SidecarColumns, offset: int) -> dict[str, Any]:
    """What else the run went by: the worth of the row in its order, or a budget."""
    told: dict[str, Any] = {}
    if judged is None:
        return told
    if judged.worth is not None and columns.reason_of(offset) is None:
        told["order"] = judged.policy["order"] | {"worth": float(columns.worth_N[offset])}
    if judged.budget is not None:
        told["budget"] = {
            "tokens": judged.budget.tokens,
            "row_tokens": int(columns.tokens_N[offset]),
        }
    return told


def _scores(config: ExplainConfig, selection: Before, options: SelectOptions) -> Scores:
    """The scores that were selected from, with what was scored again."""
    made_from = selection.read_scores()
    place = selection.manifest["inputs"][0]["manifest"]
    folder = storage.locate(place, base=selection.folder).rpartition("/")[0]
    in_pool = config.column or options.order_rule().columns or options.dedup == "near"
    scores = open_scores(folder) if in_pool else known_scores(folder)
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
    config: ExplainConfig,
    scores: Scores,
    units: Sequence[ScoredUnit],
    placed: Placed,
    chosen: SelectedRows,
    *,
    by: str,
) -> dict[str, Any]:
    """Rank and neighbours among the rows that could be selected."""
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
            {"rank": rank, **_place(scores, other), "score": other.score, by: getattr(other, by)}
            | {"selected": chosen.score_of(*_place(scores, other).values()) is not None}
            for rank, other in ranked
        ],
    }


def _copied(
    scores: Scores, units: Sequence[ScoredUnit], columns: SidecarColumns, offset: int
) -> dict[str, Any]:
    """The best row of the cluster that a row which was left out is in; empty if it is not found."""
    high_N, low_N = columns.clusters
    cluster = (int(high_N[offset]), int(low_N[offset]))
    kept: list[Placed] = pipeline.fold(
        kept_chunk, chunks_of(units), lambda parts: sorted(chain(*parts))[:1], cluster=cluster
    )
    return _place(scores, kept[0]) if kept else {}


def _place(scores: Scores, placed: Placed) -> dict[str, Any]:
    unit = scores.units[placed.ordinal].unit
    return {"path": unit.path, "row": unit.row_start + placed.offset}


def _quarantine(scores: Scores, scored: ScoredUnit, offset: int, reason: str) -> dict[str, Any]:
    """The reason, and what the sidecar says of it."""
    with storage.open_input(scored.sidecar) as file, pq.ParquetFile(file) as parquet:
        told = json.loads((parquet.schema_arrow.metadata or {}).get(MESSAGES, b"{}"))
    message = told.get(str(scored.unit.row_start + offset))
    if message is None:
        try:
            message = message_of(reason, scores.columns)
        except (KeyError, ValueError):  # what a reason says by itself
            message = reason.replace("_", " ")
    return {"reason": reason, "message": message}


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
    try:
        file = reopened(scores, path)
        names = columns_read(scores.columns, file.schema)
        (table,) = read_ranges(file, [(row, row + 1)], columns=names)
    except (AccessError, StoreError):
        raise
    except InputError as error:
        return {"texts": None, "texts_missing": str(error)}
    pairs = check_rows(table, scores.columns).last_pairs()
    if pairs:
        texts: list[str | None] = [shorten(text) for text in pairs[0]]
    elif scores.columns.format == "columns":  # quarantined: what there is of them
        values = [table[name].cast("binary")[0].as_py() for name in names]
        texts = [None if one is None else shorten(one.decode(errors="replace")) for one in values]
    else:
        return {"texts": None}
    return {"texts": dict(zip(("instruction", "response"), texts, strict=True))}


def _status(told: dict[str, Any]) -> str:
    if told["selected_with"] is not None:
        return "selected"
    return "quarantined" if "quarantine" in told else "not_selected"


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
