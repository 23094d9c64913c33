"""Progress of long work as lines a person can read, on a terminal and in `ray job logs`."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from jobs.events import tell

logger = logging.getLogger("scar_curate")

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts rows and tokens and logs a line now and then, never more than one in ten seconds."""

    def __init__(
        self, *, total_rows: int, done_rows: int = 0, told: str = "scored {} rows"
    ) -> None:
        """`told` is what happens to so many rows, or to whatever else is counted."""
        self.told = told
        self.total_rows = total_rows
        self.done_rows = done_rows
        self.new_rows = 0
        self.new_tokens = 0
        self.started = self.last_line = time.monotonic()

    @property
    def unit(self) -> str:
        """The word for what is counted."""
        return self.told.rpartition(" ")[2]

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
            tell(
                "progress",
                rows_done=self.done_rows,
                rows_total=self.total_rows,
                rows_per_second=round(self.rows_per_second, 1),
                tokens_per_second=round(self.tokens_per_second),
                seconds_left=round(self.seconds_left),
            )

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return self.new_rows / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Of this run."""
        return self.new_tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """At this rate."""
        return (self.total_rows - self.done_rows) / max(self.rows_per_second, 1e-9)

    def line(self) -> str:
        """Rows, rates, share done, time left."""
        return (
            f"{self.told.format(f'{self.done_rows:,} of {self.total_rows:,}')} "
            f"({self.done_rows / max(self.total_rows, 1):.1%}), "
            f"{self.rows_per_second:,.1f} {self.unit}/s, {self.tokens_per_second:,.0f} tokens/s, "
            f"{timedelta(seconds=round(self.seconds_left))} left"
        )

    def finish(self) -> None:
        """The last line: what this run did and how fast."""
        logger.info(
            "%s in %s: %s %s/s, %s tokens/s",
            self.told.format(f"{self.new_rows:,}"),
            timedelta(seconds=round(self.seconds)),
            f"{self.rows_per_second:,.1f}",
            self.unit,
            f"{self.tokens_per_second:,.0f}",
        )
