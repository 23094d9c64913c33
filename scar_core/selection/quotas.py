"""Quotas: how many rows each group of a pool contributes to a selection, exactly.

A group is all rows with one value in a column. Its quota is its part of the rows to keep, in
proportion to its eligible rows, rounded by largest remainder so that the quotas add up to the
rows to keep, neither more nor fewer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from scar_core.errors import InputError
from scar_core.selection.keep import (
    NUMBER,
    KeepAbove,
    KeepCount,
    KeepShare,
    KeepTokens,
    rows_to_keep,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.selection.keep import Keep

MOST_GROUPS = 100_000
"""Groups of a selection at most; more would be held in memory by every worker and the driver."""
MOST_NAME_BYTES = 256
"""Length of a group's name at most: a column of longer texts is no label."""


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """By which column a selection is divided, and what a group contributes at least and at most."""

    column: str
    least: KeepCount | KeepShare | None = None
    """Rows, or a share of the rows to keep (rounded up); a group with fewer gives all it has."""
    most: KeepCount | KeepShare | None = None
    """Rows, or a share of the rows to keep (rounded down)."""


def parse_bound(text: str, *, flag: str) -> KeepCount | KeepShare:
    """What `--min-per-group` and `--max-per-group` ask for: `100` rows or `5%` of the selection.

    Raises:
        InputError: it is neither, or out of range.
    """
    plain = text.strip()
    if match := re.fullmatch(rf"({NUMBER})\s*%", plain):
        share = Fraction(match[1]) / 100
        if 0 < share <= 1:
            return KeepShare(share)
    elif re.fullmatch(r"[0-9]+", plain) and int(plain) > 0:
        return KeepCount(int(plain))
    raise InputError(
        f"{flag} {text!r}: wanted a number of rows such as 100, at least 1, or a share of the "
        "selection such as 5%, above 0% and at most 100%."
    )


def group_rule(
    keep: Keep, *, per: str | None, least: str | None, most: str | None
) -> GroupRule | None:
    """The rule that `--per`, `--min-per-group` and `--max-per-group` give; None without `--per`.

    Raises:
        InputError: they do not go together.
    """
    if per is None:
        if least is not None or most is not None:
            raise InputError("--min-per-group and --max-per-group need --per COLUMN.")
        return None
    if isinstance(keep, KeepAbove | KeepTokens):
        what = "a least score" if isinstance(keep, KeepAbove) else "a budget of tokens"
        raise InputError(
            f"--per divides a number of rows among groups, and {what} names none. "
            "Pass --keep with a share or a number of rows, or leave out --per."
        )
    return GroupRule(
        column=per,
        least=None if least is None else parse_bound(least, flag="--min-per-group"),
        most=None if most is None else parse_bound(most, flag="--max-per-group"),
    )


def quotas(
    keep: Keep, rule: GroupRule, *, names: Sequence[str], eligible: Sequence[int]
) -> list[int]:
    """Rows to keep of each group; together floor(share * eligible), or the number asked for.

    What a minimum or maximum moves is spread over the other groups in proportion to their
    eligible rows; then fractions are rounded, largest remainder first, ties by the order of names.

    Args:
        keep: a share or a number of rows.
        rule: least and most of a group.
        names: of the groups.
        eligible: rows of each.

    Raises:
        InputError: the minima add up to more than is kept, or the maxima to less.
    """
    if isinstance(keep, KeepAbove | KeepTokens):
        raise TypeError("a least score or a budget has no quotas")
    total = rows_to_keep(keep, sum(eligible))
    least = rows_of_bound(rule.least, total, up=True) if rule.least else 0
    most = rows_of_bound(rule.most, total, up=False) if rule.most else total
    if rule.most and least > most:
        raise InputError(
            f"--min-per-group is {least:,} rows of {total:,}, --max-per-group {most:,}. "
            "Lower the one or raise the other."
        )
    lows = [min(least, n) for n in eligible]
    highs = [min(most, n) for n in eligible]
    _check_minima(lows, total, names)
    if sum(highs) < total:
        raise InputError(
            f"--max-per-group of {most:,} rows leaves {sum(highs):,} rows of all groups, "
            f"{total:,} are to be kept. Raise it, or lower --keep."
        )
    return apportion(total, eligible, lows=lows, highs=highs)


def rows_of_bound(bound: KeepCount | KeepShare, total: int, *, up: bool) -> int:
    """A bound in rows, of so many to keep."""
    if isinstance(bound, KeepCount):
        return bound.rows
    exact = bound.share * total
    return -(-exact.numerator // exact.denominator) if up else int(exact)


def _check_minima(lows: Sequence[int], total: int, names: Sequence[str]) -> None:
    """Raise InputError that names the first group which the rows to keep do not suffice for."""
    left = total
    for low, name in zip(lows, names, strict=True):
        if low > left:
            raise InputError(
                f"--min-per-group asks for {sum(lows):,} rows of {len(lows):,} groups, "
                f"{total:,} are to be kept: group {name!r} is short, {left:,} of its {low:,} rows "
                "are left when the groups before it have theirs. Lower it, or raise --keep."
            )
        left -= low


def apportion(
    total: int, weights: Sequence[int], *, lows: Sequence[int], highs: Sequence[int]
) -> list[int]:
    """Parts of a total in proportion to weights, within bounds, rounded by largest remainder.

    Args:
        total: at least the sum of `lows`, at most that of `highs`.
        weights: 0 only where the bounds are 0 too.
        lows: least of each part.
        highs: most of each part, at least its low.
    """
    parts = [0] * len(weights)
    free = [index for index, weight in enumerate(weights) if weight]
    left = total
    while free:
        weight = sum(weights[index] for index in free)
        # Integers throughout: part = left * weight_i / weight, compared without dividing.
        under = [i for i in free if left * weights[i] < lows[i] * weight]
        over = [i for i in free if left * weights[i] > highs[i] * weight]
        if not under and not over:
            return _rounded(parts, left, free, weights)
        given = sum(lows[i] * weight - left * weights[i] for i in under)
        taken = sum(left * weights[i] - highs[i] * weight for i in over)
        # The larger side's bounds hold in the end, whatever becomes of the other's.
        bound, at = (lows, under) if given >= taken else (highs, over)
        for index in at:
            parts[index] = bound[index]
            left -= bound[index]
        fixed = set(at)
        free = [index for index in free if index not in fixed]
    return parts


def _rounded(parts: list[int], left: int, free: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Share what is left among the free ones, largest remainder first."""
    weight = sum(weights[index] for index in free)
    remainders = {}
    for index in free:
        parts[index], remainders[index] = divmod(left * weights[index], weight)
    extra = left - sum(parts[index] for index in free)
    for index in sorted(free, key=lambda i: (-remainders[i], i))[:extra]:
        parts[index] += 1
    return parts
