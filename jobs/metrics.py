"""The events of a run as Ray metrics, which each node of a cluster offers to Prometheus.

Ray puts `ray_` before each name: `ray_scar_rows_scored_total`. They are the driver's, count from
the start of the job, and are seen some ten seconds late, as all of Ray's metrics are. The label
`run` is that of the events; it makes no more series than Ray's own label of the process does.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTERS = {
    "scar_rows_scored_total": "Rows that got a score.",
    "scar_tokens_total": "Tokens that were given to the encoder.",
    "scar_rows_quarantined_total": "Rows that could not be scored, by reason.",
    "scar_units_done_total": "Units that were scored.",
    "scar_rows_rescored_total": "Rows that were scored again in fp32.",
    "scar_actor_wait_seconds_total": "Seconds in which scoring actors waited for a unit.",
    "scar_actor_work_seconds_total": "Seconds in which scoring actors scored.",
}
GAUGES = {
    "scar_units_left": "Units that are not scored yet.",
    "scar_rows_selected": "Rows that the selection holds.",
    "scar_drift_psi": "Population stability index of the new rows' scores against the run before.",
}
UNIT_SECONDS = "scar_unit_seconds"
BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class RayMetrics(logging.Handler):
    """Events in, metrics out; nothing where no cluster is connected."""

    def __init__(self, run: str) -> None:
        super().__init__(logging.DEBUG)
        self.run = run
        self.units_left = 0
        self._metrics: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Count what an event tells."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        event = record.getMessage()
        if event == "plan_made":
            # The plan is made before Ray is there.
            self.units_left = fields["units"] - fields["units_done"]
        if not _is_connected():
            return
        if event == "unit_scored":
            self._count_unit(fields)
        elif event == "rows_rescored":
            self._metric("scar_rows_rescored_total").inc(fields["rows"])
        elif event == "rows_selected":
            self._metric("scar_rows_selected").set(fields["selected"])
        elif event == "compared":
            found = fields["before"].get("drift", {}).get("new_rows")
            if found is not None:
                self._metric("scar_drift_psi").set(found["psi"])

    def _count_unit(self, fields: Mapping[str, Any]) -> None:
        quarantined: dict[str, int] = fields["quarantined"]
        self.units_left -= 1
        for name, value in (
            ("scar_rows_scored_total", fields["rows"] - sum(quarantined.values())),
            ("scar_tokens_total", fields["tokens"]),
            ("scar_units_done_total", 1),
            ("scar_actor_wait_seconds_total", fields["waited_seconds"]),
            ("scar_actor_work_seconds_total", fields["worked_seconds"]),
        ):
            if value > 0:  # a counter takes nothing else
                self._metric(name).inc(value)
        for reason, rows in quarantined.items():
            self._metric("scar_rows_quarantined_total").inc(rows, tags={"reason": reason})
        self._metric("scar_units_left").set(self.units_left)
        self._metric(UNIT_SECONDS).observe(fields["worked_seconds"])

    def _metric(self, name: str) -> Any:  # noqa: ANN401 - Ray has no types
        """A metric, made when it is first needed."""
        from ray.util.metrics import Counter, Gauge, Histogram  # noqa: PLC0415

        if name not in self._metrics:
            keys = ("run", "reason") if name == "scar_rows_quarantined_total" else ("run",)
            if name in COUNTERS:
                made = Counter(name, description=COUNTERS[name], tag_keys=keys)
            elif name in GAUGES:
                made = Gauge(name, description=GAUGES[name], tag_keys=keys)
            else:
                made = Histogram(
                    name,
                    description="Seconds that an actor takes for a unit.",
                    boundaries=BOUNDARIES,
                    tag_keys=keys,
                )
            made.set_default_tags({"run": self.run})
            self._metrics[name] = made
        return self._metrics[name]


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
