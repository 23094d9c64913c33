"""Packed features are the padded ones, for every listed architecture, and never leak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from scar_core.ranker import attention, packing
from scar_core.ranker.attention import ATTENTION, layout_of, use_packed_attention
from scar_core.ranker.packing import (
    encode_packed,
    encode_padded,
    fault_of,
    longest_text,
    probe_of,
)
from tests.tiny import MODEL_TYPES, pad_id, tiny_ranker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scar_core.ranker.model import Ranker, TextFeatures

PACKED_TYPES = [name for name in MODEL_TYPES if name != "mpnet"]
LENGTHS_N = np.array([90, 37, 37, 20, 7, 2, 1, 1])


def words(lengths_N: NDArray[np.int64], seed: int = 0) -> NDArray[np.int32]:
    """Arbitrary ids, the padding id among them, for texts of these lengths end to end."""
    ids_T = np.random.default_rng(seed).integers(512, size=lengths_N.sum())
    ids_T[[3, 50]] = (0, 1)
    return np.asarray(ids_T, dtype=np.int32)


def packed_ranker(model_type: str, **encoder: Any) -> Ranker:  # noqa: ANN401  - any config field
    """A tiny ranker whose attention is ours."""
    ranker, _ = tiny_ranker(model_type, **encoder)
    use_packed_attention(ranker.encoder)
    return ranker


def largest_gap(found: TextFeatures, wanted: TextFeatures) -> float:
    """Largest absolute difference of any feature."""
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("model_type", PACKED_TYPES)
@torch.inference_mode()
def test_packed_features_equal_those_of_each_text_alone(model_type: str) -> None:
    """Also for texts of one and two tokens, and where a text holds the padding token."""
    stock, _ = tiny_ranker(model_type)
    ids_T = words(LENGTHS_N)
    packed = encode_packed(packed_ranker(model_type), ids_T=ids_T, lengths_N=LENGTHS_N)
    for index, end in enumerate(LENGTHS_N.cumsum()):
        alone_BL = torch.from_numpy(ids_T[end - LENGTHS_N[index] : end].astype(np.int64))[None]
        alone = stock.encode(alone_BL, torch.ones_like(alone_BL))
        assert torch.allclose(packed.pooled_BD[index], alone.pooled_BD[0], atol=1e-5), index
        assert torch.allclose(packed.form_BD[index], alone.form_BD[0], atol=1e-5), index


@pytest.mark.parametrize("model_type", PACKED_TYPES)
@torch.inference_mode()
def test_a_text_does_not_see_its_neighbours(model_type: str) -> None:
    """Every other text is changed; those between keep their features."""
    ranker = packed_ranker(model_type)
    changed_T = (np.arange(len(LENGTHS_N)) % 2 == 1).repeat(LENGTHS_N)
    ids_T = words(LENGTHS_N)
    before = encode_packed(ranker, ids_T=ids_T, lengths_N=LENGTHS_N)
    other_T = np.where(changed_T, words(LENGTHS_N, seed=1), ids_T)
    after = encode_packed(ranker, ids_T=other_T, lengths_N=LENGTHS_N)
    kept, moved = slice(0, None, 2), slice(1, None, 2)
    assert torch.allclose(after.form_BD[kept], before.form_BD[kept], rtol=0, atol=1e-6)
    assert torch.allclose(after.pooled_BD[kept], before.pooled_BD[kept], rtol=0, atol=1e-6)
    assert (after.form_BD[moved] - before.form_BD[moved]).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.inference_mode()
def test_padding_does_not_change_features(model_type: str) -> None:
    """The fallback is right for every architecture, those off the attention interface too."""
    ranker, _ = tiny_ranker(model_type)
    probe = probe_of(ranker, max_tokens=100)
    assert fault_of(ranker, encode_padded, probe, tolerance=1e-4) is None


@pytest.mark.parametrize("model_type", PACKED_TYPES)
@torch.inference_mode()
def test_the_check_passes_what_is_right(model_type: str) -> None:
    """None of the listed architectures falls back."""
    stock, _ = tiny_ranker(model_type)
    probe = probe_of(stock, max_tokens=512)
    ranker = packed_ranker(model_type)
    assert fault_of(ranker, encode_packed, probe, tolerance=1e-4) is None


def attend_everywhere(
    _module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: object,
    **__: object,
) -> tuple[torch.Tensor, None]:
    """What stock attention does with packed texts: each sees all."""
    return scaled_dot_product_attention(query, key, value).transpose(1, 2), None


@pytest.mark.parametrize("model_type", PACKED_TYPES)
@torch.inference_mode()
def test_the_check_sees_texts_that_leak_into_each_other(model_type: str) -> None:
    """The fault that stock attention makes on packed texts is found in every architecture."""
    stock, _ = tiny_ranker(model_type)
    probe = probe_of(stock, max_tokens=128)
    ranker = packed_ranker(model_type)
    AttentionInterface.register(ATTENTION, attend_everywhere)
    try:
        fault = fault_of(ranker, encode_packed, probe, tolerance=1e-4)
        # bf16 is let off further from the reference, so the neighbours must tell
        coarse = fault_of(ranker, encode_packed, probe, tolerance=1e3)
    finally:
        AttentionInterface.register(ATTENTION, attention.attend_within_texts)
    assert fault is not None
    assert "off by" in fault
    assert coarse is not None
    assert "neighbours" in coarse


@torch.inference_mode()
def test_the_check_sees_positions_that_do_not_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one position off, the mistake that RoBERTa's counting invites."""
    stock, _ = tiny_ranker("roberta")
    probe = probe_of(stock, max_tokens=64)
    ranker = packed_ranker("roberta")
    right = packing.positions
    monkeypatch.setattr(packing, "positions", lambda *given: right(*given) - 1)
    fault = fault_of(ranker, encode_packed, probe, tolerance=1e-4)
    assert fault is not None
    assert "off by" in fault


@torch.inference_mode()
def test_the_check_sees_a_window_that_is_not_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT's local layers must stay local."""
    stock, _ = tiny_ranker("modernbert")
    probe = probe_of(stock, max_tokens=64)
    ranker = packed_ranker("modernbert")
    monkeypatch.setattr(attention, "band", lambda *_, **__: None)
    fault = fault_of(ranker, encode_packed, probe, tolerance=1e-4)
    assert fault is not None
    assert "off by" in fault


@torch.inference_mode()
def test_the_check_names_attention_that_packing_does_not_do() -> None:
    """A causal encoder is refused, not computed wrongly."""
    stock, _ = tiny_ranker("bert", is_decoder=True)
    probe = probe_of(stock, max_tokens=64)
    ranker = packed_ranker("bert", is_decoder=True)
    fault = fault_of(ranker, encode_packed, probe, tolerance=1e-4)
    assert fault is not None
    assert fault.startswith("NotImplementedError: attention with")


@torch.inference_mode()
def test_an_encoder_off_the_attention_interface_is_found_out() -> None:
    """MPNet keeps its own attention, whatever is registered."""
    stock, _ = tiny_ranker("mpnet")
    probe = probe_of(stock, max_tokens=64)
    assert fault_of(packed_ranker("mpnet"), encode_packed, probe, tolerance=1e-4) is not None


def test_equal_lengths_side_by_side_are_one_run() -> None:
    """Runs in order; offsets from nought to the number of tokens."""
    layout = layout_of(np.array([5, 3, 3, 3, 5]), torch.device("cpu"))
    assert layout.runs == ((1, 5), (3, 3), (1, 5))
    assert layout.offsets_N1.tolist() == [0, 5, 8, 11, 14, 19]
    assert layout.longest == 5


@pytest.mark.parametrize(("model_type", "reach"), [("bert", 64), ("roberta", 62), ("gte", 64)])
def test_the_longest_text_is_where_positions_end(model_type: str, reach: int) -> None:
    """RoBERTa's first position is its padding index + 1."""
    ranker, _ = tiny_ranker(model_type, positions=64)
    assert longest_text(ranker.encoder) == reach
    assert pad_id("roberta") == 1


def heads_of(seed: int) -> torch.Tensor:
    """Random queries, keys or values of 130 tokens: [T, H, E]."""
    return torch.randn((130, 4, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [None, 5])
def test_attention_for_bf16_without_amx_is_attention(window: int | None) -> None:
    """The plain formula for processors where it is faster gives what torch gives."""
    q, k, v = (heads_of(seed).transpose(0, 1)[None] for seed in range(3))
    mask = attention.band(130, window, torch.device("cpu"))
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)
    found = attention.attend_in_bf16(q, k, v, attn_mask=mask, scale=0.5)
    assert torch.allclose(found, wanted, atol=1e-5)


def varlen_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch documents of varlen_attn, as plain loops: the real one runs on a GPU only."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    left, right = window_size
    out = torch.empty_like(query)
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        place = torch.arange(end - start)
        ahead = place[None, :] - place[:, None]
        seen = (left < 0) | ((ahead >= -left) & (ahead <= right))
        weights = torch.einsum("qhe,khe->hqk", query[start:end], key[start:end]) * (scale or 1)
        weights = weights.masked_fill(~torch.as_tensor(seen), -torch.inf).softmax(-1)
        out[start:end] = torch.einsum("hqk,khe->qhe", weights, value[start:end])
    return out


@pytest.mark.parametrize("window", [None, 5])
def test_a_gpu_is_asked_for_the_same_attention(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments to flash attention mean what the loop over runs computes."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    layout = layout_of(np.array([90, 33, 4, 2, 1]), torch.device("cpu"))
    q, k, v = (heads_of(seed) for seed in range(3))
    wanted = attention.attend_runs(q, k, v, layout, scaling=0.5, window=window)
    found = attention.attend_varlen(q, k, v, layout, scaling=0.5, window=window)
    assert torch.allclose(found, wanted, atol=1e-5)
