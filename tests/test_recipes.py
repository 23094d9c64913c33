"""What recipes add to a training: cut copies, capped sources, stand-in instructions, layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from jobs import cli
from jobs.sample.__main__ import encoder_folder
from jobs.train import train
from jobs.train_inputs import TrainConfig, prepare
from scar_core.errors import InputError
from scar_core.ranker.checkpoint import load_ranker, save_ranker
from scar_core.ranker.encoding import TextTokenizer
from scar_core.training.augment import AugmentConfig, cut, cut_copies, one_length
from scar_core.training.deal import DealConfig, Dealt, deal
from scar_core.training.heldout import MEASURES, held_out, interval
from scar_core.training.losses import LossConfig
from scar_core.training.quadruple_files import read_quadruples
from scar_core.training.quadruples import (
    Quadruple,
    QuadrupleColumns,
    Response,
    check_quadruples,
)
from scar_core.training.split import SplitConfig, at_most_per_source, split_by_instruction
from scar_core.training.trainer import Trainer, TrainingConfig
from tests.test_parity import our_scores, their_scores
from tests.test_train_job import REAL, quad_rows, write_jsonl
from tests.tiny import tiny_encoder, tiny_ranker, tiny_tokenizer

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
PROSE = "First of all, look at it. Then think. Then do what you thought of, and look again. Done.\n"


def quadruple(
    number: int, *, source: str = "a", sizes: tuple[int, int, int] = (3, 4, 9)
) -> Quadruple:
    """Three responses of so many paragraphs, the direct one the longest by far."""
    human, referenced, direct = (
        Response(f"{role} {number}. " + PROSE * size, 7.0)
        for role, size in zip("hrd", sizes, strict=True)
    )
    return Quadruple(
        instruction=f"What of {number}?", responses=(human, referenced, direct), source=source
    )


def lengths(item: Quadruple) -> list[int]:
    """Characters of its responses."""
    return [len(response.text) for response in item.responses if response is not None]


def test_copies_in_turn_have_one_length_and_the_better_response_shorter() -> None:
    """Over many rows: in equal copies length says nothing, in reversed ones the wrong thing."""
    rows = [quadruple(number) for number in range(60)]
    copies = cut_copies(rows, AugmentConfig(cut_copies=2), seed=0)
    assert [copy.instruction for copy in copies] == [row.instruction for row in rows] * 2
    assert all(copy.responses[0].quality == 7.0 for copy in copies if copy.responses[0])
    equal, turned = (
        np.array([lengths(copy) for copy in part]) for part in (copies[:60], copies[60:])
    )
    assert (equal.max(axis=1) - equal.min(axis=1) <= 0.31 * equal.max(axis=1)).all()
    assert abs(equal[:, 2] - equal[:, 0]).mean() < 0.1 * equal.mean()
    assert (turned[:, 2] < turned[:, 0]).mean() > 0.9
    assert np.unique(equal[:, 0]).size > 10, "lengths are drawn, not fixed"


def test_a_copy_depends_on_its_own_row_and_the_seed_alone() -> None:
    """Another order, other neighbours: the same copies; another seed: others."""
    rows = [quadruple(number) for number in range(8)]
    config = AugmentConfig(cut_copies=2)
    assert cut_copies(rows[3:4], config, seed=0) == cut_copies(rows, config, seed=0)[3::8]
    assert cut_copies(rows, config, seed=0) != cut_copies(rows, config, seed=1)
    assert cut_copies(rows, AugmentConfig(), seed=0) == []


def test_a_cut_ends_at_a_line_a_sentence_or_a_word_where_one_is_near() -> None:
    """Else it fills the limit."""
    assert cut("One. Two three four", 8) == "One. Two"
    assert cut("One two. Three four", 9) == "One two."
    assert cut("x = 1\ny = 2\nz = 3", 13) == "x = 1\ny = 2"
    assert cut("version 3.14 is out", 11) == "version"[:7] + " 3.1"
    assert cut("a" * 50, 20) == "a" * 20
    assert cut("short", 20) == "short"


@given(st.text(min_size=1), st.integers(1, 40))
def test_a_cut_is_a_beginning_within_the_limit_and_never_nothing(text: str, limit: int) -> None:
    """Whatever the text holds."""
    found = cut(text, limit)
    assert text.startswith(found)
    assert 0 < len(found) <= max(limit, 1)


def test_responses_of_one_length_are_as_long_as_the_shortest() -> None:
    """Which itself is not touched; a missing one stays missing."""
    row = quadruple(1)
    whole = one_length(row)
    assert whole.responses[0] == row.responses[0]
    assert max(lengths(whole)) == lengths(row)[0]
    assert (
        one_length(
            Quadruple(instruction="x", responses=(None, *row.responses[1:]), source="a")
        ).responses[0]
        is None
    )


def dealt(rows: list[Quadruple], **config: Any) -> Dealt:  # noqa: ANN401 - any field
    """The rows dealt with these fields."""
    given_config = DealConfig(**{"validation_share": 0.2, "test_share": 0.2, **config})
    return deal(rows, given_config, TextTokenizer(tiny_tokenizer(), max_tokens=64))


def test_only_the_training_side_is_capped_and_copied() -> None:
    """Validation and test are what they are without; rows set apart join the test side last."""
    rows = [quadruple(number, source="ab"[number % 3 == 0]) for number in range(40)]
    plain = dealt(rows)
    capped = dealt(rows, max_per_source=5, cut_copies=2)
    assert plain.sides.train.tolist() == plain.split.train
    for side in ("validation", "test"):
        assert texts_of(capped, side) == texts_of(plain, side)
    train = capped.sides.train
    assert sorted(capped.data.sources_Q[row] for row in train[:10]) == ["a"] * 5 + ["b"] * 5
    assert capped.over_cap == len(plain.split.train) - 10
    assert len(train) == 30
    assert texts_of(capped, "train")[:10] * 3 == texts_of(capped, "train")
    assert set(texts_of(capped, "train")) < set(texts_of(plain, "train"))
    shorter = capped.data.characters_QR[train[10:20]] < capped.data.characters_QR[train[:10]]
    assert shorter[:, 2].all()


def texts_of(deal_: Dealt, side: str) -> list[tuple[int, ...]]:
    """Token ids of the instructions of one side, in its order."""
    texts, rows = deal_.data.texts, getattr(deal_.sides, side)
    return [tuple(texts.take([deal_.data.text_QS[row, 0]]).ids_T.tolist()) for row in rows]


def test_rows_set_apart_join_the_test_side_last() -> None:
    """They are neither split nor copied."""
    rows = [quadruple(number) for number in range(20)]
    apart = [quadruple(100), quadruple(101)]
    found = deal(
        rows,
        DealConfig(validation_share=0.2, test_share=0.2, cut_copies=1),
        TextTokenizer(tiny_tokenizer(), max_tokens=64),
        set_apart=apart,
    )
    last = len(found.data.kept_QK) - 2
    assert found.sides.test.tolist() == [*found.split.test, last, last + 1]
    assert len(found.sides.train) == 2 * len(found.split.train)
    assert last == 20 + len(found.split.train)


def test_a_source_within_its_cap_is_left_whole_and_in_order() -> None:
    """Others are drawn by their texts, the same ones whatever stands beside them."""
    rows = [quadruple(number, source="big" if number % 4 else "small") for number in range(40)]
    found = at_most_per_source(rows, range(40), limit=10, seed=3)
    assert found == sorted(found)
    assert [row for row in found if row % 4 == 0] == list(range(0, 40, 4))
    assert len(found) == 20
    assert at_most_per_source(rows, [row for row in range(40) if row % 4], limit=10, seed=3) == [
        row for row in found if row % 4
    ]


def test_a_row_without_an_instruction_can_be_given_one() -> None:
    """By default it is dropped; a bad one is never replaced; one that is there stays."""
    rows: list[dict[str, Any]] = [
        {"human": "a", "referenced": "b"},
        {"instruction": None, "human": "c", "referenced": "d"},
        {"instruction": " ", "human": "e", "referenced": "f"},
        {"instruction": "Why?", "human": "g", "referenced": "h"},
    ]
    assert check_quadruples(rows, QuadrupleColumns()).dropped == {
        "instruction_empty": 1,
        "instruction_missing": 2,
    }
    checked = check_quadruples(rows, QuadrupleColumns(missing_instruction="Write a text."))
    assert checked.dropped == {"instruction_empty": 1}
    assert [(item.instruction, item.instruction_is_own) for item in checked.quadruples] == [
        ("Write a text.", False),
        ("Write a text.", False),
        ("Why?", True),
    ]


def test_rewrites_of_one_text_are_on_one_side_though_all_share_an_instruction() -> None:
    """A stand-in instruction would put every row on one side."""
    columns = QuadrupleColumns(missing_instruction="Write a text.")
    rows = [
        {"human": f"text {number}", "referenced": f"rewrite {number} {again}"}
        for number in range(60)
        for again in range(3)
    ]
    split = split_by_instruction(
        check_quadruples(rows, columns).quadruples,
        SplitConfig(validation_share=0.3, test_share=0.3),
    )
    assert min(map(len, split)) > 20
    assert len({(row // 3, side) for side, part in enumerate(split) for row in part}) == 60


def test_counts_close_with_sources_capped_and_copies_made(tmp_path: Path) -> None:
    """Rows in = dropped + gated out + not sampled + the three sides; copies come on top."""
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    tiny_tokenizer(tmp_path / "encoder")
    rows = [*quad_rows(60), {"human": "a text", "referenced": "A text."}, {"human": "alone"}]
    prepared = prepare(
        TrainConfig(
            quads=[write_jsonl(tmp_path / "quads.jsonl", rows)],
            encoder=str(tmp_path / "encoder"),
            out=str(tmp_path / "ranker"),
            keep_unjudged=True,
            missing_instruction="Write a text.",
            max_per_source=10,
            cut_copies=3,
            max_tokens=32,
            linear_dim=8,
            limit_quads=50,
        )
    )
    counts = prepared.counts
    assert counts["rows_in"] == 62
    assert counts["quarantined"] == {"fewer_than_two_responses": 2}
    sides = sum(counts[side] for side in ("train", "validation", "test"))
    left_out = counts["gated_out"] + counts["not_sampled"] + counts["over_source_cap"]
    assert 2 + left_out + sides == 62
    used = counts["train"]
    assert 0 < used <= 21
    assert counts["over_source_cap"] > 0
    assert counts["cut_copies"] == 3 * used
    assert len(prepared.sides.train) == 4 * used


def trainer(**config: Any) -> Trainer:  # noqa: ANN401 - any field
    """A trainer on eight rows."""
    ranker, tokenizer = tiny_ranker()
    rows = [quadruple(number, sizes=(1, 1, 1)) for number in range(8)]
    data = deal(rows, DealConfig(test_share=0.0), TextTokenizer(tokenizer, max_tokens=32)).data
    return Trainer(
        ranker,
        data,
        steps=4,
        config=TrainingConfig(learning_rate=1e-3, warmup_share=0.0, **config),
        loss=LossConfig(),
        accelerator=Accelerator(cpu=True),
    )


def changed_by(training: Trainer) -> dict[str, float]:
    """How far one step moved each parameter, at most."""
    before = {name: value.clone() for name, value in training.ranker.state_dict().items()}
    training.step(np.arange(8))
    return {
        name: float((value - before[name]).abs().max())
        for name, value in training.ranker.state_dict().items()
        if value.is_floating_point()
    }


def test_frozen_layers_stay_and_those_above_learn() -> None:
    """Embeddings too; the tiny encoder has two layers."""
    moved = changed_by(trainer(freeze_layers=1))
    still = ("encoder.embeddings.", "encoder.encoder.layer.0.")
    for name, by in moved.items():
        assert (by == 0) == name.startswith(still), name
    with pytest.raises(InputError, match="--freeze-layers 3: the encoder has 2 layers"):
        trainer(freeze_layers=3)


def test_heads_learn_at_their_own_rate() -> None:
    """AdamW's first step is as long as the rate, for every parameter with a gradient."""
    moved = changed_by(trainer(head_learning_rate=1e-2))
    assert moved["output_layer.0.weight"] == pytest.approx(1e-2, rel=0.1)
    assert moved["encoder.encoder.layer.1.output.dense.weight"] == pytest.approx(1e-3, rel=0.1)
    same = changed_by(trainer())
    assert same["output_layer.0.weight"] == pytest.approx(1e-3, rel=0.1)


def test_held_out_shares_are_counted_by_hand() -> None:
    """Two quadruples: one complete, one of human and direct alone."""
    score = np.array([[0.0, 2.0, 1.0], [0.0, np.nan, 1.0]])
    characters = np.array([[100, 105, 300], [50, 0, 40]])
    pairs = np.array([[True, True, True], [False, False, True]])
    cut_score = np.array([[1.0, 1.0, 2.0], [3.0, np.nan, 1.0]])
    found = held_out(score, characters, pairs, cut_score, pairs)
    shares = {name: found.share(place) for place, name in enumerate(MEASURES)}
    assert shares == {
        "accuracy": 3 / 4,  # direct>referenced is lost
        "longer_wins": 3 / 4,
        "matched_accuracy": 1.0,  # 100 and 105
        "one_length_accuracy": 2.5 / 4,
    }
    low, high = interval([found], 0) or (0, 0)
    assert low == pytest.approx(2 / 3)
    assert high == 1.0


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 sources of 80 pairs at 0.7: 95 % of the intervals hold it, give or take."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        won = (rng.random(80) < 0.7).astype(float)
        score = np.stack([1 - won, np.full(80, np.nan), won], axis=1)
        pairs = np.tile([False, False, True], (80, 1))
        low, high = interval([held_out(score, np.ones((80, 3), int), pairs, score, pairs)], 0) or (
            1,
            0,
        )
        hits += low <= 0.7 <= high
    assert 180 <= hits <= 199


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AugmentConfig(cut_copies=-1), "cut_copies must be at least 0, got -1"),
        (lambda: AugmentConfig(max_per_source=0), "max_per_source must be at least 1, got 0"),
        (lambda: QuadrupleColumns(missing_instruction=" "), "missing_instruction must be a text"),
        (lambda: TrainingConfig(freeze_layers=-1), "freeze_layers must be at least 0, got -1"),
        (lambda: TrainingConfig(head_learning_rate=0), "head_learning_rate must be above 0, got 0"),
    ],
)
def test_fields_that_mean_nothing_are_refused(make: Any, said: str) -> None:  # noqa: ANN401 - a lambda
    """At construction."""
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one_that_the_job_takes(path: Path) -> None:
    """And the plain one changes nothing of what the paper says but lengths."""
    argv = ["--config", str(path), "--quads", "q.jsonl", "--encoder", "e", "--out", "o"]
    config = cli.parse(TrainConfig, argv, prog="jobs.train", description="")
    assert config.keep_unjudged
    if path.stem == "plain":
        assert (config.learning_rate, config.head_learning_rate) == (2e-5, None)
        assert (config.cut_copies, config.freeze_layers, config.max_per_source) == (0, 0, None)


def test_a_frozen_part_has_no_gradient_to_exchange() -> None:
    """Workers exchange what learns, and nothing else."""
    training = trainer(freeze_layers=2)
    assert all(isinstance(value, torch.nn.Parameter) for value in training.parameters)
    names = {name for name, value in training.ranker.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in names} == {"encoder", "relation_network", "output_layer"}
    assert not any(name.startswith(("encoder.embeddings", "encoder.encoder")) for name in names)


@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
@pytest.mark.skipif(not REAL.exists(), reason="the shared real data is not here")
def test_a_ranker_of_the_recipe_scores_real_pairs_in_scar_tool_as_here(tmp_path: Path) -> None:
    """Twenty steps of it on real quadruples; then 60 real pairs of its own test side."""
    argv = ["--config", str(RECIPES / "general.yaml"), "--quads", str(REAL), "--encoder"]
    argv += [str(encoder_folder()), "--out", str(tmp_path / "ranker"), "--max-steps", "20"]
    config = cli.parse(TrainConfig, [*argv, "--limit-quads", "400"], prog="", description="")
    train(config)
    ranker, tokenizer, _ = load_ranker(str(tmp_path / "ranker"))
    # scar-tool loads the base encoder first, from where this says.
    ranker.config = replace(ranker.config, encoder_name=str(encoder_folder()))
    save_ranker(str(tmp_path / "theirs"), ranker, tokenizer, card="#", for_scar_tool=True)
    rows = read_quadruples([str(REAL)], QuadrupleColumns()).checked.quadruples[::60]
    pairs = [(row.instruction, item.text) for row in rows for item in row.responses if item][:64]
    ours = our_scores(str(tmp_path / "ranker"), pairs)
    theirs = their_scores(str(tmp_path / "theirs"), pairs)
    assert theirs.std() > 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
