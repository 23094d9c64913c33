"""Exact selection: the best rows of a pool, to the row, from sidecars alone.

`parse_keep` reads what to keep, `decide` finds the cut, `Cut.mask` tells a sidecar's selected
rows. Who runs the passes over sidecars, and where, is the caller's business.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.errors import InputError
from scar_core.selection.budget import Fitting, fitting
from scar_core.selection.order import DIGIT_VALUES, Prefix, score_keys
from scar_core.selection.radix import Cut, Radix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.selection.radix import Scan, Survey

FLOAT32_MAX = float(np.finfo(np.float32).max)
NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


@dataclass(frozen=True)
class KeepShare:
    """Keep a share of the eligible rows, rounded down to whole rows."""

    share: Fraction
    """In (0, 1]."""


@dataclass(frozen=True)
class KeepCount:
    """Keep so many rows, or all eligible ones where there are fewer."""

    rows: int
    """At least 1."""


@dataclass(frozen=True)
class KeepAbove:
    """Keep every eligible row with at least this score."""

    score: float
    """A finite float32 value."""


@dataclass(frozen=True)
class KeepTokens:
    """Keep the longest beginning of the order whose rows have at most so many tokens together."""

    tokens: int
    """At least 1."""


Keep = KeepShare | KeepCount | KeepAbove | KeepTokens

MANY = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def parse_keep(text: str) -> Keep:
    """What `--keep` asks for: `10%`, `2500`, `score>=1.5` or `50M-tokens`.

    A share is its decimal text as a fraction: 29% of 100 rows is 29 rows. A score is rounded to
    the nearest float32, as scores are: the threshold that one run reports keeps the same rows in
    the next.

    Raises:
        InputError: it is none of them, or out of range.
    """
    plain = text.strip()
    if match := re.fullmatch(rf"({NUMBER})\s*%", plain):
        share = Fraction(match[1]) / 100
        if not 0 < share <= 1:
            raise InputError(f"--keep {text!r}: a share must be above 0% and at most 100%.")
        return KeepShare(share)
    if re.fullmatch(r"[0-9]+", plain):
        if int(plain) == 0:
            raise InputError(f"--keep {text!r}: wanted at least 1 row.")
        return KeepCount(int(plain))
    if match := re.fullmatch(rf"score\s*>=\s*([+-]?{NUMBER}(?:[eE][+-]?[0-9]+)?)", plain):
        score = float(match[1])
        if abs(score) > FLOAT32_MAX:
            raise InputError(f"--keep {text!r}: no score is beyond {FLOAT32_MAX:g} (float32).")
        return KeepAbove(float(np.float32(score)))
    if match := re.fullmatch(rf"({NUMBER})([kMB]?)-tokens", plain):
        tokens = Fraction(match[1]) * MANY[match[2]]
        if tokens < 1 or tokens.denominator != 1:
            raise InputError(f"--keep {text!r}: wanted a whole number of tokens, at least 1.")
        return KeepTokens(int(tokens))
    raise InputError(f"--keep {text!r}: {_complaint(plain)}")


def _complaint(plain: str) -> str:
    wanted = (
        "Wanted a share such as 10%, a number of rows such as 2500, 'score>=1.5', or a budget "
        "such as 50M-tokens (k, M, B)."
    )
    if plain == "score":
        return f"the shell took the rest for a file name; quote it. {wanted}"
    if re.fullmatch(NUMBER, plain):
        percent = f"{float(Fraction(plain) * 100):g}%"
        return f"is it {plain}%, or {percent} as a part of 1? Write the % sign. {wanted}"
    return f"cannot be read. {wanted}"


class Decision(NamedTuple):
    """What is selected from a pool, and how its scores are spread."""

    cut: Cut
    quantiles: tuple[float, ...]
    """Scores, one for each probability asked for; empty where no row is eligible."""
    budget: Fitting | None = None
    """What fits into the budget, where tokens are kept."""


def decide(
    survey: Survey,
    scan: Scan,
    keep: Keep | None,
    *,
    probabilities: Sequence[float] = (),
    weigh: Scan | None = None,
) -> Decision:
    """Find the cut, and exact quantiles of the eligible scores.

    A quantile is that of the nearest rank: the smallest score which at least this share of the
    rows does not exceed. After the survey, one pass finds all of them and the cut's second digit;
    where rows tie at the threshold, each further digit takes one more, twelve for equal rows.

    Args:
        survey: of all sidecars.
        scan: one more pass over the same sidecars.
        keep: what to keep. A share of few rows, or a high score, may select none; None does.
        probabilities: of the quantiles, each in [0, 1].
        weigh: as `scan`, tokens in place of rows; needed to keep tokens.

    Raises:
        IncompleteError: the passes do not see the same rows.
    """
    eligible = survey.counts.eligible
    if not eligible:
        return Decision(Cut(selected=0, digits=()), ())
    radix = Radix(survey, scan)
    positions = [_position(probability, eligible) for probability in probabilities]
    wanted = [radix.step((), position).prefix for position in positions]
    budget = None
    if isinstance(keep, KeepTokens):
        if weigh is None:
            raise TypeError("tokens are kept by their histograms")
        radix.load(wanted)
        budget = fitting(radix, weigh, keep.tokens)
        selected = budget.selected
    elif isinstance(keep, KeepAbove):
        digits = _score_digits(keep.score)
        radix.load([*wanted, digits[:1]])
        selected = radix.count_to(digits)
    else:
        selected = 0 if keep is None else rows_to_keep(keep, eligible)
        radix.load([*wanted, *([radix.step((), selected).prefix] if selected else [])])
    return Decision(radix.cut(selected), tuple(map(radix.score_at, positions)), budget)


def rows_to_keep(keep: KeepShare | KeepCount, eligible: int) -> int:
    """How many of so many eligible rows are kept; a share is rounded down."""
    if isinstance(keep, KeepShare):
        return math.floor(keep.share * eligible)
    return min(keep.rows, eligible)


def _position(probability: float, eligible: int) -> int:
    """The place in selection order, from 1, of a quantile."""
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability must be in [0, 1], got {probability}")
    # Through its decimal text: in binary 0.07 * 100 is above 7.
    rank = max(1, math.ceil(Fraction(str(probability)) * eligible))
    return eligible - rank + 1


def _score_digits(score: float) -> Prefix:
    return divmod(int(score_keys(np.array([score], np.float32))[0]), DIGIT_VALUES)
