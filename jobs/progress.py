"""Progress of long work as lines a person can read, on a terminal and in `ray job logs`."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

logger = logging.getLogger("scar_curate")

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts rows and tokens and logs a line now and then, never more than one in ten seconds."""

    def __init__(self, *, total_rows: int, done_rows: int = 0) -> None:
        self.total_rows = total_rows
        self.done_rows = done_rows
        self.new_rows = 0
        self.new_tokens = 0
        self.started = self.last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def advance(self, *, rows: int, tokens: int) -> None:
        """Count finished rows, and tell if it is time to."""
        self.done_rows += rows
        self.new_rows += rows
        self.new_tokens += tokens
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """Rows, rates, share done, time left."""
        rows_per_second = self.new_rows / max(self.seconds, 1e-9)
        left_seconds = (self.total_rows - self.done_rows) / max(rows_per_second, 1e-9)
        return (
            f"scored {self.done_rows:,} of {self.total_rows:,} rows "
            f"({self.done_rows / max(self.total_rows, 1):.1%}), {rows_per_second:,.1f} rows/s, "
            f"{self.new_tokens / max(self.seconds, 1e-9):,.0f} tokens/s, "
            f"{timedelta(seconds=round(left_seconds))} left"
        )

    def finish(self) -> None:
        """The last line: what this run did and how fast."""
        logger.info(
            "scored %s rows in %s: %s rows/s, %s tokens/s",
            f"{self.new_rows:,}",
            timedelta(seconds=round(self.seconds)),
            f"{self.new_rows / max(self.seconds, 1e-9):,.1f}",
            f"{self.new_tokens / max(self.seconds, 1e-9):,.0f}",
        )
