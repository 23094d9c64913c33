"""Many texts end to end through a causal language model, each attending to itself; or padded.

The model stays transformers' own class, head, scales and caps included: its attention is the
registered one, and positions restart with every text.

Shape suffixes: N texts, B L padded texts, T tokens of all texts end to end, K tokens whose loss is
wanted, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface

from scar_core.ranker.attention import attend_within_texts, layout_of, to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTENTION = "scar_packed_causal"
"""Name of the attention function in transformers' registry."""

_LOSS_ROWS = 256
"""Rows of logits that are turned into fp32 losses at once."""


class MeanLosses(Protocol):
    """Texts end to end to a loss each."""

    def __call__(
        self,
        model: Any,  # noqa: ANN401  - transformers ships no types
        *,
        ids_T: NDArray[np.int32],
        lengths_N: NDArray[np.int64],
        counted_N: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Give the mean cross-entropy, in nats, of each text's last `counted` tokens.

        At least one is counted, and at least one is not.
        """


def use_packed_causal_attention(model: nn.Module) -> None:
    """Make `model` attend within texts; it can then only be called by `losses_packed`."""
    AttentionInterface.register(ATTENTION, partial(attend_within_texts, causal=True))
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def losses_packed(
    model: Any,  # noqa: ANN401  - as above
    *,
    ids_T: NDArray[np.int32],
    lengths_N: NDArray[np.int64],
    counted_N: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Mean losses without padding; fastest with texts of equal length side by side.

    The model must have been given to `use_packed_causal_attention`.
    """
    device = model.device
    ends_N = lengths_N.cumsum()
    places_T = np.arange(len(ids_T)) - (ends_N - lengths_N).repeat(lengths_N)
    targets_K = _last(ends_N, counted_N)
    logits_TV = model(
        input_ids=to_device(ids_T.astype(np.int64)[None], device),
        position_ids=to_device(places_T[None], device),
        layout=layout_of(lengths_N, device),
        logits_to_keep=to_device(targets_K - 1, device),
        use_cache=False,
    ).logits[0]
    if len(logits_TV) != len(targets_K):  # a model that knows no logits_to_keep
        logits_TV = logits_TV[to_device(targets_K - 1, device)]
    return _means(logits_TV, ids_T[targets_K], counted_N)


def losses_padded(
    model: Any,  # noqa: ANN401  - as above
    *,
    ids_T: NDArray[np.int32],
    lengths_N: NDArray[np.int64],
    counted_N: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The same losses from a padded batch: any causal model, stock attention."""
    real_BL = np.arange(lengths_N.max()) < lengths_N[:, None]
    ids_BL = np.zeros(real_BL.shape, np.int64)  # masked out, so any id of the vocabulary
    ids_BL[real_BL] = ids_T
    device = model.device
    logits_BLV = model(
        input_ids=to_device(ids_BL, device),
        attention_mask=to_device(real_BL.astype(np.int64), device),
        use_cache=False,
    ).logits
    row_K = np.arange(len(lengths_N)).repeat(counted_N)
    place_K = _last(lengths_N, counted_N)
    logits_KV = logits_BLV[to_device(row_K, device), to_device(place_K - 1, device)]
    return _means(logits_KV, ids_BL[row_K, place_K], counted_N)


def _last(ends_N: NDArray[np.int64], counted_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the last so many tokens before each end."""
    stops_N = counted_N.cumsum()
    within_K = np.arange(stops_N[-1]) - (stops_N - counted_N).repeat(counted_N)
    places_K: NDArray[np.int64] = (ends_N - counted_N).repeat(counted_N) + within_K
    return places_K


def _means(
    logits_KV: Tensor, target_K: NDArray[Any], counted_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    targets = to_device(target_K.astype(np.int64), logits_KV.device)
    losses = [
        cross_entropy(
            logits_KV[first : first + _LOSS_ROWS].float(),
            targets[first : first + _LOSS_ROWS],
            reduction="none",
        )
        for first in range(0, len(targets), _LOSS_ROWS)
    ]
    loss_K = torch.cat(losses).double().cpu().numpy()
    sums_N: NDArray[np.float64] = np.add.reduceat(loss_K, counted_N.cumsum() - counted_N)
    return sums_N / counted_N


def fault_of(
    model: Any,  # noqa: ANN401  - as above
    reference: Any,  # noqa: ANN401  - as above
    losses: MeanLosses,
    *,
    longest: int,
    tolerance: float,
) -> str | None:
    """Say what is wrong with this way to compute losses; None if they can be trusted.

    They must equal those of `reference`, one text at a time, within `tolerance` as a share.
    """
    lengths_N = np.minimum([longest, 40, 33, 33, 7, 2], longest).astype(np.int64)
    counted_N = np.maximum(1, lengths_N // 2)
    words = model.get_input_embeddings().num_embeddings
    ids_T = np.random.default_rng(0).integers(words, size=lengths_N.sum(), dtype=np.int32)
    alone = [
        losses_padded(
            reference, ids_T=ids_T[end - size : end], lengths_N=size[None], counted_N=count[None]
        )
        for size, end, count in zip(lengths_N, lengths_N.cumsum(), counted_N, strict=True)
    ]
    try:
        found_N = losses(model, ids_T=ids_T, lengths_N=lengths_N, counted_N=counted_N)
    except Exception as error:  # noqa: BLE001  - any architecture may come; the next way is tried
        return f"{type(error).__name__}: {error}"
    off = float(np.max(np.abs(found_N / np.concatenate(alone) - 1)))
    if not off <= tolerance:  # NaN is a fault too
        return f"losses are off by {off:.1e}, more than {tolerance:.0e}"
    return None
