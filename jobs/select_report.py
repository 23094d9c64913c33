"""What a selection did, as report.json holds it."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from scar_core.pool.units import read_ranges
from scar_core.selection.keep import Extremes, merge_extremes
from scar_core.selection.report import QUANTILES, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.passes import Judged
    from jobs.scored_pool import Scores
    from jobs.select_rows import SelectOptions
    from jobs.select_stages import Told
    from scar_core.selection.order import Placed


def make_report(
    scores: Scores,
    options: SelectOptions,
    judged: Judged,
    told: Sequence[Told],
) -> dict[str, Any]:
    """The numbers of a selection, and its best, borderline and worst rows."""
    cut, counts = judged.decision.cut, judged.counts
    of_scores = scores.manifest["counts"]
    rows: Counter[str] = Counter()
    selected: Counter[str] = Counter()
    for part in told:
        for source, (n, kept) in part.sources.items():
            rows[source] += n
            selected[source] += kept
    quantiles = zip((f"{p:.0%}" for p in QUANTILES), judged.decision.quantiles, strict=False)
    return {
        "keep": options.keep,
        "counts": {
            "rows_in": counts.rows,
            "scored": counts.eligible,
            "selected": cut.selected,
            "not_selected": counts.eligible - cut.selected,
            "quarantined": counts.quarantined,
        },
        "files": {name: of_scores[f"files_{name}"] for name in ("in", "scored", "quarantined")},
        "threshold": cut.threshold,
        "tokens": of_scores["tokens"],
        "cut_tokens": of_scores["cut_tokens"],
        "score_quantiles": dict(quantiles),
        "sources": [
            {"source": source, "rows": n, "selected": selected[source]}
            for source, n in sorted(rows.items(), key=lambda item: (-item[1], item[0]))
        ],
        "examples": _examples(scores, merge_extremes(part.extremes for part in told)),
    }


def _examples(scores: Scores, found: Extremes) -> dict[str, list[dict[str, Any]]]:
    """Best, borderline and worst rows with their texts, shortened; each row is read once."""
    borderline = [(placed, True) for placed in found.above[-2:]]
    borderline += [(placed, False) for placed in found.below[: 3 - len(borderline)]]
    last_kept = found.above[-1] if found.above else None
    groups = {
        "best": [(placed, last_kept is not None and placed <= last_kept) for placed in found.best],
        "borderline": borderline,
        "worst": [(p, last_kept is not None and p <= last_kept) for p in found.worst],
    }
    wanted = {(p.ordinal, p.offset) for group in groups.values() for p, _ in group}
    texts = _read_texts(scores, sorted(wanted))
    return {
        name: [_example(scores, p, texts[p.ordinal, p.offset], kept) for p, kept in group]
        for name, group in groups.items()
    }


def _read_texts(scores: Scores, places: list[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """(instruction, response) by (unit ordinal, offset in the unit); places ascending."""
    names = [scores.columns.instruction_column, scores.columns.response_column]
    texts = {}
    for file, group in groupby(places, key=lambda place: scores.units[place[0]].file):
        of_file = list(group)
        rows = [scores.units[ordinal].unit.row_start + offset for ordinal, offset in of_file]
        tables = read_ranges(file, [(row, row + 1) for row in rows], columns=names)
        for place, table in zip(of_file, tables, strict=True):
            values = [table[name].cast("binary")[0].as_py() for name in names]
            texts[place] = [shorten(value.decode()) for value in values]
    return texts


def _example(scores: Scores, placed: Placed, texts: list[str], kept: bool) -> dict[str, Any]:
    unit = scores.units[placed.ordinal].unit
    return {
        "path": unit.path,
        "row": unit.row_start + placed.offset,
        "score": placed.score,
        "selected": kept,
        "instruction": texts[0],
        "response": texts[1],
    }
