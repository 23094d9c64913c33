"""Quadruples dealt to train, validation and test, augmented and tokenized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.training.augment import AugmentConfig, cut_copies
from scar_core.training.batches import TokenizedQuadruples, gate_quadruples, tokenize_quadruples
from scar_core.training.losses import GateConfig
from scar_core.training.split import Split, SplitConfig, at_most_per_source, split_by_instruction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scar_core.ranker.encoding import TextTokenizer
    from scar_core.training.quadruples import Quadruple


@dataclass(frozen=True, kw_only=True)
class DealConfig(SplitConfig, GateConfig, AugmentConfig):
    """Which quadruples and pairs are on which side, and what is made of those trained on."""

    def __post_init__(self) -> None:
        """Refuse what its parts refuse."""
        for part in (SplitConfig, GateConfig, AugmentConfig):
            part.__post_init__(self)


class Sides(NamedTuple):
    """Positions of quadruples in the tokenized data."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    """Their accuracy decides which epoch is the best."""
    test: NDArray[np.int64]


class Dealt(NamedTuple):
    """What a training is given of its quadruples."""

    data: TokenizedQuadruples
    sides: Sides
    split: Split
    """The quadruples themselves, without copies and without those over the cap."""
    over_cap: int
    """Quadruples to train on that --max-per-source leaves out."""


def deal(
    quadruples: Sequence[Quadruple],
    config: DealConfig,
    tokenizer: TextTokenizer,
    *,
    set_apart: Sequence[Quadruple] = (),
) -> Dealt:
    """Split by instruction, cap the sources, add the copies, tokenize.

    Those set apart are not split: they join the test side, after its other rows.
    """
    quadruples, over_cap = _capped(quadruples, config)
    split = split_by_instruction(quadruples, config)
    copies = cut_copies([quadruples[row] for row in split.train], config, seed=config.seed)
    rows = [*quadruples, *copies, *set_apart]
    data = tokenize_quadruples(rows, gate_quadruples(rows, config).kept_QK, tokenizer)
    first_copy, first_apart = len(quadruples), len(quadruples) + len(copies)
    sides = Sides(
        train=np.array([*split.train, *range(first_copy, first_apart)], dtype=np.int64),
        validation=np.array(split.validation, dtype=np.int64),
        test=np.array([*split.test, *range(first_apart, len(rows))], dtype=np.int64),
    )
    return Dealt(data, sides, split, over_cap)


def _capped(quadruples: Sequence[Quadruple], config: DealConfig) -> tuple[Sequence[Quadruple], int]:
    """Those left when sources are capped on the training side, and how many are not.

    The side of a row does not depend on the others, so they can be split again.
    """
    if config.max_per_source is None:
        return quadruples, 0
    train = split_by_instruction(quadruples, config).train
    kept = at_most_per_source(quadruples, train, limit=config.max_per_source, seed=config.seed)
    over = set(train) - set(kept)
    return [item for row, item in enumerate(quadruples) if row not in over], len(over)
