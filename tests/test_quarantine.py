"""A pool with everything in it that goes wrong: what it costs, and what it never costs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, score, select_rows
from jobs.score import ScoreConfig
from jobs.score_plan import make_plan
from scar_core.errors import InputError, PoolFileError, RunError
from scar_core.pool.quarantine import QUARANTINE_SCHEMA
from scar_core.ranker.encoding import TextTokenizer
from tests.faulty_scorers import MARKED, PlainScorer, load_marked
from tests.jobs_harness import manifest_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("ray_session")

TEXTS = ["First.", "Second.", "Third.", "Fourth."]
MILLION_TOKENS = "!" * 999_900
LARGE = "x" * 10_000_000
CONTROLS = ["nul \x00 nul", "\x00", "escape \x1b[31m", "bell\x07 and \x7f"]

AWFUL: dict[str, tuple[list[Any] | pa.Array, dict[int, tuple[str, str]]]] = {
    "string": (TEXTS, {}),
    "large_string": (pa.array(TEXTS, pa.large_string()), {}),
    "string_view": (pa.array(TEXTS, pa.string_view()), {}),
    "dictionary": (pa.array([*TEXTS, None]).dictionary_encode(), {4: ("response_null", "is null")}),
    "null": (pa.nulls(2), dict.fromkeys(range(2), ("response_null", "'response' is null"))),
    "binary": (
        pa.array([b"caf\xe9", "café".encode()], pa.binary()),
        {0: ("response_not_text", "not valid UTF-8")},
    ),
    "empty": (["", "\u3000\n", "."], dict.fromkeys(range(2), ("response_empty", "white space"))),
    "controls": (CONTROLS, {}),
    "large": ([TEXTS[0], LARGE], {1: ("too_large", "--max-row-bytes 1,000,000")}),
    "long": ([MILLION_TOKENS, TEXTS[0]], {}),
    "raises": ([*TEXTS[:2], "Please raise.", TEXTS[2]], {2: ("failed", "is not liked")}),
    "exits": (["Please exit.", *TEXTS[:3]], {0: ("crashed", "exit code 7")}),
    "hangs": ([TEXTS[0], "Please hang.", *TEXTS[1:3]], {1: ("timed_out", "within 3 s")}),
}
"""By file: its responses, and what is wrong with some of its rows."""

BAD_FILES = {
    "zero": ("not_parquet", "cannot be read as Parquet (0 bytes)"),
    "text": ("not_parquet", "cannot be read as Parquet"),
    "cut": ("not_parquet", "cannot be read as Parquet"),
    "column": ("schema", "no column 'response'; found instruction"),
    "type": ("schema", "'response' holds int64; wanted text"),
    "pages": ("unreadable", "was readable when the run was planned"),
    "gone": ("gone", "was readable when the run was planned"),
    "changed": ("changed", "changed since the run was planned"),
}
"""By file: why none of its rows is scored."""


def table_of(responses: list[Any] | pa.Array) -> pa.Table:
    """Responses with an instruction each, and columns that are only passed through."""
    rows = range(len(responses))
    return pa.table(
        {
            "instruction": [f"Question {row}?" for row in rows],
            "response": responses,
            "blob": pa.array([bytes([row, 0, 255]) for row in rows], pa.binary()),
            "nested": [{"tags": [str(row)], "deep": [{"x": None}]} for row in rows],
        }
    )


def write_awful(folder: Path) -> Path:
    """All of it, beside one sound file."""
    folder.mkdir(parents=True)
    for name, (responses, _) in AWFUL.items():
        pq.write_table(table_of(responses), folder / f"{name}.parquet")
    sound = table_of(TEXTS)
    for name in ("cut", "pages", "gone", "changed"):
        pq.write_table(sound, folder / f"{name}.parquet")
    whole = (folder / "cut.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-30])
    (folder / "pages.parquet").write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    (folder / "zero.parquet").write_bytes(b"")
    (folder / "text.parquet").write_text("instruction,response\n")
    pq.write_table(sound.drop_columns("response"), folder / "column.parquet")
    numbers = sound.set_column(1, "response", pa.array(range(4)))
    pq.write_table(numbers, folder / "type.parquet")
    (folder / "notes.txt").write_text("no Parquet, and not named so: no part of the pool")
    return folder


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def tokenizer(ranker: Path) -> TextTokenizer:
    return TextTokenizer.load(str(ranker))


@pytest.fixture(scope="module")
def load(tokenizer: TextTokenizer) -> Callable[..., PlainScorer]:
    """What loads a scorer that breaks on the marked rows."""
    marks = {tokenizer.tokenize([text]).ids_T.tobytes(): mark for text, mark in MARKED.items()}
    return partial(load_marked, marks=marks)


def config_of(pool: Path, ranker: Path, out: Path, **changes: Any) -> ScoreConfig:  # noqa: ANN401
    """How the awful pool is scored."""
    arguments: dict[str, Any] = {
        "pool": [str(pool)],
        "ranker": str(ranker),
        "out": str(out),
        "on_bad_file": "quarantine",
        "batch_timeout_seconds": 3.0,
        "actors": "2",
    }
    return ScoreConfig(**arguments | changes)


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory, ranker: Path, load: Callable[..., PlainScorer]
) -> Path:
    """The directory of one run over the awful pool; files go and change after it was planned."""
    home = tmp_path_factory.mktemp("awful")
    pool = write_awful(home / "pool")
    config = config_of(pool, ranker, home / "scores")
    plan = make_plan(config)
    (pool / "gone.parquet").unlink()
    pq.write_table(table_of(TEXTS[:3]), pool / "changed.parquet")
    return Path(score.score(config, plan, load=load))


def quarantine_of(run: Path) -> list[dict[str, Any]]:
    """All that a run lists."""
    tables = [pq.read_table(path) for path in sorted((run / "quarantine").glob("*.parquet"))]
    assert all(table.schema.equals(QUARANTINE_SCHEMA) for table in tables)
    return pa.concat_tables(tables).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", AWFUL)
def test_a_bad_row_is_listed_and_its_neighbours_are_scored(
    scored: Path, tokenizer: TextTokenizer, name: str
) -> None:
    """Place, reason and message of each; the others have the scores that they alone would have."""
    responses, bad = AWFUL[name]
    listed = [row for row in quarantine_of(scored) if row["path"] == f"{name}.parquet"]
    assert {row["row"]: row["reason"] for row in listed} == {n: r for n, (r, _) in bad.items()}
    for row in listed:
        assert bad[row["row"]][1] in row["message"]
    entries = manifest_of(scored)["files"]
    (entry,) = [entry for entry in entries if entry["pool_file"] == f"{name}.parquet"]
    sidecar = pq.read_table(scored / "../.." / entry["path"]).to_pylist()
    good = [row for row in range(len(responses)) if row not in bad]
    table = table_of(responses).to_pydict()
    texts = [table["response"][row] for row in good]
    if good:
        expected = PlainScorer().score_tokens(
            tokenizer.tokenize([table["instruction"][row] for row in good]),
            tokenizer.tokenize([t.decode() if isinstance(t, bytes) else t for t in texts]),
        )
        assert [sidecar[row]["score"] for row in good] == expected.tolist()
    assert all(sidecar[row]["score"] is None for row in bad)


def test_a_million_tokens_are_cut_and_counted(scored: Path) -> None:
    """512 are read; that the others were lost is on record."""
    counts = manifest_of(scored)["counts"]
    assert counts["cut_tokens"] == len(MILLION_TOKENS) + 2 - 512


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_listed(scored: Path, name: str) -> None:
    """In quarantine/ without a row, and in the manifest; no unit of it is there."""
    reason, says = BAD_FILES[name]
    path = f"{name}.parquet"
    (listed,) = [row for row in quarantine_of(scored) if row["path"] == path]
    assert (listed["row"], listed["reason"]) == (None, reason)
    assert listed["message"].startswith(path)
    assert says in listed["message"]
    manifest = manifest_of(scored)
    pool = manifest["inputs"][1]
    (entry,) = [entry for entry in pool["quarantined"] if entry["path"] == path]
    assert entry["rows"] == (4 if reason in ("unreadable", "gone", "changed") else None)
    assert path not in {entry["path"] for entry in pool["files"]}
    assert path not in {entry["pool_file"] for entry in manifest["files"]}


def test_rows_and_files_are_all_accounted_for(scored: Path) -> None:
    """What went in is what was scored and what was quarantined, by reason."""
    counts = manifest_of(scored)["counts"]
    bad = [reason for _, rows in AWFUL.values() for reason, _ in rows.values()]
    assert counts["quarantined"] == {reason: bad.count(reason) for reason in sorted(set(bad))}
    assert counts["rows_in"] == sum(len(responses) for responses, _ in AWFUL.values())
    assert counts["scored"] == counts["rows_in"] - len(bad)
    assert counts["files_in"] == len(AWFUL) + len(BAD_FILES)
    assert counts["files_scored"] == len(AWFUL)
    assert counts["files_quarantined"] == {
        "changed": 1,
        "gone": 1,
        "not_parquet": 3,
        "schema": 2,
        "unreadable": 1,
    }


def test_the_manifest_vouches_for_the_quarantine_and_names_no_machine(scored: Path) -> None:
    """Checksums hold, and messages speak of paths in the pool."""
    manifest = manifest_of(scored)
    names = {entry["path"].rpartition("/")[2]: entry["rows"] for entry in manifest["quarantine"]}
    bad_rows = sum(len(rows) for _, rows in AWFUL.values())
    assert names == {"files.parquet": len(BAD_FILES), "rows-00000.parquet": bad_rows}
    for entry in manifest["quarantine"]:
        data = (scored / manifest["files_below"] / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    home = str(scored.parent.parent.parent)
    assert home not in json.dumps([manifest, quarantine_of(scored)])


def test_what_is_left_is_selected_untouched(
    scored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Across schemas, with nested and binary columns and NULs; the report tells of lost files."""
    arguments = ["--scores", str(scored), "--keep", "100%", "--out", str(tmp_path / "out")]
    assert cli.run_job(select_rows.job, arguments) == 0
    expected = [
        row
        for name, (responses, bad) in sorted(AWFUL.items())
        for place, row in enumerate(table_of(responses).to_pylist())
        if place not in bad
    ]
    found = [
        {k: v for k, v in row.items() if k != "scar_score"}
        for path in sorted((tmp_path / "out/data").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert found == expected
    assert "files quarantined" in capfd.readouterr().out
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    assert sum(report["files"]["quarantined"].values()) == len(BAD_FILES)


def published(scores: Path) -> list[Path]:
    """Manifests below a scores directory."""
    return sorted(scores.glob("runs/*/manifest.json"))


STRICT = {
    "rows": (["--on-bad-row", "fail"], 2, "binary.parquet row 0: .*not_text.*--on-bad-row"),
    "ratio": (["--max-bad-ratio", "0.1"], 1, "--max-bad-ratio 0.1 allows. Nothing was published"),
    "files": (["--on-bad-file", "fail"], 2, "column.parquet: no column 'response'"),
    "no ratio": (["--max-bad-ratio", "1.5"], 2, r"max_bad_ratio must be in \[0, 1\]"),
    "no time": (["--batch-timeout-seconds", "0"], 2, "batch_timeout_seconds must be above 0"),
}


@pytest.mark.parametrize("flags", STRICT)
def test_a_run_that_may_not_quarantine_so_much_publishes_nothing(
    scored: Path, ranker: Path, capfd: pytest.CaptureFixture[str], flags: str
) -> None:
    """Also where all that is bad was found by a run before; nothing is scored to find out."""
    scores = scored.parent.parent
    before = published(scores)
    arguments = ["--pool", str(scores.parent / "pool"), "--ranker", str(ranker)]
    arguments += ["--out", str(scores), "--on-bad-file", "quarantine"]
    strict, code, says = STRICT[flags]
    assert cli.run_job(score.job, [*arguments, *strict]) == code
    assert re.search(says, capfd.readouterr().err)
    assert published(scores) == before


def test_the_first_bad_row_stops_a_run(
    tmp_path: Path, ranker: Path, load: Callable[..., PlainScorer]
) -> None:
    """What is finished by then is kept, nothing is published; by default half of all may be bad."""
    pq.write_table(table_of([*TEXTS[:3], None]), tmp_path / "a.parquet")
    arguments = (tmp_path / "a.parquet", ranker, tmp_path / "out")
    strict = config_of(*arguments, on_bad_row="fail")
    with pytest.raises(InputError, match=r"a\.parquet row 3: 'response' is null \(response_null\)"):
        score.score(strict, make_plan(strict), load=load)
    assert len(list(tmp_path.glob("out/sidecars/*/*"))) == 1
    few = config_of(*arguments, max_bad_ratio=0.2)
    with pytest.raises(RunError, match=r"1 of 4 rows cannot be scored \(25\.00%\)"):
        score.score(few, make_plan(few), load=load)
    assert published(tmp_path / "out") == []
    many = config_of(*arguments)
    assert manifest_of(Path(score.score(many, make_plan(many), load=load)))["counts"]["scored"] == 3


def test_a_file_that_is_gone_stops_a_run_unless_it_may_be_quarantined(
    tmp_path: Path, ranker: Path, load: Callable[..., PlainScorer]
) -> None:
    """By default; started again, the run has another plan."""
    (tmp_path / "pool").mkdir()
    for name in "ab":
        pq.write_table(table_of(TEXTS), tmp_path / f"pool/{name}.parquet")
    config = config_of(tmp_path / "pool", ranker, tmp_path / "out", on_bad_file="fail")
    plan = make_plan(config)
    (tmp_path / "pool/a.parquet").unlink()
    with pytest.raises(PoolFileError, match=r"a\.parquet.*Start again"):
        score.score(config, plan, load=load)
    assert published(tmp_path / "out") == []
    run = Path(score.score(config, make_plan(config), load=load))
    assert manifest_of(run)["counts"]["rows_in"] == 4
    assert manifest_of(run)["quarantine"] == []


def test_a_pool_of_bad_files_alone_is_refused(
    tmp_path: Path, ranker: Path, scored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to score; one of them is named."""
    pool = scored.parent.parent.parent / "pool"
    for name in ("zero", "text"):
        shutil.copy(pool / f"{name}.parquet", tmp_path)
    arguments = ["--pool", str(tmp_path), "--ranker", str(ranker), "--out", str(tmp_path / "out")]
    assert cli.run_job(score.job, [*arguments, "--on-bad-file", "quarantine"]) == 2
    message = capfd.readouterr().err
    assert "2 that cannot be read, the first: text.parquet: cannot be read as Parquet" in message


def test_rows_of_ten_megabytes_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A thousand of them together would be ten gigabytes."""
    from scar_core.pool import units  # noqa: PLC0415
    from tests.pools import open_one  # noqa: PLC0415

    pq.write_table(table_of([LARGE + str(row) for row in range(12)]), tmp_path / "a.parquet")
    file = open_one(tmp_path / "a.parquet")
    names = ["instruction", "response"]
    sizes = [batch.num_rows for _, batch in units._batches(file, [(0, 12)], names)]  # noqa: SLF001
    assert sizes == [3, 3, 3, 3]


def test_the_awful_files_are_what_they_claim_to_be(scored: Path) -> None:
    """A writer may change a type on the way to the disk."""
    pool = scored.parent.parent.parent / "pool"
    types = {
        name: pq.read_schema(pool / f"{name}.parquet").field("response").type for name in AWFUL
    }
    assert types["large_string"] == pa.large_string()
    assert pa.types.is_dictionary(types["dictionary"])
    assert types["null"] == pa.null()
    assert types["binary"] == pa.binary()
