"""Places that the driver looks at, all at once, and the files that it put there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jobs.checks.findings import Limited
from jobs.checks.places import folders_of, try_folder, try_pool, try_ranker
from scar_core import stores
from scar_core.store_checks import take_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jobs.checks.places import Tried
    from jobs.doctor import DoctorConfig
    from scar_core.store_checks import Trial

LATE_SECONDS = 2.0
"""What comes after its time is waited for as long, where something hangs on it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A place that the driver is looking at."""

    name: str
    work: Limited[Tried]
    folder: str = ""
    """What would be written to, if anything."""

    @property
    def trial(self) -> Trial | None:
        """The file that was put, as soon as the work has ended."""
        try:
            return self.work.result().trial
        except Exception:  # noqa: BLE001 - one that fails leaves none
            return None


def look_around(config: DoctorConfig) -> Iterator[Look]:
    """Look at all places at once: a store that hangs costs its own time only."""
    seconds = config.check_seconds

    def work(name: str, attempt: Callable[[], Tried], folder: str = "") -> Look:
        return Look(name=name, work=Limited(attempt, seconds=seconds), folder=folder)

    if config.pool:
        yield work("pool", partial(try_pool, config.pool, config, config, seconds=seconds))
    if config.ranker:
        yield work("ranker", partial(try_ranker, config.ranker))
    for name, folder in folders_of(config).items():
        yield work(name, partial(try_folder, folder), folder)


def clocks_of_stores(
    looks: Sequence[Look], tried: Mapping[str, Tried]
) -> dict[str, tuple[float, float]]:
    """By folder, without secrets, how far its store's clock is before ours."""
    ahead = {}
    for look in looks:
        trial = tried[look.name].trial if look.name in tried else None
        if trial is not None and trial.ahead_seconds is not None:
            ahead[stores.without_secret(look.folder)] = trial.ahead_seconds
    return ahead


def taken_away(looks: Sequence[Look], *, seconds: float) -> str:
    """Remove the files that were put; which of them stay, or may.

    A look that is late gets a moment more: it may have put its file after its time was up.
    """
    until = time.monotonic() + LATE_SECONDS
    left, removals = [], []
    for look in looks:
        if not look.work.ended(until=until):
            left += [f"perhaps a file in {stores.without_secret(look.folder)}"] * bool(look.folder)
        elif (trial := look.trial) is not None:
            removals.append((trial, Limited(partial(take_away, trial), seconds=seconds)))
    for trial, removal in removals:
        try:
            gone = removal.result()
        except Exception:  # noqa: BLE001 - whatever it is, the file may be there
            gone = False
        if not gone:
            left.append(stores.without_secret(trial.path))
    return ", ".join(left)
