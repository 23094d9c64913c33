"""Length bands: rows of like length as groups, and the cap that keeps only the best of each.

A row's length is its tokens, as a budget counts them. With a cap a row takes part only if it is
among the first so many rows of its band: to select the best of those is to go down the order and
leave out rows whose band is full.

Array suffixes: N rows of a sidecar, B bands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.errors import InputError
from scar_core.selection.groups import GroupCuts, Tally, merge_tallies
from scar_core.selection.keep import KeepAbove, KeepCount, KeepShare, KeepTokens, rows_to_keep
from scar_core.selection.quotas import parse_bound, rows_of_bound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scar_core.selection.keep import Keep
    from scar_core.selection.order import SidecarColumns

MOST_BANDS = 1000


@dataclass(frozen=True, kw_only=True)
class BandRule:
    """Which bands there are, and how many rows of one are kept at most."""

    most: KeepCount | KeepShare
    """Rows, or a share of the rows to keep (rounded down)."""
    edges: tuple[int, ...] = ()
    """Lengths at which a band begins, ascending, but the first."""
    quantiles: int = 0
    """In place of edges: into how many bands of about equally many rows."""


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Bands of lengths that follow each other, from 0 tokens on."""

    edges: tuple[int, ...]
    """Lengths at which a band begins, ascending, but the first."""

    @property
    def names(self) -> tuple[str, ...]:
        """Such as `0-127`, `128-511`, `512-`."""
        starts = [0, *self.edges]
        return (*(f"{low}-{high - 1}" for low, high in pairwise(starts)), f"{starts[-1]}-")

    def number(self, columns: SidecarColumns) -> NDArray[np.int32]:
        """[N] number of each row's band."""
        edges = np.array(self.edges, np.int64)
        return np.searchsorted(edges, columns.tokens_N, side="right").astype(np.int32)


class Cap(NamedTuple):
    """Where each band is full."""

    bands: Bands
    cuts: GroupCuts

    def apply(self, columns: SidecarColumns) -> None:
        """Rows that are beyond it are not eligible any more."""
        columns.group_by(self.bands.number(columns))
        columns.limit(self.cuts.mask(columns))
        columns.group_by(None)


def band_rule(keep: Keep, *, bands: str | None, most: str | None) -> BandRule | None:
    """The rule that `--length-bands` and `--max-per-length-band` give; None without both.

    Raises:
        InputError: they cannot be read, or do not go together.
    """
    if bands is None and most is None:
        return None
    if bands is None or most is None:
        raise InputError(
            "--length-bands and --max-per-length-band need each other: which bands there are, and "
            "how many rows of one are kept at most."
        )
    bound = parse_bound(most, flag="--max-per-length-band")
    if isinstance(bound, KeepShare) and isinstance(keep, KeepAbove | KeepTokens):
        raise InputError(
            "--max-per-length-band as a share is one of the rows to keep, and --keep names no "
            "number of rows. Pass it as a number of rows."
        )
    plain = bands.replace(" ", "")
    if match := re.fullmatch(r"q([0-9]+)", plain):
        if 1 < int(match[1]) <= MOST_BANDS:
            return BandRule(most=bound, quantiles=int(match[1]))
    elif re.fullmatch(r"[0-9]+(,[0-9]+)*", plain):
        edges = tuple(map(int, plain.split(",")))
        if edges[0] > 0 and len(edges) < MOST_BANDS and all(a < b for a, b in pairwise(edges)):
            return BandRule(most=bound, edges=edges)
    raise InputError(
        f"--length-bands {bands!r}: wanted ascending lengths in tokens at which a band begins, "
        f"such as 128,512,2048, or q and a number of quantiles, such as q10; at most {MOST_BANDS:,}"
        " bands."
    )


def lengths(sidecars: Iterable[SidecarColumns]) -> Tally:
    """Eligible rows by their length."""
    parts = [Tally(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for columns in sidecars:
        values, rows = np.unique(columns.tokens_N[columns.eligible_N], return_counts=True)
        parts = [merge_tallies([*parts, Tally(values, rows.astype(np.int64))])]
    return parts[0]


def bands_of(rule: BandRule, found: Tally) -> Bands:
    """The bands of a rule for rows of these lengths.

    With quantiles the first of n bands ends with the smallest length that at least 1/n of the rows
    do not exceed, and so on. Bands that would hold no length are not there.
    """
    if not rule.quantiles:
        return Bands(edges=rule.edges)
    running = np.cumsum(found.rows)
    total = int(running[-1]) if len(running) else 0
    ranks = (
        [-(-total * part // rule.quantiles) for part in range(1, rule.quantiles)] if total else []
    )
    ends = {int(found.bins[np.searchsorted(running, rank)]) for rank in ranks}
    last = int(found.bins[-1]) if total else 0
    return Bands(edges=tuple(sorted(end + 1 for end in ends if end < last)))


def rows_by_band(bands: Bands, found: Tally) -> list[int]:
    """[B] rows of each band, by their lengths."""
    rows_B = np.zeros(len(bands.edges) + 1, np.int64)
    np.add.at(rows_B, np.searchsorted(np.array(bands.edges), found.bins, side="right"), found.rows)
    return rows_B.tolist()


def within_cap(
    keep: Keep, rule: BandRule, *, bands: Bands, eligible: Sequence[int]
) -> tuple[list[int], Keep]:
    """[B] rows of each band that take part, and what is kept of them all.

    A share of `keep` is one of all eligible rows, as without a cap.

    Raises:
        InputError: fewer rows take part than are to be kept.
    """
    total = None if isinstance(keep, KeepAbove | KeepTokens) else rows_to_keep(keep, sum(eligible))
    most = rows_of_bound(rule.most, total or 0, up=False)
    within = [min(most, rows) for rows in eligible]
    if total is None:
        return within, keep
    if sum(within) < total:
        short = [
            f"{name} (has {rows:,})"
            for name, rows, took in zip(bands.names, eligible, within, strict=True)
            if took < most
        ]
        told = f"; short of it are {', '.join(short[:10])}" if short else ""
        raise InputError(
            f"--max-per-length-band of {most:,} rows leaves {sum(within):,} rows of "
            f"{len(within):,} bands, {total:,} are to be kept{told}. Raise it, or lower --keep."
        )
    return within, KeepCount(total)
