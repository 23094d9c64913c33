"""Encoders from transformers, native ones only: configuration, shape, old parameter names.

No code from a checkpoint or a hub is ever run, and no weights are looked for: a ranker's own hold
them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scar_core.errors import RankerError
from scar_core.ranker.encoding import first_line, quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

# Buffers that older transformers saved and newer ones compute from the configuration: their values
# are known, so that a checkpoint may hold them without meaning anything by it.
_COMPUTED_BUFFERS = (
    "embeddings.position_ids",  # 0, 1, 2, …: saved before transformers 4.31
    "embeddings.token_type_ids",  # zeros: as above
    "embeddings.rotary_emb.inv_freq",  # rotary frequencies: the remote code of gte, older builds
    "rotary_emb.inv_freq",  # as above, native models
)
_GTE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "classifier_dropout",
)
_GTE_ONLY = {  # what the remote code can do and the native model does, always
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
}


def read_encoder_config(folder_or_name: str, *, wanted_by: str = "") -> dict[str, Any]:
    """Read an encoder's `config.json` from a local folder or a hub name, and nothing else.

    `wanted_by` names the ranker that names this encoder, for the error.

    Raises:
        RankerError: it cannot be found or read.
    """
    from transformers import PretrainedConfig  # noqa: PLC0415  - seconds; selecting needs none of it

    try:
        raw, _ = PretrainedConfig.get_config_dict(folder_or_name)
        problem, cause = "there is none", None
    except (OSError, ValueError) as error:
        raw, problem, cause = {}, first_line(error), error
    if not raw:
        raise RankerError(
            f"{wanted_by or folder_or_name}: the configuration of the encoder {folder_or_name!r} "
            f"cannot be read ({problem}). "
            "Give a folder that holds its config.json, or a hub name that can be reached."
        ) from cause
    return {name: value for name, value in raw.items() if name != "_commit_hash"}


def encoder_config(raw: dict[str, Any], *, where: str) -> Any:  # noqa: ANN401  - one of transformers' many classes
    """Turn the content of an encoder's `config.json` into its transformers configuration.

    Raises:
        RankerError: this transformers has no such model of its own, or refuses the values.
    """
    import transformers  # noqa: PLC0415  - as above

    raw = _native_gte(raw, where=where)
    model_type = raw.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise RankerError(
            f"{where}: the encoder's model_type {model_type!r} is not one that transformers "
            f"{transformers.__version__} has itself, and remote code is never run. "
            "Update transformers, or take another encoder."
        )
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as error:
        raise RankerError(
            f"{where}: transformers {transformers.__version__} refuses the encoder's "
            f"configuration of model_type {model_type!r}: {first_line(error)}"
        ) from error
    if type(config) not in transformers.MODEL_MAPPING or config.is_encoder_decoder:
        raise RankerError(
            f"{where}: model_type {model_type!r} is not a plain encoder of text. "
            "Take one, for example of model_type bert, roberta or gte."
        )
    return config


def empty_encoder(config: Any) -> nn.Module:  # noqa: ANN401  - as above
    """Build an encoder whose parameters are not set, in fp32, with SDPA where it has it."""
    from transformers import AutoModel  # noqa: PLC0415  - as above
    from transformers.initialization import no_init_weights  # noqa: PLC0415

    # Random numbers for RoBERTa-base take 4 s, and all of them would be replaced.
    with no_init_weights():
        encoder: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
    return encoder


def pretrained_encoder(folder: str, config: Any, *, where: str) -> nn.Module:  # noqa: ANN401  - as above
    """Load a base encoder's weights in fp32; only a pooler may be missing, and is then random.

    Raises:
        RankerError: the weights cannot be read, or lack anything else; heads for other tasks that
            they hold beside are left out.
    """
    from transformers import MODEL_MAPPING  # noqa: PLC0415  - as above

    try:
        with quiet():
            encoder, info = MODEL_MAPPING[type(config)].from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise RankerError(
            f"{where}: the encoder's weights cannot be read ({first_line(error)}). "
            "Download it again, or take another encoder."
        ) from error
    lacking = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    lacking |= {name for name, *_ in info["mismatched_keys"]}
    if lacking:
        raise RankerError(
            f"{where}: the encoder's weights lack {some(sorted(lacking))}. "
            "Download it again, or take another encoder."
        )
    module: nn.Module = encoder
    return module


def to_native_names(
    encoder: Any,  # noqa: ANN401  - a transformers model, which ships no usable types
    state: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Give a checkpoint's parameters the names and shapes that transformers' own model uses.

    Buffers that the configuration determines are left out. A checkpoint in the names of a model's
    former remote code (`encoder.layer.0.attention.qkv_proj`) goes through transformers' own
    conversion mapping; what that cannot place comes back under its old name.
    """
    state = {name: value for name, value in state.items() if name not in _COMPUTED_BUFFERS}
    if state.keys() == encoder.state_dict().keys() or not _has_conversion(
        encoder.config.model_type
    ):
        return state
    with quiet():
        # With no name or folder, from_pretrained is transformers' public door to its conversions.
        model, info = type(encoder).from_pretrained(
            None,
            config=encoder.config,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    native = dict(model.state_dict())
    for name in info["missing_keys"]:
        native.pop(name, None)
    for name, found, *_ in info["mismatched_keys"]:
        native[name] = torch.empty(tuple(found), device="meta")
    unexpected = info["unexpected_keys"]
    return native | {name: state.get(name, torch.empty(0)) for name in unexpected}


def to_remote_names(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo to_native_names: the remote code's names and shapes, for whoever still runs it."""
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415  - as above

    remote = revert_weight_conversion(encoder, state)
    # A base checkpoint may carry its whole model's prefix; within a ranker there is none.
    return {name.removeprefix("new."): value for name, value in remote.items()}


def some(names: list[str], *, shown: int = 4) -> str:
    """Name the first few and count the rest."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _native_gte(raw: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Translate the configuration of gte's remote code (model_type `new`) to transformers' `gte`.

    Its rotary frequencies for NTK scaling by s over heads of width d are (base·s)^(-2i/d)·s^(-2/d):
    transformers' linear scaling by s^(2/d) of the base base·s.
    """
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if raw.get("model_type") != "new" and (raw.get("model_type"), kind) != ("gte", "ntk"):
        return raw
    odd = {name: raw[name] for name, only in _GTE_ONLY.items() if raw.get(name, only) != only}
    if kind not in {None, "ntk"} or scaling.get("mixed_b") is not None:
        odd["rope_scaling"] = scaling
    if odd:
        raise RankerError(
            f"{where}: transformers' own gte model has no such variant: {odd}. "
            "This encoder would need remote code, which is never run; take another."
        )
    base = float(raw.get("rope_theta", 10_000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if kind == "ntk":
        factor = float(scaling["factor"])
        head_width = raw["hidden_size"] // raw["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": base * factor}
        rope["factor"] = factor ** (2 / head_width)
    native = {name: raw[name] for name in _GTE_FIELDS if name in raw}
    return native | {"model_type": "gte", "rope_parameters": rope}


def _has_conversion(model_type: str) -> bool:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: PLC0415

    return get_checkpoint_conversion_mapping(model_type) is not None
