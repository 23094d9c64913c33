"""Mean losses of texts after their heads, batch by batch within a budget of tokens.

Shape suffixes: B texts in the given order, N the same sorted by length, T tokens end to end.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from scar_core.errors import RunError
from scar_core.ranker.encoding import TokenRows
from scar_core.style.causal import (
    MeanLosses,
    fault_of,
    losses_packed,
    losses_padded,
    use_packed_causal_attention,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Batching = Literal["packed", "padded"]
Precision = Literal["fp32", "bf16"]

_LOSSES: dict[Batching, MeanLosses] = {"packed": losses_packed, "padded": losses_padded}
_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2}
_BUDGET_TOKENS = {"cpu": 1024, "cuda": 32_768}
"""As the ranker's; logits of large vocabularies bound it further."""
_LOGIT_BYTES = {"cpu": 2**30, "cuda": 2**33}
"""Most that the logits of a batch may take in fp32."""


@dataclass(kw_only=True)
class LossStats:
    """What a LossRunner has done so far."""

    batching: Batching
    """How texts are batched, after the check at load."""
    rows: int = 0
    real_tokens: int = 0
    """Tokens computed: a prompt with its response, and for IFD the response once more."""
    computed_tokens: int = 0
    """Those and padding."""
    batches: int = 0
    halvings: int = 0
    """How often the token budget was halved for want of memory."""


class LossRunner:
    """A causal language model on one device; not for several threads at once."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: torch.device,
        batching: Literal["auto", "padded"],
        precision: Precision,
        token_budget: int | None,
        longest: int,
    ) -> None:
        """Take the model; `longest` is that of a head and its text together, for the check."""
        self.device = device
        vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        self._budget_tokens = token_budget or min(
            _BUDGET_TOKENS[device.type], max(1, _LOGIT_BYTES[device.type] // (4 * vocabulary))
        )
        self._model, self.stats = model.to(device), LossStats(batching="padded")
        if batching == "auto":
            self._model, self.stats = self._prepared(
                self._model, longest=longest, precision=precision
            )

    def mean_losses(
        self, heads: TokenRows, texts: TokenRows, *, counted_B: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Mean loss, in nats, of the last so many tokens of each text after its head.

        NaN where none is counted, or nothing stands before the first that is.

        Raises:
            RunError: Not even one text fits into the device's memory.
        """
        loss_B = np.full(len(texts), np.nan)
        lengths_B = heads.lengths_N + texts.lengths_N
        whole = np.flatnonzero((counted_B > 0) & (lengths_B > counted_B))
        order = whole[np.argsort(-lengths_B[whole], kind="stable")]
        joined = _join(heads.take(order), texts.take(order))
        loss_B[order] = self._sorted_losses(joined, counted_B[order])
        return loss_B

    @torch.inference_mode()
    def _sorted_losses(self, rows: TokenRows, counted_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean losses of texts sorted longest first, batch by batch."""
        loss_N = np.empty(len(rows))
        losses = _LOSSES[self.stats.batching]
        lengths_N, offsets_N1 = rows.lengths_N, rows.offsets_N1
        first = 0
        while first < len(rows):
            end = min(len(rows), self._batch_end(offsets_N1, first))
            ids_T = rows.ids_T[offsets_N1[first] : offsets_N1[end]]
            batch = slice(first, end)
            try:
                loss_N[batch] = losses(
                    self._model, ids_T=ids_T, lengths_N=lengths_N[batch], counted_N=counted_N[batch]
                )
            except torch.OutOfMemoryError as error:
                self._halve_budget(len(ids_T), end - first, error)
                continue
            self._count(lengths_N[batch])
            first = end
        return loss_N

    def _batch_end(self, offsets_N1: NDArray[np.int64], first: int) -> int:
        """Give the text after the last one that still fits into the budget; at least one does."""
        if self.stats.batching == "packed":
            limit = offsets_N1[first] + self._budget_tokens
            end = int(np.searchsorted(offsets_N1, limit, side="right")) - 1
        else:
            end = first + self._budget_tokens // int(offsets_N1[first + 1] - offsets_N1[first])
        return max(first + 1, end)

    def _halve_budget(self, tokens: int, texts: int, error: torch.OutOfMemoryError) -> None:
        if texts == 1:
            raise RunError(
                f"{self.device}: a text of {tokens} tokens does not fit into memory. "
                f"Use a smaller model, a larger device or fewer max_tokens."
            ) from error
        self._budget_tokens = max(1, min(self._budget_tokens, tokens) // 2)
        self.stats.halvings += 1
        log.warning("out of memory on %s: token budget now %d", self.device, self._budget_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _count(self, lengths_N: NDArray[np.int64]) -> None:
        self.stats.batches += 1
        self.stats.real_tokens += int(lengths_N.sum())
        packed = self.stats.batching == "packed"
        padded_tokens = int(lengths_N.max()) * len(lengths_N)
        self.stats.computed_tokens += int(lengths_N.sum()) if packed else padded_tokens

    def _prepared(
        self, stock: torch.nn.Module, *, longest: int, precision: Precision
    ) -> tuple[torch.nn.Module, LossStats]:
        """Give the model as it will be run: without padding if a probe finds that right."""
        # Over the same weights, so that the original stays stock.
        tensors = {id(x): x for x in (*stock.parameters(), *stock.buffers())}
        packed = copy.deepcopy(stock, tensors)
        try:
            use_packed_causal_attention(packed)
        except ValueError as error:  # a model without that interface
            fault: str | None = f"{type(error).__name__}: {error}"
        else:
            with torch.inference_mode():
                fault = fault_of(
                    packed,
                    stock,
                    losses_packed,
                    longest=longest,
                    tolerance=_TOLERANCE[precision],
                )
        if fault is None:
            return packed, LossStats(batching="packed")
        log.warning("%s: texts are padded, because %s", type(stock).__name__, fault)
        return stock, LossStats(batching="padded")


def _join(heads: TokenRows, texts: TokenRows) -> TokenRows:
    """Give rows that begin with a head and end with its text."""
    rows = len(texts)
    both = TokenRows(
        np.concatenate((heads.ids_T, texts.ids_T)),
        np.concatenate((heads.offsets_N1, texts.offsets_N1[1:] + heads.offsets_N1[-1])),
        np.concatenate((heads.cut_N, texts.cut_N)),
    )
    mixed = both.take(np.arange(2 * rows).reshape(2, rows).T)
    return TokenRows(mixed.ids_T, mixed.offsets_N1[::2], heads.cut_N + texts.cut_N)
