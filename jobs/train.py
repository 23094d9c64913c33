"""Train a ranker on quadruples: Ray Train around the core's training, one worker or many."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from jobs import cli
from jobs.push import open_hub, push
from jobs.train_events import write_events
from jobs.train_inputs import Prepared, TrainConfig, prepare
from jobs.train_worker import WorkerTask, train_worker
from scar_core import storage
from scar_core.errors import NonFiniteError, RunError
from scar_core.manifest import MANIFEST_NAME, describe_file, publish, software, to_json
from scar_core.ranker.checkpoint import save_ranker
from scar_core.training.accuracy import (
    AccuracyRow,
    accuracy_rows,
    accuracy_table,
    rank_correlation,
)
from scar_core.training.card import correlation_line, model_card
from scar_core.training.epochs import Progress, Trained, count_steps
from scar_core.training.losses import LossConfig
from scar_core.training.trainer import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

logger = logging.getLogger("scar_curate")

LOG_NAME = "training.json"
"""Beside the ranker: every epoch's progress, every step's loss and gradient norm."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the ranker's directory, its manifest last; the manifest.

    Raises:
        InputError: data, encoder or flags need fixing; nothing was started or written.
        NonFiniteError: a loss or a gradient is not a number; nothing was written.
        RunError: a worker broke; nothing was written.
    """
    prepared = prepare(config)
    steps = count_steps(len(prepared.sides.train), config)
    logger.info(
        "%s quadruples to train on, %s to validate, %s to test; %s steps",
        *(f"{len(rows):,}" for rows in prepared.sides),
        f"{steps:,}",
    )
    cpus = cpus_per_worker(config)
    # Ray Train warns every second where there is no dashboard; what breaks is in the exception.
    with cli.connected(
        local_cpus=max(config.workers * cpus, os.cpu_count() or 1), worker_logs=False
    ):
        trained = run_workers(config, prepared, cpus=cpus)
    return write(config, prepared, trained)


def cpus_per_worker(config: TrainConfig) -> int:
    """CPUs of one worker: as asked for, else a share of this machine's, else 1 on a cluster."""
    if config.cpus_per_worker is not None:
        return config.cpus_per_worker
    if "RAY_ADDRESS" in os.environ:
        return 1
    return max(1, (os.cpu_count() or 1) // config.workers)


def run_workers(config: TrainConfig, prepared: Prepared, *, cpus: int) -> Trained:
    """Start the workers, tell how they get on, and bring the best epoch home."""
    import ray  # noqa: PLC0415 - as in cli
    from ray.train import LoggingConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchTrainer  # noqa: PLC0415
    from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: PLC0415

    gpus = config.gpus_per_worker
    with tempfile.TemporaryDirectory() as folder, _told() as queue:
        task = WorkerTask(
            ranker_ref=ray.put(prepared.ranker),
            data_ref=ray.put(prepared.data),
            sides=prepared.sides,
            training=cli.part_of(config, TrainingConfig),
            loss=cli.part_of(config, LossConfig),
            seed=config.seed,
            threads=cpus,
            told=queue,
        )
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            # Ray Train wants a place of its own; nothing that lasts is kept there.
            run_config=RunConfig(
                storage_path=folder, logging_config=LoggingConfig(log_level="WARNING")
            ),
        )
        try:
            answer: Trained | NonFiniteError = trainer.fit().return_value
        except TrainingFailedError as error:
            logger.exception("training broke")
            raise RunError(_broken(error)) from error
    if isinstance(answer, NonFiniteError):
        raise answer
    return answer


def _broken(error: TrainingFailedError) -> str:
    """Which worker broke on what, in one line."""
    failures = getattr(error, "worker_failures", {}) or {0: error}
    rank, failure = min(failures.items())
    lines = str(failure).strip().splitlines() or [""]
    return (
        f"training: worker {rank} broke with {type(failure).__name__}: {lines[0]}. "
        "Nothing was saved. Look above for the whole error."
    )


@contextmanager
def _told() -> Iterator[Queue]:
    """A queue whose Progress is logged as it comes, until the block ends."""
    from ray.util.queue import Queue  # noqa: PLC0415 - as in cli

    queue = Queue(actor_options={"num_cpus": 0})
    teller = Thread(target=_tell, args=(queue,), daemon=True)
    teller.start()
    try:
        yield queue
    finally:
        queue.put(None)
        teller.join()
        queue.shutdown()


def _tell(queue: Queue) -> None:
    for progress in iter(queue.get, None):
        logger.info("%s", progress_line(progress))


def progress_line(progress: Progress) -> str:
    """Epoch, step, loss, accuracy where there is one, speed and time left."""
    accuracy = progress.validation_accuracy
    shown = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
    return (
        f"epoch {progress.epoch}, step {progress.step:,} of {progress.steps:,}: "
        f"loss {progress.loss:.4f}{shown}, {progress.steps_per_second:.2f} steps/s, "
        f"{timedelta(seconds=round(progress.seconds_left))} left"
    )


def write(config: TrainConfig, prepared: Prepared, trained: Trained) -> dict[str, Any]:
    """Write the ranker, its card and the training's log, then the manifest."""
    weights = trained.best.weights or {}
    prepared.ranker.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    folder = storage.absolute(config.out)
    accuracy = {side: measure(prepared, trained, side=side) for side in ("validation", "test")}
    measured_on = "test" if accuracy["test"] else "validation"
    resolved = portable_config(config, folder)
    correlations = {side: correlate(prepared, trained, side=side) for side in accuracy}
    card = model_card(
        config=resolved,
        counts=prepared.counts,
        measured_on=measured_on,
        accuracy=accuracy[measured_on],
        correlations=correlations[measured_on],
        software=software(),
        best_epoch=trained.best.epoch,
        epochs=len(trained.epochs),
    )
    names = save_ranker(folder, prepared.ranker, prepared.tokenizer, card=card)
    names += [write_log(folder, trained), write_events(folder, trained)]
    return publish(
        folder,
        kind="ranker",
        config=resolved,
        inputs=[
            {"kind": "quadruples", "path": storage.portable(path, base=folder), "fingerprint": mark}
            for path, mark in prepared.inputs
        ],
        counts=prepared.counts,
        files=[describe_file(folder, name)._asdict() for name in names],
        metrics={
            "best_epoch": trained.best.epoch,
            "validation_accuracy": trained.best.validation_accuracy,
            "measured_on": measured_on,
            "accuracy": {side: [asdict(row) for row in rows] for side, rows in accuracy.items()},
            "spearman": correlations,
        },
    )


def write_log(folder: str, trained: Trained) -> str:
    """Write all epochs and steps as JSON; the file's name."""
    log = {
        "epochs": [epoch._asdict() for epoch in trained.epochs],
        "losses": trained.losses,
        "gradient_norms": trained.gradient_norms,
    }
    storage.write_bytes(storage.join(folder, LOG_NAME), to_json(log))
    return LOG_NAME


def measure(prepared: Prepared, trained: Trained, *, side: str) -> list[AccuracyRow]:
    """The accuracy table of one side, from the best epoch's scores."""
    rows = getattr(prepared.sides, side)
    data = prepared.data
    return accuracy_rows(
        trained.best.score_QR[rows],
        data.characters_QR[rows],
        data.kept_QK[rows],
        [data.sources_Q[row] for row in rows],
    )


def correlate(prepared: Prepared, trained: Trained, *, side: str) -> dict[str, float | None]:
    """How far scores of one side go with what style is not, over all its responses."""
    rows = getattr(prepared.sides, side)
    score_QR, data = trained.best.score_QR[rows], prepared.data
    return {
        "characters": rank_correlation(score_QR, data.characters_QR[rows]),
        "list_lines": rank_correlation(score_QR, data.list_lines_QR[rows]),
    }


def portable_config(config: TrainConfig, folder: str) -> dict[str, Any]:
    """The config as a manifest may hold it: no absolute path of this machine."""

    def place(path: str) -> str:
        named = storage.exists(path) or storage.is_folder(path) or storage.GLOB_MARKS & set(path)
        return storage.portable(path, base=folder) if named else path

    return {
        **asdict(config),
        "quads": [place(path) for path in config.quads],
        "encoder": place(config.encoder),
        "out": storage.portable(folder, base=folder),
    }


def job(argv: Sequence[str]) -> None:
    """Parse, train, and print how often the ranker is right."""
    config = cli.parse(TrainConfig, argv, prog="jobs.train", description=__doc__ or "")
    hub = open_hub(config.push_to_hub) if config.push_to_hub else None
    manifest = train(config)
    metrics = manifest["metrics"]
    measured_on = metrics["measured_on"]
    rows = [AccuracyRow(**row) for row in metrics["accuracy"][measured_on]]
    epoch, side = metrics["best_epoch"], manifest["counts"][measured_on]
    print(f"\nepoch {epoch} is kept; accuracy on {side:,} {measured_on} quadruples:\n")  # noqa: T201 - the job's result
    print(accuracy_table(rows) if rows else "none were kept back to measure on")  # noqa: T201
    print(f"\n{correlation_line(metrics['spearman'][measured_on])}")  # noqa: T201
    folder = storage.absolute(config.out)
    logger.info("%s", storage.join(folder, MANIFEST_NAME))
    if hub is not None and config.push_to_hub:
        push(hub, folder, config.push_to_hub, repo_type="model")


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
