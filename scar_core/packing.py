"""Many texts in one padding-free sequence, through transformers' attention registry.

The encoder stays transformers' own class. Its attention is a function registered here that
attends within each text only; positions restart with every text; the pooler and the maximum are
taken text by text.

Shape suffixes: N texts, T tokens of all texts end to end, L tokens of a text, H heads, E head
width, D encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from scar_core.model import Ranker, TextFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTENTION = "scar_packed"
"""Name of the attention function in transformers' registry."""

_LEAK = 1e-5
"""Share by which a text's features may move when its neighbours change: rounding only."""


@dataclass(frozen=True)
class Layout:
    """Where each text lies in a packed sequence."""

    runs: tuple[tuple[int, int], ...]
    """(texts, tokens of each), for neighbours of equal length, in order."""
    offsets_N1: Tensor
    """int32, on the encoder's device: text i is tokens offsets[i] to offsets[i + 1]."""
    longest: int
    """Tokens of the longest text."""


def use_packed_attention(encoder: nn.Module) -> None:
    """Make `encoder` attend within texts; it can then only be called by `encode_packed`."""
    AttentionInterface.register(ATTENTION, attend_within_texts)
    encoder.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def attend_within_texts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unsupported: Any,  # noqa: ANN401  - whatever a model adds
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, E] to [1, T, H, E], each text to itself.

    Raises:
        NotImplementedError: A model asks for attention that this does not compute: causal,
            masked, biased or capped.
    """
    causal = unsupported.get("is_causal") or getattr(module, "is_causal", False)
    extras = [name for name in ("position_bias", "softcap", "s_aux") if unsupported.get(name)]
    if layout is None or attention_mask is not None or causal or extras:
        raise NotImplementedError(f"attention with {extras or 'a mask, or no layout, or causal'}")
    query, key = query.to(value.dtype), key.to(value.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # [1, H, T, E] → [T, H, E], a view
    q_THE, k_THE, v_THE = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    out_THE = _attend_runs(q_THE, k_THE, v_THE, layout, scaling, sliding_window)
    return out_THE.unsqueeze(0), None


def _attend_runs(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    layout: Layout,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """One call per run of equally long texts, which are a batch without padding."""
    heads, width = q_THE.shape[1:]
    out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
    start = 0
    for texts, tokens in layout.runs:
        end = start + texts * tokens
        shape = (texts, tokens, heads, width)
        q, k, v = (x[start:end].view(shape).transpose(1, 2) for x in (q_THE, k_THE, v_THE))
        mask = _band(tokens, sliding_window, q.device)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        out_THE[start:end].view(shape).copy_(out.transpose(1, 2))
        start = end
    return out_THE


def _band(tokens: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """Mask of the keys less than a window away; None if all are."""
    if sliding_window is None or tokens <= sliding_window:
        return None
    place_L = torch.arange(tokens, device=device)
    return (place_L[:, None] - place_L[None, :]).abs() < sliding_window


def encode_packed(
    ranker: Ranker, *, ids_T: NDArray[np.int32], lengths_N: NDArray[np.int64]
) -> TextFeatures:
    """Features of texts end to end, none longer than the encoder's positions reach.

    Fastest with texts of equal length side by side. The encoder must have been given to
    `use_packed_attention`.
    """
    encoder = ranker.encoder
    device = next(encoder.parameters()).device
    layout = layout_of(lengths_N, device)
    hidden_1TD = encoder(
        input_ids=to_device(ids_T.astype(np.int64)[None], device),
        position_ids=to_device(_positions(encoder, ids_T, lengths_N)[None], device),
        layout=layout,
    ).last_hidden_state
    hidden_TD = hidden_1TD.squeeze(0)
    first_ND = hidden_TD[layout.offsets_N1[:-1]]
    return TextFeatures(_pool(encoder, first_ND).float(), _maxima(hidden_TD, layout).float())


def encode_padded(
    ranker: Ranker, *, ids_T: NDArray[np.int32], lengths_N: NDArray[np.int64]
) -> TextFeatures:
    """The same features from a padded batch: any encoder, stock attention."""
    real_BL = np.arange(lengths_N.max()) < lengths_N[:, None]
    ids_BL = np.full(real_BL.shape, getattr(_config(ranker.encoder), "pad_token_id", None) or 0)
    ids_BL[real_BL] = ids_T
    device = next(ranker.encoder.parameters()).device
    features = ranker.encode(to_device(ids_BL, device), to_device(real_BL.astype(np.int64), device))
    return TextFeatures(features.pooled_BD.float(), features.form_BD.float())


class Probe(NamedTuple):
    """A batch whose features are known: what an encoder must give, however it is run."""

    ids_T: NDArray[np.int32]
    lengths_N: NDArray[np.int64]
    reference: TextFeatures
    """From stock attention over a padded batch, in fp32."""


def probe_of(ranker: Ranker, *, max_tokens: int) -> Probe:
    """Texts of several lengths, the shortest and the longest among them, of arbitrary words."""
    longest = min(max_tokens, longest_text(ranker.encoder))
    lengths_N = np.array(sorted({longest, min(longest, 33), min(longest, 7), 2, 1} | {1}))[::-1]
    lengths_N = lengths_N.repeat(2).astype(np.int64)
    words = int(_config(ranker.encoder).vocab_size)
    ids_T = np.random.default_rng(0).integers(words, size=lengths_N.sum(), dtype=np.int32)
    reference = encode_padded(ranker, ids_T=ids_T, lengths_N=lengths_N)
    return Probe(ids_T, lengths_N, reference)


def packing_fault(ranker: Ranker, probe: Probe, *, tolerance: float) -> str | None:
    """Say what is wrong with this ranker's packed features; None if they can be trusted.

    They must equal the reference within `tolerance`, a share of a feature vector's length, and
    no text may change when its neighbours do.
    """
    ids_T, lengths_N, reference = probe
    try:
        packed = encode_packed(ranker, ids_T=ids_T, lengths_N=lengths_N)
        strangers_T = (np.arange(len(lengths_N)) % 2 == 1).repeat(lengths_N)
        other_T = np.where(strangers_T, np.roll(ids_T, 1), ids_T)
        among_others = encode_packed(ranker, ids_T=other_T, lengths_N=lengths_N)
    except Exception as error:  # noqa: BLE001  - any architecture may come; it is then run padded
        return f"{type(error).__name__}: {error}"
    off = max(map(_relative_error, packed, reference))
    if not off <= tolerance:  # NaN is a fault too
        return f"features differ from padded ones by {off:.1e}, more than {tolerance:.0e}"
    kept = slice(None, None, 2)
    leak = max(_relative_error(a[kept], b[kept]) for a, b in zip(among_others, packed, strict=True))
    if not leak <= _LEAK:
        return f"a text's features change by {leak:.1e} with its neighbours"
    return None


def _relative_error(found_ND: Tensor, wanted_ND: Tensor) -> float:
    """Largest error of a text's features, as a share of their length."""
    return float(((found_ND - wanted_ND).norm(dim=1) / wanted_ND.norm(dim=1)).max())


def layout_of(lengths_N: NDArray[np.int64], device: torch.device) -> Layout:
    """The layout of texts of these lengths, end to end in this order."""
    runs = tuple((sum(1 for _ in run), length) for length, run in groupby(lengths_N.tolist()))
    offsets_N1 = np.concatenate(([0], lengths_N.cumsum())).astype(np.int32)
    return Layout(runs, to_device(offsets_N1, device), int(lengths_N.max()))


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy to the device; to a GPU from pinned memory, while it computes."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _positions(
    encoder: nn.Module, ids_T: NDArray[np.int32], lengths_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Position of each token in its text, counted as the encoder does."""
    starts_N = lengths_N.cumsum() - lengths_N
    padding = _padding_position(encoder)
    if padding is None:
        return np.arange(len(ids_T), dtype=np.int64) - starts_N.repeat(lengths_N)
    # RoBERTa's family counts from its padding index + 1, and never counts a padding token, which
    # a text can hold as the word "<pad>".
    counted_T = (ids_T != padding).astype(np.int64)
    total_T = counted_T.cumsum()
    before_N = total_T[starts_N] - counted_T[starts_N]
    return (total_T - before_N.repeat(lengths_N)) * counted_T + padding


def _padding_position(encoder: nn.Module) -> int | None:
    """Index of the padding row of the encoder's position table, if it has one."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    return getattr(table, "padding_idx", None)


def longest_text(encoder: nn.Module) -> int:
    """Tokens that the encoder's positions reach."""
    padding = _padding_position(encoder)
    return int(_config(encoder).max_position_embeddings) - (0 if padding is None else padding + 1)


def _config(encoder: nn.Module) -> Any:  # noqa: ANN401  - transformers ships no types
    return encoder.config


def _pool(encoder: nn.Module, first_ND: Tensor) -> Tensor:
    """The encoder's pooler on each text's first token: called by the encoder, it sees only one."""
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        return first_ND
    activation = getattr(encoder, "pooler_activation", None)
    if activation is None:
        pooled_ND: Tensor = pooler(first_ND.unsqueeze(1))
    else:  # ALBERT: a bare layer
        pooled_ND = activation(pooler(first_ND))
    return pooled_ND


def _maxima(hidden_TD: Tensor, layout: Layout) -> Tensor:
    """Maximum of each text over its tokens, [N, D]."""
    if hidden_TD.is_cuda:
        lengths_N = layout.offsets_N1.diff().long()
        return torch.segment_reduce(hidden_TD, "max", lengths=lengths_N, unsafe=True)
    # CPU: one amax per run is 15 times as fast as segment_reduce
    D = hidden_TD.shape[1]
    form_ND = hidden_TD.new_empty((len(layout.offsets_N1) - 1, D))
    text = start = 0
    for texts, tokens in layout.runs:
        end = start + texts * tokens
        torch.amax(hidden_TD[start:end].view(texts, tokens, D), 1, out=form_ND[text : text + texts])
        text, start = text + texts, end
    return form_ND
