"""Ends a pipeline that stands still because a node was lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from scar_core.errors import RunError

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

CHECK_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
# Of the longest time between two results so far: a slow model is no standstill.
PATIENCE_RATIO = 4


class ClusterError(RunError):
    """The cluster broke under the run: what was done by then is kept."""


class StandstillError(ExecutionTimeoutError):  # type: ignore[misc] # Ray Data has no types
    """Nothing comes any more since a node was lost; Ray takes it for no bug of its own."""


class StandstillWatch(ExecutionCallback):  # type: ignore[misc] # as above
    """Raises StandstillError in an execution that gives nothing more since a node was lost.

    Ray starts a lost node's actors again elsewhere and keeps their tasks for them. Where there is
    no room, these tasks wait for a node that may never come, and the run waits for them.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Take note of the nodes."""
        del executor
        self._nodes = _living_nodes()
        self._lost = 0
        self._outputs = 0
        self._checked = self._moved = time.monotonic()
        self._longest_seconds = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Look, now and then, at what came out and at who is there."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        outputs = sum(operator.metrics.num_outputs_taken for operator in executor._topology)  # noqa: SLF001 - as Ray Data's own guard does
        if outputs != self._outputs:
            self._longest_seconds = max(self._longest_seconds, now - self._moved)
            self._outputs, self._moved = outputs, now
        living = _living_nodes()
        self._lost += len(self._nodes - living)
        self._nodes = living
        still_seconds = now - self._moved
        if self._lost and still_seconds > max(
            PATIENCE_SECONDS, PATIENCE_RATIO * self._longest_seconds
        ):
            raise StandstillError(
                f"{self._lost} of the cluster's nodes were lost, and for {still_seconds:.0f} s "
                f"nothing came from the {len(living)} that are left. Start again when there is "
                "room: finished work is kept."
            )


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
