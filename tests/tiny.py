"""Tiny real parts made on the spot: tokenizers, random encoders, rankers. No downloads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from scar_core.ranker.checkpoint import save_ranker
from scar_core.ranker.model import Ranker, RankerConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL_TYPES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "electra",
    "gte",
    "nomic_bert",
    "eurobert",
    "albert",
    "camembert",
    "distilbert",
    "modernbert",
    "mpnet",
)
VOCAB_SIZE = 512
_PAD_FIRST = ("<pad>", "<s>", "</s>", "<unk>")
_PAD_SECOND = ("<s>", "<pad>", "</s>", "<unk>")
_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_TEXTS = (
    "Name three primary colours and say where each of them occurs in nature.",
    "def add(left: int, right: int) -> int:\n    return left + right\n",
    "The list below gives the steps: first read the input, then check it, then write the output.",
    "Größe, naïve café, 数据选择, данные, اختيار البيانات: not every response is in English.",
    "I think that you should try to turn the computer off and on again, and see what happens.",
)


def pad_id(model_type: str) -> int:
    """Give the padding id of this family: 1 where positions start after it, else 0."""
    return int(model_type in {"roberta", "xlm-roberta", "camembert", "mpnet", "gte"})


def tiny_tokenizer(folder: Path | None = None, *, pad: int = 0) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer of at most VOCAB_SIZE ids for any text; saved when asked to."""
    special = _PAD_SECOND if pad == 1 else _PAD_FIRST
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(token, special.index(token)) for token in ("<s>", "</s>")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        **_ROLES,
    )
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_encoder(
    model_type: str = "bert",
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    positions: int = 514,
    seed: int = 0,
    **config: Any,  # noqa: ANN401  - any field of any transformers config
) -> PreTrainedModel:
    """Make a random encoder in eval mode whose scores differ visibly between texts.

    512 tokens fit in the default positions of every family.
    """
    shape: dict[str, Any] = {"hidden_size": hidden, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "intermediate_size": 2 * hidden}
    if model_type == "distilbert":
        shape = {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * hidden}
    if model_type in {"albert", "electra"}:
        shape["embedding_size"] = hidden // 2
    if model_type == "modernbert":
        shape |= {"local_attention": 16, "global_attn_every_n_layers": 2}
        shape |= {"cls_token_id": 1, "sep_token_id": 2}
    if model_type in {"eurobert", "modernbert"}:
        shape |= {"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    shape |= {"vocab_size": VOCAB_SIZE, "max_position_embeddings": positions}
    shape |= {"pad_token_id": pad_id(model_type), "initializer_range": 0.1}
    torch.manual_seed(seed)
    encoder: PreTrainedModel = AutoModel.from_config(
        AutoConfig.for_model(model_type, **shape | config)
    )
    return encoder.eval()


def tiny_ranker(
    model_type: str = "bert",
    *,
    linear_dim: int = 16,
    seed: int = 0,
    **encoder: Any,  # noqa: ANN401  - as above
) -> tuple[Ranker, PreTrainedTokenizerFast]:
    """Make a random ranker in eval mode and its tokenizer."""
    body = tiny_encoder(model_type, seed=seed, **encoder)
    width = int(body.config.hidden_size)
    config = RankerConfig(
        encoder_name=f"tiny-{model_type}",
        hidden_dim=width,
        linear_dim=linear_dim,
        encoder_config=body.config.to_dict(),
    )
    torch.manual_seed(seed + 1)
    return Ranker(config, body).eval(), tiny_tokenizer(pad=pad_id(model_type))


def tiny_ranker_dir(tmp_path: Path, model_type: str = "bert", **ranker: Any) -> Path:  # noqa: ANN401  - as above
    """Save a random ranker as a finished directory, manifest included, and give its path."""
    folder = tmp_path / f"ranker-{model_type}-{ranker.get('seed', 0)}"
    model, tokenizer = tiny_ranker(model_type, **ranker)
    save_ranker(str(folder), model, tokenizer, card="A random ranker for tests.")
    # What check_ranker asks for is that a manifest is there; the job's own is richer.
    (folder / "manifest.json").write_text(json.dumps({"kind": "ranker", "version": 1}))
    return folder


def edit_json(file: Path, **changes: Any) -> None:  # noqa: ANN401 - JSON
    """Change fields of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the parameters of a saved ranker."""
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    """Leave the first half of a weights file, as a broken copy does."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
