"""Benchmarks in a pool: found by shared runs of words, and the language of a text."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scar_core.errors import InputError
from scar_core.pool.benchmark_files import benchmark_texts
from scar_core.pool.contamination import BenchmarkIndex
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


ROWS = [
    {"question": LONG, "choices": ["x", {"deep": [SHORT]}], "answer": 4},
    {"question": None, "choices": [], "answer": 5},
]


def test_texts_of_benchmark_files_are_found_however_deep_they_lie(tmp_path: Path) -> None:
    """In every kind of file; names of fields, numbers and nulls are no texts."""
    lines = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.txt").write_text(f"{LONG}\n\nx\n{SHORT}\n", "utf-8-sig")
    (tmp_path / "f.csv").write_text(f'question,more,last\n"{LONG}",x,"{SHORT}"\n')
    (tmp_path / "g.txt.gz").write_bytes(gzip.compress(f"{LONG}\nx\n{SHORT}".encode()))
    plain = [{"question": LONG, "parts": ["x"], "more": {"deep": [SHORT]}}, {"question": None}]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(benchmark_texts([str(path)])) == [LONG, "x", SHORT], path.name
    assert len(list(benchmark_texts([str(tmp_path)]))) == 21


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl.gz", b"\x1f\x8b cut", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.json", b'[{"n": 1}]', "holds no text"),
        ("a.csv", b"question\n", "holds no text"),
        ("a.md", b"x", "no file there"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_told(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    """With the flag and the file; nothing is left out in silence."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"--benchmarks .*{said}"):
        list(benchmark_texts([str(tmp_path)]))


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
