"""A ranker directory: what is saved is loaded, here and elsewhere, whatever the encoder."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from scar_core.errors import RankerError
from scar_core.ranker.checkpoint import (
    check_ranker,
    load_ranker,
    new_ranker,
    ranker_fingerprint,
    save_ranker,
)
from tests.tiny import (
    MODEL_TYPES,
    cut_weights,
    edit_json,
    edit_weights,
    tiny_encoder,
    tiny_ranker,
    tiny_ranker_dir,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path


def base_folder(folder: Path, model_type: str = "bert", **config: Any) -> Path:  # noqa: ANN401 - any config
    """Save a random base encoder with its tokenizer."""
    tiny_encoder(model_type, **config).save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_saved_is_loaded(tmp_path: Path, model_type: str) -> None:
    """Bit for bit, for every kind of encoder, in eval mode, without touching torch's randomness."""
    folder = tiny_ranker_dir(tmp_path, model_type)
    ranker, tokenizer = tiny_ranker(model_type)
    state = torch.get_rng_state()
    loaded = load_ranker(str(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.ranker.training
    batch = tokenizer(["A text.", "数据, and a longer text."], padding=True, return_tensors="pt")
    inputs = (batch["input_ids"], batch["attention_mask"]) * 2
    with torch.no_grad():
        assert torch.equal(loaded.ranker(*inputs).score_B, ranker(*inputs).score_B)
    assert loaded.tokenizer("Größe")["input_ids"] == tokenizer("Größe")["input_ids"]
    assert check_ranker(str(folder)) == loaded.ranker.config


def test_sdpa_is_used_where_it_is_supported(tmp_path: Path) -> None:
    """MPNet has none in transformers; the others do."""
    kinds = {"bert": "sdpa", "mpnet": "eager"}
    for model_type, wanted in kinds.items():
        encoder = load_ranker(str(tiny_ranker_dir(tmp_path, model_type))).ranker.encoder
        assert encoder.config._attn_implementation == wanted  # type: ignore[union-attr]  # noqa: SLF001 - transformers has no other name for it


def test_a_store_is_as_good_as_a_disk(tmp_path: Path) -> None:
    """Saved to, checked in and loaded from an fsspec URL; the fingerprint is that of a copy."""
    ranker, tokenizer = tiny_ranker()
    folder, url = tmp_path / "local", "memory://rankers/one"
    names = save_ranker(str(folder), ranker, tokenizer, card="# A card")
    assert save_ranker(url, ranker, tokenizer, card="# A card") == names
    assert names == sorted(file.name for file in folder.iterdir())
    store = fsspec.filesystem("memory")
    with pytest.raises(RankerError, match="has no manifest"):
        check_ranker(url)
    store.pipe_file("/rankers/one/manifest.json", b"{}")
    assert check_ranker(url).hidden_dim == 32
    assert (
        load_ranker(url).fingerprint == ranker_fingerprint(str(folder)) == ranker_fingerprint(url)
    )
    store.rm("/rankers", recursive=True)


def test_the_fingerprint_is_of_what_decides_a_score(tmp_path: Path) -> None:
    """Not of the place, the card or the manifest; but of weights, configuration and tokenizer."""
    folder = tiny_ranker_dir(tmp_path)
    first = ranker_fingerprint(str(folder))
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    (copy / "manifest.json").unlink()
    assert ranker_fingerprint(str(copy)) == first
    assert load_ranker(str(copy)).fingerprint == first
    edit_json(copy / "tokenizer_config.json", model_max_length=7)
    second = ranker_fingerprint(str(copy))
    edit_json(copy / "config.json", encoder_name="another")
    third = ranker_fingerprint(str(copy))
    edit_weights(copy, lambda state: state["output_layer.2.bias"].add_(1e-6))
    assert len({first, second, third, ranker_fingerprint(str(copy))}) == 4


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also when the tokenizer was used in between: its last call is no part of it."""
    ranker, tokenizer = tiny_ranker()
    save_ranker(str(tmp_path / "one"), ranker, tokenizer, card="")
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)
    for name in save_ranker(str(tmp_path / "two"), ranker, tokenizer, card=""):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_saved_ranker_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    """Of the base encoder's folder only the name is kept; for scar-tool the path, as given."""
    base = base_folder(tmp_path / "encoders" / "tiny-base")
    ranker, tokenizer = new_ranker(str(base), linear_dim=8, seed=0)
    for name in save_ranker(str(tmp_path / "ours"), ranker, tokenizer, card="# A card"):
        assert str(tmp_path).encode() not in (tmp_path / "ours" / name).read_bytes()
    assert json.loads((tmp_path / "ours/config.json").read_text())["encoder_name"] == "tiny-base"
    names = save_ranker(
        str(tmp_path / "theirs"), ranker, tokenizer, card="# A card", for_scar_tool=True
    )
    assert "pytorch_model.bin" in names
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert config["encoder_name"] == str(base)


def test_no_base_weights_are_needed(tmp_path: Path) -> None:
    """A checkpoint that only names its encoder loads with that encoder's config.json alone."""
    folder = tiny_ranker_dir(tmp_path)
    (tmp_path / "base").mkdir()
    base = tmp_path / "base" / "config.json"
    base.write_text(json.dumps(json.loads((folder / "config.json").read_text())["encoder_config"]))
    scores = load_ranker(str(folder)).ranker.state_dict()
    edit_json(folder / "config.json", encoder_config=None, encoder_name=str(base.parent))
    again = load_ranker(str(folder)).ranker.state_dict()
    assert all(torch.equal(again[name], value) for name, value in scores.items())
    base.unlink()
    with pytest.raises(RankerError, match=f"{folder}: the configuration of the encoder '.*base' c"):
        check_ranker(str(folder))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_half_precision_and_pickled_weights_become_fp32(tmp_path: Path, weights: str) -> None:
    """A checkpoint in bfloat16, in either format, is computed in fp32."""
    folder = tiny_ranker_dir(tmp_path)
    state = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save = torch.save if weights == "pytorch_model.bin" else save_file
    save(state, folder / weights)
    config = json.loads((folder / "config.json").read_text())
    encoder = config["encoder_config"] | {"dtype": "bfloat16"}
    edit_json(folder / "config.json", encoder_config=encoder)
    check_ranker(str(folder))
    for name, value in load_ranker(str(folder)).ranker.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_buffers_that_older_transformers_saved_are_no_parameters(tmp_path: Path) -> None:
    """`position_ids` follows from the configuration; any other stranger is an error."""
    folder = tiny_ranker_dir(tmp_path)
    ids = torch.arange(514)[None]
    edit_weights(folder, lambda state: state.update({"encoder.embeddings.position_ids": ids}))
    load_ranker(str(folder))
    edit_weights(folder, lambda state: state.update({"encoder.pooler.position_ids": ids}))
    with pytest.raises(RankerError, match=r"unexpected: encoder\.pooler\.position_ids\."):
        load_ranker(str(folder))


def test_a_new_ranker_has_its_encoders_weights_and_seeded_heads(tmp_path: Path) -> None:
    """The same seed gives the same ranker, another seed other heads on the same encoder."""
    base = base_folder(tmp_path / "base")
    state = torch.get_rng_state()
    first, tokenizer = new_ranker(str(base), linear_dim=8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again, other = (new_ranker(str(base), linear_dim=8, seed=seed)[0] for seed in (1, 2))
    weights = load_file(base / "model.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name.startswith("encoder."):
            assert torch.equal(value, weights[name.removeprefix("encoder.")])
    assert not torch.equal(first.output_layer[0].weight, other.output_layer[0].weight)  # type: ignore[arg-type]
    assert tokenizer("a")["input_ids"] == tiny_tokenizer()("a")["input_ids"]


def test_a_base_encoder_may_lack_a_pooler_and_nothing_else(tmp_path: Path) -> None:
    """As published RoBERTa does; a fresh one depends on the seed alone."""
    base = base_folder(tmp_path / "base", "roberta")
    edit_weights(base, lambda s: [s.pop(f"pooler.dense.{part}") for part in ("weight", "bias")])
    first, again, other = (new_ranker(str(base), seed=seed)[0] for seed in (1, 1, 2))
    name = "encoder.pooler.dense.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    edit_weights(base, lambda state: state.pop("embeddings.LayerNorm.bias"))
    with pytest.raises(RankerError, match=r"base: the encoder's weights lack embeddings\.LayerNor"):
        new_ranker(str(base), seed=1)
    cut_weights(base)
    with pytest.raises(RankerError, match="base: the encoder's weights cannot be read"):
        new_ranker(str(base), seed=1)
