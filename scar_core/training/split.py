"""Which quadruples are trained on and which are kept back: split by instruction, seeded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.training.quadruples import Quadruple


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which instructions are kept back from training, to measure on."""

    validation_share: float = 0.1
    """Share of the instructions that the best epoch is chosen on, in [0, 1)."""
    test_share: float = 0.1
    """Share of the instructions that the final accuracies are measured on, in [0, 1)."""
    seed: int = 0
    """Seed of the split, of the new layers' weights and of the order of batches, at least 0."""

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on."""
        shares = (self.validation_share, self.test_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise ValueError(
                "validation_share and test_share must be at least 0 and leave something to train "
                f"on, got {shares[0]} and {shares[1]}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


class Split(NamedTuple):
    """Positions of quadruples, ascending; no instruction is on two sides."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_by_instruction(quadruples: Sequence[Quadruple], config: SplitConfig) -> Split:
    """All rows of one instruction on one side, by a seeded hash of it.

    Instructions that differ only in case or white space count as one; where one stands in for many
    (`missing_instruction`), it is the first response's text. The side does not depend on
    the other rows, so data that grows moves no old row from test to train.
    """
    split = Split([], [], [])
    for position, quadruple in enumerate(quadruples):
        drawn = _draw(quadruple.family, config.seed)
        if drawn < config.test_share:
            split.test.append(position)
        elif drawn < config.test_share + config.validation_share:
            split.validation.append(position)
        else:
            split.train.append(position)
    return split


def sample(quadruples: list[Quadruple], *, limit: int, seed: int) -> list[Quadruple]:
    """At most `limit` of them, drawn by a seeded hash of the instruction, in input order."""
    order = sorted(range(len(quadruples)), key=lambda index: _draw(quadruples[index].family, ~seed))
    return [quadruples[index] for index in sorted(order[:limit])]


def at_most_per_source(
    quadruples: Sequence[Quadruple], rows: Sequence[int], *, limit: int, seed: int
) -> list[int]:
    """Of these rows at most `limit` of each source, in the order given; drawn by a seeded hash.

    Of all texts, not of the instruction alone: else rewrites of one text would come together.
    """

    def texts(row: int) -> str:
        responses = [item.text for item in quadruples[row].responses if item is not None]
        return "\n".join([quadruples[row].instruction, *responses])

    order = sorted(rows, key=lambda row: _draw(texts(row), seed))
    taken: Counter[str] = Counter()
    kept = set()
    for row in order:
        source = quadruples[row].source
        if taken[source] < limit:
            taken[source] += 1
            kept.add(row)
    return [row for row in rows if row in kept]


def _draw(text: str, seed: int) -> float:
    """A number in [0, 1) that only the text's words and the seed decide."""
    words = " ".join(text.casefold().split())
    digest = blake2b(f"{seed}\n{words}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
