"""How well a ranker does on quadruples it never saw, as numbers that can be pooled over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.training.accuracy import pair_outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEASURES = ("accuracy", "longer_wins", "matched_accuracy", "one_length_accuracy")
"""Share of pairs won; what the longer response wins; accuracy on pairs of matched length, and on
all pairs with both responses cut to one length."""
_RESAMPLES = 2000


class HeldOut(NamedTuple):
    """Pairs won and counted, per quadruple and measure."""

    won_QM: NDArray[np.float64]
    """Pairs won, M in the order of MEASURES; equal scores count half."""
    pairs_QM: NDArray[np.float64]

    def share(self, measure: int) -> float | None:
        """Share of the pairs won; None where there are none."""
        pairs = self.pairs_QM[:, measure].sum()
        return float(self.won_QM[:, measure].sum() / pairs) if pairs else None


def held_out(
    score_QR: NDArray[np.floating],
    characters_QR: NDArray[np.integer],
    pairs_QK: NDArray[np.bool_],
    cut_score_QR: NDArray[np.floating],
    cut_pairs_QK: NDArray[np.bool_],
) -> HeldOut:
    """Measure scores of whole responses, and of the same ones cut to one length (`cut_`)."""
    whole, cut = pair_outcomes(score_QR, characters_QR), pair_outcomes(cut_score_QR, characters_QR)
    counted = [pairs_QK, pairs_QK, pairs_QK & whole.matched_QK, pairs_QK & cut_pairs_QK]
    won = [whole.won_QK, whole.longer_QK, whole.won_QK, cut.won_QK]
    return HeldOut(
        np.stack([(win * mask).sum(axis=1) for win, mask in zip(won, counted, strict=True)], 1),
        np.stack([mask.sum(axis=1).astype(np.float64) for mask in counted], axis=1),
    )


def interval(runs: Sequence[HeldOut], measure: int) -> tuple[float, float] | None:
    """95 % interval of the mean share over runs on the same quadruples; None without pairs.

    Quadruples are drawn again with replacement, because the pairs of one stand or fall together.
    It says how far other quadruples of this source could lead, not other seeds or other sources.
    """
    won_Q = np.mean([run.won_QM[:, measure] for run in runs], axis=0)
    pairs_Q = runs[0].pairs_QM[:, measure]
    if not pairs_Q.any():
        return None
    drawn = np.random.default_rng(0).integers(len(pairs_Q), size=(_RESAMPLES, len(pairs_Q)))
    won, pairs = won_Q[drawn].sum(axis=1), pairs_Q[drawn].sum(axis=1)
    shares = won[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)
