"""What is no ranker, or not a whole one, is refused: one sentence that names the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scar_core.errors import RankerError
from scar_core.ranker.checkpoint import check_ranker, load_ranker, ranker_fingerprint
from tests.tiny import cut_weights, edit_json, edit_weights, tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda s: s.pop("output_layer.0.bias"), r"missing: output_layer\.0\.bias\."),
        (lambda s: s.pop("encoder.pooler.dense.bias"), r"missing: encoder\.pooler\.dense\.bias\."),
        (lambda s: s.update(extra=torch.zeros(1)), r"unexpected: extra\."),
        (
            lambda s: s.update({"output_layer.2.bias": torch.zeros(2)}),
            r"of another shape: output_layer\.2\.bias \[2\] for \[1\]\.",
        ),
        (lambda s: s.clear(), r"missing: encoder\.\S+, .* and \d+ more\."),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(
    tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    """Never a random layer instead of a missing one, never a part left unread."""
    folder = tiny_ranker_dir(tmp_path)
    edit_weights(folder, edit)
    with pytest.raises(RankerError, match=f"^{folder}: the weights do not fit .*{told}"):
        load_ranker(str(folder))


def _pickle_more_than_tensors(folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "executed",))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "pytorch_model.bin")


def _pickle_a_list(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut_weights, "model.safetensors is damaged, or holds more than tensors"),
        (_pickle_more_than_tensors, "pytorch_model.bin is damaged, or holds more than tensors"),
        (_pickle_a_list, "pytorch_model.bin holds no named tensors"),
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_mod"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer that transformers can read"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, spoil: Callable[[Path], object], told: str
) -> None:
    """Cut, missing or dangerous files: one sentence, and no code of theirs is run."""
    folder = tiny_ranker_dir(tmp_path)
    spoil(folder)
    with pytest.raises(RankerError, match=f"^{folder}: .*{told}"):
        load_ranker(str(folder))
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "bert"}, "describes model_type 'bert', wanted 'style_ranker'"),
        ({"scar_curate_format": 2}, "written in format 2, this version reads 1"),
        ({"hidden_dim": 48}, "hidden_dim 48, but its encoder 'tiny-bert' is 32 wide"),
        ({"hidden_dim": "32"}, "hidden_dim = '32', wanted int"),
        ({"linear_dim": 0}, "linear_dim = 0, wanted int"),
        ({"encoder_config": ["bert"]}, r"encoder_config = \['bert'\], wanted dict"),
        ({"encoder_config": {"model_type": "new_kind"}}, "model_type 'new_kind' is not one that"),
    ],
)
def test_a_configuration_that_fits_no_ranker_is_refused_early(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """By the check on the driver and by the load on a worker, in the same words."""
    folder = tiny_ranker_dir(tmp_path)
    edit_json(folder / "config.json", **changes)
    for refuse in (check_ranker, load_ranker, ranker_fingerprint):
        with pytest.raises(RankerError, match=f"^{folder}: .*{told}"):
            refuse(str(folder))


def test_places_without_a_finished_ranker_are_refused(tmp_path: Path) -> None:
    """No directory, no config.json, no JSON, no manifest, no weights, no such hub name."""
    folder = tiny_ranker_dir(tmp_path)
    (folder / "manifest.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/config.json").write_text("no JSON")
    told = {
        str(folder): "has no manifest.json, so the training that was to write it did not finish",
        str(tmp_path / "empty"): "has no config.json, so it is no ranker",
        str(tmp_path / "text"): "config.json cannot be read",
        str(tmp_path / "nowhere"): "there is no such directory",
        "nobody/nothing": "neither a directory here nor a hub name that can be reached",
    }
    for path, sentence in told.items():
        with pytest.raises(RankerError, match=f"^{path}: .*{sentence}"):
            check_ranker(path)
    (folder / "manifest.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RankerError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        check_ranker(str(folder))
