"""Benchmarks in a pool: found by shared runs of words, and the language of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from scar_core.errors import InputError
from scar_core.pool.contamination import BenchmarkIndex, texts_of
from scar_core.pool.language import check_languages, language_of

if TYPE_CHECKING:
    from pathlib import Path

LONG = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
)
RUN = "sold clips to 48 of her friends in april and then she"
SHORT = "Which planet is the third one from the sun?"
INDEX = BenchmarkIndex.build([LONG, SHORT, "What is 2 + 2?"], n=13).benchmarks


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (LONG, f"natalia {RUN}"),
        (f"Solve: {LONG.upper()} Thanks.", f"natalia {RUN}"),
        ("he: sold clips to 48 of her friends in april - and then SHE sold!", f"{RUN} sold"),
        (RUN, None),
        (f"{SHORT} Earth.", "which planet is the third one from the sun"),
        ("Which planet is the third one from the", None),
        ("What is 2 + 2?", None),
        ("", None),
    ],
)
def test_a_shared_run_of_words_is_found_wherever_it_lies(text: str, shared: str | None) -> None:
    """Thirteen words of a long text, all of a short one; fewer are no fault."""
    assert INDEX.shared_run("nothing of the kind", text) == shared


def test_what_goes_into_an_index_is_counted() -> None:
    """Texts of fewer than eight words are told, not guessed at."""
    built = BenchmarkIndex.build([LONG, SHORT, "What is 2 + 2?"], n=13)
    assert (built.texts, built.too_short) == (3, 1)
    assert built.benchmarks.runs == len(LONG.split()) - 12 + 1


def test_an_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    """By all workers of a run; an empty one, too."""
    for index in (INDEX, BenchmarkIndex.build([], n=13).benchmarks):
        index.write(str(tmp_path / "index.arrow"))
        again = BenchmarkIndex.read(str(tmp_path / "index.arrow"))
        assert {n: list(known) for n, known in again.hashes.items()} == {
            n: list(known) for n, known in index.hashes.items()
        }


def test_texts_are_found_however_deep_they_lie() -> None:
    """Columns, lists, structs; numbers and nulls are none."""
    table = pa.table({"a": ["x", None], "b": [1, 2], "c": [[{"d": "y", "e": ["z"]}], []]})
    assert list(texts_of(table)) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog near the river.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund am Fluss.", "de"),
        ("这个问题的答案取决于你想要选择的数据。", "zh"),
        ("```python\nfor x in y: print(x)\n``` Das ist die Schleife, die wir brauchen.", "de"),
        ("ok", None),
        ("7", None),
        ("", None),
        ("x = [i * i for i in range(10)]", None),
        ("This sentence is written again and again, for as long as it takes. " * 30_000, "en"),
    ],
)
def test_a_language_is_told_where_it_can_be(text: str, language: str | None) -> None:
    """Code is no language, and a word is no evidence."""
    assert language_of(text) == language


def test_a_language_that_is_not_known_is_refused() -> None:
    """With those that are."""
    check_languages(["en", "zh"])
    with pytest.raises(InputError, match=r"--language english: not known\. Known: .* en .*"):
        check_languages(["en", "english"])
