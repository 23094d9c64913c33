"""A cut for every group: the same order and the same ties as one cut for all, in few passes.

A key is four words, most significant first: the score's 32 bits, two halves of the content hash,
and the place (ordinal and offset). `GroupSearch` walks all groups at once from the first bit to
the last, as many bits a pass as the groups leave room for; once few rows can still be the last
selected ones, it asks for these rows and is done.

Array suffixes: N rows of a sidecar, M of them, G groups, W the four words of a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scar_core.errors import IncompleteError
from scar_core.selection.order import score_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scar_core.selection.order import SidecarColumns

WORD_BITS = (32, 64, 64, 64)
LAST_OF_WORD = tuple(2**bits - 1 for bits in WORD_BITS)
DIGIT_BITS = 16

# Counters of one pass at most, 16 MiB on the driver; workers hold only those that are not zero.
BINS = 2**21
# Rows that are fetched, 8 MiB, instead of being narrowed down by further passes.
FETCHED_ROWS = 2**18


class Probe(NamedTuple):
    """What one pass is asked: rows under each open group's prefix, by their next bits."""

    word: int
    """Which word of the key is being read; those before are known."""
    left_bits: int
    """Of that word, not known yet."""
    width: int
    """Bits to count by; 0: the rows themselves are wanted."""
    slots_G: NDArray[np.int32]
    """Number of each open group among them; -1 where a group's cut is known."""
    words_GW: NDArray[np.uint64]
    """What is known of the last selected key of each group; zeros after that."""


class Tally(NamedTuple):
    """What a pass finds, added up."""

    bins: NDArray[np.int64]
    """Ascending numbers of the bins that hold rows: slot * 2**width + bits."""
    rows: NDArray[np.int64]
    """Rows of each."""


class Fetched(NamedTuple):
    """Rows under the prefixes, in any order."""

    slots_M: NDArray[np.int32]
    words_MW: NDArray[np.uint64]


def key_words(columns: SidecarColumns, rows_M: NDArray[np.intp]) -> NDArray[np.uint64]:
    """[M, W] keys of some rows; reads hashes."""
    high_M, low_M = columns.hashes[rows_M].view(">u8").T.astype(np.uint64)
    place_M = np.uint64(columns.ordinal << 32) | rows_M.astype(np.uint64)
    return np.stack(
        [columns.score_keys_N[rows_M].astype(np.uint64), high_M, low_M, place_M], axis=1
    )


def _under(columns: SidecarColumns, probe: Probe) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Rows of open groups under their prefixes, and the word of each that is being read."""
    groups_N = columns.groups_N
    fitting_N = columns.eligible_N & (probe.slots_G[groups_N] >= 0)
    known_N = probe.words_GW[groups_N, 0]
    scores_N = columns.score_keys_N.astype(np.uint64)
    shift = np.uint64(0 if probe.word else probe.left_bits)
    rows_M = np.flatnonzero(fitting_N & (scores_N >> shift == known_N >> shift))
    if not probe.word:
        return rows_M, scores_N[rows_M]
    if not len(rows_M):
        return rows_M, np.zeros(0, np.uint64)
    words_MW = key_words(columns, rows_M)
    known_MW = probe.words_GW[groups_N[rows_M]]
    fitting_M = np.all(words_MW[:, : probe.word] == known_MW[:, : probe.word], axis=1)
    if probe.left_bits < WORD_BITS[probe.word]:
        shift = np.uint64(probe.left_bits)
        fitting_M &= words_MW[:, probe.word] >> shift == known_MW[:, probe.word] >> shift
    return rows_M[fitting_M], words_MW[fitting_M, probe.word]


def tally(sidecars: Iterable[SidecarColumns], probe: Probe) -> Tally:
    """One pass that counts."""
    parts = [Tally(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    shift = np.uint64(probe.left_bits - probe.width)
    for columns in sidecars:
        rows_M, words_M = _under(columns, probe)
        digits_M = (words_M >> shift & np.uint64(2**probe.width - 1)).astype(np.int64)
        slots_M = probe.slots_G[columns.groups_N[rows_M]].astype(np.int64)
        bins, rows = np.unique((slots_M << probe.width) | digits_M, return_counts=True)
        parts.append(Tally(bins, rows.astype(np.int64)))
        if sum(len(part.bins) for part in parts[1:]) > len(parts[0].bins) + BINS // 16:
            parts = [merge_tallies(parts)]
    return merge_tallies(parts)


def merge_tallies(parts: Iterable[Tally]) -> Tally:
    """One tally of all their rows."""
    held = list(parts)
    bins, inverse = np.unique(np.concatenate([part.bins for part in held]), return_inverse=True)
    rows = np.zeros(len(bins), np.int64)
    np.add.at(rows, inverse, np.concatenate([part.rows for part in held]))
    return Tally(bins, rows)


def fetch(sidecars: Iterable[SidecarColumns], probe: Probe) -> Fetched:
    """One pass that brings the rows under the prefixes."""
    slots, words = [np.zeros(0, np.int32)], [np.zeros((0, len(WORD_BITS)), np.uint64)]
    for columns in sidecars:
        rows_M, _ = _under(columns, probe)
        if len(rows_M):
            slots.append(probe.slots_G[columns.groups_N[rows_M]])
            words.append(key_words(columns, rows_M))
    return Fetched(np.concatenate(slots), np.concatenate(words))


def merge_fetched(parts: Iterable[Fetched]) -> Fetched:
    """The rows of all parts."""
    held = list(parts)
    return Fetched(
        np.concatenate([part.slots_M for part in held]),
        np.concatenate([part.words_MW for part in held]),
    )


@dataclass(frozen=True, kw_only=True)
class GroupCuts:
    """Where each group's selection ends: selected are its rows with at most its last key."""

    words_GW: NDArray[np.uint64]
    """Last selected key of each group, or the last that a key with its beginning can be."""
    selected_G: NDArray[np.int64]
    """Selected rows of each group."""

    @property
    def selected(self) -> int:
        """Rows of all groups."""
        return int(self.selected_G.sum())

    @property
    def thresholds(self) -> list[float | None]:
        """The lowest selected score of each group, exactly; None where nothing is selected."""
        pairs = zip(self.words_GW[:, 0].tolist(), self.selected_G.tolist(), strict=True)
        return [score_of(key) if selected else None for key, selected in pairs]

    @property
    def threshold(self) -> float | None:
        """The lowest selected score of all."""
        return min((score for score in self.thresholds if score is not None), default=None)

    def mask(self, columns: SidecarColumns) -> NDArray[np.bool_]:
        """[N] whether each row of a sidecar is selected; reads hashes only to break a tie."""
        groups_N = columns.groups_N
        last_N = self.words_GW[groups_N, 0]
        some_N: NDArray[np.bool_] = columns.eligible_N & (self.selected_G[groups_N] > 0)
        selected_N: NDArray[np.bool_] = some_N & (columns.score_keys_N < last_N)
        tied_M = np.flatnonzero(some_N & (columns.score_keys_N == last_N))
        rest_MW = self.words_GW[groups_N[tied_M], 1:]
        whole_M = np.all(rest_MW == np.array(LAST_OF_WORD[1:], np.uint64), axis=1)
        selected_N[tied_M[whole_M]] = True
        tied_M, rest_MW = tied_M[~whole_M], rest_MW[~whole_M]
        if len(tied_M):
            selected_N[tied_M] = _at_most(key_words(columns, tied_M)[:, 1:], rest_MW)
        return selected_N


def _at_most(words_MW: NDArray[np.uint64], last_MW: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[M] whether each key is at most another, word by word."""
    result_M: NDArray[np.bool_] = words_MW[:, -1] <= last_MW[:, -1]
    for at in range(words_MW.shape[1] - 2, -1, -1):
        ours_M, theirs_M = words_MW[:, at], last_MW[:, at]
        result_M &= ours_M == theirs_M
        result_M |= ours_M < theirs_M
    return result_M


class GroupSearch:
    """Finds the cut of every group, pass by pass: `probe`, then `take` what it found.

    Args:
        eligible: rows of each group.
        wanted: rows to select of each, at most its eligible ones.
    """

    def __init__(self, *, eligible: Sequence[int], wanted: Sequence[int]) -> None:
        self.selected_G = np.array(wanted, np.int64)
        self._position_G = self.selected_G.copy()  # of the last selected row, under the prefix
        self._under_G = np.array(eligible, np.int64)
        self._words_GW = np.zeros((len(wanted), len(WORD_BITS)), np.uint64)
        self._open_G = self.selected_G > 0
        self._word, self._left_bits = 0, WORD_BITS[0]

    @property
    def cuts(self) -> GroupCuts:
        """Those of all groups, once `probe` gives None."""
        return GroupCuts(words_GW=self._words_GW, selected_G=self.selected_G)

    def probe(self) -> Probe | None:
        """What the next pass is to find; None when every cut is known."""
        open_groups = int(self._open_G.sum())
        if not open_groups:
            return None
        slots_G = np.where(self._open_G, np.cumsum(self._open_G) - 1, -1).astype(np.int32)
        room = max(1, (BINS // open_groups).bit_length() - 1)
        few = int(self._under_G[self._open_G].sum()) <= FETCHED_ROWS
        width = 0 if few else min(DIGIT_BITS, room, self._left_bits)
        return Probe(self._word, self._left_bits, width, slots_G, self._words_GW)

    def take(self, probe: Probe, found: Tally | Fetched) -> None:
        """Go on with what the pass found.

        Raises:
            IncompleteError: it saw other rows than the one before.
        """
        open_G = np.flatnonzero(self._open_G)
        if isinstance(found, Fetched):
            self._check(np.bincount(found.slots_M, minlength=len(open_G)), open_G)
            self._finish(found, open_G)
            return
        table = np.zeros((len(open_G), 2**probe.width), np.int64)
        table.reshape(-1)[found.bins] = found.rows
        running = np.cumsum(table, axis=1)
        self._check(running[:, -1], open_G)
        position = self._position_G[open_G]
        digit = np.sum(running < position[:, None], axis=1)
        at = np.arange(len(open_G))
        self._under_G[open_G] = table[at, digit]
        self._position_G[open_G] = position - (running[at, digit] - table[at, digit])
        self._left_bits -= probe.width
        shifted = digit.astype(np.uint64) << np.uint64(self._left_bits)
        self._words_GW[open_G, self._word] |= shifted
        self._close(open_G)

    def _check(self, rows: NDArray[np.int64], open_G: NDArray[np.intp]) -> None:
        wanted = self._under_G[open_G]
        if not np.array_equal(rows, wanted):
            raise IncompleteError(
                f"sidecars or groups changed while they were read: {int(wanted.sum()):,} rows, in "
                f"the next pass {int(rows.sum()):,}. Select again when no other job writes there."
            )

    def _close(self, open_G: NDArray[np.intp]) -> None:
        """Close the groups that end with a prefix, and step to the next word at a word's end."""
        left, word = self._left_bits, self._word
        if word or not left:  # not before the score is whole: it is the threshold
            done = open_G[self._position_G[open_G] == self._under_G[open_G]]
            self._words_GW[done, word] |= np.uint64(2**left - 1)
            self._words_GW[done, word + 1 :] = np.array(LAST_OF_WORD[word + 1 :], np.uint64)
            self._open_G[done] = False
        if not left and word + 1 < len(WORD_BITS):
            self._word, self._left_bits = word + 1, WORD_BITS[word + 1]

    def _finish(self, found: Fetched, open_G: NDArray[np.intp]) -> None:
        """Close every group by the row at its position."""
        words = found.words_MW.T
        order = np.lexsort((words[3], words[2], words[1], words[0], found.slots_M))
        starts = np.searchsorted(found.slots_M[order], np.arange(len(open_G)))
        last = order[starts + self._position_G[open_G] - 1]
        self._words_GW[open_G] = found.words_MW[last]
        self._open_G[open_G] = False
