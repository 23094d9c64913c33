"""Form metrics: each against a value worked by hand or another implementation."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.style_stages import measure_form, with_form
from scar_core.errors import InputError, SchemaError
from scar_core.style.form import form_metrics
from scar_core.style.metrics import FORM_SCHEMA, METRIC_NAMES, METRICS, STYLE_METRICS
from scar_core.style.words import library, mtld, sentences_of, syllables_in, words_of

MIXED = """# A plan

However, **two** things matter: time, and money. Don't rush!

1. Read it.
2. Write it.
   - Slowly.

| a | b |
|---|---|
| 1 | 2 |

```py
x = "not, prose"
```
"""
LOREM = Path(__file__).parent.parent.joinpath("README.md").read_text("utf-8")


def measured(text: str | None, **config: int) -> dict[str, float | None]:
    """The metrics of one text."""
    row: dict[str, float | None] = form_metrics([text], **config).to_pylist()[0]
    return row


def test_every_metric_of_a_small_text_is_what_a_hand_counts() -> None:
    """Prose without marks: "A plan", two sentences, three items, four cells of a word each."""
    found = measured(MIXED)
    # 2 + 7 + 2, then "Read it.", "Write it.", "Slowly.", then a, b, 1, 2
    assert (found["words"], found["sentences"]) == (20, 10)
    assert found["sentence_words_mean"] == 2
    # lengths 2 7 2 2 2 1 1 1 1 1: squares around 2 are 25 and five times 1
    assert found["sentence_words_sd"] == pytest.approx((30 / 9) ** 0.5)
    # a and don't it it a; "two" is none
    assert found["function_word_ratio"] == 6 / 20
    assert found["transitions_per_sentence"] == 1 / 10
    assert found["type_token_ratio"] == 18 / 20
    marks = ("paragraphs", "headings", "list_items", "code_blocks", "tables", "bold")
    assert [found[name] for name in marks] == [1, 1, 3, 1, 1, 1]
    # heading, paragraph, 3 of a list, 3 of a table, 3 of a block of code
    assert found["lines"] == 11
    assert (found["list_line_ratio"], found["code_line_ratio"]) == (3 / 11, 3 / 11)


def test_punctuation_is_counted_to_a_thousand_characters_of_prose() -> None:
    """20 characters that are no white space: two commas are 100 in a thousand."""
    found = measured("Aaaa, bbbb, ccc (d)?")
    characters = len("Aaaa,bbbb,ccc(d)?")
    wanted = {"commas": 2, "brackets": 2, "question_marks": 1, "full_stops": 0, "punctuation": 5}
    assert {name: found[name] for name in wanted} == pytest.approx(
        {name: 1000 * count / characters for name, count in wanted.items()}
    )


def test_flesch_is_worked_by_hand() -> None:
    """Six words of one syllable: 206.835 less six times 1.015 and 84.6."""
    assert measured("The cat sat on the mat.")["flesch_reading_ease"] == pytest.approx(116.145)
    # 5 words, 1 + 4 + 1 + 1 + 3 syllables
    ease = 206.835 - 1.015 * 5 - 84.6 * 10 / 5
    assert measured("The information is quite beautiful.")["flesch_reading_ease"] == pytest.approx(
        ease
    )


@pytest.mark.parametrize(
    "told",
    [
        "a 1",
        "the 1",
        "table 2",
        "make 1",
        "jumped 1",
        "wanted 2",
        "boxes 2",
        "takes 1",
        "over 2",
        "information 4",
        "well-kept 2",
        "don't 1",
        "hmm 1",
    ],
)
def test_syllables_are_those_of_a_dictionary(told: str) -> None:
    """CMUdict says the same."""
    word, syllables = told.split()
    assert syllables_in(word) == int(syllables)


def test_mtld_is_what_another_implementation_finds() -> None:
    """`lexicalrichness` 0.5.1 on made-up words; and what a hand finds."""
    words = [f"w{i * i % 37}" for i in range(300)]
    assert mtld(words) == pytest.approx(18.971774193548388)
    # a b a falls to 2/3, each way: three words to one factor.
    assert mtld(["a", "b", "a"]) == 3
    assert mtld(["a", "b", "c"]) is None


def test_words_and_sentences_are_cut_as_said() -> None:
    """Abbreviations end no sentence; Chinese characters are words; a block ends a sentence."""
    assert words_of("Don’t pay 3.5 for a well-kept, naïve one!") == [  # noqa: RUF001
        *("don't", "pay", "3.5", "for", "a", "well-kept", "naïve", "one")
    ]
    assert words_of("数据选择 is ok") == ["数", "据", "选", "择", "is", "ok"]
    assert words_of("हिन्दी में") == ["हिन्दी", "में"]
    blocks = ["Mr. Smith paid 3.5 dollars. He left", "你好。今天天气很好!"]
    assert [len(words) for words in sentences_of(blocks)] == [5, 2, 2, 6]


def test_what_is_merely_indented_is_no_code() -> None:
    """Verse is not; within a fence a list is code and no list."""
    verse = measured("    Tyger Tyger, burning bright,\n    In the forests of the night;")
    assert (verse["words"], verse["code_line_ratio"], verse["code_blocks"]) == (10, 0, 0)
    fenced = measured("~~~\n- a\n- b\n~~~\n\n- c")
    assert (fenced["list_items"], fenced["list_line_ratio"]) == (1, 1 / 5)


def test_what_a_text_does_not_have_is_null() -> None:
    """Empty, code alone, Chinese, one word, null: never a made-up 0."""
    nothing, code, chinese, word, null = form_metrics(
        ["", "```\nx = 1\n```", "你好。今天天气很好!", "Yes", None]
    ).to_pylist()
    assert nothing["words"] == code["words"] == 0
    for name in ("type_token_ratio", "flesch_reading_ease", "punctuation", "sentence_words_mean"):
        assert nothing[name] is None
        assert code[name] is None
    assert (nothing["code_line_ratio"], code["code_line_ratio"]) == (None, 1)
    assert chinese["flesch_reading_ease"] is chinese["function_word_ratio"] is None
    assert (chinese["words"], chinese["sentences"]) == (8, 2)
    assert (word["type_token_ratio"], word["mtld"], word["sentence_words_sd"]) == (1, None, None)
    assert set(null.values()) == {None}


def test_a_text_of_ten_megabytes_is_examined_as_far_as_said() -> None:
    """What lies beyond the cap changes nothing but the count and the share."""
    start = "This is a sentence, of some words. " * 1000
    long = measured(start + "\x00#`* <" * 1_700_000, max_characters=len(start))
    short = measured(start)
    assert long["characters"] == len(start) + 10_200_000
    assert long["examined_ratio"] == pytest.approx(len(start) / (len(start) + 10_200_000))
    assert short["examined_ratio"] == 1
    for name in set(METRIC_NAMES) - {"characters", "examined_ratio"}:
        assert long[name] == short[name], name


def test_one_text_is_measured_as_among_many() -> None:
    """Order stays, neighbours do not matter, and no texts are a table of no rows."""
    texts = [MIXED, "", None, "Yes.", LOREM]
    together = form_metrics(texts)
    assert together.schema == FORM_SCHEMA
    assert together == pa.concat_tables([form_metrics([text]) for text in texts])
    assert form_metrics([]).num_rows == 0


def test_every_metric_is_described() -> None:
    """A report can say what each is, where it is from, and when it is undefined."""
    assert len(set(METRIC_NAMES)) == len(METRICS)
    for metric in METRICS:
        told = (metric.what, metric.source, metric.unit, metric.undefined)
        assert all(told), metric.name
        if metric.undefined == "never":
            assert measured("")[metric.name] is not None, metric.name
        else:
            assert measured("")[metric.name] is None, metric.name
    assert set(METRIC_NAMES) - set(STYLE_METRICS) == {
        *("characters", "examined_ratio", "words", "sentences", "lines")
    }


def test_a_missing_library_is_named_with_the_extra_that_has_it() -> None:
    """Nobody has to guess what to install."""
    with pytest.raises(InputError, match=r"no_such_library.*scar-curate\[style\]"):
        library("no_such_library")


def test_form_needs_neither_torch_nor_ray() -> None:
    """Tasks that measure form start in no time."""
    script = (
        "import sys; from scar_core.style.form import form_metrics; form_metrics(['A b.']);"
        "import scar_core.style.consistency, scar_core.style.matching, jobs.style_stages;"
        "assert not {'torch', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_stage_adds_its_columns_and_keeps_all_others() -> None:
    """Rows stay in order; dictionaries and bytes are text."""
    table = pa.table({"id": [1, 2], "response": pa.array([b"Yes.", None])})
    found = measure_form(table)
    assert found.column_names == ["id", "response", *(f"form_{name}" for name in METRIC_NAMES)]
    assert found["form_words"].to_pylist() == [1, None]
    with pytest.raises(SchemaError, match="form_words"):
        measure_form(found)
    with pytest.raises(SchemaError, match="no column 'answer' of text; found id, response"):
        measure_form(table, response_column="answer")


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_is_measured_as_its_table() -> None:
    """Ray Data's blocks change nothing."""
    import ray  # noqa: PLC0415  - the session is started by now

    texts = ["Yes.", MIXED, "", "你好。"] * 3
    table = pa.table({"row": range(12), "response": texts})
    rows = with_form(ray.data.from_arrow(table), cpus_per_task=0.1).take_all()
    rows.sort(key=lambda row: row["row"])
    assert rows == measure_form(table).to_pylist()
    assert all(one["row"] < two["row"] for one, two in pairwise(rows))
