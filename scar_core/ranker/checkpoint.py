"""A ranker directory: checked, loaded, saved; scar-tool's too, both ways."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch

from scar_core import storage
from scar_core.errors import RankerError
from scar_core.ranker import encoders
from scar_core.ranker import files as ranker_files
from scar_core.ranker.encoding import load_tokenizer
from scar_core.ranker.files import ALL_FILES, CONFIG, MANIFEST, WEIGHTS
from scar_core.ranker.model import Ranker, RankerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_ENCODER = "encoder."  # what the encoder's own parameter names follow in a ranker's
_REMOTE_GTE = "new"  # model_type of gte encoders whose repository still ships its own code


class LoadedRanker(NamedTuple):
    """A ranker ready to score."""

    ranker: Ranker
    """In eval mode, fp32, on the CPU."""
    tokenizer: Any
    """The transformers tokenizer that was saved with it."""
    fingerprint: str
    """As `ranker_fingerprint` gives it."""


def check_ranker(path: str) -> RankerConfig:
    """Read a ranker's configuration and nothing heavier, before anything is started for it.

    `path` is a local or fsspec directory, or a hub name; of the latter only config.json is looked
    at, of the others also whether manifest and weights are there.

    Raises:
        RankerError: this is no ranker, not a finished one, or one this version cannot load.
    """
    with ranker_files.local_copy(path, files=(CONFIG,)) as folder:
        raw = ranker_files.read_config(folder, where=path)
        if not ranker_files.on_hub(path):
            here = storage.join(path, "")
            if ranker_files.FORMAT_KEY in raw and not storage.exists(here + MANIFEST):
                raise RankerError(
                    f"{path}: has no {MANIFEST}, so the training that was to write it did not "
                    "finish. Run it again, into another directory."
                )
            if not any(storage.exists(here + name) for name in WEIGHTS):
                raise ranker_files.no_weights(path)
        return ranker_files.to_config(raw, where=path)


def load_ranker(path: str) -> LoadedRanker:
    """Load a ranker of ours or of scar-tool, strictly; `path` as for `check_ranker`.

    The encoder is built from its configuration; its base weights are not looked for.

    Raises:
        RankerError: a file is missing or unreadable, or a parameter is missing, unexpected or of
            another shape; the text names it.
    """
    with ranker_files.local_copy(path, files=ALL_FILES) as folder:
        raw = ranker_files.read_config(folder, where=path)
        config = ranker_files.to_config(raw, where=path)
        with torch.random.fork_rng(devices=[]):  # the heads are filled at random, then loaded
            encoder = encoders.encoder_config(config.encoder_config, where=path)
            ranker = Ranker(config, encoders.empty_encoder(encoder))
        found = _native_parameters(ranker_files.read_weights(folder, where=path), ranker)
        _check_parameters(ranker.state_dict(), found, where=path)
        # The file is mapped into memory, unaligned: copies make faster parameters that outlive it.
        copies = {name: _to_fp32(value, copy=True) for name, value in found.items()}
        ranker.load_state_dict(copies, assign=True)
        tokenizer = load_tokenizer(str(folder))
        return LoadedRanker(ranker.eval(), tokenizer, ranker_files.fingerprint(folder, config))


def ranker_fingerprint(path: str) -> str:
    """Give the SHA-256, in hex, of all that decides a score: configuration, weights, tokenizer.

    Neither the place nor the model card nor the manifest enters. Reads the weights once: about a
    second for a RoBERTa-base on a local disk.

    Raises:
        RankerError: as `check_ranker`, except that an unfinished ranker has a fingerprint too.
    """
    with ranker_files.local_copy(path, files=ALL_FILES) as folder:
        raw = ranker_files.read_config(folder, where=path)
        return ranker_files.fingerprint(folder, ranker_files.to_config(raw, where=path))


def new_ranker(
    encoder_name_or_path: str, *, linear_dim: int = 512, seed: int
) -> tuple[Ranker, Any]:
    """Give a ranker to train, a base encoder's weights under fresh heads, and its tokenizer.

    What is fresh depends on `seed` alone. A pooler that the base encoder lacks is fresh too, as in
    scar-tool.

    Raises:
        RankerError: the encoder cannot be found, is not transformers' own, or is incomplete.
    """
    where = encoder_name_or_path
    with ranker_files.local_copy(where, files=()) as folder:
        raw = encoders.read_encoder_config(str(folder))
        config = encoders.encoder_config(raw, where=where)
        # Of an encoder with remote code the original, so that save_ranker can give its names back.
        kept = raw if raw["model_type"] == _REMOTE_GTE else config.to_dict()
        ranker_config = RankerConfig(
            encoder_name=where,
            hidden_dim=config.hidden_size,
            linear_dim=linear_dim,
            # As JSON gives it back, and with the name of its origin instead of the folder's path.
            encoder_config=json.loads(json.dumps(kept))
            | {"_name_or_path": raw.get("_name_or_path", "")},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = encoders.pretrained_encoder(str(folder), config, where=where)
            ranker = Ranker(ranker_config, encoder)
        return ranker, load_tokenizer(str(folder))


def save_ranker(
    folder: str,
    ranker: Ranker,
    tokenizer: Any,  # noqa: ANN401  - transformers ships no usable types
    *,
    card: str,
    for_scar_tool: bool = False,
) -> list[str]:
    """Write a ranker's files and give their names, sorted; the manifest is its job's last act.

    No path of this machine is written: of a local encoder folder only the name is kept. With
    `for_scar_tool` the weights are there once more as pytorch_model.bin and `encoder_name` stays as
    it was given, because scar-tool loads the base encoder from there; if that runs remote code, the
    parameters carry its names.
    """
    if not storage.is_local(folder):
        with tempfile.TemporaryDirectory() as local:
            save_ranker(local, ranker, tokenizer, card=card, for_scar_tool=for_scar_tool)
            return storage.upload_folder(Path(local), folder)
    target = Path(storage.absolute(folder))
    target.mkdir(parents=True, exist_ok=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # else the last call's truncation and padding would be saved too
        backend.no_truncation()
        backend.no_padding()
    saved = [Path(path) for path in tokenizer.save_pretrained(str(target))]
    weights = WEIGHTS if for_scar_tool else WEIGHTS[:1]
    remote_names = for_scar_tool and ranker.config.encoder_config["model_type"] == _REMOTE_GTE
    parameters = _remote_parameters(ranker) if remote_names else ranker.state_dict()
    state = {name: _to_fp32(value).contiguous() for name, value in parameters.items()}
    safetensors.torch.save_file(state, target / WEIGHTS[0], metadata={"format": "pt"})
    if for_scar_tool:
        torch.save(state, target / WEIGHTS[1])
    text = {CONFIG: _config_text(ranker.config, portable=not for_scar_tool), "README.md": card}
    for name, content in text.items():
        (target / name).write_text(content, encoding="utf-8")
    return sorted({*weights, *text, *(path.name for path in saved if path.is_file())})


def _config_text(config: RankerConfig, *, portable: bool) -> str:
    """Render config.json; portable = without the place where the base encoder lay."""
    content = {
        "model_type": ranker_files.MODEL_TYPE,
        "architectures": ["StyleRanker"],
        ranker_files.FORMAT_KEY: ranker_files.FORMAT,
        "encoder_name": _encoder_label(config) if portable else config.encoder_name,
        "hidden_dim": config.hidden_dim,
        "linear_dim": config.linear_dim,
        "encoder_config": {k: v for k, v in config.encoder_config.items() if k != "_name_or_path"},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _encoder_label(config: RankerConfig) -> str:
    """Give a hub name as it is, of a folder what it was made from if known, else its name."""
    name = config.encoder_name
    if not Path(name).expanduser().exists() and ranker_files.HUB_NAME.fullmatch(name):
        return name
    origin = str(config.encoder_config.get("_name_or_path") or "")
    known = ranker_files.HUB_NAME.fullmatch(origin)
    return origin if known else name.rstrip("/").rpartition("/")[2]


def _native_parameters(state: dict[str, Tensor], ranker: Ranker) -> dict[str, Tensor]:
    """Give the encoder's parameters transformers' own names; the heads' names never changed."""
    heads = {name: value for name, value in state.items() if not name.startswith(_ENCODER)}
    body = {name.removeprefix(_ENCODER): state[name] for name in state.keys() - heads.keys()}
    native = encoders.to_native_names(ranker.encoder, body)
    return heads | {_ENCODER + name: value for name, value in native.items()}


def _remote_parameters(ranker: Ranker) -> dict[str, Tensor]:
    """Undo _native_parameters."""
    remote = encoders.to_remote_names(ranker.encoder, ranker.encoder.state_dict())
    heads = {k: v for k, v in ranker.state_dict().items() if not k.startswith(_ENCODER)}
    return heads | {_ENCODER + name: value for name, value in remote.items()}


def _check_parameters(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, where: str
) -> None:
    """Raise a RankerError that names what is missing, unexpected or of another shape."""
    shapes = {
        f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    }
    kinds = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    problems = [f"{kind}: {encoders.some(sorted(names))}" for kind, names in kinds.items() if names]
    if problems:
        raise RankerError(
            f"{where}: the weights do not fit {CONFIG}. {'; '.join(problems)}. "
            "The files belong to different rankers, or were cut; save or copy it again."
        )


def _to_fp32(value: Tensor, *, copy: bool = False) -> Tensor:
    """Give a parameter on the CPU in fp32; integers stay as they are."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=copy)
