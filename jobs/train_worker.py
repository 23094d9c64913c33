"""What each training worker does: Ray Train calls it, accelerate joins the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scar_core.errors import NonFiniteError
from scar_core.training.epochs import Progress, Trained, train

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from scar_core.training.deal import Sides
    from scar_core.training.losses import LossConfig
    from scar_core.training.trainer import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the driver has checked and prepared; the same for every worker."""

    ranker_ref: Any
    """Ray's reference to the Ranker to start from."""
    data_ref: Any
    """Ray's reference to the TokenizedQuadruples, one copy per machine."""
    sides: Sides
    training: TrainingConfig
    loss: LossConfig
    seed: int
    threads: int
    """CPU threads of one worker, so that workers of one machine do not fight for its cores."""
    told: Queue
    """Where the first worker puts its Progress."""


def train_worker(config: dict[str, WorkerTask]) -> Trained | NonFiniteError:
    """Train this worker's share; Ray hands the first worker's answer to the driver.

    A loss that is not a number is an answer too, and the same on all workers: another try would
    end there again.
    """
    # Imported here, because the driver reads WorkerTask without waiting for them.
    import ray  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from accelerate import Accelerator, DistributedDataParallelKwargs  # noqa: PLC0415

    task = config["task"]
    torch.set_num_threads(task.threads)
    # An encoder's buffers are constants; to send them around at every step is a waste.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if task.training.precision == "bf16" else "no",
        kwargs_handlers=[ddp],
    )

    def tell(progress: Progress) -> None:
        task.told.put(progress)

    try:
        return train(
            ray.get(task.ranker_ref).to(accelerator.device),
            ray.get(task.data_ref),
            task.sides,
            config=task.training,
            loss=task.loss,
            seed=task.seed,
            accelerator=accelerator,
            report=tell,
        )
    except NonFiniteError as error:
        return error.with_traceback(None)
