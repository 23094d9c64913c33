"""As a library: rows in memory, no Ray, and the same rows selected as a job would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

import scar_core
from scar_core import PairColumns, Scorer, curate, score_rows
from scar_core.errors import InputError, SchemaError
from scar_core.pool.rows import content_hash
from tests.tiny import tiny_ranker_dir

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SECTION = README.partition("## As a library\n")[2].partition("\n##")[0]
PAIRS = [
    ("Name a prime.", "Seven is a prime number."),
    ("Name a prime.", "7"),
    ("Name a colour.", "   "),
    ("Name a colour.", "Green."),
    ("Größe?", "Größe heißt size."),
    ("Name a prime.", "7"),
    ("Say it.", "word " * 900),
]
TABLE = pa.table(
    {
        "instruction": [instruction for instruction, _ in PAIRS],
        "response": [response for _, response in PAIRS],
        "tags": [["a"], [], None, ["b", "c"], ["a"], ["d"], []],
    }
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(str(tiny_ranker_dir(tmp_path_factory.mktemp("library"))))


def best_by_hand(scorer: Scorer, rows: int) -> list[int]:
    """Score descending, then content hash, then place, by Python's own sort."""
    scored = [number for number, (_, response) in enumerate(PAIRS) if response.strip()]
    scores = dict(zip(scored, scorer.score([PAIRS[number] for number in scored]), strict=True))
    order = sorted(scored, key=lambda row: (-scores[row], content_hash(*PAIRS[row]), row))
    return sorted(order[:rows])


@pytest.mark.parametrize("share", ["1", "50%", "100%"])
def test_the_best_rows_are_those_of_a_plain_sort(scorer: Scorer, share: str) -> None:
    """Six rows have a score; a share counts those."""
    rows = {"1": 1, "50%": 3, "100%": 6}[share]
    assert score_rows(PAIRS, scorer).best(share) == best_by_hand(scorer, rows)


def test_a_budget_holds_the_best_rows_that_fit(scorer: Scorer) -> None:
    """The tokens of the best three are enough for these, and one less only for two."""
    scored = score_rows(PAIRS, scorer)
    names = ("instruction_tokens", "response_tokens", "cut_tokens")
    tokens = sum(
        sum(scored.table[name].take(best_by_hand(scorer, 3)).to_pylist()) for name in names
    )
    assert scored.best(f"{tokens}-tokens") == best_by_hand(scorer, 3)
    assert scored.best(f"{tokens - 1}-tokens") == best_by_hand(scorer, 2)


def test_pairs_tables_and_datasets_come_back_as_what_they_were(scorer: Scorer) -> None:
    """Same rows; a table and a dataset keep all columns and types, and get their scores."""
    best = best_by_hand(scorer, 3)
    by_row = score_rows(PAIRS, scorer).scores
    table = curate(TABLE, scorer, keep="50%")
    dataset = curate(datasets.Dataset(TABLE), scorer, keep="50%")
    assert curate(PAIRS, scorer, keep="50%") == [PAIRS[row] for row in best]
    assert table.drop_columns("scar_score") == TABLE.take(best)
    assert table["scar_score"].to_pylist() == [by_row[row] for row in best]
    assert dataset.to_list() == table.to_pylist()


def test_a_dataset_that_was_shuffled_is_scored_in_its_own_order(scorer: Scorer) -> None:
    """Not in that of the table beneath it."""
    shuffled = datasets.Dataset(TABLE).select([4, 0, 3])
    alone = scorer.score([PAIRS[row] for row in (4, 0, 3)])
    assert score_rows(shuffled, scorer).scores == pytest.approx(alone, abs=1e-5)


def test_rows_that_cannot_be_scored_have_a_reason_and_no_score(scorer: Scorer) -> None:
    """Nothing vanishes: scored and quarantined are all rows."""
    scored = score_rows(PAIRS, scorer)
    assert scored.quarantined == {2: "response_empty"}
    assert [row for row, score in enumerate(scored.scores) if score is None] == [2]
    assert scored.table["cut_tokens"].to_pylist()[6] > 0


def test_a_stretch_of_rows_scores_as_all_of_them(scorer: Scorer) -> None:
    """Rows beyond the work set's size are scored in further ones."""
    many = PAIRS * 700  # more than one work set
    scores = score_rows(many, scorer).scores
    assert scores[-len(PAIRS) :] == pytest.approx(scores[: len(PAIRS)], abs=1e-5)


@pytest.mark.parametrize("rows", [[], TABLE.slice(0, 0), datasets.Dataset(TABLE.slice(0, 0))])
def test_no_rows_are_no_error(scorer: Scorer, rows: list[tuple[str, str]]) -> None:
    """An empty set has an empty best."""
    scored = score_rows(rows, scorer)
    assert (scored.scores, scored.best("10%")) == ([], [])


def test_what_is_wrong_with_rows_is_said(scorer: Scorer) -> None:
    """Columns by name, types by what to do."""
    with pytest.raises(SchemaError, match="no column 'answer'"):
        score_rows(TABLE, scorer, columns=PairColumns(response_column="answer"))
    with pytest.raises(TypeError, match="dict: wanted"):
        score_rows({"instruction": []}, scorer)
    with pytest.raises(InputError, match="'tags' is there already"):
        curate(TABLE, scorer, keep="1", score_column="tags")


def test_names_are_imported_when_they_are_asked_for(tmp_path: Path) -> None:
    """`import scar_core` is light; `Scorer` brings torch, nothing brings Ray."""
    code = (
        "import sys, scar_core; assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules;"
        "from scar_core import PairColumns; assert 'torch' not in sys.modules;"
        "from scar_core import *; assert 'torch' in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL))
def test_the_readmes_examples_run(
    scorer: Scorer, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand there, with a dataset and a ranker."""
    monkeypatch.setattr(Scorer, "load", lambda path: scorer if path == "ranker/" else None)
    dataset = datasets.Dataset(TABLE.append_column("answer", TABLE["response"]))
    exec(example, {"dataset": dataset})  # noqa: S102 - our own README


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As for any module."""
    assert set(scar_core.__all__) <= set(dir(scar_core))
    with pytest.raises(AttributeError, match="no attribute 'Score'"):
        _ = scar_core.Score
