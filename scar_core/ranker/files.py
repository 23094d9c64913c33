"""The files of a ranker directory: found, fetched, read, hashed.

config.json, model.safetensors (scar-tool: perhaps pytorch_model.bin), the tokenizer's files,
README.md (the model card) and, once the job that made it has finished, manifest.json.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from scar_core import storage
from scar_core.errors import RankerError
from scar_core.ranker import encoders
from scar_core.ranker.encoding import TOKENIZER_FILES, first_line, local_folder
from scar_core.ranker.model import RankerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MODEL_TYPE = "style_ranker"
FORMAT = 1
"""Version of our layout, `scar_curate_format` in config.json; scar-tool's has none."""

FORMAT_KEY = "scar_curate_format"
CONFIG = "config.json"
MANIFEST = "manifest.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
ALL_FILES = (CONFIG, *TOKENIZER_FILES, *WEIGHTS)
_FIELDS = {"encoder_name": str, "hidden_dim": int, "linear_dim": int, "encoder_config": dict}
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")

_UNREADABLE = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    OSError,
    RuntimeError,
    EOFError,
)


@contextmanager
def local_copy(path: str, *, files: tuple[str, ...]) -> Iterator[Path]:
    """Give a folder of this machine with these files, as far as they exist; () means all.

    Of weights in both forms only those that will be read are fetched.

    Raises:
        RankerError: there is no such directory, or the hub cannot be reached.
    """
    if on_hub(path):
        yield _from_hub(path, files)
    elif not files and not storage.is_local(path):
        with tempfile.TemporaryDirectory() as local:
            storage.download_folder(path, Path(local))
            yield Path(local)
    else:
        if WEIGHTS[0] in files and storage.exists(storage.join(path, WEIGHTS[0])):
            files = tuple(name for name in files if name != WEIGHTS[1])
        with local_folder(path, files=files) as folder:
            yield Path(folder).expanduser()


def on_hub(path: str) -> bool:
    """Whether a path that is no directory here reads like a hub name.

    Raises:
        RankerError: it is neither.
    """
    if "://" in path or Path(path).expanduser().exists():
        return False
    if not HUB_NAME.fullmatch(path):
        raise RankerError(f"{path}: there is no such directory. Check the path.")
    return True


def _from_hub(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  - only for hub names

    files = files or ("*.json", "*.txt", "*.model", *WEIGHTS)
    try:
        light = [file for file in files if file != WEIGHTS[1]]
        folder = Path(snapshot_download(name, allow_patterns=light))
        if WEIGHTS[1] in files and not (folder / WEIGHTS[0]).exists():
            snapshot_download(name, allow_patterns=[WEIGHTS[1]])
    except (OSError, ValueError) as error:
        raise RankerError(
            f"{name}: neither a directory here nor a hub name that can be reached "
            f"({first_line(error)})."
        ) from error
    return folder


def read_config(folder: Path, *, where: str) -> dict[str, Any]:
    """Read a ranker's config.json; RankerError for anything else."""
    try:
        raw = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError as error:
        raise RankerError(
            f"{where}: has no {CONFIG}, so it is no ranker. Pass a directory that the train job "
            "or scar-tool wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise RankerError(f"{where}: {CONFIG} cannot be read: {error}") from error
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type != MODEL_TYPE:
        raise RankerError(
            f"{where}: {CONFIG} describes model_type {model_type!r}, wanted {MODEL_TYPE!r}. Pass a "
            "directory that the train job or scar-tool wrote; a base encoder must be trained first."
        )
    if raw.get(FORMAT_KEY, FORMAT) != FORMAT:
        raise RankerError(
            f"{where}: written in format {raw[FORMAT_KEY]!r}, this version reads {FORMAT}. "
            "Update SCAR Curate."
        )
    return dict(raw)


def to_config(raw: dict[str, Any], *, where: str) -> RankerConfig:
    """Check the fields of config.json; scar-tool's has no encoder_config, so look the name up."""
    for name, kind in _FIELDS.items():
        if not isinstance(raw.get(name, {}), kind) or raw.get(name) == 0:
            raise RankerError(
                f"{where}: {CONFIG} has {name} = {raw.get(name)!r}, wanted {kind.__name__}. "
                "Copy the ranker again, whole."
            )
    name = raw["encoder_name"]
    encoder = raw.get("encoder_config") or encoders.read_encoder_config(name, wanted_by=where)
    width = encoders.encoder_config(encoder, where=where).hidden_size
    if width != raw["hidden_dim"]:
        raise RankerError(
            f"{where}: {CONFIG} has hidden_dim {raw['hidden_dim']}, but its encoder {name!r} is "
            f"{width} wide. The directory mixes two rankers; save it again."
        )
    return RankerConfig(
        encoder_name=name,
        hidden_dim=width,
        linear_dim=raw["linear_dim"],
        encoder_config=encoder,
    )


def no_weights(where: str) -> RankerError:
    """Give the error for a directory without weights."""
    return RankerError(
        f"{where}: has neither {WEIGHTS[0]} nor {WEIGHTS[1]}, so it holds no weights. "
        "Copy the ranker again, whole."
    )


def read_weights(folder: Path, *, where: str) -> dict[str, Tensor]:
    """Read the parameters under the names they were saved with."""
    there = [folder / name for name in WEIGHTS if (folder / name).exists()]
    if not there:
        raise no_weights(where)
    file = there[0]
    try:
        if file.name == WEIGHTS[0]:
            return dict(safetensors.torch.load_file(file))
        # weights_only: a pickle that holds more than tensors could run any code.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise RankerError(
            f"{where}: {file.name} is damaged, or holds more than tensors "
            f"({first_line(error)}). Copy the ranker again, whole."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise RankerError(f"{where}: {file.name} holds no named tensors, so it is no ranker's.")
    return state


def fingerprint(folder: Path, config: RankerConfig) -> str:
    """Hash names and contents of the files that load_ranker reads, and the encoder's config."""
    total = hashlib.sha256(json.dumps(config.encoder_config, sort_keys=True).encode())
    weights = [name for name in WEIGHTS if (folder / name).exists()][:1]
    for name in (CONFIG, *weights, *TOKENIZER_FILES):
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()
