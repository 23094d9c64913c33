"""What a scoring run has finished and quarantined so far; stops a run that may not go on."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from scar_core import storage
from scar_core.pool.filters import bad_rows
from scar_core.pool.quarantine import check_losses, refuse_row

if TYPE_CHECKING:
    from jobs.score import ScoreConfig
    from jobs.score_plan import Plan
    from scar_core.pool.files import BadFile
    from scar_core.pool.sidecars import Sidecar

logger = logging.getLogger("scar_curate")


class Tally:
    """Finished sidecars, quarantined rows and files of a run."""

    def __init__(self, config: ScoreConfig, plan: Plan) -> None:
        self.config = config
        self.finished: dict[str, Sidecar] = {}
        """By unit id."""
        self.bad_files: dict[str, BadFile] = {}
        """By path: those that turned bad after the plan was made."""
        self._plan = plan
        self._rows_in = plan.rows
        self._quarantined: Counter[str] = Counter()
        """Rows by path."""
        self._bad_rows = sum(file.rows or 0 for file in plan.bad_files)
        """Quarantined ones, and those of bad files."""

    def add(self, sidecar: Sidecar) -> None:
        """Count a finished unit.

        Raises:
            InputError: a row is bad and none may be.
            RunError: more is quarantined than may be.
        """
        self.finished[sidecar.unit.id] = sidecar
        bad = bad_rows(sidecar.quarantined)
        if not bad or sidecar.unit.path in self.bad_files:
            return
        if self.config.on_bad_row == "fail":
            refuse_row(storage.absolute(self.config.out), sidecar, self._plan.columns)
        self._quarantined[sidecar.unit.path] += bad
        self._bad_rows += bad
        # Cheap first: the exact check adds up all bad files.
        if self._bad_rows > self._rows_in * self.config.max_bad_ratio:
            self._check()

    def add_file(self, file: BadFile) -> None:
        """Count a file that could not be read any more, once.

        Raises:
            RunError: more is quarantined than may be.
        """
        if file.path in self.bad_files:
            return
        logger.warning("quarantined: %s", file.message)
        self.bad_files[file.path] = file
        rows = file.rows or 0
        self._rows_in -= rows
        self._bad_rows += rows - self._quarantined.pop(file.path, 0)
        self._check()

    def _check(self) -> None:
        check_losses(
            self.config,
            rows_in=self._rows_in,
            quarantined_rows=self._quarantined.total(),
            files_in=self._plan.files_in,
            bad_files=[*self._plan.bad_files, *self.bad_files.values()],
        )
