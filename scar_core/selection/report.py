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
        report: as `report.json` holds it: counts, keep, threshold, scoring, score_quantiles,
            sources, examples, and before where there was a run before.
    """
    parts = [_counts(report), _quantiles(report["score_quantiles"])]
    if "before" in report:
        parts.append(_before(report))
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
        *_policy(report.get("policy", {})),
        *_written(counts),
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
    if report.get("cut_rows") is not None:  # an older version did not count them
        cut_ratio = report["cut_rows"] / max(counts["scored"], 1)
        lines.append(("rows with cut texts", f"{report['cut_rows']:>12,}   {cut_ratio:.1%}"))
    lines += _speed(report["scoring"])
    return "\n".join(f"{name:<28}{value}" for name, value in lines)


def _speed(scoring: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How fast the newest rows were scored; nothing where all were scored before."""
    if scoring is None:
        return []
    rates = (scoring["tokens_per_second"], scoring["rows_per_second"])
    padding, waited = scoring["computed_per_encoded_token"], scoring["actor_wait_ratio"]
    return [
        ("tokens/s", f"{rates[0]:>12,}   {rates[1]:,.1f} rows/s, the start included"),
        ("computed per real token", f"{padding:>12.3f}   actors waited {waited:.1%} of the time"),
    ]


def _bad_files(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A line where files were left out whole."""
    files = report["files"]
    bad = sum(files["quarantined"].values())
    return [("files quarantined", f"{bad:>12,}   of {files['in']:,}")] if bad else []


def _policy(policy: dict[str, Any]) -> list[tuple[str, str]]:
    """What was asked for beside groups and copies."""
    lines = []
    if "tokens" in policy:
        lines.append(("  their tokens", f"{policy['tokens']:>12,}"))
    if "order" in policy:
        lines.append(("  in the order of", f"{'':>5}{_order(policy['order'])}"))
    for band in policy.get("length_bands", ()):
        told = f"of {band['eligible']:,}, {band['within_cap']:,} at most"
        lines.append((f"  {band['band']} tokens", f"{band['selected']:>12,}   {told}"))
    return lines


def _order(order: dict[str, Any]) -> str:
    if order.get("by") == "luck":
        base = _order(order["base"])
        return f"{base} and luck, temperature {order['temperature']:g}, seed {order['seed']}"
    if order.get("by") == "sum":
        return " + ".join(f"{term['weight']:g} z({term['name']})" for term in order["terms"])
    if order.get("by") == "fronts":
        return f"Pareto fronts of {' and '.join(order['columns'])}"
    return "score"


def _written(counts: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of the selected rows where only new ones are written."""
    if "written" not in counts:
        return []
    return [
        ("  written", f"{counts['written']:>12,}   --since latest"),
        ("  known", f"{counts['known']:>12,}   same content was selected before"),
    ]


def _before(report: dict[str, Any]) -> str:
    """This run against the one before."""
    before = report["before"]
    head = f"against the run before{'':<7}{before.get('run', 'latest.json')}"
    if before.get("not_comparable"):
        return f"{head}\ncannot be compared: {before['not_comparable']}"
    files, rows, selection = before["files"], before["rows"], before["selection"]
    lines = [
        ("files", files["same"] + files["new"] + files["changed"], _list(files)),
        ("rows of new files", rows["new"], ""),
        ("rows of changed files", rows["changed"], ""),
        ("rows that are gone", rows["gone"], ""),
        ("entered the selection", sum(selection["entered"].values()), _list(selection["entered"])),
        ("left the selection", sum(selection["left"].values()), _list(selection["left"])),
        ("stayed in it", selection["stayed"], f"of {before['selected']:,}"),
    ]
    text = [head, *(f"{name:<28}{n:>12,}   {told}".rstrip() for name, n, told in lines)]
    text.append(f"{'threshold':<28}{_moved(before['threshold'], report['threshold'])}")
    text += _shifts(before["score_quantiles"], report["score_quantiles"])
    text += [_drift(name, drift) for name, drift in before["drift"].items() if drift]
    return "\n".join(text)


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if n)


def _moved(before: float | None, now: float | None) -> str:
    told = ("none" if value is None else f"{value:.6f}" for value in (before, now))
    return f"{next(told):>12} → {next(told)}"


def _shifts(before: dict[str, float], now: dict[str, float]) -> list[str]:
    names = [name for name in now if name in before]
    if not names:
        return []
    moves = "".join(f"{float(now[name]) - float(before[name]):>+9.3f}" for name in names)
    return ["quantiles moved by", "".join(f"{name:>9}" for name in names), moves]


def _drift(name: str, drift: dict[str, Any]) -> str:
    told = f"{'score drift, ' + name.replace('_', ' '):<28}PSI {drift['psi']:.3f}, "
    told += f"KS {drift['ks']:.3f}"
    if not drift["large"]:
        return told
    what = {
        "pool": "The scores of the pool are not spread as they were",
        "new_rows": "The new rows do not score like the pool before",
    }[name]
    return f"{told}\n  {what}. Look at what came in before you trust the selection."


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
