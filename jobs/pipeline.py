"""Python objects through Ray Data: one row, one object, one block.

Ray Data's rows are Arrow; a task or a result of ours is a dataclass. It travels pickled, in a
column of its own, and only between processes of one job. Every stage runs with the driver's
access to stores, which travels with it through Ray's object store, and nowhere else.
"""

from __future__ import annotations

import pickle
import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any

from scar_core import stores
from scar_core.errors import ScarError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ray.data import Dataset

    Batch = dict[str, Any]

OBJECT_COLUMN = "object"

# Ray Data gathers a task's output into blocks of this size before it passes them on. A unit must
# not wait for its neighbours, nor bind them to one actor, so any unit fills a block.
BLOCK_BYTES = 1024

STALL_MINUTES = 30.0
# Results that one task merges: 16 histograms of 12 prefixes are 100 MB.
FAN_IN = 16
MERGE_CPUS = 0.5


def source(items: Sequence[Any], *, name: str, stall_minutes: float = STALL_MINUTES) -> Dataset:
    """A dataset of objects, a block each; a stage gets them from `objects`.

    Ray's dashboard and its metrics know what it is for by `name`.
    `results` gives up what nothing comes out of, and nothing moves in, for so many minutes.
    """
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    from jobs.standstill import StandstillWatch  # noqa: PLC0415 - as above

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = 60 * stall_minutes
    context.custom_execution_callback_classes = [StandstillWatch]
    rows = [{OBJECT_COLUMN: pickle.dumps(item)} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.set_name(name)
    return dataset


def objects(batch: Batch) -> Iterator[Any]:
    """The objects of a batch of rows."""
    for row in batch[OBJECT_COLUMN]:
        yield pickle.loads(row)  # noqa: S301 - this job's own bytes


def packed(items: Iterable[Any]) -> Batch:
    """A batch of rows of objects; the inverse of `objects`."""
    return {OBJECT_COLUMN: [pickle.dumps(item) for item in items]}


def stage(
    dataset: Dataset,
    function: Callable[..., Any],
    *,
    batch_size: int = 1,
    **options: Any,  # noqa: ANN401 - those of `map_batches`
) -> Dataset:
    """The dataset with one more stage: a function, or a class whose objects are actors.

    It gets so many rows at a time; `options` are those of `map_batches`.
    """
    from ray.util.annotations import RayDeprecationWarning  # noqa: PLC0415 - as above

    with warnings.catch_warnings():
        # Ray Data takes `max_retries` of its tasks in no other way than this one, until 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(with_access(function), batch_size=batch_size, **options)


def with_access(function: Callable[..., Any]) -> Callable[..., Any]:
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


def _named(
    closure: Callable[..., Any], work: Callable[..., Any], *, prefix: str = ""
) -> Callable[..., Any]:
    """The closure under the name of its work: Ray shows a stage as `MapBatches(NAME)`."""
    closure.__name__ = closure.__qualname__ = prefix + work.__name__
    return closure


def results(dataset: Dataset) -> Iterator[Any]:
    """The objects of a dataset as they are finished, in any order.

    Raises:
        ClusterError: nothing moves any more, or Ray could not make good what it lost.
        Exception: whatever a stage raised, as itself.
    """
    from ray import exceptions as lost  # noqa: PLC0415 - `--help` must not wait for Ray
    from ray.data.exceptions import ExecutionTimeoutError  # noqa: PLC0415 - as above

    from jobs.standstill import ClusterError, StandstillError  # noqa: PLC0415 - as above

    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row[OBJECT_COLUMN])  # noqa: S301 - as above
    except StandstillError as error:
        raise ClusterError(str(error)) from error
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
    except ScarError as error:
        raise as_raised(error) from error


def as_raised(error: ScarError) -> ScarError:
    """The error that a worker raised: Ray makes one of its own of it, whose text is a traceback."""
    cause: ScarError = getattr(error, "cause", None) or error
    return cause


def _resources() -> str:
    """What the cluster has now, for a person."""
    import ray  # noqa: PLC0415 - as above

    there = ray.cluster_resources()
    return f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs"


def run(work: Callable[..., Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:  # noqa: ANN401
    """One object per item: `work(item, **options)` on any CPU of the cluster, in any order."""

    def apply(batch: Batch) -> Batch:
        return packed(work(item, **options) for item in objects(batch))

    if items:  # Ray Data knows no dataset of nothing
        yield from results(stage(source(items, name=work.__name__), _named(apply, work)))


def fold(
    work: Callable[..., Any],
    items: Sequence[Any],
    merge: Callable[[Iterable[Any]], Any],
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """What `run` gives, merged in a tree of tasks: a task holds FAN_IN results, the driver one.

    What the driver gets through Ray's object store stays mapped and counts as its memory.
    `merge` takes any number of results, in any order, and gives one of the same kind.
    """

    def apply(batch: Batch) -> Batch:
        return packed(work(item, **options) for item in objects(batch))

    def join(batch: Batch) -> Batch:
        return packed([merge(objects(batch))])

    dataset = stage(source(items, name=work.__name__), _named(apply, work))
    results_left, join = len(items), _named(join, work, prefix="merge_")
    cpus = MERGE_CPUS
    while results_left > 1:
        # Another CPU share than that before, or Ray Data makes one task of both: a stage FAN_IN
        # items long, or a merge of one result.
        dataset = dataset.map_batches(join, batch_size=FAN_IN, num_cpus=cpus)
        results_left, cpus = -(-results_left // FAN_IN), 3 * MERGE_CPUS / 2 - cpus
    return merge(results(dataset))
