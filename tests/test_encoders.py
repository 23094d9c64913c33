"""Encoders without remote code: gte's former names and configuration become transformers' own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from scar_core.errors import RankerError
from scar_core.ranker.checkpoint import check_ranker, load_ranker, new_ranker, save_ranker
from scar_core.ranker.encoders import encoder_config, read_encoder_config
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 48
REMOTE_CONFIG: dict[str, Any] = {  # the keys of Alibaba-NLP/gte-*-en-v1.5, made small
    "architectures": ["NewModel"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "someone/new-impl--configuration.NewConfig",
        "AutoModel": "someone/new-impl--modeling.NewModel",
    },
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "model_type": "new",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 2.0, "type": "ntk"},
    "rope_theta": 500,
    "torch_dtype": "float16",
    "transformers_version": "4.39.1",
    "type_vocab_size": 0,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    "vocab_size": VOCAB_SIZE,
}


def remote_state(config: dict[str, Any], *, prefix: str = "encoder.") -> dict[str, Tensor]:
    """Random parameters of a whole ranker, the encoder's under its remote code's names."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB_SIZE, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    if config["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], WIDTH)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        shapes |= {
            f"{name}.attention.qkv_proj.weight": (3 * WIDTH, WIDTH),
            f"{name}.attention.qkv_proj.bias": (3 * WIDTH,),
            f"{name}.attention.o_proj.weight": (WIDTH, WIDTH),
            f"{name}.attention.o_proj.bias": (WIDTH,),
            f"{name}.mlp.up_gate_proj.weight": (2 * INNER, WIDTH),
            f"{name}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{name}.mlp.down_proj.bias": (WIDTH,),
        }
        shapes |= {
            f"{name}.{norm}.{part}": (WIDTH,)
            for norm in ("attn_ln", "mlp_ln")
            for part in ("weight", "bias")
        }
    state = {prefix + name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for head, last in (("relation_network", WIDTH), ("output_layer", 1)):
        for layer, (out, into) in ((0, (8, 2 * WIDTH)), (2, (last, 8))):
            state[f"{head}.{layer}.weight"] = torch.randn(out, into)
            state[f"{head}.{layer}.bias"] = torch.randn(out)
    return state


def write_published_ranker(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> str:
    """Write what scar-tool publishes, and beside it the base encoder's config.json alone."""
    base, ranker = folder / "base", folder / "published"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(ranker)
    fields = {"model_type": "style_ranker", "architectures": ["StyleRanker"]}
    fields |= {"encoder_name": str(base), "hidden_dim": WIDTH, "linear_dim": 8}  # type: ignore[dict-item]
    (ranker / "config.json").write_text(json.dumps(fields))
    save_file(state, ranker / "model.safetensors", metadata={"format": "pt"})
    return str(ranker)


def plain_gte(state: dict[str, Tensor], config: dict[str, Any], ids_L: Tensor) -> Tensor:
    """The remote code's arithmetic for one text, from its packed parameters: [L, WIDTH]."""
    size = WIDTH // HEADS
    scale = (config["rope_scaling"] or {}).get("factor", 1.0)
    base = config["rope_theta"] * scale
    frequency = base ** (-torch.arange(0, size, 2) / size) / scale ** (2 / size)
    angle = torch.outer(torch.arange(len(ids_L)), frequency).repeat(1, 2)

    def turn(x_HLS: Tensor) -> Tensor:
        first, second = x_HLS.chunk(2, dim=-1)
        return x_HLS * angle.cos() + torch.cat((-second, first), dim=-1) * angle.sin()

    def norm(x_LD: Tensor, name: str) -> Tensor:
        weight, bias = (state[f"encoder.{name}.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(x_LD, (WIDTH,), weight, bias, config["layer_norm_eps"])

    def linear(x_LD: Tensor, name: str) -> Tensor:
        return functional.linear(
            x_LD, state[f"encoder.{name}.weight"], state.get(f"encoder.{name}.bias")
        )

    x_LD = state["encoder.embeddings.word_embeddings.weight"][ids_L]
    if config["type_vocab_size"]:
        x_LD = x_LD + state["encoder.embeddings.token_type_embeddings.weight"][0]
    x_LD = norm(x_LD, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        packed = linear(x_LD, f"{name}.attention.qkv_proj").chunk(3, dim=-1)
        q, k, v = (part.view(-1, HEADS, size).transpose(0, 1) for part in packed)
        weights = (turn(q) @ turn(k).transpose(1, 2) / size**0.5).softmax(dim=-1)
        mixed = (weights @ v).transpose(0, 1).reshape(-1, WIDTH)
        x_LD = norm(x_LD + linear(mixed, f"{name}.attention.o_proj"), f"{name}.attn_ln")
        up, gate = linear(x_LD, f"{name}.mlp.up_gate_proj").chunk(2, dim=-1)
        inner = linear(functional.gelu(gate) * up, f"{name}.mlp.down_proj")
        x_LD = norm(x_LD + inner, f"{name}.mlp_ln")
    return x_LD


@pytest.mark.parametrize("prefix", ["encoder.", "encoder.new."])
@pytest.mark.parametrize(
    "changes", [{}, {"type_vocab_size": 2}, {"rope_scaling": None}, {"rope_theta": 160_000}]
)
def test_a_published_gte_ranker_computes_what_its_remote_code_did(
    tmp_path: Path, changes: dict[str, Any], prefix: str
) -> None:
    """Old names, packed projections and NTK scaling give the hidden states of a plain formula."""
    config = REMOTE_CONFIG | changes
    path = write_published_ranker(tmp_path, config, remote_state(config, prefix=prefix))
    check_ranker(path)
    ranker = load_ranker(path).ranker
    ids_L = torch.randint(4, VOCAB_SIZE, (40,))
    mask_1L = torch.ones(1, 40, dtype=torch.long)
    with torch.no_grad():
        found = ranker.encoder(input_ids=ids_L[None], attention_mask=mask_1L).last_hidden_state[0]
        features = ranker.encode(ids_L[None], mask_1L)
    expected = plain_gte(remote_state(config), config, ids_L)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(features.pooled_BD[0], found[0])  # it has no pooler: first token
    assert {parameter.dtype for parameter in ranker.parameters()} == {torch.float32}


def test_for_scar_tool_the_old_names_come_back(tmp_path: Path) -> None:
    """It loads that encoder with its remote code, which knows no other names: bit for bit."""
    path = write_published_ranker(tmp_path, REMOTE_CONFIG, remote_state(REMOTE_CONFIG))
    loaded = load_ranker(path)
    folder = tmp_path / "again"
    save_ranker(str(folder), *loaded[:2], card="", for_scar_tool=True)
    for state in (
        load_file(folder / "model.safetensors"),
        torch.load(folder / "pytorch_model.bin"),
    ):
        assert state.keys() == remote_state(REMOTE_CONFIG).keys()
        assert all(torch.equal(v, state[k]) for k, v in remote_state(REMOTE_CONFIG).items())
    again = load_ranker(str(folder)).ranker.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in loaded.ranker.state_dict().items())


def test_a_base_encoder_in_old_names_can_be_trained(tmp_path: Path) -> None:
    """Its weights file carries the whole model's prefix; the ranker has the same parameters."""
    state = remote_state(REMOTE_CONFIG)
    published = load_ranker(write_published_ranker(tmp_path, REMOTE_CONFIG, state)).ranker
    names = {n: f"new.{n.removeprefix('encoder.')}" for n in state if n.startswith("encoder.")}
    renamed = {new: state[old] for old, new in names.items()}
    save_file(renamed, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    tokenizer = tiny_tokenizer(tmp_path / "base")
    ranker, _ = new_ranker(str(tmp_path / "base"), linear_dim=8, seed=0)
    encoder = published.encoder.state_dict()
    assert all(torch.equal(v, encoder[k]) for k, v in ranker.encoder.state_dict().items())
    save_ranker(str(tmp_path / "new"), ranker, tokenizer, card="", for_scar_tool=True)
    assert load_file(tmp_path / "new/model.safetensors").keys() == state.keys()


def test_an_old_name_that_is_missing_or_strange_is_named(tmp_path: Path) -> None:
    """Strictness survives the renaming."""
    state = remote_state(REMOTE_CONFIG)
    del state["encoder.encoder.layer.1.mlp_ln.bias"]
    state["encoder.encoder.layer.0.attention.extra_proj.weight"] = torch.zeros(2)
    path = write_published_ranker(tmp_path, REMOTE_CONFIG, state)
    with pytest.raises(RankerError, match=r"missing: encoder\.layers\.1\.post_mlp_layernorm\.bias"):
        load_ranker(path)
    with pytest.raises(RankerError, match=r"unexpected: encoder\.\S*extra_proj"):
        load_ranker(path)


def test_an_old_parameter_of_another_shape_is_named(tmp_path: Path) -> None:
    """A packed projection of another width does not become three that fit by chance."""
    state = remote_state(REMOTE_CONFIG)
    name = "encoder.encoder.layer.0.attention.qkv_proj.weight"
    state[name] = torch.zeros(3 * WIDTH + 3, WIDTH)
    path = write_published_ranker(tmp_path, REMOTE_CONFIG, state)
    with pytest.raises(RankerError, match=r"of another shape: encoder\.layers\.0\.self_attn\.k_pr"):
        load_ranker(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"logn_attention_scale": True},
        {"layer_norm_type": "rms_norm"},
        {"position_embedding_type": "absolute"},
        {"rope_scaling": {"factor": 2.0, "type": "ntk", "mixed_b": 0.6}},
        {"rope_scaling": {"factor": 2.0, "type": "dynamic"}},
    ],
)
def test_a_variant_that_would_need_remote_code_is_refused(changes: dict[str, Any]) -> None:
    """Rather than load it as something it is not."""
    with pytest.raises(RankerError, match=f"here: .* no such variant: .*{next(iter(changes))}"):
        encoder_config(REMOTE_CONFIG | changes, where="here")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"model_type": "brand_new"}, "model_type 'brand_new' is not one that transformers"),
        ({}, "model_type None is not one that transformers"),
        ({"model_type": "t5"}, "model_type 't5' is not a plain encoder of text"),
        ({"model_type": "bert", "hidden_size": "wide"}, "refuses the encoder's configuration"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused(raw: dict[str, Any], told: str) -> None:
    """Unknown, of another kind or nonsense: one sentence."""
    with pytest.raises(RankerError, match=f"here: .*{told}"):
        encoder_config(raw, where="here")


def test_an_encoder_that_is_nowhere_is_named() -> None:
    """The ranker that asks for it is named too."""
    with pytest.raises(RankerError, match="ranker/: the configuration of the encoder 'no/such' ca"):
        read_encoder_config("no/such", wanted_by="ranker/")
