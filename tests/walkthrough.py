"""A user's way from quadruples to nightly selections, walked on one machine, and checked.

SeaweedFS is the object store; a Ray head without work and three workers are processes of their own,
two of them with a GPU in name; a token is asked for. `ray job submit` runs the very commands of
cluster/'s manifests, with values of the walk-through put in: a training, a curation, then nights on
a schedule while the pool grows, workers come and go, and two runs meet. Exits with 1 if anything is
off; whatever was started is ended by process id.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests import manifests
from tests.s3_server import SECRET_KEY, s3_server
from tests.walk_checks import check_secrets, check_turned_away
from tests.walk_cluster import Cluster
from tests.walk_processes import TMP, end_marked, marked
from tests.walk_steps import COLUMNS, Step, Walk
from tests.walk_world import World, growth, the_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.walk_processes import Submission

FIRST_DAY = "2026-11-01"
NIGHTS = {"2026-11-02": 1200, "2026-11-03": 2400, "2026-11-04": 600}
"""New rows by day. The second night is the long one: runs meet in it, and a worker leaves."""


def main(argv: Sequence[str] | None = None) -> int:
    """Walk, print the table; 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(prog="tests.walkthrough", description=__doc__)
    parser.add_argument(
        "--every", type=float, default=60.0, help="seconds between two nights (default 60)"
    )
    options = parser.parse_args(argv)
    # Also one that is told to end takes down what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    mark = secrets.token_hex(8)
    with ExitStack() as stack:
        walk = set_up(stack, mark)
        # Also of a walk that is broken off.
        stack.callback(lambda: print(table_of(walk.steps), flush=True))
        try:
            go(walk, every=options.every)
            walk.cluster.end()
            walk.compare_with_laptop()
            look_back(walk)
        except (RuntimeError, OSError) as error:
            walk.checks.equal(f"{walk.steps[-1].name if walk.steps else 'start'}, and on", error, 0)
    walk.checks.equal("processes that are left", marked(mark), [])
    wrong, minutes = walk.checks.wrong, (time.monotonic() - started) / 60
    print(f"\n{walk.checks.right} checks hold, {len(wrong)} do not; {minutes:.1f} minutes")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def set_up(stack: ExitStack, mark: str) -> Walk:
    """Server, head, two workers, config files; all of it goes when the stack closes."""
    # A short path: the names of Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="walk-", dir=TMP))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    (folder / "logs").mkdir()
    server = stack.enter_context(s3_server(folder / "s3"))
    stack.callback(end_marked, mark)
    cluster = Cluster(
        folder=folder / "ray",
        mark=mark,
        token=secrets.token_hex(32),
        storage=server.environment(),
    )
    cluster.start()
    cluster.join("cpu-1", group="cpu", cpus=2)
    cluster.join("gpu-1", group="gpu", cpus=1, gpus=1)
    world = World(
        folder=folder,
        store=server.filesystem(),
        dashboard=cluster.dashboard,
        token=cluster.token,
    )
    world.write_config()
    walk = Walk(world=world, cluster=cluster)
    outcome = f"a head without work at {cluster.dashboard}, workers cpu-1 and gpu-1, a bucket"
    walk.tell(Step(name="cluster", outcome=outcome))
    return walk


def go(walk: Walk, *, every: float) -> None:
    """The way itself."""
    world = walk.world
    sample = the_sample(world.folder / "sample")
    walk.refuse_without_token()
    world.upload_quads()
    new = walk.grow(FIRST_DAY, sample)
    walk.train()
    walk.curate("curate", world.entrypoint("rayjob-curate.yaml"), new=new)
    during: list[Callable[[Submission], None] | None] = [
        lambda night: walk.join_late("gpu-2", night),
        lambda night: walk.meet_and_lose("gpu-1", night),
        None,
    ]
    schedule = Schedule(every)
    tables = growth(sample, list(NIGHTS.values()))
    for number, (day, table) in enumerate(zip(NIGHTS, tables, strict=True), start=1):
        schedule.wait(walk)
        new = walk.grow(day, table)
        walk.curate(f"night {number}", world.nightly(), new=new, during=during[number - 1])


class Schedule:
    """Strikes at equal intervals, as the CronJob's policy has it.

    A night that is due while the last one runs does not start; the newest that was missed starts
    when it is over, as it does within `startingDeadlineSeconds`.
    """

    def __init__(self, every: float) -> None:
        [manifest] = manifests.read(manifests.CLUSTER / "cronjob-curate.yaml")
        assert manifest["spec"]["concurrencyPolicy"] == "Forbid"
        assert manifest["spec"]["startingDeadlineSeconds"] > every
        self.every = every
        self.due = time.monotonic()

    def wait(self, walk: Walk) -> None:
        """Return when the next night is to start."""
        late = time.monotonic() - self.due
        if late < 0:
            time.sleep(-late)
        passed = int(max(late, 0.0) // self.every)
        self.due += (passed + 1) * self.every
        if late > 1:
            missed = f"{passed} more skipped" if passed else "none skipped"
            outcome = (
                f"due {late - passed * self.every:.0f} s ago; kept back while the last night ran "
                f"(concurrencyPolicy: Forbid), {missed}"
            )
            walk.tell(Step(name="schedule", outcome=outcome))


def look_back(walk: Walk) -> None:
    """What must hold of everything that was written."""
    check_turned_away(walk.world, walk.checks, published=1 + len(NIGHTS))
    folders = [walk.world.folder / "logs", walk.cluster.folder]
    secret = (SECRET_KEY, walk.cluster.token)
    objects, files = check_secrets(walk.world, walk.checks, secret, folders)
    outcome = f"{objects:,} objects, {files:,} logs and files of Ray searched for key and token"
    walk.tell(Step(name="secrets", outcome=outcome))


def table_of(steps: Sequence[Step]) -> str:
    """The walk in one table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 2) + "---|"]
    return "\n".join(["", *lines, *map(str, steps)])


if __name__ == "__main__":
    sys.exit(main())
