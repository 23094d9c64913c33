"""The ranking loss, its regulariser, and the quality gate: tensors in, tensors out.

Equations of arXiv 2406.10882, section 4.

Shape suffixes: B quadruples, R responses of one (order of ROLES), K kinds of pairs (order of
PAIR_KINDS), D encoder width, C what a loss is a mean over: the K kinds, then complete rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch.nn import functional

from scar_core.training.quadruples import DIRECT, HUMAN, PAIR_KINDS, REFERENCED

if TYPE_CHECKING:
    from torch import Tensor

_BETTER_K = [kind.better for kind in PAIR_KINDS]
_WORSE_K = [kind.worse for kind in PAIR_KINDS]


Gate = Literal["abs", "abs_pos", "diff", "abs_diff", "none"]
"""What a quality gate looks at, named and meant as scar-tool's constraint modes."""
GATES: tuple[Gate, ...] = get_args(Gate)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Which pairs are good enough to learn from, on the judge's scale of 0 to 9."""

    gate: Gate = "abs"
    """abs: the quality (mean of helpfulness and correctness) of both responses must lie between the
    bounds; abs_pos: that of the better one only, by its role; diff: both may differ by less than
    quality_below; abs_diff: so, and both above quality_above; none: any quality, or none at all."""
    quality_above: float = 5.0
    """A quality must be above this; not looked at by diff and none."""
    quality_below: float = 10.0
    """A quality (abs, abs_pos), or the difference of two (diff, abs_diff), must be below this."""
    keep_unjudged: bool = False
    """Keep responses that have no judge scores, instead of dropping their pairs."""

    def __post_init__(self) -> None:
        """Refuse a gate that nothing passes."""
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got {self.gate!r}")
        if self.gate in ("abs", "abs_pos") and not self.quality_above < self.quality_below:
            raise ValueError(
                f"quality_above must be less than quality_below, "
                f"got {self.quality_above} and {self.quality_below}"
            )
        if self.gate in ("diff", "abs_diff") and not self.quality_below > 0:
            raise ValueError(
                f"quality_below must be above 0 with gate {self.gate}, where it bounds a "
                f"difference, got {self.quality_below}"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Margins and weights of the loss."""

    ranking_margin: float = 0.5
    """By how much the better response's score should lead, at least 0."""
    triplet_margin: float = 1.0
    """By how much nearer (L2) the positive should be to the anchor than the negative, above 0."""
    regulariser_weight: float = 0.1
    """Weight of the mean of both triplet losses, at least 0; 0 switches the regulariser off."""

    def __post_init__(self) -> None:
        """Refuse margins and weights that would reward the wrong order."""
        if self.ranking_margin < 0 or self.triplet_margin <= 0 or self.regulariser_weight < 0:
            raise ValueError(
                "ranking_margin and regulariser_weight must be at least 0, triplet_margin above 0; "
                f"got {self.ranking_margin}, {self.regulariser_weight}, {self.triplet_margin}"
            )


class JudgedQuadruples(NamedTuple):
    """What the ranker says of B quadruples; where a response is missing, any finite number."""

    score_BR: Tensor
    form_BRD: Tensor
    surprisal_BRD: Tensor


class LossParts(NamedTuple):
    """A loss, and what it is the sum of."""

    total: Tensor
    """Scalar: sum of ranking_K plus the regulariser."""
    ranking_K: Tensor
    """Mean hinge of each kind of pair; 0 where no pair is kept."""
    regulariser: Tensor
    """Scalar, weight included; 0 where no row is complete."""


def gate(
    quality_BR: Tensor, comparable_BK: Tensor, config: GateConfig, *, by: Gate | None = None
) -> Tensor:
    """Which pairs are kept, [B, K] bool.

    Args:
        quality_BR: mean of helpfulness and correctness; NaN where a judge did not give both.
        comparable_BK: whether both responses of a pair are there and their texts differ.
        config: bounds, all strict; what becomes of unjudged responses.
        by: look at this, instead of what the config says.
    """
    name = by or config.gate
    better_BK, worse_BK = quality_BR[:, _BETTER_K], quality_BR[:, _WORSE_K]
    gap_BK = (better_BK - worse_BK).abs()
    above: dict[Gate, list[Tensor]] = {
        "abs": [better_BK, worse_BK],
        "abs_pos": [better_BK],
        "diff": [],
        "abs_diff": [better_BK, worse_BK],
        "none": [],
    }
    below = above | {"diff": [gap_BK], "abs_diff": [gap_BK]}
    kept_BK = comparable_BK
    for value_BK in above[name]:
        unjudged_BK = value_BK.isnan() & config.keep_unjudged
        kept_BK = kept_BK & ((value_BK > config.quality_above) | unjudged_BK)
    for value_BK in below[name]:
        unjudged_BK = value_BK.isnan() & config.keep_unjudged
        kept_BK = kept_BK & ((value_BK < config.quality_below) | unjudged_BK)
    return kept_BK


def loss_counts(kept_BK: Tensor) -> Tensor:
    """How many terms each mean of the loss has, [C]: kept pairs per kind, then complete rows."""
    return torch.cat((kept_BK.sum(dim=0), kept_BK.all(dim=1).sum().reshape(1)))


def quadruple_loss(
    judged: JudgedQuadruples,
    kept_BK: Tensor,
    config: LossConfig,
    *,
    counts_C: Tensor | None = None,
) -> LossParts:
    """Hinge per kind of pair plus the triplet regulariser on rows with all their pairs.

    `counts_C` are the counts of a whole batch of which these rows are a part, one worker's or one
    micro-batch's: then the parts' losses add up to the loss of the batch. Without it these rows
    are the batch. A kind without a kept pair adds nothing.
    """
    counts_C = loss_counts(kept_BK) if counts_C is None else counts_C
    share_C = 1 / counts_C.clamp(min=1).to(judged.score_BR.dtype)
    ranking_K = _hinge_sums(judged.score_BR, kept_BK, config) * share_C[:-1]
    regulariser = _triplet_sum(judged, kept_BK.all(dim=1), config) * share_C[-1]
    return LossParts(ranking_K.sum() + regulariser, ranking_K, regulariser)


def _hinge_sums(score_BR: Tensor, kept_BK: Tensor, config: LossConfig) -> Tensor:
    lead_BK = score_BR[:, _BETTER_K] - score_BR[:, _WORSE_K]
    hinge_BK = functional.relu(config.ranking_margin - lead_BK)
    # Not a product with the mask: a score that is not a number must not hide behind 0 * NaN, and
    # one of a pair that is not kept must not spoil the sum.
    return torch.where(kept_BK, hinge_BK, 0).sum(dim=0)


def _triplet_sum(judged: JudgedQuadruples, complete_B: Tensor, config: LossConfig) -> Tensor:
    """Surprisal: a rewrite keeps the human's meaning. Form: both LLM responses are alike."""
    surprisal_NRD = judged.surprisal_BRD[complete_B]
    form_NRD = judged.form_BRD[complete_B]

    def triplet(features_NRD: Tensor, anchor: int, positive: int, negative: int) -> Tensor:
        return functional.triplet_margin_loss(
            features_NRD[:, anchor],
            features_NRD[:, positive],
            features_NRD[:, negative],
            margin=config.triplet_margin,
            reduction="sum",
        )

    meaning = triplet(surprisal_NRD, REFERENCED, HUMAN, DIRECT)
    style = triplet(form_NRD, DIRECT, REFERENCED, HUMAN)
    return config.regulariser_weight * (meaning + style) / 2
