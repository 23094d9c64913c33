"""The course of a training as a TensorBoard event file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from scar_core import storage

if TYPE_CHECKING:
    from scar_core.training.epochs import Trained

EVENTS_NAME = "tensorboard/events.out.tfevents"
"""Beside the ranker. `tensorboard --logdir` reads it there, or any folder above."""


def write_events(folder: str, trained: Trained) -> str:
    """Write loss and gradient norm of each step, accuracy and mean loss of each epoch; its name.

    Steps count from 1, epochs stand at their last step.
    """
    with tempfile.TemporaryDirectory() as place:
        writer = SummaryWriter(place)
        for step, loss in enumerate(trained.losses, start=1):
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("train/gradient_norm", trained.gradient_norms[step - 1], step)
        for epoch in trained.epochs:
            writer.add_scalar("epoch/loss", epoch.loss, epoch.step)
            if epoch.validation_accuracy is not None:
                writer.add_scalar(
                    "epoch/validation_accuracy", epoch.validation_accuracy, epoch.step
                )
        writer.close()
        [written] = Path(place).iterdir()
        storage.write_bytes(storage.join(folder, EVENTS_NAME), written.read_bytes())
    return EVENTS_NAME
