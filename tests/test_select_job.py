"""Groups and copies through the jobs, against a plain loop over the pool.

Most tests run the passes in this process; what Ray does with them is tested where it matters.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, curate, pipeline, score, select_rows, verify
from jobs.rescore import Rescorer
from jobs.select_stages import ScoredUnit
from jobs.select_write import plan_parts, write_part
from jobs.written_as import Output, WriteOptions
from scar_core.errors import InputError, ScarError, StoreError
from scar_core.pool.layouts import Layout
from scar_core.pool.rows import content_hash
from scar_core.pool.units import Unit
from scar_core.selection.picked import PICKED_SCHEMA, Picked, write_picked
from scar_core.selection.precision import Rescored, write_rescored
from scar_core.selection.report import render
from tests.in_process import publish_drawn, run_here, small_chunks
from tests.jobs_harness import manifest_of, rows_of, write_pool
from tests.pools import open_one, texts, write
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]

AS_THEY_CAME = Output(layout=Layout(form="pair"), options=WriteOptions(), score_column="s")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files; the third holds copies of the first's rows, under other sources."""
    folder = write_pool(tmp_path_factory.mktemp("pools") / "pool")
    first = pq.read_table(folder / "part-0.parquet")
    third = pq.read_table(folder / "part-2.parquet")
    columns = {
        "instruction": pa.chunked_array(
            [first["instruction"][:30].combine_chunks(), third["instruction"][30:].combine_chunks()]
        ),
        "response": pa.chunked_array(
            [first["response"][:30].combine_chunks(), third["response"][30:].combine_chunks()]
        ),
        "source": pa.array(["copied", None] * 25 + ["tail"] * 50),
    }
    for name, column in columns.items():
        third = third.set_column(third.schema.get_field_index(name), name, column)
    pq.write_table(third, folder / "part-2.parquet", row_group_size=40)
    for number, path in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(path)
        quality = [None if row % 13 == number else row % 7 / 2 for row in range(table.num_rows)]
        pq.write_table(table.append_column("quality", pa.array(quality)), path, row_group_size=40)
    return folder


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, pool: Path) -> Path:
    """Published fp32 scores of the pool."""
    folder = tmp_path_factory.mktemp("scores")
    return publish_scores(folder, pool, tiny_ranker_dir(folder), precision="fp32", error=0.0)


def publish_scores(
    folder: Path, pool: Path, ranker: Path, *, precision: Literal["fp32", "bf16"], error: float
) -> Path:
    """Scores drawn by lot, bf16 ones with errors."""
    out = folder / f"scores-{precision}"
    config = score.ScoreConfig(
        pool=[str(pool)], ranker=str(ranker), out=str(out), unit_rows=32, precision=precision
    )

    def draw(unit: Unit, hashes: list[bytes | None]) -> np.ndarray:
        seed = [unit.row_start, *unit.path.encode()]
        errors = np.random.default_rng(seed).uniform(-error, error, unit.rows)
        return (exact_scores(unit, hashes) + errors).astype(np.float32)

    publish_drawn(config, draw, tokens=tokens_of)
    return out


def tokens_of(content: bytes) -> int:
    """Of both texts, some of them cut off."""
    return 20 + content[0] % 60


def exact_scores(unit: Unit, hashes: list[bytes | None]) -> np.ndarray:
    """What a unit's fp32 scores are: many ties; copies differ in the last digit, if at all."""
    rows = sum(unit.path.encode()) + unit.row_start + np.arange(unit.rows)
    drawn = [np.random.default_rng(list(h or b"")).normal() for h in hashes]
    return (np.round(drawn, 1) + rows % 3 / 100).astype(np.float32)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process."""
    run_here(monkeypatch)


def select(scores: Path, out: Path, *flags: str) -> Path:
    arguments = ["--scores", str(scores), "--out", str(out), *flags]
    assert cli.run_job(select_rows.job, arguments) == 0
    assert not (out / "scratch").exists()
    return out


def ranked(scores: Path, pool: Path, tmp_path: Path) -> list[Row]:
    """All scored rows of the pool, best first, as one selection of everything gives them."""
    rows = rows_of(select(scores, tmp_path / "all", "--keep", "100%"))
    place = {
        row["id"]: (path.name, at)
        for path in sorted(pool.glob("*.parquet"))
        for at, row in enumerate(pq.read_table(path).to_pylist())
    }
    for row in rows:
        row["hash"] = content_hash(row["instruction"].decode(), row["response"].decode())
        row["group"] = row["source"] or "(none)"
    return sorted(rows, key=lambda row: (-row["scar_score"], row["hash"], place[row["id"]]))


def policy_ids(
    rows: list[Row],
    *,
    k: int | None = None,
    budget: int | None = None,
    band: int = 999,
    copies: int = 999,
) -> set[int]:
    """Down the order, by a plain loop; bands begin at 40 and 60 tokens."""
    kept: list[Row] = []
    taken: Counter[Any] = Counter()
    held = 0
    for row in rows:
        tokens = tokens_of(row["hash"])
        taken[row["hash"]] += 1
        if taken[row["hash"]] > copies:
            continue
        name = f"band {(tokens >= 40) + (tokens >= 60)}"
        taken[name] += 1
        if taken[name] > band:
            continue
        held += tokens
        if (budget is not None and held > budget) or (k is not None and len(kept) == k):
            break
        kept.append(row)
    return {row["id"] for row in kept}


def distinct(rows: list[Row]) -> list[Row]:
    found: dict[bytes, Row] = {}
    for row in rows:
        found.setdefault(row["hash"], row)
    return list(found.values())


@pytest.mark.usefixtures("here")
def test_groups_and_copies_through_the_job(tmp_path: Path, scores: Path, pool: Path) -> None:
    """Many chunks, ranges and levels of merging; quotas, counts and thresholds as counted here."""
    rows = ranked(scores, pool, tmp_path)
    kept = distinct(rows)
    flags = ("--keep", "10%", "--per", "source", "--dedup", "exact", "--min-per-group", "2")
    run = select(scores, tmp_path / "run", *flags)
    manifest = manifest_of(run)
    groups = {entry["group"]: entry for entry in manifest["groups"]}
    eligible = Counter(row["group"] for row in kept)
    assert {name: entry["eligible"] for name, entry in groups.items()} == eligible
    assert groups["(none)"]["duplicates"] > 0
    assert sum(entry["rows"] for entry in groups.values()) == 300
    total = math.floor(0.1 * len(kept))
    assert sum(entry["quota"] for entry in groups.values()) == total
    assert min(entry["quota"] for entry in groups.values()) == 2
    expected = set()
    for name, entry in groups.items():
        best = [row for row in kept if row["group"] == name][: entry["quota"]]
        expected |= {row["id"] for row in best}
        assert entry["selected"] == len(best)
        assert entry["threshold"] == best[-1]["scar_score"]
    assert {row["id"] for row in rows_of(run)} == expected
    counts = manifest["counts"]
    assert counts["duplicates"] == len(rows) - len(kept) > 25
    assert counts["scored"] == len(rows)
    assert counts["not_selected"] == len(rows) - total


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--per", "source"),
        ("--dedup", "exact"),
        ("--keep", "6k-tokens", "--max-per-cluster", "2"),
        ("--keep", "60", "--length-bands", "q4", "--max-per-length-band", "20"),
        ("--keep", "30%", "--sample-temperature", "0.5", "--seed", "4"),
    ],
    ids=str,
)
def test_scores_with_errors_and_exact_ones_near_the_cuts_select_what_exact_scores_do(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """A boundary per group; among copies the best by exact scores; and not all scored again."""
    monkeypatch.setattr("jobs.rescore.SAMPLE_ROWS", 24)

    def score_again(self: Rescorer, units: Any, rows: Any) -> int:  # noqa: ANN401
        for scored in units:
            offsets = rows.get(scored.ordinal, np.zeros(0, np.int32))
            hashes = pq.read_table(scored.sidecar)["content_hash"].to_pylist()
            again = Rescored(offsets, exact_scores(scored.unit, hashes)[offsets])
            if len(offsets):
                write_rescored(
                    self.scores, key_id=self.key_id, unit_id=scored.unit.id, rescored=again
                )
        return sum(map(len, rows.values()))

    monkeypatch.setattr(Rescorer, "score_again", score_again)
    ranker = tiny_ranker_dir(tmp_path)
    found = []
    for precision, error in (("fp32", 0.0), ("bf16", 0.1)):
        folder = publish_scores(tmp_path, pool, ranker, precision=precision, error=error)  # type: ignore[arg-type]
        run = select(folder, tmp_path / f"run-{precision}", "--keep", "50%", *flags)
        found.append([row["id"] for row in rows_of(run)])
    assert found[0] == found[1] != []
    again = manifest_of(tmp_path / "run-bf16")["precision"]
    assert 20 < again["rescored_rows"] < 250


@pytest.mark.usefixtures("ray_session")
def test_ray_selects_what_this_process_does(
    tmp_path: Path, scores: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files to the byte, from tasks that merge three results at a time."""
    flags = ("--keep", "30%", "--per", "source", "--dedup", "exact", "--max-per-group", "40%")
    monkeypatch.setattr(pipeline, "FAN_IN", 3)
    small_chunks(monkeypatch)
    runs = [select(scores, tmp_path / "ray", *flags)]
    request.getfixturevalue("here")
    runs.append(select(scores, tmp_path / "here", *flags))
    assert manifest_of(runs[0])["groups"] == manifest_of(runs[1])["groups"]
    data = [[path.read_bytes() for path in sorted(run.glob("data/*"))] for run in runs]
    assert data[0] == data[1] != []


@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_bf16_scores_give_the_fp32_selection_per_group_and_without_copies(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boundary for each group; rows that share their content are all scored again."""
    monkeypatch.setattr("jobs.rescore.SAMPLE_ROWS", 24)
    ranker = tiny_ranker_dir(tmp_path)
    arguments = ["--pool", str(pool), "--ranker", str(ranker), "--unit-rows", "64"]
    flags = ("--keep", "20%", "--per", "source", "--dedup", "exact")
    runs = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / f"scores-{precision}"
        out = ["--precision", precision, "--out", str(folder)]
        assert cli.run_job(score.job, [*arguments, *out]) == 0
        run = select(folder, tmp_path / precision, *flags)
        runs.append(([row["id"] for row in rows_of(run)], manifest_of(run)["groups"]))
    (fp32_ids, fp32_groups), (bf16_ids, bf16_groups) = runs
    assert fp32_ids == bf16_ids
    assert [g["quota"] for g in fp32_groups] == [g["quota"] for g in bf16_groups]
    again = manifest_of(tmp_path / "bf16")["precision"]
    assert 60 < again["rescored_rows"] < 288


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--per", "nested"), "wanted text or whole numbers"),
        (("--per", "missing"), "no column 'missing'"),
        (("--per", "source", "--min-per-group", "50"), "is short"),
        (("--per", "source", "--max-per-group", "1"), "Raise it, or lower --keep"),
        (("--per", "response"), "a value has"),
        (("--max-per-group", "1"), "need --per"),
    ],
)
def test_what_cannot_be_met_is_refused_with_exit_code_2(
    tmp_path: Path,
    scores: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    says: str,
) -> None:
    """And nothing is published."""
    arguments = ["--scores", str(scores), "--out", str(tmp_path / "o"), "--keep", "10%"]
    assert cli.run_job(select_rows.job, [*arguments, *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o/manifest.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_results_are_merged_in_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sees one result; none is lost or doubled."""
    monkeypatch.setattr(pipeline, "FAN_IN", 4)
    seen: list[int] = []

    def merge(parts: Any) -> Counter[int]:  # noqa: ANN401
        held = list(parts)
        seen.append(len(held))
        return sum(held, Counter())

    # Local functions travel by value: workers cannot import tests.
    total = pipeline.fold(lambda item: Counter([item]), range(30), merge)
    assert total == Counter(range(30))
    assert seen == [1]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", [InputError, StoreError])
def test_an_error_of_a_worker_arrives_as_it_was_raised(kind: type[ScarError]) -> None:
    """One sentence: without Ray's traceback, and without its advice."""

    def fail(_: int) -> None:
        raise kind("where: found, wanted.")

    with pytest.raises(kind) as raised:
        list(pipeline.run(fail, [1, 2]))
    assert type(raised.value) is kind
    assert str(raised.value) == "where: found, wanted."


def scored_units(path: Path, *, unit_rows: int) -> list[ScoredUnit]:
    """The units of one file; sidecars are not there."""
    file = open_one(path)
    return [
        ScoredUnit(
            ordinal=ordinal,
            unit=Unit(path=file.path, row_start=start, rows=unit_rows, fingerprint=""),
            file=file,
            sidecar="",
        )
        for ordinal, start in enumerate(range(0, file.rows, unit_rows))
    ]


def listed(selected: dict[int, int]) -> list[Picked]:
    """So many selected rows of each unit, in one file that is not there."""
    ordinals_U, rows_U = np.array(list(selected), np.int64), np.array(list(selected.values()))
    return [Picked(url="", entry={}, ordinals_U=ordinals_U, rows_U=rows_U)]


def test_output_files_are_of_one_size(tmp_path: Path) -> None:
    """No small one is left over at the end; units keep their order."""
    path = write(tmp_path / "a.parquet", texts(4000), groups=[1000] * 4)
    units = scored_units(path, unit_rows=100)
    rows = int(2.2 * 2**20 / units[0].file.bytes_per_row / 40)
    parts = plan_parts(units, listed(dict.fromkeys(range(40), rows)), megabytes=1)
    assert [len(part.slices) for part in parts] == [13, 14, 13]
    starts = [one.start for part in parts for one in part.slices]
    assert starts == list(range(0, 40 * rows, rows))
    assert plan_parts(units, [], megabytes=1)[0].rows == 0


def test_a_row_group_without_selected_rows_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one between two that hold some, within one unit."""
    path = write(tmp_path / "a.parquet", texts(500), groups=[50] * 10)
    (unit,) = scored_units(path, unit_rows=500)
    read: list[int] = []
    plain = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, *args: Any, row_groups: list[int], **kw: Any) -> Any:  # noqa: ANN401
        read.extend(row_groups)
        return plain(self, *args, row_groups=row_groups, **kw)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    rows = [3, 7, 130, 499]
    columns = [["a.parquet"] * 4, rows, [bytes(16)] * 4, [float(row) for row in rows]]
    table = pa.table(columns, schema=PICKED_SCHEMA)
    picked = write_picked(str(tmp_path), "picked/x.parquet", [table], ordinals=[0])
    (part,) = plan_parts([unit], picked, megabytes=1)
    assert write_part(part, folder=str(tmp_path), output=AS_THEY_CAME)["rows"] == 4
    assert read == [0, 2, 9]
    table = pq.read_table(tmp_path / AS_THEY_CAME.path(part.index))
    assert table["s"].to_pylist() == [3.0, 7.0, 130.0, 499.0]
    assert table.drop_columns("s").equals(texts(500).take([3, 7, 130, 499]))


def test_a_huge_row_group_is_not_held_to_write_a_few_of_its_rows(tmp_path: Path) -> None:
    """Many real files are one row group; what a writer holds does not grow with them."""
    rows, unit_rows = 40_000, 1000
    noise = [os.urandom(500).hex() for _ in range(rows)]
    table = pa.table({"instruction": ["q"] * rows, "response": noise})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_dictionary=False, compression="none")
    del noise, table
    units = scored_units(path, unit_rows=unit_rows)
    chosen = [range(start, start + unit_rows, 50) for start in range(0, rows, unit_rows)]
    tables = [
        pa.table([["a.parquet"] * len(c), c, [bytes(16)] * len(c), [1.0] * len(c)], PICKED_SCHEMA)
        for c in chosen
    ]
    picked = write_picked(
        str(tmp_path), "picked/x.parquet", tables, ordinals=[unit.ordinal for unit in units]
    )
    (part,) = plan_parts(units, picked, megabytes=64)
    plain = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(plain)
    pa.set_memory_pool(watched)
    try:
        assert write_part(part, folder=str(tmp_path), output=AS_THEY_CAME)["rows"] == rows // 50
    finally:
        pa.set_memory_pool(plain)
    assert watched.max_memory() < path.stat().st_size / 2


BANDS = ("--length-bands", "40,60", "--max-per-length-band")


@pytest.mark.usefixtures("here")
def test_each_policy_keeps_what_a_plain_loop_keeps_and_is_verified(
    tmp_path: Path, scores: Path, pool: Path
) -> None:
    """Alone and together; counts close, a verification makes the selection again."""
    rows = ranked(scores, pool, tmp_path)
    with_quality = [row for row in rows if row["quality"] is not None]
    spread = {name: [row[name] for row in with_quality] for name in ("scar_score", "quality")}
    about = {name: (float(np.mean(v)), float(np.std(v))) for name, v in spread.items()}

    def combined(row: Row) -> float:
        parts = [(row[name] - mean) / deviation for name, (mean, deviation) in about.items()]
        return float(np.float32(parts[0] + 0.5 * parts[1]))

    by_sum = sorted(with_quality, key=lambda row: (-round(combined(row), 5), row["hash"]))
    cases: list[tuple[tuple[str, ...], set[int]]] = [
        (("--keep", "3k-tokens"), policy_ids(rows, budget=3000)),
        (("--keep", "60", "--max-per-cluster", "1"), policy_ids(rows, k=60, copies=1)),
        (("--keep", "60", *BANDS, "25"), policy_ids(rows, k=60, band=25)),
        (
            ("--keep", "3k-tokens", "--dedup", "exact", *BANDS, "25"),
            policy_ids(rows, budget=3000, band=25, copies=1),
        ),
        (("--keep", "50", "--combine", "score:1+quality:0.5"), policy_ids(by_sum, k=50)),
    ]
    for number, (flags, expected) in enumerate(cases):
        run = select(scores, tmp_path / f"run-{number}", *flags)
        assert {row["id"] for row in rows_of(run)} == expected, flags
        manifest = manifest_of(run)
        assert manifest["counts"]["selected"] == len(expected)
        lowest = min(row["scar_score"] for row in rows_of(run))
        assert manifest["threshold"] == lowest
        assert cli.run_job(verify.job, [str(run)]) == 0
    missing = manifest_of(tmp_path / "run-4")["counts"]["quarantined"]["quality_missing"]
    assert missing == len(rows) - len(with_quality) > 5
    assert manifest_of(tmp_path / "run-0")["policy"]["tokens"] <= 3000
    bands = manifest_of(tmp_path / "run-2")["policy"]["length_bands"]
    assert [entry["band"] for entry in bands] == ["0-39", "40-59", "60-"]
    assert sum(entry["selected"] for entry in bands) == 60


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "flags",
    [
        ("--keep", "10%", "--sample-temperature", "2", "--seed", "1"),
        ("--keep", "40", "--pareto", "score", "quality"),
        (
            *("--keep", "20%", "--per", "source", "--dedup", "exact", *BANDS, "60%"),
            *("--combine", "score:1+quality:0.5", "--sample-temperature", "0.3"),
        ),
    ],
    ids=str,
)
def test_orders_by_other_things_than_scores_are_verified_and_found_out(
    tmp_path: Path, scores: Path, flags: tuple[str, ...]
) -> None:
    """What the policy came to is in the manifest, and held against the sidecars."""
    run = select(scores, tmp_path / "run", *flags)
    manifest = manifest_of(run)
    assert manifest["policy"]["order"]["by"] in ("luck", "fronts")
    told = json.loads((run / "report.json").read_bytes())
    assert "in the order of" in render(told)
    assert sum(entry["rows"] for entry in manifest["picked"]) == len(rows_of(run)) > 9
    assert cli.run_job(verify.job, [str(run)]) == 0
    manifest["config"] |= {"seed": 2, "keep": "41"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert cli.run_job(verify.job, [str(run)]) == 1


@pytest.mark.parametrize(
    "flags", [("--combine", "score:1+quality:1"), ("--pareto", "score", "quality")]
)
@pytest.mark.usefixtures("here")
def test_orders_that_need_every_fp32_score_refuse_bf16_ones(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    ranker = tiny_ranker_dir(tmp_path)
    folder = publish_scores(tmp_path, pool, ranker, precision="bf16", error=0.1)
    arguments = ["--scores", str(folder), "--out", str(tmp_path / "o"), "--keep", "10%", *flags]
    assert cli.run_job(select_rows.job, arguments) == 2
    assert "Score with --precision fp32" in capsys.readouterr().err


def test_a_curation_refuses_them_before_it_scores(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pool", str(pool), "--ranker", str(tiny_ranker_dir(tmp_path)), "--keep", "10%"]
    arguments += ["--out", str(tmp_path / "out"), "--precision", "bf16"]
    assert cli.run_job(curate.job, [*arguments, "--combine", "score:1+quality:1"]) == 2
    assert "--combine needs the fp32 score of every row" in capsys.readouterr().err
    assert cli.run_job(curate.job, [*arguments, "--pareto", "score", "source"]) == 2
    assert "'source' holds string; wanted numbers" in capsys.readouterr().err
    assert not (tmp_path / "out/scores/sidecars").exists()


@pytest.mark.usefixtures("ray_session")
def test_all_policies_at_once_through_ray_as_in_this_process(
    tmp_path: Path, scores: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--keep", "20%", "--per", "source", "--max-per-cluster", "2", *BANDS, "60%"]
    flags += ["--combine", "score:1+quality:0.5", "--sample-temperature", "0.3", "--seed", "5"]
    small_chunks(monkeypatch)
    runs = [select(scores, tmp_path / "ray", *flags)]
    assert cli.run_job(verify.job, [str(runs[0])]) == 0
    request.getfixturevalue("here")
    runs.append(select(scores, tmp_path / "here", *flags))
    assert manifest_of(runs[0])["policy"] == manifest_of(runs[1])["policy"]
    data = [[path.read_bytes() for path in sorted(run.glob("data/*"))] for run in runs]
    assert data[0] == data[1] != []
