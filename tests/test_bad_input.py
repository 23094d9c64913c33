"""Bad input is one clear sentence and exit code 2, before anything starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, curate, score, select_rows
from tests.jobs_harness import write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that would start a cluster for input that cannot be run."""
    import ray  # noqa: PLC0415 - only to forbid it

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", forbidden)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound pool and a sound ranker."""
    home = tmp_path_factory.mktemp("home")
    write_pool(home / "pool", rows=80, files=2)
    tiny_ranker_dir(home).rename(home / "ranker")
    return home


def broken_pools(home: Path, folder: Path) -> dict[str, Path]:
    """Pools with one fault each."""
    for name in ("empty", "cut", "no_rows", "text", "column", "type"):
        (folder / name).mkdir()
    whole = (home / "pool/part-0.parquet").read_bytes()
    table = pq.read_table(home / "pool/part-0.parquet")
    (folder / "empty/a.parquet").write_bytes(b"")
    (folder / "cut/a.parquet").write_bytes(whole[:-100])
    pq.write_table(table.slice(0, 0), folder / "no_rows/a.parquet")
    (folder / "text/notes.txt").write_text("no Parquet here")
    pq.write_table(table.drop_columns("response"), folder / "column/a.parquet")
    numbers = table.drop_columns("response").append_column("response", pa.array([1] * len(table)))
    pq.write_table(numbers, folder / "type/a.parquet")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ("empty", ["cannot be read as Parquet", "0 bytes"]),
        ("cut", ["cannot be read as Parquet"]),
        ("no_rows", ["without rows"]),
        ("text", ["matches no file that can be read"]),
        ("missing", ["matches no file that can be read", "Check the path"]),
        ("column", ["no column 'response'", "id, instruction, source", "--response-column"]),
        ("type", ["'response' holds int64", "wanted text"]),
    ],
)
def test_a_pool_that_cannot_be_scored_is_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], pool: str, says: list[str]
) -> None:
    """Where, what was found, what was wanted, what next."""
    path = broken_pools(home, tmp_path).get(pool, tmp_path / "missing")
    arguments = ["--pool", str(path), "--ranker", str(home / "ranker"), "--keep", "10%"]
    assert cli.run_job(curate.job, [*arguments, "--out", str(tmp_path / "out")]) == 2
    message = capfd.readouterr().err
    assert all(part in message for part in says), message
    assert message.count("error:") == 1
    assert not (tmp_path / "out").exists()


def unfinished(ranker: Path) -> None:
    (ranker / "manifest.json").unlink()


def foreign(ranker: Path) -> None:
    config = json.loads((ranker / "config.json").read_bytes())
    (ranker / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def bare(ranker: Path) -> None:
    for path in ranker.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(unfinished, "manifest.json"), (foreign, "llama"), (bare, "config.json")],
    ids=["no manifest", "foreign architecture", "an empty folder"],
)
def test_a_folder_that_is_no_ranker_is_named(
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    says: str,
) -> None:
    """No actor is started to find that out."""
    tiny_ranker_dir(tmp_path).rename(tmp_path / "ranker")
    spoil(tmp_path / "ranker")
    arguments = ["--pool", str(home / "pool"), "--ranker", str(tmp_path / "ranker")]
    assert cli.run_job(score.job, [*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--keep", "0%"], "above 0%"),
        (["--keep", "130%"], "at most 100%"),
        (["--keep", "0.1"], "Write the % sign"),
        (["--keep", "10%", "--actors", "4:2"], "MIN:MAX"),
        (["--keep", "10%", "--unit-rows", "0"], "unit_rows"),
        (["--keep", "10%", "--max-tokens", "2"], "max_tokens"),
        (["--keep", "10%", "--response-column", "instruction"], "one column for two things"),
    ],
)
def test_a_flag_out_of_range_is_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    """The config refuses what cannot be run."""
    arguments = ["--pool", str(home / "pool"), "--ranker", str(home / "ranker"), *flags]
    assert cli.run_job(curate.job, [*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capfd.readouterr().err


def test_a_pool_that_has_the_score_column_already_is_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A selection curated again would have two columns of one name."""
    arguments = ["--pool", str(home / "pool"), "--ranker", str(home / "ranker"), "--keep", "10%"]
    arguments += ["--out", str(tmp_path / "out"), "--score-column", "source"]
    assert cli.run_job(curate.job, arguments) == 2
    assert "--score-column" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["nothing", "a ranker"])
def test_scores_that_are_none_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """A directory without a manifest, or with one of another kind, holds no scores."""
    scores = tmp_path if kind == "nothing" else home / "ranker"
    arguments = ["--scores", str(scores), "--keep", "3", "--out", str(tmp_path / "out")]
    assert cli.run_job(select_rows.job, arguments) == 2
    assert "scores" in capfd.readouterr().err


def test_a_flag_that_does_not_exist_exits_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    """As any command line does."""
    with pytest.raises(SystemExit) as stopped:
        cli.run_job(curate.job, ["--keep", "3", "--colour", "red"])
    assert stopped.value.code == 2
    assert "--help" in capfd.readouterr().err
