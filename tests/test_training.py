"""Training in one process: what a step computes, what an epoch keeps, what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_linear_schedule_with_warmup

from scar_core.errors import NonFiniteError
from scar_core.ranker.encoding import TextTokenizer
from scar_core.ranker.packing import ENCODE
from scar_core.training.accuracy import (
    accuracy_rows,
    accuracy_table,
    mean_accuracy,
    rank_correlation,
    wilson,
)
from scar_core.training.batches import (
    TokenizedQuadruples,
    epoch_batches,
    gate_quadruples,
    make_batch,
    micro_batches,
    share,
    tokenize_quadruples,
)
from scar_core.training.batching import use_batching
from scar_core.training.deal import Sides
from scar_core.training.epochs import Progress, Trained, count_steps, train
from scar_core.training.losses import GateConfig, LossConfig
from scar_core.training.quadruples import DIRECT, HUMAN, PAIR_KINDS, REFERENCED, Quadruple, Response
from scar_core.training.trainer import (
    QuadrupleLoss,
    Trainer,
    TrainingConfig,
    judge_quadruples,
    linear_schedule,
)
from tests.tiny import tiny_ranker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scar_core.ranker.model import Ranker

FAST = TrainingConfig(epochs=3, batch_size=4, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quadruple(instruction: str, **responses: str | None) -> Quadruple:
    """A quadruple without judge scores."""
    human, referenced, direct = (
        None if text is None else Response(text, None)
        for text in map(responses.get, ("human", "referenced", "direct"))
    )
    return Quadruple(instruction=instruction, responses=(human, referenced, direct), source="test")


def quadruples(rows: int = 12) -> list[Quadruple]:
    """Complete ones, and every fourth row one without a rewrite or without a direct response."""
    made = []
    for row in range(rows):
        texts: dict[str, str | None] = {
            "human": f"dunno {row}, try it " * (1 + row % 3),
            "referenced": f"You could try number {row}. " * (1 + row % 4),
            "direct": f"Here is the answer:\n\n1. **Try {row}.**\n2. Done.",
        }
        if row % 4 == 3:
            texts["referenced" if row % 8 == 3 else "direct"] = None
        made.append(quadruple(f"What about {row}? " * (1 + row % 5), **texts))
    return made


def tokenized(rows: list[Quadruple], tokenizer: Any) -> TokenizedQuadruples:  # noqa: ANN401 - any of transformers'
    """All comparable pairs kept."""
    kept_QK = gate_quadruples(rows, GateConfig(keep_unjudged=True)).kept_QK
    return tokenize_quadruples(rows, kept_QK, TextTokenizer(tokenizer, max_tokens=64))


def run(
    *,
    config: TrainingConfig = FAST,
    seed: int = 0,
    snapshots: list[dict[str, torch.Tensor]] | None = None,
    sides: tuple[int, int] = (8, 10),
) -> tuple[Ranker, Trained, list[Progress]]:
    """Train a tiny ranker; rows up to the first of `sides` are trained on, then validation."""
    ranker, tokenizer = tiny_ranker()
    data = tokenized(quadruples(), tokenizer)
    train_rows, validation, test = np.split(np.arange(12), sides)
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if snapshots is not None:
            snapshots.append({k: v.clone() for k, v in ranker.state_dict().items()})

    trained = train(
        ranker,
        data,
        Sides(train_rows, validation, test),
        config=config,
        loss=LossConfig(),
        seed=seed,
        accelerator=Accelerator(cpu=True),
        report=report,
    )
    return ranker, trained, told


def one_by_one(ranker: Ranker, tokenizer: Any, row: Quadruple) -> list[Any]:  # noqa: ANN401 - as above
    """Each response through the ranker's plain forward, alone, tokenized by transformers itself."""
    outputs = []
    for response in row.responses:
        if response is not None:
            texts = (row.instruction, response.text)
            encoded = [
                tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
                for text in texts
            ]
            outputs.append(
                ranker(
                    *[part[name] for part in encoded for name in ("input_ids", "attention_mask")]
                )
            )
    return outputs


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
def test_responses_are_judged_as_if_each_were_alone(model_type: str) -> None:
    """Sorting, padding, sharing an instruction and missing responses move nothing."""
    ranker, tokenizer = tiny_ranker(model_type)
    rows = quadruples()
    data = tokenized(rows, tokenizer)
    with torch.no_grad():
        judged = judge_quadruples(ranker, make_batch(data, np.arange(12)[::-1].copy()))
        for place, row in enumerate(reversed(rows)):
            there = [role for role, response in enumerate(row.responses) if response]
            for role, alone in zip(there, one_by_one(ranker, tokenizer, row), strict=True):
                for ours, wanted in zip(judged, alone, strict=True):
                    torch.testing.assert_close(ours[place, role], wanted[0], atol=1e-5, rtol=0)


def test_a_batchs_loss_is_that_of_torchs_criteria_on_plain_forwards() -> None:
    """Complete rows: three means of hinges, two triplets, each response in its own forward."""
    ranker, tokenizer = tiny_ranker()
    rows = [row for row in quadruples() if all(row.responses)]
    data = tokenized(rows, tokenizer)
    loss = QuadrupleLoss(ranker, LossConfig())(make_batch(data, np.arange(len(rows)))).total
    outputs = [one_by_one(ranker, tokenizer, row) for row in rows]
    score, form, surprisal = (
        [torch.cat([output[role][part] for output in outputs]) for role in range(3)]
        for part in range(3)
    )
    ranking, triplet = nn.MarginRankingLoss(margin=0.5), nn.TripletMarginLoss(margin=1.0)
    wanted = sum(ranking(score[a], score[b], torch.ones(len(rows))) for a, b in PAIR_KINDS)
    wanted += 0.05 * triplet(surprisal[REFERENCED], surprisal[HUMAN], surprisal[DIRECT])
    wanted += 0.05 * triplet(form[DIRECT], form[REFERENCED], form[HUMAN])
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_an_instruction_is_encoded_once_for_all_its_responses() -> None:
    """Four texts for a complete quadruple, and one fewer for another one with the same text."""
    ranker, tokenizer = tiny_ranker()
    rows = [
        quadruple(f"Question {n}?", human=f"a{n}", referenced=f"b{n}", direct=f"c{n}")
        for n in (1, 2)
    ]
    rows.append(quadruple("Question 1?", human="another", direct="c1"))
    data = tokenized(rows, tokenizer)
    encoded: list[int] = []
    ranker.encoder.register_forward_pre_hook(
        lambda _, __, inputs: encoded.append(len(inputs["input_ids"])), with_kwargs=True
    )
    judge_quadruples(ranker, make_batch(data, np.arange(3)))
    assert sum(encoded) == 4 + 4 + 1


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("recompute", [False, True])
def test_texts_end_to_end_have_the_loss_and_the_gradients_of_padded_ones(
    model_type: str, *, recompute: bool
) -> None:
    """Another order of additions, so rounding: within 1e-5 of the loss and of each gradient."""
    gradients, losses = [], []
    ways: tuple[Literal["padded", "auto"], ...] = ("padded", "auto")
    for wanted in ways:
        ranker, tokenizer = tiny_ranker(model_type)
        batching = use_batching(ranker, wanted)
        assert batching == {"auto": "packed"}.get(wanted, wanted)
        module = QuadrupleLoss(
            ranker, LossConfig(), encode=ENCODE[batching], recompute=recompute and wanted == "auto"
        )
        batch = make_batch(tokenized(quadruples(), tokenizer), np.arange(12), batching=batching)
        loss = module(batch).total
        torch.autograd.backward(loss)
        losses.append(loss.item())
        gradients.append({name: value.grad for name, value in ranker.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] > 0.5
    for name, wanted_grad in gradients[0].items():
        assert wanted_grad is not None, name
        scale = max(1.0, float(wanted_grad.abs().max()))
        torch.testing.assert_close(gradients[1][name], wanted_grad, atol=1e-5 * scale, rtol=0)


def test_an_encoder_off_the_registry_is_trained_padded(caplog: pytest.LogCaptureFixture) -> None:
    """MPNet computes its own biased attention: the log says so, the ranker is as it was."""
    ranker, tokenizer = tiny_ranker("mpnet")
    training = trainer(ranker_of=(ranker, tokenizer))
    assert training.batching == "padded"
    assert "texts are padded in training, because" in caplog.text
    plain, _ = tiny_ranker("mpnet")
    batch = make_batch(tokenized(quadruples(), tokenizer), np.arange(12))
    wanted = QuadrupleLoss(plain, LossConfig())(batch).total.item()
    assert training.step(np.arange(12)) == pytest.approx(wanted, abs=1e-5)


def test_recomputed_activations_train_the_same_ranker_also_with_dropout() -> None:
    """The random numbers of a dropout are drawn again."""
    plain, again = (
        run(
            config=TrainingConfig(
                epochs=1, batch_size=4, learning_rate=1e-3, dropout=True, gradient_checkpointing=on
            )
        )[1].losses
        for on in (False, True)
    )
    assert plain == pytest.approx(again, abs=1e-6)


def test_attention_drops_out_in_training_alone() -> None:
    """A dropout of the attention's own is not lost where texts lie end to end."""
    ranker, tokenizer = tiny_ranker(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    assert use_batching(ranker, "auto") == "packed"
    batch = make_batch(tokenized(quadruples(), tokenizer), np.arange(12), batching="packed")

    def scores() -> torch.Tensor:
        return judge_quadruples(ranker, batch, encode=ENCODE["packed"]).score_BR

    assert torch.equal(scores(), scores())
    ranker.train()
    assert not torch.allclose(scores(), scores(), atol=1e-3)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the first precision of a process for all that come after."""
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001


@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_multiplies_alone() -> None:
    """Weights and scores stay in fp32; losses are those of fp32, but for bfloat16's rounding."""
    plain = run(config=TrainingConfig(epochs=1, batch_size=4))[1].losses
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    ranker, tokenizer = tiny_ranker()
    half = trainer(
        ranker_of=(ranker, tokenizer),
        mixed_precision="bf16",
        precision="bf16",
    )
    assert half.batching == "packed"
    batches = epoch_batches(np.arange(8), batch_size=4, seed=0, epoch=1)
    losses = [half.step(rows) for rows in batches]
    assert losses[0] == pytest.approx(plain[0], abs=2e-2)
    assert losses[0] != plain[0]
    assert {value.dtype for value in ranker.state_dict().values()} <= {torch.float32, torch.int64}
    wanted = judge_quadruples(ranker, half._batch(np.arange(8)), encode=ENCODE["packed"])  # noqa: SLF001
    score_QR = np.nan_to_num(half.score(np.arange(8))[:8])  # not a number where nothing is
    np.testing.assert_allclose(score_QR, wanted.score_BR.detach().numpy(), atol=1e-6)


def test_micro_batches_change_the_memory_and_nothing_else() -> None:
    """One quadruple at a time, or all at once: the same losses and the same ranker."""
    small, large = (
        run(config=TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, micro_batch_tokens=n))
        for n in (1, 100_000)
    )
    assert small[1].losses == pytest.approx(large[1].losses, abs=1e-5)
    for name, value in small[0].state_dict().items():
        torch.testing.assert_close(value, large[0].state_dict()[name], atol=1e-4, rtol=0)


def test_a_seeded_run_is_the_same_run() -> None:
    """Losses and weights to the last bit; another seed takes another order."""
    first, again, other = run(), run(), run(seed=1)
    assert first[1].losses == again[1].losses
    assert all(
        torch.equal(value, again[0].state_dict()[name])
        for name, value in first[0].state_dict().items()
    )
    assert first[1].losses != other[1].losses


def test_training_learns_the_order() -> None:
    """Thirty steps on eight rows: the loss falls to a fraction, every trained pair is in order."""
    ranker, trained, _ = run(config=TrainingConfig(epochs=15, batch_size=4, learning_rate=3e-3))
    assert np.mean(trained.losses[-4:]) < 0.2 * trained.losses[0]
    data = tokenized(quadruples(), tiny_ranker()[1])
    with torch.no_grad():
        score_QR = judge_quadruples(ranker, make_batch(data, np.arange(8))).score_BR.numpy()
    assert mean_accuracy(score_QR, data.kept_QK[:8]) == 1.0


def test_the_epoch_with_the_best_validation_accuracy_is_kept() -> None:
    """Its weights and its scores, though the training went on."""
    snapshots: list[dict[str, torch.Tensor]] = []
    config = TrainingConfig(epochs=6, batch_size=4, learning_rate=3e-4)
    _, trained, told = run(config=config, snapshots=snapshots)
    accuracies = [progress.validation_accuracy or 0 for progress in told]
    best = int(np.argmax(accuracies))
    assert trained.best.epoch == best + 1
    assert trained.best.validation_accuracy == accuracies[best]
    assert 0 < best < 5, "the example must have something to choose from"
    assert trained.best.weights is not None
    assert trained.best.weights.keys() == snapshots[best].keys()
    for name, value in trained.best.weights.items():
        np.testing.assert_array_equal(value, snapshots[best][name].numpy())
    scored = ~np.isnan(trained.best.score_QR)
    assert not scored[:8].any()
    assert scored[8:].sum(axis=1).tolist() == [3, 3, 3, 2]


def test_without_validation_rows_the_last_epoch_is_kept() -> None:
    """And no accuracy is claimed."""
    _, trained, told = run(sides=(12, 12))
    assert trained.best.epoch == 3
    assert [progress.validation_accuracy for progress in told] == [None, None, None]


def test_max_steps_stops_in_the_middle_of_an_epoch() -> None:
    """Two steps an epoch, so three steps end in the second one, which is measured like any."""
    config = TrainingConfig(epochs=5, batch_size=4, max_steps=3)
    _, trained, told = run(config=config)
    assert len(trained.losses) == 3 == count_steps(8, config)
    assert [(progress.epoch, progress.step, progress.steps) for progress in told] == [
        (1, 2, 3),
        (2, 3, 3),
    ]
    assert told[0].loss == pytest.approx(np.mean(trained.losses[:2]))
    assert told[1].loss == trained.losses[2]
    assert told[1].seconds_left == 0


def test_steps_are_those_of_a_plain_torch_loop() -> None:
    """Three steps written out: zero, backward, clip, AdamW, schedule; the same ranker after."""
    training, (plain, tokenizer) = trainer(learning_rate=1e-3), tiny_ranker()
    model = QuadrupleLoss(plain, LossConfig())
    data = tokenized(quadruples(), tokenizer)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 10)
    for rows_B in (np.arange(4), np.arange(4, 12), np.arange(3, 6)):
        training.step(rows_B)
        optimizer.zero_grad()
        torch.autograd.backward(model(make_batch(data, rows_B)).total)
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for name, value in training.ranker.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-4, rtol=0)


def test_a_frozen_encoder_stays_as_it_was() -> None:
    """Only the heads learn."""
    before = tiny_ranker()[0].state_dict()
    after = run(config=TrainingConfig(epochs=1, batch_size=4, freeze_encoder=True))[0].state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"relation_network", "output_layer"}


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_a_training_that_gets_no_better(patience: int) -> None:
    """The same epochs as without it, up to so many after the best; the same one is kept."""
    config = TrainingConfig(epochs=8, batch_size=4, learning_rate=3e-4)
    whole = run(config=config)[1]
    accuracies = [epoch.validation_accuracy or 0 for epoch in whole.epochs]
    # The first epoch that the next so many do not better.
    kept = next(
        n for n in range(8) if max(accuracies[n + 1 : n + 1 + patience], default=0) <= accuracies[n]
    )
    assert kept + patience < 7, "the example must have something to leave out"
    short = run(config=replace(config, patience=patience))[1]
    assert short.best.epoch == kept + 1
    assert len(short.epochs) == kept + 1 + patience
    assert short.losses == whole.losses[: len(short.losses)]


def test_dropout_is_off_unless_asked_for() -> None:
    """The tiny encoder has a dropout of 0.1 of its own."""
    plain = run()[1].losses
    dropped = run(config=TrainingConfig(epochs=3, batch_size=4, learning_rate=1e-3, dropout=True))
    assert plain == run()[1].losses
    assert plain[0] != dropped[1].losses[0]
    assert plain[0] == pytest.approx(dropped[1].losses[0], rel=0.3)


def trainer(
    *,
    ranker_of: tuple[Ranker, Any] | None = None,
    mixed_precision: str = "no",
    **config: Any,  # noqa: ANN401 - any field
) -> Trainer:
    """A trainer on all twelve rows."""
    ranker, tokenizer = ranker_of or tiny_ranker()
    return Trainer(
        ranker,
        tokenized(quadruples(), tokenizer),
        steps=10,
        config=TrainingConfig(**config),
        loss=LossConfig(),
        accelerator=Accelerator(cpu=True, mixed_precision=mixed_precision),
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_stops_the_training_and_spoils_nothing(poison: float) -> None:
    """The error names the step; the weights are those before it."""
    training = trainer()
    training.step(np.arange(4))
    with torch.no_grad():
        training.ranker.get_parameter("output_layer.2.bias").fill_(poison)
    before = {name: value.clone() for name, value in training.ranker.state_dict().items()}
    with pytest.raises(NonFiniteError, match="step 2: the loss is nan"):
        training.step(np.arange(4))
    for name, value in training.ranker.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True, atol=0, rtol=0)


def test_a_gradient_is_clipped_over_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the length asked for, just before the optimizer sees it."""
    training = trainer(clip_norm=1e-3)
    lengths: list[float] = []
    step = training.optimizer.step

    def spy() -> None:
        gradients = [value.grad for value in training.parameters if value.grad is not None]
        lengths.append(float(torch.stack([grad.norm() for grad in gradients]).norm()))
        step()

    monkeypatch.setattr(training.optimizer, "step", spy)
    training.step(np.arange(12))
    assert lengths == pytest.approx([1e-3], rel=1e-2)


def test_the_learning_rate_rises_and_falls_as_transformers_says() -> None:
    """A tenth of the steps up from 0, then down to 0."""

    def rates(schedule_of: Any) -> list[float]:  # noqa: ANN401 - either of the two
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-5)
        schedule = schedule_of(optimizer)
        seen = []
        for _ in range(25):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    ours = rates(lambda optimizer: linear_schedule(optimizer, steps=25, warmup_share=0.1))
    theirs = rates(lambda optimizer: get_linear_schedule_with_warmup(optimizer, 2.5, 25))
    assert ours == pytest.approx(theirs)
    assert max(ours) <= 2e-5


def test_an_idle_worker_adds_nothing_but_takes_part() -> None:
    """Every parameter has a gradient, as DDP needs it, and each is zero."""
    ranker, tokenizer = tiny_ranker()
    data = tokenized(quadruples(), tokenizer)
    loss = QuadrupleLoss(ranker, LossConfig())(make_batch(data, np.arange(1), idle=True)).total
    torch.autograd.backward(loss)
    assert loss.item() == 0
    for name, value in ranker.named_parameters():
        assert value.grad is not None, name
        assert not value.grad.any(), name


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    batch_size=st.integers(1, 12),
    workers=st.integers(1, 5),
    budget=st.integers(1, 120),
)
def test_every_row_is_dealt_once_an_epoch(
    lengths: list[int], batch_size: int, workers: int, budget: int
) -> None:
    """To one batch, one worker, one micro-batch, none of them too large."""
    tokens_Q = np.array(lengths)
    batches = epoch_batches(np.arange(len(lengths)), batch_size=batch_size, seed=1, epoch=2)
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert len(batches) == count_steps(
        len(lengths), TrainingConfig(epochs=1, batch_size=batch_size)
    )
    dealt = []
    for rows_B in batches:
        shares = [share(rows_B, tokens_Q, rank=rank, workers=workers) for rank in range(workers)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        for mine in shares:
            for rows in micro_batches(mine, tokens_Q, token_budget=budget):
                assert len(rows) == 1 or tokens_Q[rows].sum() <= budget
                dealt += rows.tolist()
    assert sorted(dealt) == list(range(len(lengths)))


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    """So a resumed run can take it up again."""
    rows = np.arange(50)
    order = [
        np.concatenate(epoch_batches(rows, batch_size=8, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 1), (1, 1), (1, 2), (2, 1))
    ]
    assert order[0] == order[1]
    assert order[0] != order[2] != order[3] != order[0]


def test_gate_counts_close() -> None:
    """Pairs = kept + equal_texts + unjudged + quality, kind by kind."""

    def judged(*qualities: float | None, texts: str = "abc") -> Quadruple:
        responses = [Response(text, q) for text, q in zip(texts, qualities, strict=True)]
        return Quadruple(instruction="?", responses=tuple(responses), source="s")  # type: ignore[arg-type]

    rows = [
        judged(6, 7, 8),
        judged(6, None, 8),
        judged(3, None, 8),
        judged(6, 7, 8, texts="aab"),
        quadruple("?", human="a", direct="b"),
    ]
    gated = gate_quadruples(rows, GateConfig())
    assert gated.counts == {
        "direct>referenced": {"pairs": 4, "kept": 2, "equal_texts": 0, "unjudged": 2, "quality": 0},
        "referenced>human": {"pairs": 4, "kept": 1, "equal_texts": 1, "unjudged": 1, "quality": 1},
        "direct>human": {"pairs": 5, "kept": 3, "equal_texts": 0, "unjudged": 1, "quality": 1},
    }
    assert gated.totals() == {"pairs": 13, "kept": 6, "equal_texts": 1, "unjudged": 4, "quality": 2}
    assert gated.kept_by_gate["abs"] == {n: c["kept"] for n, c in gated.counts.items()}
    assert gated.kept_by_gate["none"] == {
        name: count["pairs"] - count["equal_texts"] for name, count in gated.counts.items()
    }
    assert gate_quadruples([], GateConfig()).kept_QK.shape == (0, 3)


def test_accuracies_by_hand() -> None:
    """Two sources, a tie, a missing response, lengths just matched and just not."""
    nan = float("nan")
    score_QR = np.array([[0.0, 1.0, 2.0], [3.0, nan, 3.0], [5.0, 4.0, nan]])
    characters_QR = np.array([[90, 100, 89], [50, 0, 10], [7, 7, 0]])
    pairs_QK = np.array([[True, True, True], [False, False, True], [False, True, False]])
    rows = accuracy_rows(score_QR, characters_QR, pairs_QK, ["b", "b", "a"])
    assert [
        (
            row.kind,
            row.source,
            row.pairs,
            row.accuracy,
            row.longer_wins,
            row.matched_pairs,
            row.matched_accuracy,
        )
        for row in rows
    ] == [
        ("direct>referenced", "all", 1, 1.0, 0.0, 0, None),
        ("referenced>human", "all", 2, 0.5, 0.75, 2, 0.5),
        ("direct>human", "all", 2, 0.75, 0.0, 1, 1.0),
        ("all", "a", 1, 0.0, 0.5, 1, 0.0),
        ("all", "b", 4, 0.875, 0.25, 2, 1.0),
        ("all", "all", 5, 0.7, 0.3, 3, pytest.approx(2 / 3)),
    ]
    assert mean_accuracy(score_QR, pairs_QK) == pytest.approx((1.0 + 0.5 + 0.75) / 3)
    assert accuracy_table(rows).splitlines()[1].split() == [
        "direct>referenced",
        "all",
        "1",
        "100.0%",
        "20.7%-100.0%",
        "0.0%",
        "0",
        "-",
        "-",
    ]


def test_an_interval_is_wilsons() -> None:
    """By his formula; half a win widens the interval on both sides."""
    won_P = np.array([1.0] * 7 + [0.0] * 3)
    z, n, share = 1.959964, 10, 0.7
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(won_P) == pytest.approx((middle - half, middle + half), abs=1e-6)
    tied = wilson(np.array([1.0] * 7 + [0.5] + [0.0] * 2))
    more = wilson(np.array([1.0] * 8 + [0.0] * 2))
    assert tied is not None
    assert more is not None
    assert tied == pytest.approx((middle - half, more[1]), abs=1e-6)
    assert wilson(np.zeros(0)) is None


def test_lists_are_counted_line_by_line_and_correlated_by_rank() -> None:
    """A bullet or a number, then a blank; a response that is not there has no score to rank."""
    texts = ["- a\n  2) b\n* c", "-5 degrees\n3.14\n*bold*", "• one"]
    row = quadruple("Why?", **dict(zip(("human", "referenced", "direct"), texts, strict=True)))
    data = tokenized([row], tiny_ranker()[1])
    assert data.list_lines_QR.tolist() == [[3, 0, 1]]
    scores = np.array([[5.0, -1.0, 0.0], [float("nan")] * 3])
    lines = np.array([[3, 0, 1], [9, 9, 0]])
    assert rank_correlation(scores, lines) == pytest.approx(1.0)
    assert rank_correlation(-scores, lines) == pytest.approx(-1.0)
    assert rank_correlation(scores, np.zeros_like(lines)) is None


def test_no_pairs_no_accuracy() -> None:
    """An empty table and None, not a number made up."""
    empty = np.zeros((0, 3))
    none = np.zeros((0, 3), dtype=bool)
    assert accuracy_rows(empty, empty.astype(int), none, []) == []
    assert mean_accuracy(np.ones((2, 3)), np.zeros((2, 3), dtype=bool)) is None


def test_a_score_that_is_not_a_number_wins_nothing() -> None:
    """Neither as the better response's score nor as the worse one's."""
    score_QR = np.array([[float("nan"), 1.0, 2.0], [1.0, 2.0, float("nan")]])
    pairs_QK = np.array([[False, False, True]] * 2)
    assert mean_accuracy(score_QR, pairs_QK) == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("max_steps", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_share", 1.0),
        ("clip_norm", -1.0),
        ("micro_batch_tokens", 0),
    ],
)
def test_a_config_that_cannot_work_is_refused(field: str, value: float) -> None:
    """At construction, naming the field and the value."""
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        TrainingConfig(**{field: value})  # type: ignore[arg-type]
