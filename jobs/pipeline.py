"""Python objects through Ray Data: one row, one object, one block.

Ray Data's rows are Arrow; a task or a result of ours is a dataclass. It travels pickled, in a
column of its own, and only between processes of one job. Every stage runs with the driver's
access to stores, which travels with it through Ray's object store, and nowhere else.
"""

from __future__ import annotations

import pickle
from functools import wraps
from typing import TYPE_CHECKING, Any

from scar_core import stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ray.data import Dataset

    Batch = dict[str, Any]

OBJECT_COLUMN = "object"

# Ray Data gathers a task's output into blocks of this size before it passes them on. A unit must
# not wait for its neighbours, nor bind them to one actor, so any unit fills a block.
BLOCK_BYTES = 1024


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


def stage(dataset: Dataset, function: Callable[..., Any], **options: Any) -> Dataset:  # noqa: ANN401
    """The dataset with one more stage: a function, or a class whose objects are actors.

    It gets one row at a time; `options` are those of `map_batches`.
    """
    return dataset.map_batches(_with_access(function), batch_size=1, **options)


def _with_access(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function or class; workers have other variables, and no flags."""
    access = stores.carried()
    if not isinstance(function, type):

        @wraps(function)
        def reaching(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever a stage takes
            stores.carry(access)
            return function(*args, **kwargs)

        return reaching

    def start(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as above
        stores.carry(access)
        function.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return type(function.__name__, (function,), {"__init__": start})


def results(dataset: Dataset) -> Iterator[Any]:
    """The objects of a dataset as they are finished, in any order."""
    for row in dataset.iter_rows():
        yield pickle.loads(row[OBJECT_COLUMN])  # noqa: S301 - as above


def run(work: Callable[..., Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:  # noqa: ANN401
    """One object per item: `work(item, **options)` on any CPU of the cluster, in any order."""

    def apply(batch: Batch) -> Batch:
        return packed(work(item, **options) for item in objects(batch))

    yield from results(stage(source(items), apply))
