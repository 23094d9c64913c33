"""Reading, checking and splitting quadruples: every row is kept or dropped with a reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core.errors import InputError, SchemaError
from scar_core.training.quadruple_files import read_quadruples
from scar_core.training.quadruples import (
    PAIR_KINDS,
    Quadruple,
    QuadrupleColumns,
    Response,
    check_quadruples,
)
from scar_core.training.split import SplitConfig, sample, split_by_instruction

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "quads_dev.jsonl.gz"
COLUMNS = QuadrupleColumns()


def row(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """A good row, judged, with these changes."""
    judged = {
        f"{role}_{aspect}": score
        for role, score in (("human", 7), ("referenced", 8), ("direct", 9))
        for aspect in ("helpfulness", "correctness")
    }
    return (
        {
            "instruction": "Name a colour.",
            "human": "red, i guess",
            "referenced": "Red.",
            "direct": "One colour is red.",
            "source": "test",
        }
        | judged
        | changes
    )


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows in the format that the name asks for."""
    lines = "".join(json.dumps(item) + "\n" for item in rows).encode()
    whole = json.dumps(rows, indent=1).encode()
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith((".jsonl.gz", ".json.gz")):
        path.write_bytes(gzip.compress(lines if ".jsonl" in path.name else whole))
    else:
        path.write_bytes(lines if path.name.endswith(".jsonl") else whole)
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet"])
def test_each_format_gives_the_same_quadruples(tmp_path: Path, suffix: str) -> None:
    """In input order, with the mean of both judgements, and the file's own checksum."""
    rows = [row(), row(instruction="Größe?", referenced=None), row(source=None)]
    read = read_quadruples([write(tmp_path / f"quads.{suffix}", rows)], COLUMNS)
    assert [item.instruction for item in read.checked.quadruples] == [
        "Name a colour.",
        "Größe?",
        "Name a colour.",
    ]
    first, second, third = read.checked.quadruples
    assert first.responses[0] == Response("red, i guess", 7.0)
    assert second.responses[1] is None
    assert [item.source for item in (first, second, third)] == ["test", "test", "unknown"]
    assert len(read.inputs) == 1
    assert len(read.inputs[0].fingerprint) == 64


def test_a_saved_dataset_gives_the_same_quadruples(tmp_path: Path) -> None:
    """A folder that the `datasets` library wrote, with or without splits."""
    from datasets import Dataset, DatasetDict  # noqa: PLC0415 - slow to import

    rows = [row(), row(instruction="Another?")]
    Dataset.from_list(rows).save_to_disk(tmp_path / "plain")
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "splits")
    DatasetDict(test=Dataset.from_list(rows)).save_to_disk(tmp_path / "no_train")
    wanted = check_quadruples(rows, COLUMNS).quadruples
    for name in ("plain", "splits"):
        assert read_quadruples([str(tmp_path / name)], COLUMNS).checked.quadruples == wanted
    with pytest.raises(InputError, match=r"no_train: has no split .*wanted `train`"):
        read_quadruples([str(tmp_path / "no_train")], COLUMNS)


def test_several_files_folders_and_globs_are_one_input(tmp_path: Path) -> None:
    """In the order given; a folder's files by name."""
    (tmp_path / "more").mkdir()
    one = write(tmp_path / "one.jsonl", [row(instruction="1")])
    write(tmp_path / "more" / "b.json", [row(instruction="3")])
    write(tmp_path / "more" / "a.parquet", [row(instruction="2")])
    read = read_quadruples([one, str(tmp_path / "more"), str(tmp_path / "*.jsonl")], COLUMNS)
    assert [item.instruction for item in read.checked.quadruples] == ["1", "2", "3", "1"]
    assert len(read.inputs) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction": None}, "instruction_missing"),
        ({"instruction": " \n"}, "instruction_empty"),
        ({"instruction": 7}, "instruction_not_text"),
        ({"instruction": "x" * 51}, "instruction_too_large"),
        ({"instruction": "half a pair \ud800"}, "instruction_not_text"),
        ({"human": None, "direct": None}, "fewer_than_two_responses"),
        ({"human": None, "referenced": None, "direct": None}, "fewer_than_two_responses"),
        ({"human": "", "direct": None}, "human_empty"),
        ({"referenced": None, "direct": ["a", "list"]}, "direct_not_text"),
        ({"referenced": None, "direct": "ü" * 26}, "direct_too_large"),
        ({"referenced": None, "human_correctness": "7"}, "human_bad_score"),
        ({"referenced": None, "human_correctness": 9.5}, "human_bad_score"),
        ({"referenced": None, "human_helpfulness": True}, "human_bad_score"),
        ({"referenced": None, "human_helpfulness": -(10**400)}, "human_bad_score"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason(
    changes: dict[str, Any], reason: str
) -> None:
    """One reason a row; the good rows around it stay."""
    checked = check_quadruples([row(), row(**changes), row()], QuadrupleColumns(max_text_bytes=50))
    assert checked.dropped == {reason: 1}
    assert len(checked.quadruples) == 2
    assert checked.rows_in == 3


def test_one_bad_response_of_three_is_set_aside_and_counted() -> None:
    """The other two still make a pair."""
    checked = check_quadruples([row(direct="  "), row(human=5)], COLUMNS)
    assert checked.dropped == {}
    assert checked.set_aside == {"direct_empty": 1, "human_not_text": 1}
    first, second = checked.quadruples
    assert [first.comparable(kind) for kind in PAIR_KINDS] == [False, True, False]
    assert [second.comparable(kind) for kind in PAIR_KINDS] == [True, False, False]


def test_a_response_of_two_megabytes_is_set_aside_by_default() -> None:
    """Its row goes on with the other two, or is dropped for it."""
    long = "word " * 400_000
    checked = check_quadruples([row(direct=long), row(direct=long, human=None)], COLUMNS)
    assert [item.responses[2] for item in checked.quadruples] == [None]
    assert checked.dropped == {"direct_too_large": 1}
    assert checked.set_aside == {"direct_too_large": 2}


def test_a_quality_needs_both_judgements() -> None:
    """None and NaN are no judgement; 0 is one."""
    rows = [
        row(human_correctness=None),
        row(human_helpfulness=float("nan")),
        row(human_helpfulness=0, human_correctness=0),
    ]
    human = [item.responses[0] for item in check_quadruples(rows, COLUMNS).quadruples]
    assert [response.quality for response in human if response] == [None, None, 0.0]


def test_equal_texts_are_not_comparable() -> None:
    """A pair with one text twice has no order to learn."""
    (quadruple,) = check_quadruples([row(direct="Red.")], COLUMNS).quadruples
    assert [quadruple.comparable(kind) for kind in PAIR_KINDS] == [False, True, True]


def test_other_column_names_are_flags() -> None:
    """Texts, source and judgements, the latter by role."""
    columns = QuadrupleColumns(
        instruction_column="q",
        human_column="a",
        direct_column="llm",
        source_column="from",
        helpfulness_column="help of {role}",
        correctness_column="correctness {role}",
    )
    renamed = {
        "q": "Q?",
        "a": "A",
        "llm": "B",
        "from": 3,
        "help of human": 4,
        "correctness human": 6,
    }
    (quadruple,) = check_quadruples([renamed], columns).quadruples
    assert quadruple.responses == (Response("A", 5.0), None, Response("B", None))
    assert quadruple.source == "3"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("instruction",), r"no column 'instruction'; found .*direct.*--instruction-column"),
        (("direct", "referenced"), r"no referenced and no direct; found .*--direct-column"),
        (("human", "referenced"), r"no human and no referenced"),
    ],
)
def test_a_missing_column_names_what_was_found_and_the_flag(
    tmp_path: Path, suffix: str, missing: tuple[str, ...], said: str
) -> None:
    """Also in JSON, where each row could have had it."""
    rows = [{key: value for key, value in row().items() if key not in missing}] * 2
    with pytest.raises(SchemaError, match=said):
        read_quadruples([write(tmp_path / f"quads.{suffix}", rows)], COLUMNS)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("q.jsonl", b'{"instruction": "a"}\n{"instr', r"q\.jsonl: line 2 is not JSON"),
        ("q.jsonl", b'{"instruction": "\xff"}\n', "line 1 is not JSON"),
        ("q.jsonl", b"3\n", "item 1 is a int, no object; wanted a list of objects"),
        ("q.json", b'["a", "b"]', "item 1 is a str, no object"),
        ("q.json", b'[{"instruction": "a"}', "is not JSON"),
        ("q.jsonl", b"\n\n", "holds no rows"),
        ("q.jsonl.gz", gzip.compress(b"{}" * 999)[:-9], "is not whole gzip"),
        ("q.jsonl.gz", b'{"instruction": "a"}', "is not whole gzip"),
        ("q.parquet", b"PAR1 but not really", "is not a readable Parquet file"),
    ],
)
def test_a_broken_file_is_named_with_the_place(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    """One sentence, exit code 2."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_quadruples([str(tmp_path / name)], COLUMNS)
    assert caught.value.exit_code == 2


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A path that matches nothing, and a name that no hub can give."""
    for pattern in ("none.jsonl", "*.parquet", "folder/"):
        with pytest.raises(InputError, match="no quadruples there"):
            read_quadruples([str(tmp_path / pattern)], COLUMNS)
    with pytest.raises(InputError, match="neither a file nor a data set that can be loaded"):
        read_quadruples(["nobody/has_such_a_data_set"], COLUMNS)


texts = st.one_of(st.none(), st.integers(), st.text(max_size=4))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("instruction", "human", "referenced", "direct", "human_correctness"), texts
            ),
        )
    )
)
def test_rows_in_are_rows_kept_plus_rows_dropped(rows: list[dict[str, Any]]) -> None:
    """Whatever they hold; and what is kept has two responses with text."""
    checked = check_quadruples(rows, COLUMNS)
    assert checked.rows_in == len(rows) == len(checked.quadruples) + sum(checked.dropped.values())
    for quadruple in checked.quadruples:
        there = [response for response in quadruple.responses if response]
        assert len(there) >= 2
        assert all(response.text.strip() for response in there)


def quadruples(instructions: list[str]) -> list[Quadruple]:
    """One quadruple for each instruction."""
    return check_quadruples([row(instruction=text) for text in instructions], COLUMNS).quadruples


def test_an_instruction_is_on_one_side_only_however_often_it_comes() -> None:
    """In other case and with other spaces too; the sides have about the shares asked for."""
    rows = quadruples(
        [f"Question {n % 1000}?" for n in range(3000)] + [f"  question\t{n}? " for n in range(1000)]
    )
    split = split_by_instruction(rows, SplitConfig(validation_share=0.2, test_share=0.1))
    sides = [
        {rows[index].instruction.casefold().strip().replace("\t", " ") for index in side}
        for side in split
    ]
    assert [len(side) for side in sides] == pytest.approx([700, 200, 100], abs=50)
    assert sum(len(side) for side in sides) == 1000
    assert sorted(split.train + split.validation + split.test) == list(range(4000))


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    """More rows, or another order, move no instruction; another seed does."""
    rows = quadruples([f"Question {n}?" for n in range(200)])

    def test_side(items: list[Quadruple], seed: int) -> set[str]:
        split = split_by_instruction(items, SplitConfig(test_share=0.3, seed=seed))
        return {items[index].instruction for index in split.test}

    assert test_side(rows[150:0:-1], 0) == test_side(rows, 0) & {r.instruction for r in rows[1:151]}
    assert test_side(rows, 0) != test_side(rows, 1)


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    """Not the first ones: files are often sorted by source. More than there are is all of them."""
    rows = quadruples([f"Question {n}?" for n in range(100)])
    drawn = sample(rows, limit=10, seed=1)
    assert drawn == sample(rows, limit=10, seed=1) != sample(rows, limit=10, seed=2)
    assert [item for item in rows if item in drawn] == drawn
    assert len(drawn) == 10
    assert sample(rows, limit=1000, seed=1) == rows


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SplitConfig(validation_share=0.5, test_share=0.5), "leave something to train on"),
        (lambda: SplitConfig(test_share=-0.1), "at least 0"),
        (lambda: SplitConfig(seed=-1), "seed"),
        (lambda: QuadrupleColumns(max_text_bytes=0), "at least 1"),
        (lambda: QuadrupleColumns(direct_column="human"), "one column for two things"),
        (lambda: QuadrupleColumns(correctness_column="score"), "must contain {role}"),
    ],
)
def test_a_config_that_cannot_work_is_refused(make: object, said: str) -> None:
    """At construction, in a sentence."""
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.skipif(not REAL.exists(), reason="the shared real data is not here")
def test_the_real_quadruples_are_read_whole() -> None:
    """3,170 rows; the 191 with a human response alone are dropped; nobody judged any."""
    checked = read_quadruples([str(REAL)], COLUMNS).checked
    assert checked.rows_in == 3170
    assert checked.dropped == {"fewer_than_two_responses": 191}
    assert checked.set_aside == {}
    complete = [item for item in checked.quadruples if all(item.responses)]
    assert len(complete) == 311
    assert not any(r.quality for item in checked.quadruples for r in item.responses if r)
