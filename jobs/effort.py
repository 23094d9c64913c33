"""What a run's scoring took: rates, padding, and how long actors waited for work."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.events import tell

if TYPE_CHECKING:
    from jobs.score_stages import ScoredSidecar


@dataclass
class Effort:
    """Sums over the units that a run scored; times are those of actors, all together."""

    rows: int = 0
    tokens: int = 0
    """Of all texts, as the rows hold them."""
    encoded_tokens: int = 0
    """Real tokens that went through the encoder: equal texts of a unit go once."""
    computed_tokens: int = 0
    """Those and padding."""
    waited_seconds: float = 0.0
    worked_seconds: float = 0.0

    def add(self, result: ScoredSidecar) -> None:
        """Count one unit, and tell the metrics."""
        sidecar = result.sidecar
        self.rows += sidecar.unit.rows
        self.tokens += sidecar.tokens
        self.encoded_tokens += result.encoded_tokens
        self.computed_tokens += result.computed_tokens
        self.waited_seconds += result.waited_seconds
        self.worked_seconds += result.worked_seconds
        tell(
            "unit_scored",
            level=logging.DEBUG,
            rows=sidecar.unit.rows,
            tokens=sidecar.tokens,
            quarantined=sidecar.quarantined,
            waited_seconds=result.waited_seconds,
            worked_seconds=result.worked_seconds,
        )

    @property
    def wait_ratio(self) -> float:
        """Share of the actors' time spent waiting, in [0, 1]."""
        return self.waited_seconds / max(self.waited_seconds + self.worked_seconds, 1e-9)

    def figures(self, seconds: float) -> dict[str, Any]:
        """For the manifest and the report; `seconds` is how long scoring took, start included."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(seconds, 1),
            "rows_per_second": round(self.rows / max(seconds, 1e-9), 2),
            "tokens_per_second": round(self.tokens / max(seconds, 1e-9)),
            "computed_per_encoded_token": round(
                self.computed_tokens / max(self.encoded_tokens, 1), 4
            ),
            "actor_wait_ratio": round(self.wait_ratio, 4),
            "encoded_tokens": self.encoded_tokens,
            "actor_seconds": round(self.waited_seconds + self.worked_seconds, 3),
        }
