"""Copies of quadruples whose responses are cut, so that their lengths tell little or nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING

from scar_core.training.quadruples import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.training.quadruples import Quadruple

SHORTEST = 80  # characters: less shows hardly a sentence's style
_BORDER = re.compile(r"\n|[.!?](?=\s)")
_LATEST = 0.7  # share of the limit from which on a border is taken rather than filling the limit
_SHRINK = ((1.0, 1.0), (0.6, 1.0), (0.4, 0.9))
"""By role, the shares of the human response's length that a reversed copy keeps at most."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is made of the quadruples trained on, beside themselves."""

    cut_copies: int = 0
    """Copies of each quadruple trained on with its responses cut, at least 0: to one length in the
    first, the third, ...; the better the response, the shorter in the others."""
    max_per_source: int | None = None
    """Train on at most so many quadruples of one source, drawn by a seeded hash of its texts, at
    least 1; so that a large source does not drown the others."""

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        if self.cut_copies < 0:
            raise ValueError(f"cut_copies must be at least 0, got {self.cut_copies}")
        if self.max_per_source is not None and self.max_per_source < 1:
            raise ValueError(f"max_per_source must be at least 1, got {self.max_per_source}")


def cut_copies(
    quadruples: Sequence[Quadruple], config: AugmentConfig, *, seed: int
) -> list[Quadruple]:
    """All cut copies of these quadruples, copy by copy; each depends on its own row and the seed.

    Most pairs in gathered data have the longer response on the better side, so a ranker can win
    them by counting. In a copy of one length counting is of no use; in a reversed copy it misleads.
    """
    return [
        _reversed_copy(item, _random(item, seed, copy))
        if copy % 2
        else _equal_copy(item, _random(item, seed, copy))
        for copy in range(config.cut_copies)
        for item in quadruples
    ]


def one_length(quadruple: Quadruple) -> Quadruple:
    """The responses cut to the shortest one's characters: what a ranker knows beside length."""
    return _limited(quadruple, [_shortest(quadruple)] * len(quadruple.responses))


def cut(text: str, limit: int) -> str:
    """The beginning of a text, of at most `limit` characters, at least 1.

    It ends after a line or a sentence, if one ends in the last third of the limit, else after a
    word, if one ends there.
    """
    if len(text) <= limit:
        return text
    head = text[:limit]
    ends = [match.end() for match in _BORDER.finditer(text, 0, limit + 1) if match.end() <= limit]
    for end in (ends[-1] if ends else 0, head.rfind(" ")):
        if end >= _LATEST * limit and (found := head[:end].rstrip()):
            return found
    return head.rstrip() or head


def _equal_copy(quadruple: Quadruple, random: Random) -> Quadruple:
    length = _drawn_length(quadruple, random)
    return _limited(quadruple, [length] * len(quadruple.responses))


def _reversed_copy(quadruple: Quadruple, random: Random) -> Quadruple:
    length = _drawn_length(quadruple, random)
    return _limited(quadruple, [int(length * random.uniform(*shares)) for shares in _SHRINK])


def _drawn_length(quadruple: Quadruple, random: Random) -> int:
    """At most the shortest response's length; short ones as often as long ones."""
    most = _shortest(quadruple)
    least = min(SHORTEST, most)
    return int(least * (most / least) ** random.random())


def _shortest(quadruple: Quadruple) -> int:
    return min(len(response.text) for response in quadruple.responses if response is not None)


def _limited(quadruple: Quadruple, limits: Sequence[int]) -> Quadruple:
    human, referenced, direct = (
        None if response is None else Response(cut(response.text, max(1, limit)), response.quality)
        for response, limit in zip(quadruple.responses, limits, strict=True)
    )
    return replace(quadruple, responses=(human, referenced, direct))


def _random(quadruple: Quadruple, seed: int, copy: int) -> Random:
    """Chance that only the row, the seed and the copy's number decide."""
    texts = [quadruple.instruction, *(item.text for item in quadruple.responses if item)]
    key = "\n".join([f"{seed} {copy}", *texts]).encode()
    return Random(int.from_bytes(blake2b(key, digest_size=8).digest()))  # noqa: S311 - no secret
