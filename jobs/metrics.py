"""The events of a run as Ray metrics, which each node of a cluster offers to Prometheus.

Ray puts `ray_` before each name: `ray_scar_rows_scored_total`. They are the driver's, count from
the start of the job, and are seen some ten seconds late, as all of Ray's metrics are. The label
`run` is that of the events; it makes no more series than Ray's own label of the process does.

A counter stays on its node until Ray stops there. A gauge is forgotten twenty seconds after it was
set, so it is set again and again for as long as its run lasts.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTERS = {
    "scar_rows_scored_total": "Rows that got a score.",
    "scar_tokens_total": "Tokens of the texts that were scored.",
    "scar_encoded_tokens_total": "Real tokens that went through the encoder.",
    "scar_computed_tokens_total": "Tokens that the encoder computed, padding included.",
    "scar_rows_quarantined_total": "Rows that could not be scored, by reason.",
    "scar_units_done_total": "Units that were scored.",
    "scar_rows_rescored_total": "Rows that were scored again in fp32.",
    "scar_actor_wait_seconds_total": "Seconds in which scoring actors waited for a unit.",
    "scar_actor_work_seconds_total": "Seconds in which scoring actors scored.",
}
GAUGES = {
    "scar_units_left": "Units that are not scored yet.",
    "scar_rows_left": "Rows of the units that are not scored yet.",
    "scar_rows_selected": "Rows that the selection holds.",
    "scar_drift_psi": "Population stability index of the new rows' scores against the run before.",
}
UNIT_SECONDS = "scar_unit_seconds"
SECONDS_BETWEEN_SETS = 5.0
BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class RayMetrics(logging.Handler):
    """Events in, metrics out; nothing where no cluster is connected."""

    def __init__(self, run: str) -> None:
        super().__init__(logging.DEBUG)
        self.run = run
        self.units_left = self.rows_left = 0
        self._metrics: dict[str, Any] = {}
        self._gauges: dict[str, float] = {}
        """What each of them shows now."""
        self._setting = threading.Lock()
        self._ended = threading.Event()
        self._setter = threading.Thread(target=self._set_again, daemon=True)
        self._setter.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Count what an event tells."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        event = record.getMessage()
        if not _is_connected():
            return
        if event == "scoring_started":
            self._set_left(units=fields["units"], rows=fields["rows"])
        elif event == "scoring_finished":
            # Units of files that turned bad meanwhile were never scored.
            self._set_left(units=0, rows=0)
        elif event == "unit_scored":
            self._count_unit(fields)
        elif event == "rows_rescored":
            self._metric("scar_rows_rescored_total").inc(fields["rows"])
        elif event == "rows_selected":
            self._set("scar_rows_selected", fields["selected"])
        elif event == "compared":
            found = fields["before"].get("drift", {}).get("new_rows")
            if found is not None:
                self._set("scar_drift_psi", found["psi"])

    def _set_left(self, *, units: int, rows: int) -> None:
        self.units_left, self.rows_left = units, rows
        self._set("scar_units_left", units)
        self._set("scar_rows_left", rows)

    def _count_unit(self, fields: Mapping[str, Any]) -> None:
        quarantined: dict[str, int] = fields["quarantined"]
        self._set_left(units=self.units_left - 1, rows=self.rows_left - fields["rows"])
        for name, value in (
            ("scar_rows_scored_total", fields["rows"] - sum(quarantined.values())),
            ("scar_tokens_total", fields["tokens"]),
            ("scar_encoded_tokens_total", fields["encoded_tokens"]),
            ("scar_computed_tokens_total", fields["computed_tokens"]),
            ("scar_units_done_total", 1),
            ("scar_actor_wait_seconds_total", fields["waited_seconds"]),
            ("scar_actor_work_seconds_total", fields["worked_seconds"]),
        ):
            if value > 0:  # a counter takes nothing else
                self._metric(name).inc(value)
        for reason, rows in quarantined.items():
            self._metric("scar_rows_quarantined_total").inc(rows, tags={"reason": reason})
        self._metric(UNIT_SECONDS).observe(fields["worked_seconds"])

    def _set(self, gauge: str, value: float) -> None:
        with self._setting:
            self._gauges[gauge] = value
            self._metric(gauge).set(value)

    def _set_again(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SETS):
            with self._setting:
                for gauge, value in self._gauges.items() if _is_connected() else ():
                    self._metric(gauge).set(value)

    def close(self) -> None:
        """Let the gauges go: nothing is set after this."""
        self._ended.set()
        self._setter.join(timeout=5)
        super().close()

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
