"""What became of a row, in a sentence and as text for a terminal."""

from __future__ import annotations

from typing import Any

from scar_core.pool.filters import FILTERED


def why(told: dict[str, Any]) -> str:
    """One sentence.

    Args:
        told: what `explain` found.
    """
    return _unranked(told) or _ranked(told)


def _unranked(told: dict[str, Any]) -> str | None:
    if "quarantine" in told:
        bad = told["quarantine"]
        if bad["reason"].startswith(FILTERED):
            return f"A filter left it out ({bad['reason']}): {bad['message']}."
        if told["score"] is not None:
            return f"It has nothing to be ordered by ({bad['reason']}), so it cannot be kept."
        return f"It could not be scored ({bad['reason']}): {bad['message']}."
    if "copy_of" in told:
        better = told["copy_of"]
        where = f"{better['path']}:{better['row']}" if better else "another row"
        holds = "is nearly the same" if told["dedup"] == "near" else "holds the same texts"
        return f"{where} {holds} and comes first in order; so few of such rows are kept."
    if "beyond_cap" in told:
        band = told["beyond_cap"]
        return (
            f"Its length band {band['band']} ({band['eligible']:,} rows) keeps "
            f"{band['within_cap']:,}; it is not among the best of them."
        )
    return None


def _ranked(told: dict[str, Any]) -> str:
    if "budget" in told and told["selected_with"] is None:
        budget = told["budget"]
        return (
            f"The rows before it fill the budget, --keep {told['keep']}: {budget['tokens']:,} "
            f"tokens are kept; it has {budget['row_tokens']:,}."
        )
    what, own, threshold = "score", told["score"], told["threshold"]
    if "order" in told:
        what, own, threshold = "worth", told["order"]["worth"], told["order"]["at"]
    who = ""
    if group := told.get("group", {}):
        who, threshold = f" of its group {group['group']!r}", group.get("threshold")
    if threshold is None:
        return f"Nothing{who} was selected."
    threshold = float(threshold)
    told_own = f"Its {what} is {own:.6f}"
    if told["selected_with"] is not None:
        return f"{told_own}, the threshold{who} {threshold:.6f}."
    if own < threshold:
        return f"{told_own}, below the threshold{who}, {threshold:.6f}."
    return (
        f"{told_own}, the threshold{who} itself: of rows with one {what} those come first whose "
        "content hash is smaller, then by place, and they were enough."
    )


def render(told: dict[str, Any]) -> str:
    """All that was found, for a person."""
    place = f"{told['path']}:{told['row']}"
    lines = [f"{place}: {told['status'].replace('_', ' ')} in {told['run']}", told["why"], ""]
    if told["rows_found"] > 1:
        lines.insert(1, f"The first of {told['rows_found']:,} rows that were found.")
    lines += [f"{name:<16}{value}" for name, value in _figures(told)]
    if neighbours := told.get("neighbours"):
        lines += ["", *_ranks(neighbours, told)]
    texts = told["texts"]
    lines.append("")
    if texts is None:
        lines.append(f"no texts: {told['texts_missing']}")
    else:
        lines += [f"{role[0].upper()}: {text}" for role, text in texts.items()]
    return "\n".join(lines)


def _figures(told: dict[str, Any]) -> list[tuple[str, str]]:
    figures = []
    if told["score"] is not None:
        figures.append(("score", f"{told['score']:.6f}"))
    if order := told.get("order"):
        figures.append(("worth", f"{order['worth']:.6f}   by {order['by']}"))
    if "rank" in told:
        percent = f"better than {told['better_than_percent']:.2f} % of them"
        figures.append(("rank", f"{told['rank']:,} of {told['eligible']:,} eligible, {percent}"))
    threshold = told["threshold"]
    shown = "none" if threshold is None else f"{float(threshold):.6f}"
    figures.append(("threshold", f"{shown}   --keep {told['keep']}"))
    if group := told.get("group"):
        figures.append(("group", f"{group['group']}   --per {group['column']}"))
        if "quota" in group:
            figures.append(("  quota", f"{group['quota']:,} of {group['eligible']:,} eligible"))
            own = group["threshold"]
            figures.append(("  threshold", "none" if own is None else f"{float(own):.6f}"))
    if "content_hash" in told:
        figures.append(("content hash", told["content_hash"]))
    return figures


def _ranks(neighbours: list[dict[str, Any]], told: dict[str, Any]) -> list[str]:
    by = told["ordered_by"]
    own = {name: told[name] for name in ("rank", "path", "row")}
    own |= {by: told["score"] if by == "score" else told["order"]["worth"]}
    own["selected"] = told["selected_with"] is not None
    return [
        f"{'→' if one is own else ' '}{one['rank']:>12,}  {one[by]:>12.6f}  "
        f"{'kept' if one['selected'] else '    '}  {one['path']}:{one['row']}"
        for one in sorted([*neighbours, own], key=lambda one: int(one["rank"]))
    ]
