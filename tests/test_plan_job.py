"""A plan: it counts exactly, estimates with intervals, agrees with the run, and writes nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, plan, score
from jobs.plan_figures import busiest_rows
from jobs.score import ScoreConfig
from jobs.score_plan import make_plan
from scar_core.pool.sample import draw_rows
from scar_core.pool.units import Unit
from tests import pools
from tests.jobs_harness import manifest_of, write_pool
from tests.tiny import tiny_ranker_dir, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_ranker_dir(tmp_path_factory.mktemp("ranker")))


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """What `jobs.plan --json` prints."""
    capsys.readouterr()
    assert cli.run_job(plan.job, [*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def flags(pool: Path, ranker: str, out: Path, *more: str) -> list[str]:
    return [
        *("--pool", str(pool), "--ranker", ranker, "--out", str(out), "--unit-rows", "64"),
        *("--max-tokens", str(MAX_TOKENS), *more),
    ]


def long_pool(folder: Path, *, rows: int = 3000) -> Path:
    """Files of unlike sizes, sorted by length, whose instructions repeat."""
    rng = np.random.default_rng(5)
    lengths = np.sort(rng.geometric(0.08, rows))
    table = pa.table(
        {
            "instruction": [f"Task {row // 4} of a list" for row in range(rows)],
            "response": ["step " * int(length) + str(row) for row, length in enumerate(lengths)],
        }
    )
    edges = [0, rows // 50, rows // 3, rows]
    for number, (start, stop) in enumerate(pairwise(edges)):
        pools.write(folder / f"{number}.parquet", table.slice(start, stop - start))
    return folder


def counted(pool: Path, *, unit_rows: int = 64) -> dict[str, int]:
    """Tokens of every row, by transformers alone: what a plan estimates."""
    tokenizer = tiny_tokenizer()
    sums = dict.fromkeys(("tokens", "encoded", "cut", "cut_rows", "bad"), 0)
    for file in sorted(pool.iterdir()):
        rows = pq.read_table(file, columns=["instruction", "response"]).to_pylist()
        parts = -(-len(rows) // unit_rows)
        edges = [len(rows) * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(edges):
            seen = set()
            for row in rows[start:stop]:
                cut = 0
                for text in row.values():
                    length = len(tokenizer(text)["input_ids"])
                    sums["tokens"] += min(length, MAX_TOKENS)
                    sums["encoded"] += 0 if text in seen else min(length, MAX_TOKENS)
                    cut += max(0, length - MAX_TOKENS)
                    seen.add(text)
                sums["cut"] += cut
                sums["cut_rows"] += cut > 0
    return sums


# The sample


def units_of(sizes: Sequence[int]) -> list[Unit]:
    return [
        Unit(path=f"{number:04d}", row_start=0, rows=rows, fingerprint="f")
        for number, rows in enumerate(sizes)
    ]


def layouts() -> dict[str, tuple[list[Unit], NDArray[np.float64]]]:
    """Units, and a value for each of their rows, end to end."""
    rng = np.random.default_rng(3)
    tokens = np.minimum(rng.lognormal(5, 1, 60_000), 512)
    small = [int(size) for size in rng.integers(1, 60, 800)]
    of_unit = np.repeat(rng.uniform(0.2, 3, 820), [*small, *[1500] * 20])
    return {
        "in random order": (units_of([2000] * 30), tokens),
        "sorted": (units_of([2000] * 30), np.sort(tokens)),
        "alike within units, of all sizes": (
            units_of([*small, *[1500] * 20]),
            np.resize(tokens, len(of_unit)) * of_unit,
        ),
    }


@pytest.mark.parametrize("layout", list(layouts()))
def test_intervals_hold_the_truth_about_as_often_as_they_say(layout: str) -> None:
    """95 of 100 samples, whatever the rows are sorted by; a wide interval would hold more."""
    units, values = layouts()[layout]
    starts = dict(
        zip([unit.path for unit in units], np.cumsum([0, *(u.rows for u in units)]), strict=False)
    )
    held = 0
    for seed in range(200):
        sample = draw_rows(units, rows=2048, seed=seed)
        means = [values[starts[draw.unit.path] + draw.offsets_R].mean() for draw in sample.draws]
        interval = sample.total(means)
        held += interval.low <= values.sum() <= interval.high
        assert 1000 < sample.rows <= 2048
        assert interval.high - interval.low < 0.35 * values.sum()
    assert 0.89 <= held / 200 <= 0.99


def test_a_sample_of_all_rows_is_exact_and_one_of_nothing_is_nothing() -> None:
    """There is no interval around what was counted."""
    sample = draw_rows(units_of([3, 5]), rows=8, seed=1)
    assert [list(draw.offsets_R) for draw in sample.draws] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert sample.total([2.0, 1.0]) == (11, 11, 11)
    assert sample.share([0.0, 0.0]) == (0, 0, 0)
    assert draw_rows([], rows=8, seed=1).total([]) == (0, 0, 0)


def test_what_no_sampled_row_has_may_still_be_there() -> None:
    """None among 1,000 rows: up to 0.3 % of all, by the rule of three."""
    sample = draw_rows(units_of([2000] * 30), rows=1024, seed=0)
    share = sample.share([0.0] * len(sample.draws))
    assert (share.estimate, share.low) == (0, 0)
    assert share.high == pytest.approx(3 / 1024, rel=0.01)


def test_rows_are_drawn_only_from_units_that_hold_them() -> None:
    """Offsets are of the unit, ascending, and no row comes twice in a draw."""
    for draw in draw_rows(units_of([5, 900, 40, 3000]), rows=512, seed=4).draws:
        assert 0 <= draw.offsets_R[0] <= draw.offsets_R[-1] < draw.unit.rows
        assert (np.diff(draw.offsets_R) > 0).all()


# Tokens of a pool


def test_a_plan_that_reads_all_rows_counts_what_transformers_does(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens, those of equal texts once, what is cut, and how many rows lose something."""
    pool = long_pool(tmp_path / "pool", rows=600)
    left = planned(capsys, *flags(pool, ranker, tmp_path / "out"))["left"]
    exact = counted(pool)
    assert exact["encoded"] < exact["tokens"]
    assert exact["cut_rows"] > 0
    for name, wanted in (
        ("tokens", exact["tokens"]),
        ("encoded_tokens", exact["encoded"]),
        ("cut_tokens", exact["cut"]),
        ("cut_ratio", exact["cut_rows"] / 600),
    ):
        assert list(left[name].values()) == pytest.approx([wanted] * 3), name


def test_a_small_sample_finds_the_tokens_of_a_pool_that_is_sorted_by_length(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least eight of ten intervals hold what was counted."""
    pool = long_pool(tmp_path / "pool")
    exact = counted(pool)
    held = {"tokens": 0, "encoded_tokens": 0}
    for seed in range(10):
        argv = flags(pool, ranker, tmp_path / "out", "--sample-rows", "512", "--seed", str(seed))
        report = planned(capsys, *argv)
        assert report["sample"]["rows"] <= 512
        for name, wanted in (("tokens", exact["tokens"]), ("encoded_tokens", exact["encoded"])):
            interval = report["left"][name]
            held[name] += interval["low"] <= wanted <= interval["high"]
            assert interval["high"] < 1.5 * wanted
    assert min(held.values()) >= 8, held


def test_the_same_seed_gives_the_same_plan(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And another one another sample."""
    pool = long_pool(tmp_path / "pool", rows=1000)
    argv = [*flags(pool, ranker, tmp_path / "out", "--sample-rows", "128"), "--seed"]
    one, again, other = (planned(capsys, *argv, seed) for seed in ("7", "7", "8"))
    assert one == again
    assert one["left"]["tokens"] != other["left"]["tokens"]


def test_rows_that_cannot_be_scored_are_foreseen(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their reasons, and with what they would do to a run."""
    pool = write_pool(tmp_path / "pool", rows=120)
    report = planned(capsys, *flags(pool, ranker, tmp_path / "out", "--on-bad-row", "fail"))
    assert report["left"]["quarantined_ratio"]["estimate"] == pytest.approx(12 / 120)
    assert report["sample"]["reasons"] == {
        "instruction_null": 3,
        "response_empty": 3,
        "response_not_text": 3,
        "response_null": 3,
    }
    assert any("--on-bad-row" in note for note in report["notes"])


# Beside a real run


def files_below(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.usefixtures("ray_session")
def test_a_plan_says_what_the_run_then_does(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, units, tokens and sizes before; what is scored and how fast, after; nothing written."""
    pool, out = write_pool(tmp_path / "pool", rows=300), tmp_path / "out"
    argv = flags(pool, ranker, out, "--actors", "1")
    before = planned(capsys, *argv, "--measure", "--measure-seconds", "0.2", "--price", "2")
    assert not out.exists()

    assert cli.run_job(score.job, [*argv, "--out", str(out / "scores")]) == 0
    (run,) = (out / "scores/runs").iterdir()
    manifest = manifest_of(run)
    counts, scoring = manifest["counts"], manifest["scoring"]
    assert before["pool"]["rows"] == before["left"]["rows"] == counts["rows_in"] == 300
    assert before["pool"]["units"] == len(manifest["files"]) == 6
    assert before["pool"]["files"] == counts["files_in"]
    assert before["left"]["tokens"]["estimate"] == pytest.approx(counts["tokens"])
    assert before["left"]["cut_tokens"]["estimate"] == pytest.approx(counts["cut_tokens"])
    assert before["left"]["encoded_tokens"]["estimate"] == pytest.approx(scoring["encoded_tokens"])
    assert before["sample"]["reasons"] == counts["quarantined"]
    assert before["throughput"]["source"] == "measured"
    spent = before["time"]
    assert spent["start_seconds"] > 0
    work = scoring["encoded_tokens"] / before["throughput"]["tokens_per_second"]
    assert spent["wall_seconds"]["estimate"] == pytest.approx(spent["start_seconds"] + work)
    hours = spent["wall_seconds"]["estimate"] / 3600
    assert before["cost"]["estimate"] == pytest.approx(2 * hours)

    pools.write(pool / "new.parquet", pools.texts(100))
    there = files_below(out)
    after = planned(capsys, *argv)
    assert files_below(out) == there
    assert after["scored"] == {
        "rows": 300,
        "units": 6,
        "tokens": counts["tokens"],
        "cut_tokens": counts["cut_tokens"],
        "quarantined": counts["quarantined"],
    }
    assert (after["left"]["rows"], after["left"]["units"]) == (100, 2)
    assert after["throughput"]["source"] == "recorded"
    rate = scoring["encoded_tokens"] / scoring["actor_seconds"]
    assert after["throughput"]["tokens_per_second"] == pytest.approx(rate)
    assert after["throughput"]["details"]["run"] == run.name
    elsewhere = planned(capsys, *argv, "--cpus-per-actor", "2")
    assert elsewhere["throughput"] is None


@pytest.mark.usefixtures("ray_session")
def test_a_complete_pool_leaves_nothing_to_do(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No sample, no actor is started for --measure, no time, and the output's size all the same."""
    pool, scores = pools.write(tmp_path / "pool/a.parquet", pools.texts(100)), tmp_path / "scores"
    shared = ["--pool", str(pool), "--ranker", ranker, "--actors", "1"]
    assert cli.run_job(score.job, [*shared, "--out", str(scores)]) == 0
    report = planned(
        capsys, *shared, "--scores", str(scores), "--measure", "--price", "3", "--keep", "7%"
    )
    assert report["left"]["rows"] == report["left"]["units"] == report["sample"]["rows"] == 0
    assert report["time"]["wall_seconds"] == {"estimate": 0, "low": 0, "high": 0}
    assert report["cost"]["estimate"] == 0
    assert report["sizes"]["selected_rows"] == 7
    sidecars = [path.stat().st_size for path in (scores / "sidecars").rglob("*.parquet")]
    assert report["sizes"]["sidecar_bytes"] == sum(sidecars)
    assert cli.run_job(plan.job, [*shared, "--out", str(scores)]) == 2
    assert "Pass it as --scores" in capsys.readouterr().err


def test_a_plan_puts_nothing_into_a_store(
    tmp_path: Path,
    ranker: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even to try whether it could; a run tries."""
    pool = pools.write(tmp_path / "pool/a.parquet", pools.texts(100))
    put: list[str] = []
    memory = type(fsspec.filesystem("memory"))
    real_put = memory.pipe_file

    def noted(self: Any, path: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - fsspec's own
        put.append(path)
        real_put(self, path, *args, **kwargs)

    monkeypatch.setattr(memory, "pipe_file", noted)
    argv = ["--pool", str(pool), "--ranker", ranker, "--scores", "memory://curated/scores"]
    assert planned(capsys, *argv)["left"]["rows"] == 100
    assert not put
    make_plan(ScoreConfig(pool=[str(pool)], ranker=ranker, out="memory://curated/scores"))
    assert put


# Time, cost, sizes


def test_the_busiest_actor_decides_how_long_a_run_takes() -> None:
    """Three units on two actors take two rounds; more actors than units help nobody."""
    assert busiest_rows(units_of([10, 10, 10]), 2) == 20
    assert busiest_rows(units_of([30, 10, 10, 10]), 2) == 30
    assert busiest_rows(units_of([10, 10, 10]), 64) == 10
    assert busiest_rows([], 4) == 0


def test_a_given_rate_leads_to_time_and_cost_by_hand(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """600 rows in 11 units on 4 actors; each actor paid until the last one is done."""
    pool = long_pool(tmp_path / "pool", rows=600)
    report = planned(
        capsys,
        *flags(pool, ranker, tmp_path / "out", "--tokens-per-second", "100", "--price", "1.5"),
        *("--actors", "2:4", "--gpus-per-actor", "0.5", "--keep", "score>=1"),
    )
    exact, spent = counted(pool)["encoded"], report["time"]
    # Units of 12; 62, 63, 63; 57 six times and 58 rows. Each goes to the actor that is free first.
    assert report["pool"]["units"] == 11
    longest = exact / 100 * (63 + 57 + 58) / 600
    assert spent["actors"] == 4
    assert spent["work_seconds"]["estimate"] == pytest.approx(exact / 100)
    assert spent["wall_seconds"]["estimate"] == pytest.approx(longest)
    hours = longest * 4 / 3600
    assert spent["actor_hours"]["estimate"] == pytest.approx(hours)
    assert spent["gpu_hours"]["estimate"] == pytest.approx(hours / 2)
    assert report["cost"]["estimate"] == pytest.approx(hours * 1.5)
    assert report["sizes"]["selected_rows"] is None
    assert any("only after scoring" in note for note in report["notes"])


def test_without_a_throughput_a_plan_says_how_to_get_one(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No number is made up."""
    pool = pools.write(tmp_path / "pool/a.parquet", pools.texts(100))
    report = planned(capsys, *flags(pool, ranker, tmp_path / "out", "--price", "3"))
    assert report["throughput"] is report["time"] is report["cost"] is None
    assert any("--measure" in note and "--tokens-per-second" in note for note in report["notes"])


def test_text_and_json_agree(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line's numbers are those of the JSON."""
    pool = long_pool(tmp_path / "pool", rows=2000)
    argv = flags(pool, ranker, tmp_path / "out", "--sample-rows", "512", "--keep", "10%")
    argv += ["--tokens-per-second", "1000", "--actors", "3", "--price", "700"]
    report = planned(capsys, *argv)
    assert cli.run_job(plan.job, argv) == 0
    lines = capsys.readouterr().out.splitlines()

    def line(start: str) -> str:
        (found,) = [line for line in lines if line.strip().startswith(start)]
        return found

    assert f"2,000 rows, 3 files, {report['pool']['units']} units" in line("pool")
    for start, interval in (
        ("tokens left", report["left"]["tokens"]),
        ("to encode", report["left"]["encoded_tokens"]),
        ("tokens lost", report["left"]["cut_tokens"]),
    ):
        told = "{estimate:,.0f} ({low:,.0f} to {high:,.0f})".format_map(interval)
        assert told in line(start)
    assert "{estimate:.2%} ({low:.2%}".format_map(report["left"]["cut_ratio"]) in line("rows cut")
    assert f"seed 0; intervals of {report['sample']['confidence']:.0%}" in line("sampled")
    assert "with 3 actors" in line("wall time")
    assert "{estimate:,.2f} ({low:,.2f}".format_map(report["cost"]) in line("cost")
    assert f"{report['sizes']['sidecar_bytes']:,} bytes" in line("sidecars")
    assert f"200 rows, {report['sizes']['selected_bytes']:,} bytes" in line("selected")
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: {note}" for note in report["notes"]
    ]


# What is refused


def test_an_empty_pool_is_refused_as_the_job_refuses_it(
    tmp_path: Path, ranker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, in the same words."""
    pool = pools.write(tmp_path / "pool/a.parquet", pools.texts(0))
    assert cli.run_job(plan.job, flags(pool, ranker, tmp_path / "out")) == 2
    refused = capsys.readouterr().err
    assert "all without rows" in refused
    assert cli.run_job(score.job, flags(pool, ranker, tmp_path / "out")) == 2
    assert refused.splitlines()[-1] == capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (["--sample-rows", "100"], "sample_rows"),
        (["--seed", "-1"], "seed"),
        (["--tokens-per-second", "0"], "tokens_per_second"),
        (["--measure", "--tokens-per-second", "5"], "do not go together"),
        (["--measure-seconds", "0"], "measure_seconds"),
        (["--price", "-1"], "price"),
        (["--keep", "0.1"], "--keep"),
        (["--actors", "none"], "actors"),
        (["--max-tokens", "3"], "max_tokens"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    bad: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one sentence, before anything is read."""
    argv = ["--pool", "no/such", "--ranker", "none", "--out", "out", *bad]
    assert cli.run_job(plan.job, argv) == 2
    assert told in capsys.readouterr().err


def test_a_plan_wants_to_know_where_scores_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Else it could not know what is left."""
    assert cli.run_job(plan.job, ["--pool", "no/such", "--ranker", "none"]) == 2
    assert "--out or --scores" in capsys.readouterr().err
