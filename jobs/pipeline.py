"""Python objects through Ray Data: one row, one object, one block.

Ray Data's rows are Arrow; a task or a result of ours is a dataclass. It travels pickled, in a
column of its own, and only between processes of one job.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ray.data import Dataset

    Batch = dict[str, Any]

OBJECT_COLUMN = "object"

# Ray Data gathers a task's output into blocks of this size before it passes them on. A unit must
# not wait for its neighbours, nor bind them to one actor, so any unit fills a block.
BLOCK_BYTES = 1024

STALL_MINUTES = 30.0


def source(items: Sequence[Any], *, stall_minutes: float = STALL_MINUTES) -> Dataset:
    """A dataset of objects, a block each; a stage gets them from `objects`.

    `results` gives up what nothing comes out of, and nothing moves in, for so many minutes.
    """
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    from jobs.standstill import StandstillWatch  # noqa: PLC0415 - as above

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = 60 * stall_minutes
    context.custom_execution_callback_classes = [StandstillWatch]
    rows = [{OBJECT_COLUMN: pickle.dumps(item)} for item in items]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def objects(batch: Batch) -> Iterator[Any]:
    """The objects of a batch of rows."""
    for row in batch[OBJECT_COLUMN]:
        yield pickle.loads(row)  # noqa: S301 - this job's own bytes


def packed(items: Iterable[Any]) -> Batch:
    """A batch of rows of objects; the inverse of `objects`."""
    return {OBJECT_COLUMN: [pickle.dumps(item) for item in items]}


def results(dataset: Dataset) -> Iterator[Any]:
    """The objects of a dataset as they are finished, in any order.

    Raises:
        ClusterError: nothing moves any more, or Ray could not make good what it lost.
        Exception: whatever a stage raised, as itself.
    """
    from ray import exceptions as lost  # noqa: PLC0415 - `--help` must not wait for Ray
    from ray.data.exceptions import ExecutionTimeoutError  # noqa: PLC0415 - as above

    from jobs.standstill import ClusterError  # noqa: PLC0415 - as above

    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row[OBJECT_COLUMN])  # noqa: S301 - as above
    except ExecutionTimeoutError as error:
        minutes = dataset.context.execution_no_progress_timeout_s / 60
        raise ClusterError(
            f"nothing moved for {minutes:g} minutes: an actor hangs, or the cluster has no room "
            f"for what the run needs ({_resources()} in all). Start again: finished work is kept."
        ) from error
    except (
        lost.RayActorError,
        lost.ObjectLostError,
        lost.NodeDiedError,
        lost.WorkerCrashedError,
        lost.OutOfMemoryError,
        lost.OutOfDiskError,
        lost.ObjectStoreFullError,
        lost.RaySystemError,
    ) as error:
        raise ClusterError(
            f"Ray lost what it could not make good. Start again: finished work is kept. {error}"
        ) from error


def _resources() -> str:
    """What the cluster has now, for a person."""
    import ray  # noqa: PLC0415 - as above

    there = ray.cluster_resources()
    return f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs"


def run(stage: Callable[..., Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:  # noqa: ANN401
    """One object per item: `stage(item, **options)` on any CPU of the cluster, in any order."""

    def apply(batch: Batch) -> Batch:
        return packed(stage(item, **options) for item in objects(batch))

    yield from results(source(items).map_batches(apply, batch_size=1))
