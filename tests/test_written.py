"""Selected rows in every form and kind of file, read again by those who will read them.

LLaMA-Factory's own parser and converter are imported alone: the package that they are in wants a
gigabyte of others, and pins versions that are older than this project's.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template, is_conversational

from jobs import cli, score, select_rows, verify
from scar_core.pool.chats import Chat, read_chat
from scar_core.pool.layouts import Form, Layout, check_layout
from scar_core.selection import trainers
from scar_core.selection.card import size_category
from tests.in_process import publish_drawn, run_here
from tests.jobs_harness import manifest_of
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scar_core.pool.units import Unit

FORMS = ("rows", "alpaca", "sharegpt", "messages", "prompt-completion")
KINDS = ("parquet", "jsonl")
ROWS = 60
KEPT = 20

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published scores of a pool with columns of many kinds; the later a row, the better."""
    folder = tmp_path_factory.mktemp("written")
    table = pa.table(
        {
            "row_id": range(ROWS),
            "instruction": [f"Frage {row}: wie geht's?\n🙂" for row in range(ROWS)],
            "response": pa.array([f"antwört {row}" for row in range(ROWS)], pa.large_string()),
            "day": pa.array(range(ROWS), pa.int32()).cast(pa.date32()),
            "nested": [{"tags": [str(row)], "weight": row / 7} for row in range(ROWS)],
        }
    )
    (folder / "pool").mkdir()
    pq.write_table(table, folder / "pool/a.parquet")
    ranker = tiny_ranker_dir(folder)
    config = score.ScoreConfig(
        pool=[str(folder / "pool")], ranker=str(ranker), out=str(folder / "scores"), unit_rows=16
    )

    def draw(unit: Unit, hashes: list[bytes | None]) -> np.ndarray:
        return (unit.row_start + np.arange(len(hashes))).astype(np.float32) / 8

    publish_drawn(config, draw)
    return folder / "scores"


@pytest.fixture(scope="module")
def runs(
    scores: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], Path]]:
    """A selection in a form and a kind of file, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(form: str, kind: str) -> Path:
        out = folder / f"{form}-{kind}"
        if not out.exists():
            flags = ["--keep", str(KEPT), "--write-as", form, "--write-format", kind]
            argv = ["--scores", str(scores), "--out", str(out), *flags]
            assert cli.run_job(select_rows.job, argv) == 0
        return out

    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        patch.setattr(verify, "PICKED_ROWS", 50)  # as `run_here` has it for selecting
        yield run


def loaded(run: Path, cache: Path) -> datasets.Dataset:
    """The rows as `datasets` loads the run's folder, by its card."""
    return datasets.load_dataset(str(run), split="train", cache_dir=str(cache))


def expected(row: int) -> Chat:
    return [
        {"role": "user", "content": f"Frage {row}: wie geht's?\n🙂"},
        {"role": "assistant", "content": f"antwört {row}"},
    ]


BEST = range(ROWS - KEPT, ROWS)


@pytest.mark.parametrize(("form", "kind"), [*product(FORMS, KINDS)])
def test_datasets_loads_the_folder_and_finds_every_row(
    runs: Callable[[str, str], Path], tmp_path: Path, form: str, kind: str
) -> None:
    """The texts in the form, all other columns as they were, and the score."""
    run = runs(form, kind)
    rows = loaded(run, tmp_path)
    assert rows["row_id"][:] == list(BEST)
    assert rows["scar_score"][:] == [row / 8 for row in BEST]
    assert [row["nested"]["weight"] for row in rows] == [row / 7 for row in BEST]
    layout = Layout(form="pair" if form == "rows" else _form(form))
    check_layout(rows.data.table.schema, layout, where="the run")
    assert [read_chat(row, layout) for row in rows] == [expected(row) for row in BEST]
    listed = {entry["path"]: entry["rows"] for entry in manifest_of(run)["files"]}
    assert listed[f"data/part-00000.{kind}"] == KEPT
    assert {"README.md", trainers.TRL} <= listed.keys()


def _form(name: str) -> Form:
    forms: dict[str, Form] = {name: name for name in ("alpaca", "sharegpt", "messages")}
    return forms.get(name, "prompt-completion")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One with a chat template that shows roles and texts."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("form", FORMS)
def test_trl_takes_the_rows_as_conversations(
    runs: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    form: str,
) -> None:
    """By the script beside them, through TRL's own templates."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = runpy.run_path(str(runs(form, "parquet") / trainers.TRL))["rows"]()
    assert len(rows) == KEPT
    assert is_conversational(rows[0])
    found = apply_chat_template(rows[0], tokenizer)
    user, assistant = (message["content"] for message in expected(BEST[0]))
    text = found.get("text") or found["prompt"] + found["completion"]
    assert text == f"<user>{user}<assistant>{assistant}"


@pytest.fixture(scope="module")
def llama_factory() -> Iterator[tuple[ModuleType, ModuleType]]:
    """Its parser of dataset_info.json and its converters."""
    top = Path(sys.prefix) / "apart/llamafactory"
    if not top.is_dir():
        pytest.skip("pip install --no-deps --target .venv/apart llamafactory, as the Makefile does")
    stubs: dict[str, Any] = {
        # Their __init__ imports every trainer; two modules want these names of others.
        "llamafactory": {"__path__": [str(top)]},
        "llamafactory.data": {"__path__": [str(top / "data")]},
        "peft": {},
        "peft.utils": {"SAFETENSORS_WEIGHTS_NAME": "", "WEIGHTS_NAME": ""},
        "llamafactory.extras.misc": {"use_modelscope": bool, "use_openmind": bool},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in stubs.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        yield (
            importlib.import_module("llamafactory.data.parser"),
            importlib.import_module("llamafactory.data.converter"),
        )
    for name in [name for name in sys.modules if name.startswith("llamafactory")]:
        del sys.modules[name]


@pytest.mark.parametrize(("form", "kind"), [*product(FORMS[:4], KINDS)])
def test_llama_factory_converts_the_rows(
    runs: Callable[[str, str], Path],
    tmp_path: Path,
    llama_factory: tuple[ModuleType, ModuleType],
    form: str,
    kind: str,
) -> None:
    """As the dataset_info.json beside them says, through its own parser and converter."""
    parser, converter = llama_factory
    run = runs(form, kind)
    (attr,) = parser.get_dataset_list([trainers.DATASET_NAME], str(run))
    assert (attr.load_from, attr.dataset_name) == ("file", "data")
    files = [str(path) for path in sorted((run / attr.dataset_name).iterdir())]
    builder = "json" if kind == "jsonl" else kind
    rows = datasets.load_dataset(
        builder, data_files=files, split=attr.split, cache_dir=str(tmp_path)
    )
    converted = converter.get_dataset_converter(attr.formatting, attr, SimpleNamespace())(rows[0])
    asked, answered = expected(BEST[0])
    assert converted["_prompt"] == [asked]
    assert converted["_response"] == [answered]
    assert not converted["_system"]


@pytest.mark.parametrize("form", FORMS)
def test_axolotl_is_told_where_texts_are(runs: Callable[[str, str], Path], form: str) -> None:
    """Or nothing, where it reads no such rows; then the card says so."""
    run = runs(form, "parquet")
    card = (run / "README.md").read_text()
    if form == "prompt-completion":
        assert not (run / trainers.AXOLOTL).exists()
        assert "no `axolotl.yaml`" in card
        assert "no `dataset_info.json`" in card
        return
    (dataset,) = yaml.safe_load((run / trainers.AXOLOTL).read_text())["datasets"]
    columns = pq.ParquetFile(run / "data/part-00000.parquet").schema_arrow.names
    if form in ("messages", "sharegpt"):
        assert dataset["type"] == "chat_template"
        assert dataset["field_messages"] in columns
    else:
        fields = [name for key, name in dataset["type"].items() if key.startswith("field_")]
        assert len(fields) == (3 if form == "alpaca" else 2)
        assert set(fields) <= set(columns)


def test_the_card_tells_the_runs_figures(runs: Callable[[str, str], Path]) -> None:
    """For people and, in its header, for the hub."""
    card = (runs("messages", "jsonl") / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.jsonl"}]
    assert f"| selected | {KEPT} |" in card
    assert f"| not selected | {ROWS - KEPT} |" in card
    assert "| threshold | 5.000000 |" in card


def test_sizes_are_in_the_hubs_words() -> None:
    """By powers of ten."""
    told = [size_category(rows) for rows in (0, 999, 1000, 99_999, 10**6, 10**9, 10**12, 10**15)]
    ends = ["1B<n<10B", "n>1T", "n>1T"]
    assert told == ["n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", *ends]


@pytest.mark.parametrize(("form", "kind"), [("messages", "jsonl"), ("alpaca", "parquet")])
def test_what_was_written_in_another_form_is_verified(
    runs: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str], form: str, kind: str
) -> None:
    """Rows, checksums and the lowest score; a file that lost a row is told."""
    run = runs(form, kind)
    assert cli.run_job(verify.job, [str(run)]) == 0
    assert "ok" in capsys.readouterr().out


def test_lines_that_are_missing_are_found(
    runs: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the manifest vouches for the file as it is."""
    from hashlib import sha256  # noqa: PLC0415
    from shutil import copytree  # noqa: PLC0415

    run = copytree(runs("messages", "jsonl"), tmp_path / "run")
    path = run / "data/part-00000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    manifest = json.loads((run / "manifest.json").read_bytes())
    (entry,) = (entry for entry in manifest["files"] if entry["path"].startswith("data/"))
    data = path.read_bytes()
    entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert cli.run_job(verify.job, [str(run)]) == 1
    assert "holds 19 rows, the manifest says 20" in capsys.readouterr().out


def test_a_row_that_cannot_be_written_stops_the_run_and_nothing_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is, what it holds, and what to do; exit code 2."""
    run_here(monkeypatch)
    table = pa.table(
        {
            "instruction": ["a", "b"],
            "response": ["c", "d"],
            "weight": [1.0, float("nan")],
            "output": ["mine", "mine"],
        }
    )
    (tmp_path / "pool").mkdir()
    pq.write_table(table, tmp_path / "pool/a.parquet")
    scored = tmp_path / "scores"
    ranker = str(tiny_ranker_dir(tmp_path))
    config = score.ScoreConfig(pool=[str(tmp_path / "pool")], ranker=ranker, out=str(scored))
    publish_drawn(config, lambda unit, _: np.arange(unit.rows).astype(np.float32))
    out = tmp_path / "out"
    argv = ["--scores", str(scored), "--keep", "2", "--out", str(out)]
    assert cli.run_job(select_rows.job, [*argv, "--write-format", "jsonl"]) == 2
    assert "part-00000.jsonl, row 1: holds what JSON lacks" in capsys.readouterr().err
    assert cli.run_job(select_rows.job, [*argv, "--write-as", "alpaca"]) == 2
    assert "has a column 'output' that is no part of its pair rows" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
