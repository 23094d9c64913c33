"""Filters before scoring: what is taken, why, and that the rest is scored as without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, verify
from jobs.score import ScoreConfig
from jobs.score_plan import make_plan
from scar_core.errors import InputError
from scar_core.pool.contamination import BenchmarkIndex
from scar_core.pool.filters import FilterConfig, Filters, bad_rows
from scar_core.pool.rows import PairColumns, check_pairs
from scar_core.pool.sidecars import ScoringKey
from scar_core.scoring import Scorer
from tests.jobs_harness import curate_run, manifest_of, rows_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = "Natalia sold clips to forty eight of her friends in April and then half as many in May"
ROWS = {
    "sound": ("Name a prime number, please.", "Seven is a prime number, and so is eleven."),
    "german": ("Nenne eine Primzahl.", "Sieben ist eine Primzahl, und elf ist auch eine davon."),
    "short to tell": ("What is the name of that number there?", "7"),
    "short, german": ("Wie heißt die Zahl, die dort drüben geschrieben steht?", "7"),
    "benchmark": (f"{QUESTION}?", "She sold seventy two clips altogether in these two months."),
    "repeats it": ("Say something.", f"As we know, {QUESTION.lower()}: that is what she did."),
    "long": ("Count on and on, please.", "This is one more sentence of many. " * 40),
    "empty": ("Say nothing at all.", " "),
}
TAKEN = {
    "german": "filtered_language",
    "short, german": "filtered_language",
    "benchmark": "filtered_benchmark",
    "repeats it": "filtered_benchmark",
    "long": "filtered_long",
    "empty": "response_empty",
}
NAMES = list(ROWS)
TABLE = pa.table(
    {
        "instruction": [instruction for instruction, _ in ROWS.values()],
        "response": [response for _, response in ROWS.values()],
    }
)


def test_texts_are_taken_by_language_and_by_benchmark() -> None:
    """Undecided rows stay; the message says what was found."""
    pairs = check_pairs(TABLE, PairColumns())
    benchmarks = BenchmarkIndex.build([QUESTION], n=13).benchmarks
    left, messages = Filters(languages=("en",)).on_texts(pairs, benchmarks)
    wanted = {name: reason for name, reason in TAKEN.items() if name != "long"}
    found = zip(NAMES, left.reasons, strict=True)
    assert {name: reason for name, reason in found if reason} == wanted
    assert messages[NAMES.index("german")] == "the response is in 'de'"
    assert messages[NAMES.index("benchmark")].startswith("shares with a benchmark: 'natalia sold")
    assert [NAMES[row] for row in left.kept_rows] == ["sound", "short to tell", "long"]
    assert left.responses == [ROWS[NAMES[row]][1] for row in left.kept_rows]
    assert [left.hashes[row] is None for row in range(len(NAMES))] == [
        reason is not None for reason in left.reasons
    ]


def test_lengths_are_bounds_that_are_kept() -> None:
    """A row of exactly so many tokens stays."""
    pairs = check_pairs(TABLE.slice(0, 4), PairColumns())
    filters = Filters(min_response_tokens=3, max_response_tokens=9, max_instruction_tokens=5)
    left, messages = filters.on_lengths(
        pairs,
        instruction_tokens_J=np.array([5, 5, 6, 5]),
        response_tokens_J=np.array([3, 9, 5, 10]),
    )
    assert left.reasons == [None, None, "filtered_long", "filtered_long"]
    assert messages == {2: "the instruction has 6 tokens", 3: "the response has 10 tokens"}


def test_without_filters_nothing_is_touched_and_old_sidecars_stay_valid() -> None:
    """The key is that of a version without filters; each filter has a key of its own."""
    pairs = check_pairs(TABLE, PairColumns())
    assert Filters().on_texts(pairs, None).pairs is pairs
    plain = {
        "ranker": "r",
        "instruction_column": "a",
        "response_column": "b",
        "max_row_bytes": 9,
        "max_tokens": 8,
        "precision": "fp32",
    }
    key = ScoringKey(**plain)  # type: ignore[arg-type]
    assert key.told == {**plain, "sidecar_version": 1}
    ids = {
        ScoringKey(**plain, filters=filters.id).id  # type: ignore[arg-type]
        for filters in (
            Filters(),
            Filters(benchmarks_path="elsewhere"),
            Filters(languages=("en",)),
            Filters(min_response_tokens=1),
            Filters(benchmarks_id="1"),
        )
    }
    assert key.id in ids
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_response_tokens": 0}, "max_response_tokens must be at least 1"),
        ({"min_response_tokens": -1}, "at least 0"),
        ({"min_response_tokens": 5, "max_response_tokens": 4}, "no row would be left"),
        ({"benchmark_words": 7}, "at least 8"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(flags: dict[str, int], said: str) -> None:
    """At construction, with what was given."""
    with pytest.raises(ValueError, match=said):
        FilterConfig(**flags)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_session")
def test_filtered_rows_are_counted_listed_and_no_fault_of_the_pool(tmp_path: Path) -> None:
    """More than half of the rows are taken, and the run passes; the others score as ever."""
    ranker = str(tiny_ranker_dir(tmp_path))
    pq.write_table(TABLE, tmp_path / "pool.parquet")
    (tmp_path / "bench.txt").write_text(QUESTION)
    flags = f"--actors 1 --language en --max-response-tokens 200 --benchmarks {tmp_path}/bench.txt"
    run = curate_run(
        *("--pool", str(tmp_path / "pool.parquet"), "--ranker", ranker, "--keep", "50%"),
        *("--out", str(tmp_path / "out"), *flags.split()),
    )
    counts = manifest_of(run)["counts"]
    assert counts["quarantined"] == {
        reason: list(TAKEN.values()).count(reason) for reason in sorted(set(TAKEN.values()))
    }
    assert (counts["rows_in"], counts["selected"], counts["not_selected"]) == (8, 1, 1)
    assert bad_rows(counts["quarantined"]) == 1
    (scores,) = (tmp_path / "out/scores/runs").iterdir()
    listed = pq.read_table(scores / "quarantine").to_pylist()
    assert {NAMES[row["row"]]: row["reason"] for row in listed} == TAKEN
    alone = Scorer.load(ranker).score([ROWS["sound"], ROWS["short to tell"]])
    assert [row["scar_score"] for row in rows_of(run)] == pytest.approx([max(alone)], abs=1e-5)
    assert cli.run_job(verify.job, [str(run)]) == 0


def test_a_language_or_a_benchmark_that_is_not_there_stops_before_scoring(tmp_path: Path) -> None:
    """On the driver, with the flag."""
    pq.write_table(TABLE, tmp_path / "pool.parquet")
    ranker = str(tiny_ranker_dir(tmp_path))
    (tmp_path / "bench.txt").write_text("What is 2 + 2?\n")

    def plan(**flags: list[str]) -> None:
        config = ScoreConfig(
            pool=[str(tmp_path / "pool.parquet")],
            ranker=ranker,
            out=str(tmp_path / "scores"),
            **flags,  # type: ignore[arg-type]
        )
        make_plan(config)

    with pytest.raises(InputError, match="--language xx: not known"):
        plan(language=["xx"])
    with pytest.raises(InputError, match="1 texts, 1 of them too short to count; none is left"):
        plan(benchmarks=[str(tmp_path / "bench.txt")])
    with pytest.raises(InputError, match="nowhere"):
        plan(benchmarks=[str(tmp_path / "nowhere.jsonl")])
