"""What a selection did, as report.json holds it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from scar_core.pool.pairs import check_rows
from scar_core.pool.shapes import columns_read
from scar_core.pool.units import read_ranges
from scar_core.selection.report import QUANTILES, shorten

if TYPE_CHECKING:
    from jobs.passes import Judged
    from jobs.scored_pool import Scores
    from jobs.select_stages import Told
    from jobs.settled import SelectOptions
    from scar_core.selection.extremes import Extremes
    from scar_core.selection.order import Placed


def make_report(
    scores: Scores,
    options: SelectOptions,
    judged: Judged,
    told: Told,
) -> dict[str, Any]:
    """The numbers of a selection, and its best, borderline and worst rows."""
    cut, counts = judged.cut, judged.counts
    of_scores = scores.manifest["counts"]
    quantiles = zip((f"{p:.0%}" for p in QUANTILES), judged.quantiles, strict=False)
    copies = {} if options.most_copies is None else {"duplicates": counts.duplicates}
    return {
        "keep": options.keep,
        "counts": {
            "rows_in": counts.rows,
            "scored": counts.scored,
            "selected": cut.selected,
            "not_selected": counts.scored - cut.selected,
            **copies,
            "quarantined": counts.quarantined,
        },
        "files": {name: of_scores[f"files_{name}"] for name in ("in", "scored", "quarantined")},
        "threshold": cut.threshold if judged.worth is None else told.lowest,
        **({"policy": _policy(judged, told)} if judged.policy else {}),
        "scoring": scores.manifest["scoring"],
        "tokens": of_scores["tokens"],
        "cut_tokens": of_scores["cut_tokens"],
        "cut_rows": of_scores.get("cut_rows"),
        "score_quantiles": dict(quantiles),
        "sources": [
            {"source": source, "rows": rows, "selected": selected}
            for source, (rows, selected) in sorted(
                (told.sources or {}).items(), key=lambda item: (-item[1][0], item[0])
            )
        ],
        **({"per": options.per, "groups": group_entries(judged, told)} if judged.groups else {}),
        "examples": _examples(scores, told.extremes),
    }


def _policy(judged: Judged, told: Told) -> dict[str, Any]:
    """What was asked for beside groups and copies, and what it came to."""
    policy = judged.policy
    for entry, selected in zip(
        policy.get("length_bands", ()), told.by_band_B.tolist(), strict=False
    ):
        entry["selected"] = selected
    return policy


def group_entries(judged: Judged, told: Told) -> list[dict[str, Any]]:
    """What each group contributes, by name; `duplicates` are its rows with a better copy."""
    return [
        {
            "group": share.group,
            "rows": share.rows.rows,
            "eligible": share.rows.eligible,
            "duplicates": share.rows.duplicates,
            "quota": share.quota,
            "selected": selected,
            "threshold": share.threshold,
        }
        for share, selected in zip(judged.shares, told.by_group_G.tolist(), strict=True)
    ]


def _examples(scores: Scores, found: Extremes) -> dict[str, list[dict[str, Any]]]:
    """Best, borderline and worst rows with their texts, shortened; each row is read once."""
    borderline = found.above[-2:]
    borderline = borderline + found.below[: 3 - len(borderline)]
    lists = {"best": found.best, "borderline": borderline, "worst": found.worst}
    wanted = {(placed.ordinal, placed.offset) for rows in lists.values() for placed in rows}
    texts = _read_texts(scores, sorted(wanted))
    return {
        name: [_example(scores, placed, texts[placed.ordinal, placed.offset]) for placed in rows]
        for name, rows in lists.items()
    }


def _read_texts(scores: Scores, places: list[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """(instruction, response) by (unit ordinal, offset in the unit); places ascending."""
    texts = {}
    for file, group in groupby(places, key=lambda place: scores.units[place[0]].file):
        of_file = list(group)
        rows = [scores.units[ordinal].unit.row_start + offset for ordinal, offset in of_file]
        tables = read_ranges(
            file,
            [(row, row + 1) for row in rows],
            columns=columns_read(scores.columns, file.schema),
        )
        for place, table in zip(of_file, tables, strict=True):
            (pair,) = check_rows(table, scores.columns).last_pairs()
            texts[place] = [shorten(text) for text in pair]
    return texts


def _example(scores: Scores, placed: Placed, texts: list[str]) -> dict[str, Any]:
    unit = scores.units[placed.ordinal].unit
    return {
        "path": unit.path,
        "row": unit.row_start + placed.offset,
        "score": placed.score,
        "selected": placed.selected,
        "instruction": texts[0],
        "response": texts[1],
    }
