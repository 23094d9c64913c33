"""A seeded storm: real pools on a real S3 server, three Ray nodes, and a fault in every run.

Each run is interrupted at a random moment, resumed where it did not end well by itself, and
compared with an undisturbed run: rows, order, counts. Exits with 1 if a single row differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.jobs_harness import ROOT
from tests.storm_faults import FAULTS, STORE_FAULTS, strike, wait_for_the_moment
from tests.storm_world import set_up

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.storm_world import Result, Storm

DATA = ROOT.parent / "shared/data"
TRIES = 3


@dataclass(kw_only=True)
class Outcome:
    """What became of one run."""

    fault: str
    by_itself: bool = False
    recovered: bool = False
    lost: int = 0
    doubled: int = 0
    differs: list[str] = field(default_factory=list)
    twice: int = 0
    """Units whose finished sidecar was written again."""
    resumes: int = 0

    @property
    def right(self) -> bool:
        """Whether it ended as if nothing had happened."""
        return self.recovered and not (self.lost or self.doubled or self.differs)


def main(argv: Sequence[str] | None = None) -> int:
    """Blow, print the table; 0 if every run ended right."""
    parser = argparse.ArgumentParser(prog="tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of faults and moments (default 1)")
    parser.add_argument("--runs", type=int, default=28, help="interrupted runs (default 28)")
    parser.add_argument(
        "--whole", type=int, default=2, help="how many, the last, take all rows (default 2)"
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the real pools (default ../shared/data)"
    )
    options = parser.parse_args(argv)
    if not options.data.exists():
        print(f"skipped: the real pools are not there ({options.data})")
        return 0
    os.environ.update(
        RAY_AUTH_MODE="disabled", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", HF_HUB_OFFLINE="1"
    )
    # Also one that is told to end takes down what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        storm = set_up(stack, options.seed, data=options.data)
        outcomes: list[Outcome] = []
        # Also of a storm that is broken off.
        stack.callback(lambda: print(table_of(outcomes), flush=True))
        for number, fault in enumerate(_deck(storm.rng, options.runs)):
            pool = "part" if number < options.runs - options.whole else "whole"
            if pool not in storm.references:
                storm.run_undisturbed(pool)
            outcomes.append(_blow(storm, f"run-{number}", fault, pool))
    return 0 if all(outcome.right for outcome in outcomes) else 1


def _deck(rng: random.Random, runs: int) -> list[str]:
    """Each fault about equally often, in random order."""
    deck: list[str] = []
    while len(deck) < runs:
        deck += rng.sample(FAULTS, len(FAULTS))
    return deck[:runs]


def _blow(storm: Storm, name: str, fault: str, pool: str) -> Outcome:
    """One run with its fault, resumed if need be, compared."""
    started = time.monotonic()
    outcome = Outcome(fault=fault)
    storm.cluster.restore()
    storm.proxy.forget()
    job = storm.start(name, pool)
    moment = wait_for_the_moment(storm, job, fault, units=storm.references[pool].units)
    strike(storm, job, name, fault)
    code = job.wait(seconds=900)
    storm.proxy.faults.clear()
    if fault not in STORE_FAULTS:  # there the client repeats its own puts, too
        outcome.twice = sum(times > 1 for times in storm.puts().values())
    outcome.by_itself = code == 0
    while code and outcome.resumes < TRIES:
        outcome.resumes += 1
        code = _resume(storm, name, pool, outcome)
    outcome.recovered = code == 0
    if outcome.recovered:
        compare(storm.result(name), storm.references[pool], outcome)
    _report(storm, name, outcome, f"{pool}, {moment}, {time.monotonic() - started:.0f} s")
    return outcome


def _resume(storm: Storm, name: str, pool: str, outcome: Outcome) -> int:
    """Start again on a calm day; its exit code."""
    time.sleep(2)  # what a killed driver left behind notices that it is gone
    storm.cluster.restore()
    finished = storm.finished(name)
    storm.proxy.forget()
    code = storm.start(name, pool).wait(seconds=900)
    outcome.twice += sum(unit in finished for unit in storm.puts())
    return code


def compare(found: Result, wanted: Result, outcome: Outcome) -> None:
    """Rows, order and counts against those of the undisturbed run, into the outcome."""
    there = Counter(found.rows["row_id"].to_pylist())
    due = Counter(wanted.rows["row_id"].to_pylist())
    outcome.lost = sum((due - there).values())
    outcome.doubled = sum((there - due).values())
    if not found.rows.equals(wanted.rows):
        outcome.differs.append("rows or order")
    if found.counts != wanted.counts:
        outcome.differs.append(f"counts {found.counts}, not {wanted.counts}")


def _report(storm: Storm, name: str, outcome: Outcome, when: str) -> None:
    end = "by itself" if outcome.by_itself else f"after {outcome.resumes} resumes"
    print(
        f"{name}: {outcome.fault}, {when}: {'right' if outcome.right else 'WRONG'} {end}, "
        f"{outcome.twice} units twice {'; '.join(outcome.differs)}",
        flush=True,
    )
    if not outcome.right:
        print((storm.folder / f"{name}.log").read_text("utf-8", errors="replace")[-5000:])


def table_of(outcomes: Sequence[Outcome]) -> str:
    """The storm in one table: a line per fault, and the sum."""
    titles = ("times", "by itself", "resumed", "not", "rows lost", "doubled", "differ", "twice")
    lines = [f"{'fault':24}" + "".join(f"{title:>11}" for title in titles)]
    for fault in (*FAULTS, "all"):
        of_fault = [o for o in outcomes if fault in (o.fault, "all")]
        numbers = (
            len(of_fault),
            sum(o.by_itself for o in of_fault),
            sum(o.recovered and not o.by_itself for o in of_fault),
            sum(not o.recovered for o in of_fault),
            sum(o.lost for o in of_fault),
            sum(o.doubled for o in of_fault),
            sum(bool(o.differs) for o in of_fault),
            sum(o.twice for o in of_fault),
        )
        lines.append(f"{fault:24}" + "".join(f"{number:>11,}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
