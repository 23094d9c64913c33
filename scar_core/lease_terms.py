"""The chain of terms of a lease, as it is stored: each is put once and never changed.

lease/terms/000000007.json    who holds it, or that it is free; the highest number counts
lease/alive/<holder>.json     a count that the holder raises while it lives
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from scar_core import storage
from scar_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Term:
    """One entry of a lease's chain."""

    number: int
    """Counts up from 1."""
    holder: str
    """Unique to one `hold`; also names its sign of life."""
    who: str
    """For people: machine and process."""
    process: str
    """For the same machine: what `own_process` says."""
    since: str
    """When the holder got the lease, by its own clock: told to people, compared with nothing."""
    lease_seconds: float
    """How long its sign of life must stand still before the lease may be taken over."""
    free: bool = False
    """The holder is done; the next may take the lease at once."""


def latest_term(folder: str) -> Term | None:
    """The term that counts, None where there was none yet."""
    files = storage.list_files(storage.join(folder, "terms"), suffixes=(".json",))
    if not files:
        return None
    number = max(int(file.path.rpartition("/")[2].partition(".")[0]) for file in files)
    return read_term(folder, number)


def last_after(folder: str, term: Term) -> Term:
    """The last term of a chain, from one of its terms on."""
    while (following := read_term(folder, term.number + 1)) is not None:
        term = following
    return term


def put_term(folder: str, term: Term) -> bool:
    """Store a term where none of its number is; whether it is this one that is there now."""
    return storage.write_bytes_if_absent(
        _term_path(folder, term.number), json.dumps(asdict(term), indent=1).encode()
    )


def read_term(folder: str, number: int) -> Term | None:
    """A term by its number, None where there is none.

    Raises:
        InputError: somebody else's file.
    """
    path = _term_path(folder, number)
    try:
        return Term(**json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is no term of a lease that this version knows ({error}). When no run is "
            f"under way, move {folder} away and start again."
        ) from error


def sign_of_life(folder: str, term: Term) -> bytes:
    """What a holder wrote last to show that it lives: other bytes, another sign."""
    try:
        return storage.read_bytes(alive_path(folder, term))
    except FileNotFoundError:  # it has just started
        return b""


def _term_path(folder: str, number: int) -> str:
    return storage.join(folder, "terms", f"{number:09d}.json")


def alive_path(folder: str, term: Term) -> str:
    """The file that shows that a term's holder lives; only the holder writes it."""
    return storage.join(folder, "alive", f"{term.holder}.json")
