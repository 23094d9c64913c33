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

from scar_core.ranker.budget import BatchStats, TokenBudget
from scar_core.ranker.encoding import TokenRows
from scar_core.ranker.packing import TOLERANCE, Batching, Precision
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

_LOSSES: dict[Batching, MeanLosses] = {"packed": losses_packed, "padded": losses_padded}
_BUDGET_TOKENS = {"cpu": 1024, "cuda": 32_768}
"""As the ranker's; logits of large vocabularies bound it further."""
_LOGIT_BYTES = {"cpu": 2**30, "cuda": 2**33}
"""Most that the logits of a batch may take in fp32."""


@dataclass(kw_only=True)
class LossStats(BatchStats):
    """What a LossRunner has done so far: of a prompt with its response, and for IFD of it alone."""

    rows: int = 0


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
        logits = max(1, _LOGIT_BYTES[device.type] // (4 * vocabulary))
        self._budget = TokenBudget(
            token_budget or min(_BUDGET_TOKENS[device.type], logits), device=device
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
        losses, lengths_N = _LOSSES[self.stats.batching], rows.lengths_N

        def compute(batch: slice, ids_T: NDArray[np.int32]) -> None:
            loss_N[batch] = losses(
                self._model, ids_T=ids_T, lengths_N=lengths_N[batch], counted_N=counted_N[batch]
            )

        self._budget.run(rows, self.stats, compute)
        return loss_N

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
                    tolerance=TOLERANCE[precision],
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
