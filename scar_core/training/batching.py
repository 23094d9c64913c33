"""How a training encodes its texts: end to end where that is right for the encoder, else padded."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from scar_core.ranker.attention import use_packed_attention
from scar_core.ranker.model import TextFeatures
from scar_core.ranker.packing import (
    TOLERANCE,
    encode_packed,
    fault_of,
    longest_text,
    probe_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from scar_core.ranker.model import Ranker
    from scar_core.ranker.packing import Batching, Encode, Precision
    from scar_core.training.batches import TextGroup

log = logging.getLogger(__name__)


def use_batching(
    ranker: Ranker,
    wanted: Literal["auto", "padded"],
    *,
    precision: Precision = "fp32",
    autocast: AbstractContextManager[Any] | None = None,
) -> Batching:
    """Make the ranker's encoder ready for the fastest way that a probe finds right; that way.

    Packed must give the features that stock attention gives and leak nothing between texts; the
    log says why where it is not used.
    """
    if wanted == "padded":
        return "padded"
    shared = {id(tensor): tensor for tensor in chain(ranker.parameters(), ranker.buffers())}
    trial = copy.deepcopy(ranker, shared).eval()  # modules of its own over the same weights
    with torch.no_grad():
        probe = probe_of(trial, max_tokens=min(512, longest_text(trial.encoder)))
    fault: str | None
    try:
        use_packed_attention(trial.encoder)
        with torch.no_grad(), autocast or nullcontext():
            fault = fault_of(trial, encode_packed, probe, tolerance=TOLERANCE[precision])
    except (AttributeError, ValueError) as error:  # an encoder without a choice of attention
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        name = type(ranker.encoder).__name__
        log.warning("%s: texts are padded in training, because end to end %s", name, fault)
        return "padded"
    use_packed_attention(ranker.encoder)
    return "packed"


def encode_groups(
    ranker: Ranker, groups: Sequence[TextGroup], encode: Encode, *, recompute: bool
) -> TextFeatures:
    """Features of all texts of all groups, in order.

    With `recompute` the activations of one group at a time are in memory: a group is computed
    again, with the same dropout, when its gradients are.
    """
    parts = []
    for group in groups:
        if recompute and torch.is_grad_enabled():
            parts.append(
                checkpoint(
                    encode,
                    ranker,
                    ids_T=group.ids_T,
                    lengths_N=group.lengths_N,
                    use_reentrant=False,
                )
            )
        else:
            parts.append(encode(ranker, ids_T=group.ids_T, lengths_N=group.lengths_N))
    pooled, form = zip(*parts, strict=True)
    return TextFeatures(torch.cat(pooled), torch.cat(form))
