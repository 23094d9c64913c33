"""The ranker's arithmetic: the paper's equations, one row like many, padding without effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scar_core.ranker.model import Ranker, RankerConfig, TextFeatures
from tests.tiny import tiny_ranker

PAIRS = (
    ("Name a colour.", "Red."),
    ("Write a function that adds.", "def add(a, b):\n    return a + b"),
    ("Warum?", "Weil die Größe zählt, 数据选择, and because this response is the longest one."),
)


def padded(tokenizer: object, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts as a padded batch."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")  # type: ignore[operator]
    return batch["input_ids"], batch["attention_mask"]


def score(ranker: Ranker, tokenizer: object, pairs: list[tuple[str, str]]) -> list[float]:
    """Scores of pairs in one padded batch."""
    instructions = padded(tokenizer, [instruction for instruction, _ in pairs])
    responses = padded(tokenizer, [response for _, response in pairs])
    with torch.no_grad():
        scores: list[float] = ranker(*instructions, *responses).score_B.tolist()
    return scores


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "gte"])
def test_a_score_does_not_depend_on_its_neighbours(model_type: str) -> None:
    """Padding, batch size and order move a score by float noise only."""
    ranker, tokenizer = tiny_ranker(model_type)
    alone = [score(ranker, tokenizer, [pair])[0] for pair in PAIRS]
    assert score(ranker, tokenizer, list(PAIRS)) == pytest.approx(alone, abs=1e-5)
    assert score(ranker, tokenizer, list(PAIRS[::-1])) == pytest.approx(alone[::-1], abs=1e-5)
    assert np.std(alone) > 1e-3, "scores that are all alike would prove nothing"


def test_one_row_keeps_its_dimension() -> None:
    """A batch of one pair gives one score, not a bare number."""
    ranker, tokenizer = tiny_ranker()
    ids, mask = padded(tokenizer, ["alone"])
    output = ranker(ids, mask, ids, mask)
    assert output.score_B.shape == (1,)
    assert output.form_BD.shape == output.surprisal_BD.shape == (1, 32)


@pytest.mark.parametrize(("model_type", "has_pooler"), [("bert", True), ("distilbert", False)])
def test_features_are_the_pooled_state_and_the_maximum(model_type: str, has_pooler: bool) -> None:
    """Pooled: the pooler's output or the first token's state. Form: the max over real tokens."""
    ranker, tokenizer = tiny_ranker(model_type)
    ids, mask = padded(tokenizer, ["short", "quite a bit longer than short, isn't it"])
    with torch.no_grad():
        features = ranker.encode(ids, mask)
        raw = ranker.encoder(input_ids=ids, attention_mask=mask)
    for row, tokens in enumerate(mask.sum(dim=1).tolist()):
        states = raw.last_hidden_state[row, :tokens].numpy()
        pooled = raw.pooler_output[row].numpy() if has_pooler else states[0]
        np.testing.assert_array_equal(features.form_BD[row].numpy(), states.max(axis=0))
        np.testing.assert_array_equal(features.pooled_BD[row].numpy(), pooled)


def test_judging_follows_the_equations() -> None:
    """Surprisal = W2·relu(W1·[x; y]), score = V2·relu(V1·[surprisal; form]), in plain numpy."""
    ranker, _ = tiny_ranker(hidden=8, linear_dim=5)
    random = np.random.default_rng(0)
    x, y, form = random.normal(size=(3, 4, 8)).astype(np.float32)

    def layer(values: np.ndarray, name: str) -> np.ndarray:
        weight, bias = (ranker.get_parameter(f"{name}.{part}") for part in ("weight", "bias"))
        result: np.ndarray = values @ weight.detach().numpy().T + bias.detach().numpy()
        return result

    hidden = np.maximum(layer(np.hstack([x, y]), "relation_network.0"), 0)
    surprisal = layer(hidden, "relation_network.2")
    hidden = np.maximum(layer(np.hstack([surprisal, form]), "output_layer.0"), 0)
    expected = layer(hidden, "output_layer.2")[:, 0]
    with torch.no_grad():
        response = TextFeatures(torch.from_numpy(y), torch.from_numpy(form))
        output = ranker.judge(torch.from_numpy(x), response)
    np.testing.assert_allclose(output.surprisal_BD.numpy(), surprisal, atol=1e-6)
    np.testing.assert_allclose(output.score_B.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(output.form_BD.numpy(), form)


def test_the_parameter_names_are_those_of_published_checkpoints() -> None:
    """`encoder.*` and the two heads by the names that scar-tool gave them."""
    ranker, _ = tiny_ranker()
    heads = {name for name in ranker.state_dict() if not name.startswith("encoder.")}
    assert heads == {
        f"{head}.{layer}.{part}"
        for head in ("relation_network", "output_layer")
        for layer in (0, 2)
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize(("hidden_dim", "linear_dim"), [(0, 4), (4, -1)])
def test_impossible_widths_are_refused(hidden_dim: int, linear_dim: int) -> None:
    """A layer has at least one unit."""
    with pytest.raises(ValueError, match="hidden_dim and linear_dim must be at least 1"):
        RankerConfig(encoder_name="any", hidden_dim=hidden_dim, linear_dim=linear_dim)
