"""The numbers of a selection for a person: as report.json, and as text for a terminal."""

from __future__ import annotations

from typing import Any, TypedDict

EXAMPLE_CHARACTERS = 200
SOURCES_SHOWN = 20
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class SourceShare(TypedDict):
    """What became of the rows of one source."""

    source: str
    rows: int
    scored: int
    selected: int


class Example(TypedDict):
    """One row, shortened."""

    path: str
    row: int
    score: float
    selected: bool
    instruction: str
    response: str


def shorten(text: str, *, characters: int = EXAMPLE_CHARACTERS) -> str:
    """A text on one line, cut with an ellipsis after so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def render(report: dict[str, Any]) -> str:
    """A report as text of at most 100 columns, in the order in which a reader asks.

    Args:
        report: as `report.json` holds it: counts, keep, threshold, score_quantiles, sources,
            examples and run.
    """
    parts = [_counts(report), _quantiles(report["score_quantiles"])]
    if report["sources"]:
        parts.append(_sources(report["sources"]))
    parts += [_examples(name, rows) for name, rows in report["examples"].items() if rows]
    return "\n\n".join(part for part in parts if part)


def _counts(report: dict[str, Any]) -> str:
    counts = report["counts"]
    threshold = report["threshold"]
    lines = [
        ("rows in", f"{counts['rows_in']:>12,}"),
        ("scored", f"{counts['scored']:>12,}"),
        ("quarantined", f"{sum(counts['quarantined'].values()):>12,}"),
        *((f"  {reason}", f"{n:>12,}") for reason, n in counts["quarantined"].items()),
        *_bad_files(report),
        ("selected", f"{counts['selected']:>12,}   --keep {report['keep']}"),
        ("not selected", f"{counts['not_selected']:>12,}"),
        ("threshold", f"{'none' if threshold is None else format(threshold, '12.6f')}"),
    ]
    cut_tokens, tokens = report["cut_tokens"], report["tokens"]
    share = cut_tokens / max(tokens + cut_tokens, 1)
    if "rescored_rows" in report["precision"]:
        again = report["precision"]
        lines.append(
            (
                "scored again in fp32",
                f"{again['rescored_rows']:>12,}   largest error {again['largest_error']:.3g}",
            )
        )
    lines.append(("tokens", f"{tokens:>12,}   {cut_tokens:,} more cut off ({share:.1%})"))
    return "\n".join(f"{name:<28}{value}" for name, value in lines)


def _bad_files(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A line where files were left out whole."""
    files = report["files"]
    bad = sum(files["quarantined"].values())
    return [("files quarantined", f"{bad:>12,}   of {files['in']:,}")] if bad else []


def _quantiles(quantiles: dict[str, float]) -> str:
    if not quantiles:
        return "no row was scored"
    head = "".join(f"{name:>9}" for name in quantiles)
    values = "".join(f"{value:>9.3f}" for value in quantiles.values())
    return f"score quantiles\n{head}\n{values}"


def _sources(sources: list[SourceShare]) -> str:
    lines = [f"{'source':<40}{'rows':>12}{'selected':>12}{'share':>9}"]
    for entry in sources[:SOURCES_SHOWN]:
        share = entry["selected"] / max(entry["rows"], 1)
        name = shorten(entry["source"], characters=39)
        lines.append(f"{name:<40}{entry['rows']:>12,}{entry['selected']:>12,}{share:>9.1%}")
    if len(sources) > SOURCES_SHOWN:
        lines.append(f"… and {len(sources) - SOURCES_SHOWN:,} more in report.json")
    return "\n".join(lines)


def _examples(name: str, examples: list[Example]) -> str:
    lines = [f"{name} rows"]
    for example in examples:
        mark = "kept" if example["selected"] else "not kept"
        lines.append(f"{example['score']:>9.3f}  {example['path']}:{example['row']}  {mark}")
        for role in ("instruction", "response"):
            text = shorten(example[role], characters=84)
            lines.append(f"           {role[0].upper()}: {text}")
    return "\n".join(lines)
