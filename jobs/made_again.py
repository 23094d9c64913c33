"""A published selection made again from its sidecars, by the options that its manifest holds."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.actors import ActorConfig
from jobs.find_copies import scratch
from jobs.rescore import Rescorer
from jobs.settled import SelectOptions, settled
from scar_core import storage
from scar_core.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.passes import Judged
    from jobs.scored_pool import Scores
    from jobs.select_stages import Rows, ScoredUnit


class MissingError(RunError):
    """A score that decided a selection is not there any more."""


@dataclass(frozen=True, kw_only=True)
class Done(Rescorer):
    """Rows that were scored again in fp32, and no others: here nothing is scored."""

    def score_again(self, units: Sequence[ScoredUnit], rows: Rows) -> int:
        """Refuse; every row that decides was scored again when the run was made.

        Raises:
            MissingError: always.
        """
        missing = sum(map(len, rows.values()))
        raise MissingError(
            f"{self.scores}: {missing:,} rows near the threshold have no fp32 score, of "
            f"{len(units):,} units. Select again: it scores them."
        )


def options_of(manifest: dict[str, Any]) -> SelectOptions:
    """What a selection kept; an older version's manifest lacks what it had no flag for."""
    given = manifest["config"]
    names = [name for name in SelectOptions.__dataclass_fields__ if name in given]
    return SelectOptions(**{name: given[name] for name in names})


@contextmanager
def made_again(
    folder: str, options: SelectOptions, scores: Scores
) -> Iterator[tuple[list[ScoredUnit], Judged]]:
    """The units and the selection that their scores lead to, for the length of a block.

    Args:
        folder: of the run; must be writable where copies are left out, for what tasks pass on.
        options: of the run.
        scores: that it was made from.

    Raises:
        MissingError: a score is gone.
        IncompleteError: the sidecars hold other rows than the manifest says.
        InputError: the pool is not as it was, where it is needed.
    """
    rescorer = Done(
        scores=storage.locate(scores.manifest["files_below"], base=scores.folder),
        key_id=scores.manifest["key_id"],
        ranker="",
        columns=scores.columns,
        max_tokens=scores.manifest["key"]["max_tokens"],
        actors=ActorConfig(),
    )
    # Two at once have a folder each.
    with scratch(folder, name=f"scratch-{secrets.token_hex(4)}") as exchange:
        units, judged, _ = settled(scores, options, rescorer, exchange=exchange)
        yield units, judged
