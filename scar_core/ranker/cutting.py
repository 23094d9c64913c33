"""Pairs to token ids in pieces that the encoder reads: cut, cut from the left, or in windows.

Shape suffixes: J pairs, P pieces, K rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from scar_core.pool.pieces import Pieces
from scar_core.ranker.encoding import TokenRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.rows import CheckedPairs, Long
    from scar_core.ranker.encoding import TextTokenizer

    Ids = NDArray[np.int32]
    Split = Callable[[Ids, int], list[Ids]]


@dataclass(frozen=True, kw_only=True)
class PieceTokens:
    """The token ids of P pieces of J pairs of K rows, and what became of the pairs' tokens."""

    instructions: TokenRows
    """P texts; the windows of a response share their instruction."""
    responses: TokenRows
    """P texts."""
    pieces: Pieces
    rows_J: NDArray[np.int32]
    """Which row each pair is of, ascending."""
    instruction_tokens_J: NDArray[np.int32]
    """Given to the encoder, special tokens included, an instruction once for all windows."""
    response_tokens_J: NDArray[np.int32]
    """The same, of all windows together."""
    cut_tokens_J: NDArray[np.int32]
    """Lost to truncation, both texts together."""
    whole_instruction_tokens_J: NDArray[np.int32]
    """Before truncation."""
    whole_response_tokens_J: NDArray[np.int32]

    def only(self, left_K: NDArray[np.integer]) -> PieceTokens:
        """Those of some rows, ascending, which are numbered anew."""
        left_P = np.isin(self.pieces.rows_P, left_K)
        left_J = np.isin(self.rows_J, left_K)
        rows_P = np.searchsorted(left_K, self.pieces.rows_P[left_P]).astype(np.int32)
        of_pairs = {
            one.name: getattr(self, one.name)[left_J]
            for one in fields(self)
            if one.name.endswith("_tokens_J")
        }
        return replace(
            self,
            instructions=self.instructions.take(np.flatnonzero(left_P)),
            responses=self.responses.take(np.flatnonzero(left_P)),
            pieces=Pieces(rows_P, self.pieces.turns_P[left_P], self.pieces.weights_P[left_P]),
            rows_J=np.searchsorted(left_K, self.rows_J[left_J]).astype(np.int32),
            **of_pairs,
        )

    def of_rows(self, values_J: NDArray[np.int32]) -> NDArray[np.int32]:
        """Sums over the pairs of each row."""
        return np.bincount(self.rows_J, values_J).astype(np.int32)


def tokenize_pairs(pairs: CheckedPairs, tokenizer: TextTokenizer, *, long: Long) -> PieceTokens:
    """Token ids of checked pairs, long texts treated as `long` says.

    head: the first `max_tokens` of each text. head-tail: the first and the last half of them.
    windows: instructions as in head; responses in windows of `max_tokens` that follow each other.
    Of a conversation as an instruction the last `max_tokens` are read, whatever `long` says.
    """
    rows_J = np.array(pairs.rows_of_pairs(), np.int32)
    heads = tokenizer.tokenize(pairs.instructions)
    whole_instruction_tokens_J = heads.lengths_N + heads.cut_N
    left_J = np.array(pairs.conversations or [False] * len(heads), bool)
    heads = _recut(heads, pairs.instructions, tokenizer, "tail", which=left_J)
    tails = tokenizer.tokenize(pairs.responses)
    whole_response_tokens_J = tails.lengths_N + tails.cut_N
    windows_J = np.ones(len(tails), np.int64)
    instruction_tokens_J = heads.lengths_N
    if long == "head-tail":
        heads = _recut(heads, pairs.instructions, tokenizer, long, which=~left_J)
        tails = _recut(tails, pairs.responses, tokenizer, long, which=None)
    cut_J = heads.cut_N + tails.cut_N
    response_tokens_J = tails.lengths_N
    if long == "windows" and tails.cut_N.any():
        cut_J = heads.cut_N
        tails, windows_J = _windows(tails, pairs.responses, tokenizer)
        ends = np.cumsum(windows_J)
        response_tokens_J = tails.offsets_N1[ends] - tails.offsets_N1[ends - windows_J]
        heads = heads.take(np.repeat(np.arange(len(heads)), windows_J))
    pieces = Pieces(
        rows_P=np.repeat(rows_J, windows_J),
        turns_P=np.repeat(_turn_numbers(rows_J), windows_J),
        weights_P=np.maximum(tails.lengths_N - sum(tokenizer.edges), 1).astype(np.int32),
    )
    return PieceTokens(
        instructions=heads,
        responses=tails,
        pieces=pieces,
        rows_J=rows_J,
        instruction_tokens_J=instruction_tokens_J.astype(np.int32),
        response_tokens_J=response_tokens_J.astype(np.int32),
        cut_tokens_J=cut_J.astype(np.int32),
        whole_instruction_tokens_J=whole_instruction_tokens_J.astype(np.int32),
        whole_response_tokens_J=whole_response_tokens_J.astype(np.int32),
    )


def _turn_numbers(rows_J: NDArray[np.int32]) -> NDArray[np.int32]:
    """0, 1, … within each row."""
    starts = np.flatnonzero(np.diff(rows_J, prepend=-1))
    counts = np.diff(np.append(starts, len(rows_J)))
    return (np.arange(len(rows_J)) - np.repeat(starts, counts)).astype(np.int32)


def _tail(body: Ids, room: int) -> list[Ids]:
    return [body[-room:]]


def _head_tail(body: Ids, room: int) -> list[Ids]:
    return [np.concatenate((body[: room - room // 2], body[len(body) - room // 2 :]))]


def _in_windows(body: Ids, room: int) -> list[Ids]:
    return [body[start : start + room] for start in range(0, len(body), room)]


_SPLITS: dict[Literal["tail", "head-tail"], Split] = {"tail": _tail, "head-tail": _head_tail}


def _recut(
    rows: TokenRows,
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    how: Literal["tail", "head-tail"],
    *,
    which: NDArray[np.bool_] | None,
) -> TokenRows:
    """The same texts, those of `which` that do not fit cut in another way; as many tokens each."""
    long_J = rows.cut_N > 0 if which is None else (rows.cut_N > 0) & which
    return _split(rows, texts, tokenizer, np.flatnonzero(long_J), _SPLITS[how])[0]


def _windows(
    rows: TokenRows, texts: Sequence[str], tokenizer: TextTokenizer
) -> tuple[TokenRows, NDArray[np.int64]]:
    """Windows of the texts, whole, and how many each has."""
    return _split(rows, texts, tokenizer, np.flatnonzero(rows.cut_N), _in_windows)


def _split(
    rows: TokenRows,
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    which: NDArray[np.int64],
    split: Split,
) -> tuple[TokenRows, NDArray[np.int64]]:
    """The texts, some of them as `split` makes parts of them, and the number of parts of each."""
    counts_J = np.ones(len(rows), np.int64)
    if not len(which):
        return rows, counts_J
    before, after = tokenizer.edges
    room = tokenizer.max_tokens - before - after
    parts = [[ids] for ids in np.split(rows.ids_T, rows.offsets_N1[1:-1])]
    wholes = tokenizer.tokenize_whole([texts[j] for j in which])
    for j, whole in zip(which, np.split(wholes.ids_T, wholes.offsets_N1[1:-1]), strict=True):
        body, end = whole[before : len(whole) - after], whole[len(whole) - after :]
        parts[j] = [np.concatenate((whole[:before], p, end)) for p in split(body, room)]
        counts_J[j] = len(parts[j])
    flat = [part for of_text in parts for part in of_text]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in flat])))
    return TokenRows(np.concatenate(flat), offsets, np.repeat(rows.cut_N, counts_J)), counts_J
