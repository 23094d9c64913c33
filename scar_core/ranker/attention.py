"""Attention of many texts laid end to end, each to itself, in transformers' registry.

Shape suffixes: N texts, T tokens of all texts end to end, L tokens of one, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from scar_core.ranker.linears import cpu_has

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTENTION = "scar_packed"
"""Name of the attention function in transformers' registry."""

_OTHER_ATTENTION = ("position_bias", "softcap", "s_aux")


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
    dropout: float = 0.0,
    causal: bool = False,
    **unsupported: Any,  # noqa: ANN401  - whatever a model adds
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, E] to [1, T, H, E], each text to itself; if `causal`, to what is past.

    Raises:
        NotImplementedError: A model asks for attention that this does not compute: the other way
            round, masked, biased or capped.
    """
    asked = unsupported.get("is_causal")
    asked = getattr(module, "is_causal", causal) if asked is None else asked
    extras = [name for name in _OTHER_ATTENTION if unsupported.get(name) is not None]
    if layout is None or attention_mask is not None or bool(asked) != causal or extras:
        other = "both ways" if causal else "causal"
        raise NotImplementedError(f"attention with {extras or f'a mask, or no layout, or {other}'}")
    query, key = query.to(value.dtype), key.to(value.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # [1, H, T, E] → [T, H, E], a view
    q_THE, k_THE, v_THE = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    how: dict[str, Any] = {"scaling": scaling, "window": sliding_window, "causal": causal}
    half_on_gpu = q_THE.is_cuda and q_THE.dtype != torch.float32
    if half_on_gpu and not dropout:  # varlen_attn has none
        out_THE = attend_varlen(q_THE, k_THE, v_THE, layout, **how)
    else:
        out_THE = attend_runs(q_THE, k_THE, v_THE, layout, dropout=dropout, **how)
    return out_THE.unsqueeze(0), None


def attend_varlen(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    causal: bool = False,
) -> Tensor:
    """All texts in one call of torch's flash attention, which computes in half precision only."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  - of use on a GPU only

    offsets, longest = layout.offsets_N1, layout.longest
    reach = -1 if window is None or longest <= window else window - 1  # -1: the whole text
    attend: Any = varlen_attn
    out_THE: Tensor = attend(
        q_THE,
        k_THE,
        v_THE,
        cu_seq_q=offsets,
        cu_seq_k=offsets,
        max_q=longest,
        max_k=longest,
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
    )
    return out_THE


def attend_runs(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """One call per run of equally long texts, which are a batch without padding."""
    heads, width = q_THE.shape[1:]
    plain = _bf16_without_amx(q_THE) and not (dropout or causal)  # dropout: in training only
    learning = torch.is_grad_enabled() and q_THE.requires_grad
    out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
    # Split, and put together when learning: the gradient of a slice is as long as the whole.
    sizes = [texts * tokens for texts, tokens in layout.runs]
    pieces = zip(*(torch.split(x, sizes) for x in (q_THE, k_THE, v_THE, out_THE)), strict=True)
    outs = []
    for (*qkv, room), (texts, tokens) in zip(pieces, layout.runs, strict=True):
        shape = (texts, tokens, heads, width)
        q, k, v = (x.view(shape).transpose(1, 2) for x in qkv)
        mask = band(tokens, window, q.device, causal=causal)
        if plain:
            out = attend_in_bf16(q, k, v, attn_mask=mask, scale=scaling)
        else:
            out = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal and mask is None,
                scale=scaling,
            )
        if learning:
            outs.append(out.transpose(1, 2).reshape(room.shape))
        else:
            room.view(shape).copy_(out.transpose(1, 2))
    return torch.cat(outs) if learning else out_THE


def _bf16_without_amx(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not cpu_has("amx_bf16")


def attend_in_bf16(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """Plain attention of [N, H, L, E]: faster than torch's on AMD Zen 4 and 5, slower with AMX.

    The scale is applied inside the product: a pass over the weights less, and a rounding.
    """
    N, H, L, E = q.shape
    q, k, v = (x.reshape(N * H, L, E) for x in (q, k, v))
    nothing = q.new_empty(1).expand(N * H, L, L)
    weights = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=E**-0.5 if scale is None else scale)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf)
    return (weights.softmax(-1) @ v).view(N, H, L, E)


def band(
    tokens: int, window: int | None, device: torch.device, *, causal: bool = False
) -> Tensor | None:
    """Mask of the keys less than a window away, and not after the query if `causal`.

    None if the window is no limit.
    """
    if window is None or tokens <= window:
        return None
    place_L = torch.arange(tokens, device=device)
    away_LL = place_L[:, None] - place_L[None, :]
    return (away_LL >= 0) & (away_LL < window) if causal else away_LL.abs() < window


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
