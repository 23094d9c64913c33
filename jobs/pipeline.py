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

# Results that one task merges: 16 histograms of 12 prefixes are 100 MB.
FAN_IN = 16
MERGE_CPUS = 0.5


def source(items: Sequence[Any]) -> Dataset:
    """A dataset of objects, a block each; a stage gets them from `objects`."""
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
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
    """The objects of a dataset as they are finished, in any order."""
    for row in dataset.iter_rows():
        yield pickle.loads(row[OBJECT_COLUMN])  # noqa: S301 - as above


def run(stage: Callable[..., Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:  # noqa: ANN401
    """One object per item: `stage(item, **options)` on any CPU of the cluster, in any order."""

    def apply(batch: Batch) -> Batch:
        return packed(stage(item, **options) for item in objects(batch))

    yield from results(source(items).map_batches(apply, batch_size=1))


def fold(
    stage: Callable[..., Any],
    items: Sequence[Any],
    merge: Callable[[Iterable[Any]], Any],
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """What `run` gives, merged in a tree of tasks: a process holds FAN_IN results at most.

    `merge` takes any number of results, in any order, and gives one of the same kind.
    """

    def apply(batch: Batch) -> Batch:
        return packed(stage(item, **options) for item in objects(batch))

    def join(batch: Batch) -> Batch:
        return packed([merge(objects(batch))])

    results_left, dataset = len(items), source(items).map_batches(apply, batch_size=1)
    while results_left > FAN_IN:
        # Another CPU share than the stage's, or Ray Data makes one task of both, FAN_IN items long.
        dataset = dataset.map_batches(join, batch_size=FAN_IN, num_cpus=MERGE_CPUS)
        results_left = -(-results_left // FAN_IN)
    return merge(results(dataset))
