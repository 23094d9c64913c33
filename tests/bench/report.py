"""Medians of a benchmark's rounds, as a record and as a table."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.measure import CUTS, rank_correlation, selected

if TYPE_CHECKING:
    from tests.bench.peers import Turn

ANCHOR = "scar-tool"
COLUMNS = {
    "pairs/s": ("pairs_per_second", "{:.2f}"),
    "wall pairs/s": ("pairs_per_wall_second", "{:.2f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "ratio": ("ratio_to_anchor", "{:.2f}"),
    "share of matrix rate": ("share_of_matrix_rate", "{:.2f}"),
    "in-round": ("share_within_round", "{:.2f}"),
    "padding": ("computed_per_real_token", "{:.3f}"),
    "max |d|": ("largest_error", "{:.1e}"),
    "in sd": ("largest_error_in_sd", "{:.1e}"),
    "rank corr": ("rank_correlation", "{:.5f}"),
    "same sets": ("same_sets", "{}"),
    "re-scored": ("rescored_share", "{:.3f}"),
    "peak MiB": ("peak_mib", "{:.0f}"),
}
"""Heading, key of a peer's summary, format; what a peer has no figure for is left empty."""


class Round(NamedTuple):
    """One set of pairs, scored by every peer."""

    turns: dict[str, Turn]
    rates: dict[str, float]
    """Matrix FLOP/s by precision, the best measured between the turns."""
    flops: float
    """Useful work of the set, each text alone."""
    tokens: int
    """Real tokens of the set, each text alone."""


def summary(rounds: list[Round], *, device: str) -> dict[str, Any]:
    """Medians over the rounds by peer; ratios and errors are taken within each round."""
    peers = {peer: _summary_of(peer, rounds, device) for peer in rounds[0].turns}
    return {
        "rounds": len(rounds),
        "pairs_per_round": len(next(iter(rounds[0].turns.values())).scores),
        "tokens_per_round": [r.tokens for r in rounds],
        "matrix_gflops": {
            precision: [round(r.rates[precision] / 1e9) for r in rounds]
            for precision in rounds[0].rates
        },
        "cpu_seconds": {peer: [r.turns[peer].cpu_seconds for r in rounds] for peer in peers},
        "peers": peers,
    }


def _summary_of(peer: str, rounds: list[Round], device: str) -> dict[str, Any]:
    turns = [r.turns[peer] for r in rounds]
    seconds = [_seconds(turn, device) for turn in turns]
    pairs = len(turns[0].scores)
    figures: dict[str, Any] = {
        "pairs_per_second": median(pairs / s for s in seconds),
        "pairs_per_wall_second": median(pairs / turn.wall_seconds for turn in turns),
        "tokens_per_second": median(t.real_tokens / s for t, s in zip(turns, seconds, strict=True)),
        "computed_per_real_token": sum(t.computed_tokens for t in turns)
        / sum(t.real_tokens for t in turns),
        "peak_mib": max(turn.peak_mib for turn in turns),
        "rescored_share": median(turn.rescored_rows / pairs for turn in turns) or None,
    }
    if turns[0].real_tokens == rounds[0].tokens:  # not if both texts are read as one
        precision = "bf16" if "bf16" in peer else "fp32"
        useful = [r.flops / s for r, s in zip(rounds, seconds, strict=True)]
        best = max(r.rates[precision] for r in rounds)
        shares = (rate / r.rates[precision] for rate, r in zip(useful, rounds, strict=True))
        figures |= {
            "share_of_matrix_rate": median(useful) / best,
            "share_within_round": median(shares),
        }
        figures |= _against_exact(peer, rounds)
    if ANCHOR in rounds[0].turns:
        anchor = [_seconds(r.turns[ANCHOR], device) for r in rounds]
        figures["ratio_to_anchor"] = median(a / s for a, s in zip(anchor, seconds, strict=True))
    return figures


def _against_exact(peer: str, rounds: list[Round]) -> dict[str, Any]:
    """Errors against scar-tool's scores, or where it is missing our own fp32."""
    exact = ANCHOR if ANCHOR in rounds[0].turns else "fp32"
    if exact not in rounds[0].turns or peer == exact:
        return {}
    errors, spreads, ranks, same = [], [], [], dict.fromkeys(CUTS, 0)
    for r in rounds:
        wanted, found = r.turns[exact].scores, r.turns[peer].scores
        mean = sum(wanted) / len(wanted)
        spreads.append((sum((score - mean) ** 2 for score in wanted) / len(wanted)) ** 0.5)
        errors.append(max(abs(a - b) for a, b in zip(wanted, found, strict=True)))
        ranks.append(rank_correlation(wanted, found))
        for keep in CUTS:
            same[keep] += selected(wanted, keep) == selected(found, keep)
    return {
        "largest_error": max(errors),
        "largest_error_in_sd": max(e / s for e, s in zip(errors, spreads, strict=True)),
        "rank_correlation": min(ranks),
        "same_sets": " ".join(f"{count}/{len(rounds)}" for count in same.values()),
    }


def _seconds(turn: Turn, device: str) -> float:
    return turn.wall_seconds if device == "cuda" else turn.cpu_seconds


def table(title: str, figures: dict[str, Any]) -> str:
    """The peers as a Markdown table under a line on the set."""
    tokens = figures["tokens_per_round"]
    rates = ", ".join(f"{name} {max(gflops)}" for name, gflops in figures["matrix_gflops"].items())
    per_pair = sum(tokens) / len(tokens) / figures["pairs_per_round"]
    lines = [
        f"{title}: {per_pair:.0f} tokens a pair; best matrix rate, GFLOP/s: {rates}; "
        f"same sets at {', '.join(f'{keep:.0%}' for keep in CUTS)}",
        "",
        "| peer | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for peer, values in figures["peers"].items():
        cells = (
            "" if values.get(key) is None else form.format(values[key])
            for key, form in COLUMNS.values()
        )
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
