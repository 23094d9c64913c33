"""Sweeps of small trainings: leave one source out, leave one part out; resumed, never mixed up."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from jobs import ablate, leave_one_out
from jobs.sweep import recipe
from jobs.sweep_cell import Cell, parts_of
from scar_core.errors import InputError, RunError
from scar_core.training.quadruples import Quadruple, Response
from tests.test_train_job import quad_rows, write_jsonl
from tests.tiny import tiny_encoder, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

FAST = """
learning_rate: 1.0e-3
batch_size: 8
epochs: 2
max_tokens: 48
linear_dim: 16
validation_share: 0.1
test_share: 0.3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, judged quadruples of two sources, rows without instruction, two recipes."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny_encoder().save_pretrained(folder / "encoder")
    tiny_tokenizer(folder / "encoder")
    rows = quad_rows(90)
    for row in rows[::5]:
        row |= {"human_helpfulness": 2, "human_correctness": 3}
    for number in range(6):
        texts = {"human": f"a text {number}", "referenced": f"A better text, number {number}."}
        judged = {
            f"{role}_{aspect}": 8 for role in texts for aspect in ("helpfulness", "correctness")
        }
        rows.append({**texts, **judged, "source": "rewrites"})
    write_jsonl(folder / "quads.jsonl", rows)
    (folder / "plain.yaml").write_text(FAST)
    (folder / "more.yaml").write_text(
        f"{FAST}\nmissing_instruction: Write a text.\ncut_copies: 1\nmax_per_source: 12\n"
    )
    return folder


def common(place: Path, out: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """What every sweep here is given."""
    return {
        "quads": [str(place / "quads.jsonl")],
        "encoder": str(place / "encoder"),
        "out": str(place / out),
        "seeds": 2,
        "measure_quads": 10,
        **changes,
    }


def cells_there(place: Path, out: str) -> dict[str, int]:
    """Results by name, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (place / out / "cells").iterdir()}


@pytest.mark.usefixtures("ray_session")
def test_each_source_is_left_out_by_each_recipe_and_no_training_is_done_twice(place: Path) -> None:
    """One seed, then two: the first one's results are read, not computed again."""
    recipes = [str(place / "plain.yaml"), str(place / "more.yaml")]
    once = leave_one_out.LeaveOneOutConfig(**common(place, "loo", seeds=1), recipes=recipes)
    rows = leave_one_out.leave_one_out(once)
    assert [(row["source"], row["recipe"]) for row in rows] == [
        ("forum", "plain"),
        ("forum", "more"),
        ("wiki", "plain"),
        ("wiki", "more"),
    ]
    first = cells_there(place, "loo")
    assert len(first) == 4
    twice = replace(once, seeds=2)
    rows = leave_one_out.leave_one_out(twice)
    second = cells_there(place, "loo")
    assert len(second) == 8
    assert first.items() <= second.items()
    other_way_round = replace(twice, recipes=recipes[::-1])
    again = leave_one_out.leave_one_out(other_way_round)
    assert sorted(again, key=str) == sorted(rows, key=str)
    assert leave_one_out.leave_one_out(twice) == rows
    assert cells_there(place, "loo") == second
    for row in rows:
        assert row["seeds"] == 2
        assert 5 < row["pairs"] <= 30
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
        assert row["accuracy_sd"] >= 0
    by_recipe = {row["recipe"]: row for row in rows if row["source"] == "forum"}
    assert by_recipe["plain"]["longer_wins"] == by_recipe["more"]["longer_wins"]
    assert by_recipe["plain"]["pairs"] == by_recipe["more"]["pairs"]
    with (place / "loo" / "table.csv").open() as file:
        sheet = list(csv.DictReader(file))
    assert [float(line["accuracy"]) for line in sheet] == [row["accuracy"] for row in rows]
    text = (place / "loo" / "table.txt").read_text()
    assert text.splitlines()[1].startswith("forum     plain")
    assert json.loads((place / "loo" / "table.json").read_text())["rows"] == rows


@pytest.mark.usefixtures("ray_session")
@pytest.mark.soak
def test_an_ablation_has_a_row_for_each_part(place: Path) -> None:
    """On the same pairs; without the gate, or without a role, other pairs are trained on."""
    config = ablate.AblateConfig(**common(place, "parts"), recipe=str(place / "plain.yaml"))
    rows = ablate.ablate(config)
    names = ["full", "without quality gate", "without regulariser", "without referenced"]
    assert [row["row"] for row in rows] == [*names, "encoder frozen"]
    pairs = {row["row"]: row["train_pairs"] for row in rows}
    assert pairs["without quality gate"] > pairs["full"] > pairs["without referenced"]
    assert pairs["without regulariser"] == pairs["encoder frozen"] == pairs["full"]
    assert len({row["longer wins"] for row in rows}) == 1
    means = {row["row"]: row["mean of kinds"] for row in rows}
    assert means["encoder frozen"] < means["full"], "two epochs of a tiny encoder's heads alone"
    for row in rows:
        assert row["seeds"] == 2
        assert 0 <= row["mean of kinds"] <= 1
        assert row["mean of kinds sd"] >= 0
    text = (place / "parts" / "table.txt").read_text()
    assert "±" in text
    assert "bring quadruples with judge scores" not in text
    assert "bring quadruples with judge scores" in ablate.table(
        [row | {"train_pairs": 9} for row in rows]
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.soak
def test_what_broke_is_named_and_the_rest_is_kept(place: Path) -> None:
    """The encoder has two layers, so one recipe of two cannot be trained."""
    (place / "deep.yaml").write_text(f"{FAST}\nfreeze_layers: 9\n")
    config = leave_one_out.LeaveOneOutConfig(
        **common(place, "broken", seeds=1, max_steps=1),
        recipes=[str(place / "plain.yaml"), str(place / "deep.yaml")],
        sources=["wiki"],
    )
    with pytest.raises(
        RunError, match=r"1 of 2 trainings broke: deep wiki seed 0 .*9: the encoder"
    ):
        leave_one_out.leave_one_out(config)
    assert len(cells_there(place, "broken")) == 1
    assert not (place / "broken" / "table.txt").exists()


def quadruple(number: int, source: str, *, own: bool = True, quality: float = 7.0) -> Quadruple:
    """One with three responses."""
    human, referenced, direct = (Response(f"{role} {number}", quality) for role in "hrd")
    return Quadruple(
        instruction=f"Why {number // 2}?" if own else "Write a text.",
        responses=(human, referenced, direct),
        source=source,
        instruction_is_own=own,
    )


def cell(place: Path, **changes: Any) -> Cell:  # noqa: ANN401 - any field
    """A cell of the plain recipe."""
    made = recipe(
        str(place / "plain.yaml"),
        ablate.AblateConfig(**common(place, "x"), recipe=str(place / "plain.yaml")),
    )
    return Cell(**{"row": "r", "column": "", "config": made, "measured_by": made, **changes})


def test_what_is_left_out_is_never_trained_on_by_another_name(place: Path) -> None:
    """Nor is an instruction that it shares with other sources."""
    rows = [quadruple(number, "a" if number % 4 else "b") for number in range(40)]
    learned, measured = parts_of(cell(place, column="b", leave_out=True), rows, limit=5)
    assert {row.source for row in learned} == {"a"}
    assert [row.source for row in measured] == ["b"] * 5
    shared = {row.instruction for row in rows if row.source == "b"}
    assert not shared & {row.instruction for row in learned}
    assert len(learned) == 20, "the other ten of `a` share an instruction with `b`"


def test_an_ablation_is_measured_on_what_its_seed_keeps_back(place: Path) -> None:
    """The same rows for each part; rows that fail the gate, or stand in, are not measured."""
    rows = [quadruple(number, "a", quality=7.0 if number % 3 else 3.0) for number in range(60)]
    rows += [quadruple(number, "c", own=False) for number in range(100, 140)]
    plain = cell(place)
    learned, measured = parts_of(plain, rows, limit=99)
    ungated = replace(plain, config=replace(plain.config, quality_above=-1.0))
    more, same = parts_of(ungated, rows, limit=99)
    assert measured == same
    assert len(more) > len(learned)
    assert all(
        row.instruction_is_own and row.responses[0].quality == 7
        for row in measured
        if row.responses[0]
    )
    families = {row.family for row in measured}
    assert not families & {row.family for row in more}
    without, _ = parts_of(replace(plain, without_referenced=True), rows, limit=99)
    assert without
    assert all(row.responses[1] is None for row in without)
    own, _ = parts_of(replace(plain, own_only=True), rows, limit=99)
    assert {row.source for row in own} == {"a"}
    assert np.unique([row.source for row in learned]).tolist() == ["a", "c"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ["blog"]}, r"--sources blog: .*found forum \(\d+\), wiki \(\d+\)"),
        ({"recipes": ["none.yaml"]}, "none.yaml"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(
    place: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was found; a recipe that is not there ends like a bad flag."""
    config = leave_one_out.LeaveOneOutConfig(
        **{**common(place, "never"), "recipes": [str(place / "plain.yaml")], **changes}
    )
    with pytest.raises((InputError, SystemExit), match=said if "sources" in changes else "2"):
        leave_one_out.leave_one_out(config)
    assert "sources" in changes or said in capsys.readouterr().err
    assert not (place / "never").exists()
