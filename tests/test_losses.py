"""The loss and the gate, against torch's own losses, hand-worked numbers and scar-tool."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from style_ranker.utils import create_key, filter_ins_ans_pairs
from torch import Tensor, nn

from scar_core.training.losses import (
    GATES,
    Gate,
    GateConfig,
    JudgedQuadruples,
    LossConfig,
    gate,
    loss_counts,
    quadruple_loss,
)
from scar_core.training.quadruples import DIRECT, HUMAN, PAIR_KINDS, REFERENCED, ROLES

ALL_KEPT = torch.ones(1, 3, dtype=torch.bool)
NO_REGULARISER = LossConfig(regulariser_weight=0)


def judged(rows: int, *, width: int = 5, seed: int = 0) -> JudgedQuadruples:
    """Random scores and features that take gradients."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((rows, 3), (rows, 3, width), (rows, 3, width))
    return JudgedQuadruples(
        *(torch.randn(shape, generator=random, requires_grad=True) for shape in shapes)
    )


def scores(direct: float, referenced: float, human: float) -> JudgedQuadruples:
    """One row with these scores and features that are all zero."""
    return JudgedQuadruples(
        torch.tensor([[human, referenced, direct]]), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    )


def test_the_hinge_is_zero_from_the_margin_on_and_grows_below_it() -> None:
    """Direct leads referenced by 0.25, referenced leads human by 2, direct leads human by 2.25."""
    parts = quadruple_loss(scores(2.25, 2.0, 0.0), ALL_KEPT, NO_REGULARISER)
    assert parts.ranking_K.tolist() == [0.25, 0.0, 0.0]
    assert parts.total.item() == 0.25


def test_the_wrong_order_costs_the_lead_plus_the_margin_for_each_pair() -> None:
    """Human 1, referenced 0, direct -1: hinges of 1.5, 1.5 and 2.5."""
    parts = quadruple_loss(scores(-1.0, 0.0, 1.0), ALL_KEPT, NO_REGULARISER)
    assert parts.ranking_K.tolist() == [1.5, 1.5, 2.5]
    assert parts.total.item() == 5.5


def test_the_regulariser_by_hand() -> None:
    """Equal distances leave the margin of 1 in both triplets: 0.1 * (1 + 1) / 2."""
    parts = quadruple_loss(scores(9.0, 5.0, 0.0), ALL_KEPT, LossConfig())
    assert parts.regulariser.item() == pytest.approx(0.1)
    form = torch.zeros(1, 3, 2)
    form[0, HUMAN] = torch.tensor([3.0, 4.0])  # 5 away from direct, so the form triplet is 0
    parts = quadruple_loss(scores(9.0, 5.0, 0.0)._replace(form_BRD=form), ALL_KEPT, LossConfig())
    assert parts.regulariser.item() == pytest.approx(0.05, abs=1e-6)
    surprisal = torch.zeros(1, 3, 2)
    surprisal[0, HUMAN] = torch.tensor([3.0, 4.0])  # the rewrite should be near the human: 5 + 1
    parts = quadruple_loss(
        scores(9.0, 5.0, 0.0)._replace(surprisal_BRD=surprisal), ALL_KEPT, LossConfig()
    )
    assert parts.regulariser.item() == pytest.approx(0.1 * (6 + 1) / 2, abs=1e-6)


def reference_loss(rows: JudgedQuadruples, kept_BK: Tensor, config: LossConfig) -> Tensor:
    """The same with torch's criteria, one kind after the other."""
    ranking = nn.MarginRankingLoss(margin=config.ranking_margin)
    triplet = nn.TripletMarginLoss(margin=config.triplet_margin, p=2)
    total = torch.zeros(())
    for column, kind in enumerate(PAIR_KINDS):
        kept = kept_BK[:, column]
        if kept.any():
            better, worse = rows.score_BR[kept, kind.better], rows.score_BR[kept, kind.worse]
            total = total + ranking(better, worse, torch.ones_like(better))
    complete = kept_BK.all(dim=1)
    if complete.any():
        human, rewrite, direct = rows.surprisal_BRD[complete].unbind(dim=1)
        meaning = triplet(rewrite, human, direct)
        human, rewrite, direct = rows.form_BRD[complete].unbind(dim=1)
        total = total + config.regulariser_weight * (meaning + triplet(direct, rewrite, human)) / 2
    return total


@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradients_are_those_of_torchs_own_losses(seed: int) -> None:
    """Random features, random gaps: MarginRankingLoss and TripletMarginLoss say the same."""
    kept_BK = torch.rand(7, 3, generator=torch.Generator().manual_seed(seed)) < 0.6
    ours, theirs = judged(7, seed=seed), judged(7, seed=seed)
    total = quadruple_loss(ours, kept_BK, LossConfig()).total
    expected = reference_loss(theirs, kept_BK, LossConfig())
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.autograd.backward(total)
    torch.autograd.backward(expected)
    for mine, wanted in zip(ours, theirs, strict=True):
        expected_gradient = torch.zeros_like(mine) if wanted.grad is None else wanted.grad
        torch.testing.assert_close(mine.grad, expected_gradient)


def test_the_parts_of_a_batch_add_up_to_the_batch() -> None:
    """Whatever workers and micro-batches share it, as long as they divide by the whole's counts."""
    rows = judged(9)
    kept_BK = torch.rand(9, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    counts_C = loss_counts(kept_BK)
    whole = quadruple_loss(rows, kept_BK, LossConfig()).total
    parts = [
        quadruple_loss(
            JudgedQuadruples(*(tensor[part] for tensor in rows)),
            kept_BK[part],
            LossConfig(),
            counts_C=counts_C,
        ).total
        for part in (slice(0, 1), slice(1, 6), slice(6, 6), slice(6, 9))
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), abs=1e-6)


def test_a_batch_without_a_kept_pair_has_no_loss_but_has_gradients() -> None:
    """Zero, not NaN, and a backward pass can still run, as DDP needs it to."""
    rows = judged(2)
    total = quadruple_loss(rows, torch.zeros(2, 3, dtype=torch.bool), LossConfig()).total
    assert total.item() == 0
    torch.autograd.backward(total)
    assert rows.score_BR.grad is not None
    assert not rows.score_BR.grad.any()


def test_a_score_that_is_not_a_number_spoils_only_the_pairs_it_is_in() -> None:
    """Pairs that are not kept are not looked at; a kept one makes the loss NaN, for all to see."""
    rows = judged(1)._replace(score_BR=torch.tensor([[0.0, float("nan"), 1.0]]))
    only_direct_human = torch.tensor([[False, False, True]])
    assert quadruple_loss(rows, only_direct_human, LossConfig()).total.isfinite()
    assert quadruple_loss(rows, ALL_KEPT, LossConfig()).total.isnan()


def test_the_gate_is_open_strictly_between_its_bounds() -> None:
    """5 is not above 5; 9 is below 10; one bad response drops the two pairs it is in."""
    quality_BR = torch.tensor([[5.0, 6.0, 9.0], [5.5, 6.0, 9.0], [9.0, 4.9, 9.0]])
    kept_BK = gate(quality_BR, torch.ones(3, 3, dtype=torch.bool), GateConfig())
    assert kept_BK.tolist() == [[True, False, False], [True, True, True], [False, False, True]]


def test_unjudged_responses_pass_only_when_asked_for_and_judged_ones_never_by_that() -> None:
    """NaN is unjudged; a bad judgement counts with --keep-unjudged too; equal texts never pass."""
    nan = float("nan")
    quality_BR = torch.tensor([[nan, nan, nan], [2.0, nan, 7.0]])
    comparable_BK = torch.tensor([[True, True, False], [True, True, True]])
    assert not gate(quality_BR, comparable_BK, GateConfig())[0].any()
    kept_BK = gate(quality_BR, comparable_BK, GateConfig(keep_unjudged=True))
    assert kept_BK.tolist() == [[True, True, False], [True, False, False]]


def test_a_gate_forgives_only_what_it_looks_at() -> None:
    """Rows: human bad, human unjudged, direct unjudged; columns as PAIR_KINDS."""
    nan = float("nan")
    quality_BR = torch.tensor([[1.0, 7.0, 8.0], [nan, 7.0, 8.0], [7.0, 7.0, nan]])
    kept = {
        (name, keep): gate(
            quality_BR,
            torch.ones(3, 3, dtype=torch.bool),
            GateConfig(gate=name, keep_unjudged=keep, quality_below=9.5),
        ).tolist()
        for name in GATES
        for keep in (False, True)
    }
    assert kept["abs", False] == [[True, False, False], [True, False, False], [False, True, False]]
    assert kept["abs_pos", False] == [[True] * 3, [True] * 3, [False, True, False]]
    assert kept["diff", False] == [[True] * 3, [True, False, False], [False, True, False]]
    assert kept["abs_diff", True] == [[True, False, False], [True] * 3, [True] * 3]
    assert kept["none", False] == [[True] * 3] * 3


@settings(max_examples=60, deadline=None)
@given(
    qualities=st.lists(st.tuples(*[st.sampled_from([0, 4.5, 5, 5.5, 7, 9])] * 3), min_size=1),
    twins=st.lists(st.booleans(), min_size=3, max_size=3),
    name=st.sampled_from(GATES),
    bounds=st.sampled_from([(5.0, 10.0), (4.5, 9.0), (0.0, 2.5)]),
)
def test_the_gate_keeps_the_pairs_that_scar_tool_keeps(
    qualities: list[tuple[float, float, float]],
    twins: list[bool],
    name: Gate,
    bounds: tuple[float, float],
) -> None:
    """Its filter in each of its constraint modes, pair kind by pair kind."""
    texts = [
        ["same" if twin else f"{role} {row}" for role, twin in zip(ROLES, twins, strict=True)]
        for row in range(len(qualities))
    ]
    instructions = [f"instruction {row}" for row in range(len(qualities))]
    tables = [
        {
            create_key(instruction, row_texts[role]): quality[role]
            for instruction, row_texts, quality in zip(instructions, texts, qualities, strict=True)
        }
        for role in range(3)
    ]
    comparable_BK = torch.tensor(
        [[row[kind.better] != row[kind.worse] for kind in PAIR_KINDS] for row in texts]
    )
    config = GateConfig(gate=name, quality_above=bounds[0], quality_below=bounds[1])
    kept_BK = gate(torch.tensor(qualities), comparable_BK, config)
    for column, (better, worse) in enumerate(PAIR_KINDS):
        theirs = filter_ins_ans_pairs(
            instructions,
            [row[better] for row in texts],
            [row[worse] for row in texts],
            tables[better],
            tables[worse],
            name,
            min_thres=bounds[0],
            max_thres=bounds[1],
        )
        assert kept_BK[:, column].nonzero().flatten().tolist() == theirs


def test_the_kinds_of_pairs_are_the_papers() -> None:
    """Direct is preferred to referenced, referenced to human, direct to human."""
    assert PAIR_KINDS == ((DIRECT, REFERENCED), (REFERENCED, HUMAN), (DIRECT, HUMAN))
    assert [kind.name for kind in PAIR_KINDS] == [
        "direct>referenced",
        "referenced>human",
        "direct>human",
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GateConfig(quality_above=7, quality_below=7), "less than quality_below"),
        (lambda: GateConfig(gate="abs_diff", quality_below=0), "bounds a difference"),
        (lambda: GateConfig(gate="best"), "one of abs, abs_pos"),  # type: ignore[arg-type]
        (lambda: LossConfig(ranking_margin=-0.1), "at least 0"),
        (lambda: LossConfig(triplet_margin=0), "above 0"),
        (lambda: LossConfig(regulariser_weight=-1), "at least 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(make: object, said: str) -> None:
    """At construction, in a sentence."""
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()
