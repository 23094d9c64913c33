"""How often the better response of a pair gets the higher score, beside what length alone does.

Shape suffixes: Q quadruples, R responses of one (order of ROLES), K kinds of pairs (order of
PAIR_KINDS), P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import binomtest, spearmanr

from scar_core.training.quadruples import PAIR_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ALL = "all"
_MATCHED_PARTS = 10  # lengths are matched when they differ by at most a tenth of the longer one

_BETTER_K = [kind.better for kind in PAIR_KINDS]
_WORSE_K = [kind.worse for kind in PAIR_KINDS]


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """Accuracies over the pairs of one kind or one source; None where there is no pair."""

    kind: str
    """For example `direct>human`, or `all`."""
    source: str
    """As the rows give it, or `all`."""
    pairs: int
    accuracy: float | None
    """Share of pairs whose better response has the higher score; equal scores count half."""
    interval: tuple[float, float] | None
    """95 % interval of the accuracy (Wilson's), as if the pairs were independent."""
    longer_wins: float | None
    """The baseline: the same when a response's characters are its score."""
    matched_pairs: int
    """Pairs whose lengths in characters differ by at most a tenth of the longer one."""
    matched_interval: tuple[float, float] | None
    """As `interval`, of the accuracy on those."""
    matched_accuracy: float | None
    """The accuracy on those, where length is no help."""


class PairOutcomes(NamedTuple):
    """Whether the better response of each pair wins, and what its length has to do with it."""

    won_QK: NDArray[np.float64]
    """1 where the better response has the higher score, 0.5 where they are equal, else 0."""
    longer_QK: NDArray[np.float64]
    """The same with lengths as scores."""
    matched_QK: NDArray[np.bool_]
    """Whether the lengths differ by at most a tenth of the longer one."""


def accuracy_rows(
    score_QR: NDArray[np.floating],
    characters_QR: NDArray[np.integer],
    pairs_QK: NDArray[np.bool_],
    sources_Q: Sequence[str],
) -> list[AccuracyRow]:
    """One row per kind over all sources, one per source over all kinds, one over everything.

    Only pairs marked in `pairs_QK` count; kinds and sources without any are left out. Sources
    come in alphabetical order.
    """
    won_QK, longer_QK, matched_QK = pair_outcomes(score_QR, characters_QR)
    matched_QK = pairs_QK & matched_QK
    rows = []
    for kind, source, group_QK in _groups(np.asarray(sources_Q, dtype=object)):
        chosen_QK = pairs_QK & group_QK
        if not chosen_QK.any():
            continue
        matched_here = matched_QK & group_QK
        rows.append(
            AccuracyRow(
                kind=kind,
                source=source,
                pairs=int(chosen_QK.sum()),
                accuracy=_mean(won_QK[chosen_QK]),
                interval=wilson(won_QK[chosen_QK]),
                longer_wins=_mean(longer_QK[chosen_QK]),
                matched_pairs=int(matched_here.sum()),
                matched_interval=wilson(won_QK[matched_here]),
                matched_accuracy=_mean(won_QK[matched_here]),
            )
        )
    return rows


def pair_outcomes(
    score_QR: NDArray[np.floating], characters_QR: NDArray[np.integer]
) -> PairOutcomes:
    """What scores and lengths make of every pair; where a response is missing, anything."""
    return PairOutcomes(_wins(score_QR), _wins(characters_QR), _length_matched(characters_QR))


def mean_accuracy(score_QR: NDArray[np.floating], pairs_QK: NDArray[np.bool_]) -> float | None:
    """Mean over the kinds of pairs of each kind's accuracy, as the loss weighs them; None if none.

    With complete rows only this is the accuracy over all pairs.
    """
    won_QK = _wins(score_QR)
    kinds = [
        won_QK[pairs_QK[:, k], k].mean() for k in range(len(PAIR_KINDS)) if pairs_QK[:, k].any()
    ]
    return float(np.mean(kinds)) if kinds else None


def wilson(won_P: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of the mean of wins of 0, 0.5 and 1; None without any.

    Half a win more or less at the end that it widens: the interval is one of whole wins.
    """
    if not len(won_P):
        return None
    won, pairs = float(won_P.sum()), len(won_P)
    low = binomtest(math.floor(won), pairs).proportion_ci(0.95, method="wilson").low
    high = binomtest(math.ceil(won), pairs).proportion_ci(0.95, method="wilson").high
    return float(low), float(high)


def rank_correlation(score_QR: NDArray[np.floating], value_QR: NDArray[np.integer]) -> float | None:
    """Spearman's, over all responses with a score; None where either does not vary."""
    scored_QR = ~np.isnan(score_QR)
    scores, values = score_QR[scored_QR], value_QR[scored_QR]
    if len(np.unique(scores)) < 2 or len(np.unique(values)) < 2:  # noqa: PLR2004 - to vary
        return None
    return float(spearmanr(scores, values).statistic)


def accuracy_table(rows: Sequence[AccuracyRow]) -> str:
    """The rows for a person, one line each under a heading."""
    width = max([len(row.source) for row in rows] + [len("source")])
    heading = f"{'pair kind':<17}  {'source':<{width}}  {'pairs':>6}  {'accuracy':>8}  {'95 %':>12}"
    heading += f"  {'longer wins':>11}  {'matched pairs':>13}  {'accuracy there':>14}  {'95 %':>12}"
    lines = [heading]
    lines += [
        f"{row.kind:<17}  {row.source:<{width}}  {row.pairs:>6,}  {_percent(row.accuracy):>8}  "
        f"{_range(row.interval):>12}  {_percent(row.longer_wins):>11}  {row.matched_pairs:>13,}  "
        f"{_percent(row.matched_accuracy):>14}  {_range(row.matched_interval):>12}"
        for row in rows
    ]
    return "\n".join(lines)


def _groups(sources_Q: NDArray[np.object_]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(kind, source, mask [Q, K]) of every row of the table."""
    whole = np.ones((len(sources_Q), len(PAIR_KINDS)), dtype=bool)
    for column, kind in enumerate(PAIR_KINDS):
        mask = np.zeros_like(whole)
        mask[:, column] = True
        yield kind.name, ALL, mask
    for source in sorted(set(sources_Q)):
        yield ALL, source, whole & (sources_Q == source)[:, None]
    yield ALL, ALL, whole


def _wins(value_QR: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """1 where the better response of each pair has more, 0.5 where equal, 0 else, also for NaN."""
    better_QK, worse_QK = value_QR[:, _BETTER_K], value_QR[:, _WORSE_K]
    return np.where(better_QK == worse_QK, 0.5, (better_QK > worse_QK).astype(np.float64))


def _length_matched(characters_QR: NDArray[np.integer]) -> NDArray[np.bool_]:
    better_QK, worse_QK = characters_QR[:, _BETTER_K], characters_QR[:, _WORSE_K]
    # Integers: a tenth of 10 is exactly 1, whatever floating point makes of 0.1.
    longer_QK = np.maximum(better_QK, worse_QK)
    matched: NDArray[np.bool_] = np.abs(better_QK - worse_QK) * _MATCHED_PARTS <= longer_QK
    return matched


def _mean(values_P: NDArray[np.float64]) -> float | None:
    return float(values_P.mean()) if len(values_P) else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1%}-{interval[1]:.1%}"
