"""Many texts in one padding-free sequence; or padded, where that cannot be trusted.

The encoder stays transformers' own class: its attention is the registered one, positions restart
with every text, the pooler and the maximum are taken text by text. A probe tells whether what
comes out is right.

Shape suffixes: N texts, B L padded texts, T tokens of all texts end to end, D encoder width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scar_core.ranker.attention import Layout, layout_of, to_device
from scar_core.ranker.model import Ranker, TextFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray

Batching = Literal["packed", "padded"]
"""Whether texts are encoded end to end, each attending to itself, or padded to the longest."""
Precision = Literal["fp32", "bf16"]

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest error at a check, as a share: rounding is 1e-6 and 5e-3."""
_LEAK = 1e-5
"""Share by which a text's features may move when its neighbours change: rounding only."""


class Encode(Protocol):
    """Texts end to end, and the tokens of each, to what the heads need of them."""

    def __call__(
        self, ranker: Ranker, *, ids_T: NDArray[np.int32], lengths_N: NDArray[np.int64]
    ) -> TextFeatures:
        """Give features in fp32, in the order of the texts, each of at least one token."""


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
        position_ids=to_device(positions(encoder, ids_T, lengths_N)[None], device),
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


ENCODE: dict[Batching, Encode] = {"packed": encode_packed, "padded": encode_padded}


def positions(
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
    place_T: NDArray[np.int64] = (total_T - before_N.repeat(lengths_N)) * counted_T + padding
    return place_T


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
    if hidden_TD.requires_grad:
        sizes = [texts * tokens for texts, tokens in layout.runs]
        parts = zip(torch.split(hidden_TD, sizes), layout.runs, strict=True)
        return torch.cat([part.view(*run, D).amax(1) for part, run in parts])
    form_ND = hidden_TD.new_empty((len(layout.offsets_N1) - 1, D))
    text = start = 0
    for texts, tokens in layout.runs:
        end = start + texts * tokens
        torch.amax(hidden_TD[start:end].view(texts, tokens, D), 1, out=form_ND[text : text + texts])
        text, start = text + texts, end
    return form_ND


class Probe(NamedTuple):
    """Texts whose features are known: what an encoder must give, however it is run."""

    ids_T: NDArray[np.int32]
    lengths_N: NDArray[np.int64]
    reference: TextFeatures
    """From stock attention in fp32, one text at a time."""


def probe_of(ranker: Ranker, *, max_tokens: int) -> Probe:
    """Texts of arbitrary words: the longest that fits, the shortest there are, some between."""
    longest = min(max_tokens, longest_text(ranker.encoder))
    lengths_N = np.minimum([longest, 40, 33, 33, 7, 2, 1, 1], longest).astype(np.int64)
    words = int(_config(ranker.encoder).vocab_size)
    ids_T = np.random.default_rng(0).integers(words, size=lengths_N.sum(), dtype=np.int32)
    alone = [
        encode_padded(ranker, ids_T=ids_T[end - length : end], lengths_N=np.array([length]))
        for length, end in zip(lengths_N, lengths_N.cumsum(), strict=True)
    ]
    pooled, form = zip(*alone, strict=True)
    return Probe(ids_T, lengths_N, TextFeatures(torch.cat(pooled), torch.cat(form)))


def fault_of(ranker: Ranker, encode: Encode, probe: Probe, *, tolerance: float) -> str | None:
    """Say what is wrong with this way to encode; None if its features can be trusted.

    They must equal the reference within `tolerance`, a share of a feature vector's length, and
    no text may change when its neighbours do.
    """
    ids_T, lengths_N, reference = probe
    strangers_T = (np.arange(len(lengths_N)) % 2 == 1).repeat(lengths_N)
    changed_T = np.where(strangers_T, np.roll(ids_T, 1), ids_T)
    try:
        found = encode(ranker, ids_T=ids_T, lengths_N=lengths_N)
        among_others = encode(ranker, ids_T=changed_T, lengths_N=lengths_N)
    except Exception as error:  # noqa: BLE001  - any architecture may come; the next way is tried
        return f"{type(error).__name__}: {error}"
    off = max(map(_relative_error, found, reference))
    if not off <= tolerance:  # NaN is a fault too
        return f"features are off by {off:.1e}, more than {tolerance:.0e}"
    leak = max(_relative_error(a[::2], b[::2]) for a, b in zip(among_others, found, strict=True))
    if not leak <= _LEAK:
        return f"a text's features change by {leak:.1e} with its neighbours"
    return None


def _relative_error(found_ND: Tensor, wanted_ND: Tensor) -> float:
    """Largest error of a text's features, as a share of their length."""
    return float(((found_ND - wanted_ND).norm(dim=1) / wanted_ND.norm(dim=1)).max())
