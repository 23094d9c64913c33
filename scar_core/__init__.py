"""The core of SCAR Curate: everything but the cluster. Imports no room before it is asked for one.

Rooms, each importing only from lines above its own; a folder's own docstring lists what is in it:

errors          the tree of errors an operator can fix
local_files     files of this machine, written whole or not at all
stores          how stores are reached: options, credentials, retries, their errors
storage         one door to files, local and object storage
processes       processes of this machine, and whether they are gone
lease_terms     the chain of terms of a lease, as it is stored
lease           one run at a time on a curation
store_checks    whether stores can be read and written, asked before a start
manifest        publish and open: data first, manifest last
tables          tables as files, with what a manifest says of them
pool/           rows to be scored: files, units, sidecars
ranker/         the model: texts to tokens, encoders, heads, a ranker directory
training/       quadruples to a ranker
scoring         Scorer: pairs → scores, in input order
style/          style in figures: form metrics, consistency, surprisal
selection/      exactly the best rows, from sidecars alone
library         the job in one process: rows in memory scored, the best kept

Words: a *pair* is one (instruction, response) row of a pool; a *quadruple* an instruction with its
human, referenced and direct responses; *form* what a response looks like, *surprisal* how it
follows from its instruction; the *score* is higher the closer a response is to direct style and
quality; a *unit* is a range of rows of one file, its scores a *sidecar*; rows that cannot be
scored are *quarantined* with a reason; a *run* publishes one directory, its manifest last.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scar_core.library import ScoredRows, curate, score_rows
    from scar_core.pool.rows import PairColumns
    from scar_core.scoring import Scorer, ScoringConfig

__all__ = ["PairColumns", "ScoredRows", "Scorer", "ScoringConfig", "curate", "score_rows"]

_ROOMS = {
    "PairColumns": "scar_core.pool.rows",
    "ScoredRows": "scar_core.library",
    "Scorer": "scar_core.scoring",
    "ScoringConfig": "scar_core.scoring",
    "curate": "scar_core.library",
    "score_rows": "scar_core.library",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has that name
    """Import what is asked for when it is: `from scar_core import Scorer` loads torch, no other."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
