"""A scorer in a child process: rows that break it are found, and no other row pays for them."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.guarded import Fault, GuardedScorer
from scar_core.errors import RankerError, RunError
from scar_core.ranker.encoding import TokenRows
from tests.faulty_scorers import (
    EXITS,
    HANGS,
    KILLED,
    RAISES,
    Broken,
    Forgetful,
    OnGpu,
    PlainScorer,
    Slow,
    dies_at_load,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from jobs.guarded import Guarded

ROOT = Path(__file__).parent.parent

FAILED = Fault("failed", "ValueError: this row is not liked")
EXITED = Fault("crashed", "the scoring process ended by exit code 7")
WAS_KILLED = Fault("crashed", "the scoring process ended by SIGKILL")


def tokens(*rows: int) -> TokenRows:
    """Rows of two tokens each, the second one given."""
    ids = np.array([(1, row) for row in rows], np.int32).reshape(-1)
    return TokenRows(ids, np.arange(len(rows) + 1) * 2, np.zeros(len(rows), np.int32))


def scored(scorer: GuardedScorer, *rows: int) -> Guarded:
    """What becomes of rows."""
    return scorer.score_tokens(tokens(*[0] * len(rows)), tokens(*rows))


def plain(*rows: int) -> NDArray[np.float32]:
    """What an undisturbed scorer makes of good rows."""
    return PlainScorer().score_tokens(tokens(*[0] * len(rows)), tokens(*rows))


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedScorer]:
    scorer = GuardedScorer(PlainScorer, stall_seconds=1.5)
    yield scorer
    scorer.close()


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ({}, None),
        ({5: RAISES}, FAILED),
        ({0: RAISES, 1: RAISES, 8: RAISES}, FAILED),
        ({6: EXITS}, EXITED),
        ({2: KILLED}, WAS_KILLED),
        ({4: HANGS}, Fault("timed_out", "no batch was finished within 1.5 s")),
    ],
    ids=["none", "one raises", "three raise", "exits", "is killed", "hangs"],
)
def test_rows_at_fault_are_found_and_the_others_scored_together(
    guarded: GuardedScorer, bad: dict[int, int], fault: Fault | None
) -> None:
    """As if the bad rows had never been there, to the bit."""
    rows = [bad.get(position, 10 + position) for position in range(9)]
    scores_K, faults = scored(guarded, *rows)
    assert faults == dict.fromkeys(bad, fault)
    good = [position for position in range(9) if position not in bad]
    assert scores_K[good].tolist() == plain(*(rows[position] for position in good)).tolist()
    assert np.isnan(scores_K[sorted(bad)]).all()


def test_each_row_has_its_own_fault(guarded: GuardedScorer) -> None:
    """Several kinds in one unit, and nothing but faulty rows."""
    assert scored(guarded, RAISES, EXITS).faults == {0: FAILED, 1: EXITED}
    assert scored(guarded, KILLED).faults == {0: WAS_KILLED}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([3, 4, RAISES]), max_size=70))
def test_no_row_vanishes(guarded: GuardedScorer, rows: list[int]) -> None:
    """Each row either has the score that the good rows alone would have, or a fault."""
    scores_K, faults = scored(guarded, *rows)
    assert sorted(faults) == [place for place, row in enumerate(rows) if row == RAISES]
    good = [row for row in rows if row != RAISES]
    expected = plain(*good).tolist() if good else []
    assert scores_K[~np.isnan(scores_K)].tolist() == expected


def test_what_happens_once_is_nobodys_fault(tmp_path: Path) -> None:
    """Memory ran out for a moment, say: same scores as if it had not."""
    scorer = GuardedScorer(partial(Forgetful, str(tmp_path / "seen")), stall_seconds=60)
    scores_K, faults = scored(scorer, 3, 4, 5)
    scorer.close()
    assert (tmp_path / "seen").exists()
    assert (scores_K.tolist(), faults) == (plain(3, 4, 5).tolist(), {})


def test_a_machine_that_cannot_score_breaks_the_run_and_blames_no_row() -> None:
    """A broken GPU must not quarantine a pool."""
    scorer = GuardedScorer(Broken, stall_seconds=60)
    with pytest.raises(RunError, match=r"known good row.*device-side assert.*No row is blamed"):
        scored(scorer, 3, 4)
    scorer.close()


def test_a_gpus_error_does_not_stick() -> None:
    """The next piece is scored by a new process."""
    scorer = GuardedScorer(OnGpu, stall_seconds=60)
    assert scored(scorer, 3, RAISES, 4).faults == {1: FAILED}
    scorer.close()


def test_slow_is_not_stalled() -> None:
    """Five seconds in batches of half a second: the limit is for a batch, not for a unit."""
    scorer = GuardedScorer(Slow, stall_seconds=2.5)
    scores_K, faults = scored(scorer, 3, 4)
    scorer.close()
    assert (scores_K.tolist(), faults) == (plain(3, 4).tolist(), {})


def refuses() -> PlainScorer:
    """A ranker that this version cannot load."""
    raise RankerError("ranker/: no config.json")


def fails() -> PlainScorer:
    """A bug."""
    raise KeyError("weights")


def test_a_ranker_that_cannot_be_loaded_is_an_error() -> None:
    """Of its own class where it has one, and one that says what to do where it died."""
    with pytest.raises(RankerError, match=r"ranker/: no config\.json"):
        GuardedScorer(refuses, stall_seconds=60)
    with pytest.raises(RunError, match="KeyError: 'weights'"):
        GuardedScorer(fails, stall_seconds=60)
    with pytest.raises(RunError, match="SIGKILL while it loaded the ranker"):
        GuardedScorer(dies_at_load, stall_seconds=60)


def test_the_child_does_not_outlive_its_parent() -> None:
    """An actor may be killed with a batch under way; nobody would end its child."""
    code = (
        "from tests.test_guarded import *\n"
        "scorer = GuardedScorer(PlainScorer, stall_seconds=60)\n"
        "scorer._connection.send((tokens(0), tokens(HANGS)))\n"
        "print(scorer._child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while child.exists():
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.1)
