"""Texts that are computed together: as many tokens as a budget allows, fewer where memory ends.

Shape suffixes: N texts sorted longest first, T tokens of some of them end to end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from scar_core.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scar_core.ranker.encoding import TokenRows
    from scar_core.ranker.packing import Batching

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BatchStats:
    """What was computed so far."""

    batching: Batching
    """How texts are batched, after the check at load."""
    batches: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    """Real ones and padding."""
    halvings: int = 0
    """How often the token budget was halved for want of memory."""


class Compute(Protocol):
    """Computes some texts; keeps what comes out."""

    def __call__(self, batch: slice, ids_T: NDArray[np.int32]) -> None:
        """Compute the texts of the slice, whose token ids these are."""


class TokenBudget:
    """Most tokens computed at once on a device; halved whenever they do not fit into its memory."""

    def __init__(self, tokens: int, *, device: torch.device) -> None:
        self._tokens = tokens
        self._device = device

    def run(self, rows: TokenRows, stats: BatchStats, compute: Compute) -> None:
        """Compute all texts, sorted longest first and none empty, batch by batch.

        Raises:
            RunError: not even one text fits into the device's memory.
        """
        lengths_N, offsets_N1 = rows.lengths_N, rows.offsets_N1
        first = 0
        while first < len(rows):
            end = min(len(rows), self._end(offsets_N1, first, stats.batching))
            ids_T = rows.ids_T[offsets_N1[first] : offsets_N1[end]]
            try:
                compute(slice(first, end), ids_T)
            except torch.OutOfMemoryError as error:
                self._halve(len(ids_T), end - first, error)
                stats.halvings += 1
                continue
            stats.batches += 1
            stats.real_tokens += len(ids_T)
            padded_tokens = int(lengths_N[first]) * (end - first)
            stats.computed_tokens += len(ids_T) if stats.batching == "packed" else padded_tokens
            first = end

    def _end(self, offsets_N1: NDArray[np.int64], first: int, batching: Batching) -> int:
        """Give the text after the last one that still fits into the budget; at least one does."""
        if batching == "packed":
            limit = offsets_N1[first] + self._tokens
            end = int(np.searchsorted(offsets_N1, limit, side="right")) - 1
        else:
            end = first + self._tokens // int(offsets_N1[first + 1] - offsets_N1[first])
        return max(first + 1, end)

    def _halve(self, tokens: int, texts: int, error: torch.OutOfMemoryError) -> None:
        if texts == 1:
            raise RunError(
                f"{self._device}: a text of {tokens} tokens does not fit into memory. Use a "
                "smaller model, a larger device, fewer actors on it or fewer tokens of a text."
            ) from error
        self._tokens = max(1, min(self._tokens, tokens) // 2)
        log.warning("out of memory on %s: token budget now %d", self._device, self._tokens)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
