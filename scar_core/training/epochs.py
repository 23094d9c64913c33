"""The epochs of a training, told as they go, and the best of them kept. No files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scar_core.training.accuracy import mean_accuracy
from scar_core.training.batches import epoch_batches
from scar_core.training.trainer import Trainer, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scar_core.ranker.model import Ranker
    from scar_core.training.batches import TokenizedQuadruples
    from scar_core.training.deal import Sides
    from scar_core.training.losses import LossConfig

_REPORT_SECONDS = 15.0


class Progress(NamedTuple):
    """Where a training stands."""

    epoch: int
    """From 1."""
    step: int
    """Finished steps of all epochs."""
    steps: int
    """Steps of the whole training."""
    loss: float
    """Mean over this epoch's steps so far."""
    validation_accuracy: float | None
    """Mean pairwise accuracy at the epoch's end; None before it, and without validation pairs."""
    epoch_done: bool
    steps_per_second: float
    """Since the start, scoring of held-out rows not counted."""
    seconds_left: float


class Best(NamedTuple):
    """The epoch to keep."""

    epoch: int
    validation_accuracy: float | None
    weights: dict[str, NDArray[Any]] | None
    """The ranker's state, as arrays; None on all workers but the first."""
    score_QR: NDArray[np.float32]
    """Scores of the validation and test rows; NaN elsewhere."""


class Trained(NamedTuple):
    """What a training leaves behind, the same on every worker but for the weights."""

    best: Best
    epochs: list[Progress]
    losses: list[float]
    """One per step, of the whole batch."""
    gradient_norms: list[float]
    """One per step, L2 over all parameters, before it is clipped."""


def count_steps(rows: int, config: TrainingConfig) -> int:
    """How many steps a training on so many quadruples takes."""
    steps = config.epochs * -(-rows // config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def train(
    ranker: Ranker,
    data: TokenizedQuadruples,
    sides: Sides,
    *,
    config: TrainingConfig,
    loss: LossConfig,
    seed: int,
    accelerator: Any,  # noqa: ANN401 - as Trainer
    report: Callable[[Progress], None],
) -> Trained:
    """Train for all epochs; keep the one with the best mean pairwise accuracy in validation.

    Of equals the first is kept; the last epoch where there is no validation pair. With a
    `patience` it ends earlier. `report` is
    called on the first worker, after every epoch and every 15 seconds.

    Raises:
        NonFiniteError: a loss or a gradient is not a number.
    """
    steps = count_steps(len(sides.train), config)
    trainer = Trainer(ranker, data, steps=steps, config=config, loss=loss, accelerator=accelerator)
    torch.manual_seed(seed + accelerator.process_index)  # dropout: not the same on all workers
    reporter = _Reporter(trainer, steps, report if accelerator.is_main_process else _say_nothing)
    epochs: list[Progress] = []
    best: Best | None = None
    while best is None or (len(trainer.losses) < steps and _patient(config, best, epochs)):
        epoch = len(epochs) + 1
        batches = epoch_batches(sides.train, batch_size=config.batch_size, seed=seed, epoch=epoch)
        for rows_B in batches[: steps - len(trainer.losses)]:
            trainer.step(rows_B)
            reporter.step_done(epoch)
        score_QR = trainer.score(np.concatenate((sides.validation, sides.test)))
        accuracy = mean_accuracy(score_QR[sides.validation], data.kept_QK[sides.validation])
        epochs.append(reporter.epoch_done(epoch, accuracy))
        if best is None or accuracy is None or accuracy > (best.validation_accuracy or 0):
            weights = _copy_weights(ranker) if accelerator.is_main_process else None
            best = Best(epoch, accuracy, weights, score_QR)
    trainer.close()
    return Trained(best, epochs, trainer.losses, trainer.gradient_norms)


def _patient(config: TrainingConfig, best: Best, epochs: list[Progress]) -> bool:
    return config.patience is None or len(epochs) - best.epoch < config.patience


def _copy_weights(ranker: Ranker) -> dict[str, NDArray[Any]]:
    state = ranker.state_dict()
    return {name: value.detach().to("cpu", copy=True).numpy() for name, value in state.items()}


def _say_nothing(_: Progress) -> None:
    pass


class _Reporter:
    """The clock of a training."""

    def __init__(self, trainer: Trainer, steps: int, report: Callable[[Progress], None]) -> None:
        self._losses = trainer.losses
        self._steps = steps
        self._report = report
        self._start = self._said = self._stepped = time.monotonic()
        self._scoring_seconds = 0.0
        self._epoch_first_step = 0

    def step_done(self, epoch: int) -> None:
        """Report where 15 seconds have passed without a word."""
        self._stepped = time.monotonic()
        if self._stepped - self._said > _REPORT_SECONDS:
            self._say(self._progress(epoch, None, epoch_done=False))

    def epoch_done(self, epoch: int, accuracy: float | None) -> Progress:
        """Report the epoch, which ends with the scoring of held-out rows."""
        self._scoring_seconds += time.monotonic() - self._stepped
        progress = self._progress(epoch, accuracy, epoch_done=True)
        self._epoch_first_step = len(self._losses)
        self._say(progress)
        return progress

    def _progress(self, epoch: int, accuracy: float | None, *, epoch_done: bool) -> Progress:
        done = len(self._losses)
        elapsed = time.monotonic() - self._start
        return Progress(
            epoch=epoch,
            step=done,
            steps=self._steps,
            loss=float(np.mean(self._losses[self._epoch_first_step :])),
            validation_accuracy=accuracy,
            epoch_done=epoch_done,
            steps_per_second=done / max(elapsed - self._scoring_seconds, 1e-9),
            seconds_left=elapsed / done * (self._steps - done),
        )

    def _say(self, progress: Progress) -> None:
        self._said = time.monotonic()
        self._report(progress)
