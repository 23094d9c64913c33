"""The steps of the walk-through: a manifest's command is run, what came of it checked and told."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.s3_server import BUCKET
from tests.walk_checks import Checks, check_run, check_same_as_laptop
from tests.walk_processes import Submission, own_environment
from tests.walk_world import World, run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from tests.walk_cluster import Cluster
    from tests.walk_world import Pod

COLUMNS = ("step", "new", "scored", "selected", "seconds", "what came of it")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A line of the table."""

    name: str
    outcome: str
    new: int | None = None
    """Rows that the pool has gained."""
    scored: int | None = None
    selected: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        """As a row of a Markdown table."""
        counts = (self.new, self.scored, self.selected, self.seconds)
        cells = ["" if count is None else f"{count:,.0f}" for count in counts]
        return f"| {' | '.join([self.name, *cells, self.outcome])} |"


@dataclass(kw_only=True)
class Walk:
    """The way so far."""

    world: World
    cluster: Cluster
    checks: Checks = field(default_factory=Checks)
    steps: list[Step] = field(default_factory=list)
    newest: str = ""
    """The last run that published a selection."""

    def tell(self, step: Step) -> None:
        """Take a step into the table."""
        self.steps.append(step)
        print(f"  {step.outcome}", flush=True)

    def submit(self, name: str, pod: Pod) -> Submission:
        """Run a pod's command as its container would: it has the token and no key of the store."""
        print(f"\n{name}\n$ {pod}", flush=True)
        environment = own_environment(f"{self.cluster.mark}.{name}", self.world.folder / "pods")
        log = self.world.folder / "logs" / f"{name.replace(' ', '-')}.log"
        return Submission(pod.command, environment=environment | pod.environment, log=log)

    def refuse_without_token(self) -> None:
        """Nobody submits who does not know the token."""
        there = self.cluster.ask("/api/jobs/")
        answer = self.cluster.ask("/api/jobs/", token="of-another-cluster")  # noqa: S106 - wrong
        self.checks.equal("jobs are listed with the token", there is not None, True)
        self.checks.equal("and not with another one", answer, None)

    def train(self) -> None:
        """The RayJob of a training."""
        started = time.monotonic()
        self._finish(self.submit("train", self.world.entrypoint("rayjob-train.yaml")))
        manifest = self.world.json(f"{BUCKET}/ranker/manifest.json")
        accuracy = manifest["metrics"]["validation_accuracy"]
        outcome = (
            f"{manifest['counts']['train']:,} quadruples, validation accuracy {accuracy:.0%}; "
            f"s3://{BUCKET}/ranker"
        )
        self.tell(Step(name="train", outcome=outcome, seconds=time.monotonic() - started))

    def curate(
        self,
        name: str,
        pod: Pod,
        *,
        new: int,
        during: Callable[[Submission], None] | None = None,
    ) -> None:
        """A curation of what the pool holds now; `during` happens while it is under way."""
        started = time.monotonic()
        submission = self.submit(name, pod)
        if during is not None:
            during(submission)
        self._finish(submission)
        self.newest = run_of(submission.told())
        done = check_run(self.world, self.checks, self.newest, new=new)
        self.tell(
            Step(
                name=name,
                outcome=f"latest.json names {self.newest}",
                new=new,
                scored=done.scored,
                selected=done.selected,
                seconds=time.monotonic() - started,
            )
        )

    def grow(self, day: str, table: pa.Table) -> int:
        """Let the pool have a day's rows more; how many."""
        new = self.world.grow(day, table)
        self.tell(Step(name="upload", outcome=f"s3://{BUCKET}/pool/dt={day}/", new=new))
        return new

    def join_late(self, name: str, submission: Submission) -> None:
        """Let a GPU worker join as soon as a run has the curation to itself."""
        terms = self.world.terms()
        submission.wait_until(lambda: self.world.terms() > terms, what="it had the lease")
        self.cluster.join(name, group="gpu", cpus=1, gpus=1)
        outcome = f"{name} joins during it; alive: {', '.join(sorted(self.cluster.alive()))}"
        self.tell(Step(name="late worker", outcome=outcome))

    def meet_and_lose(self, name: str, submission: Submission) -> None:
        """Let a second run meet the first, which loses a worker while it scores."""
        terms, sidecars = self.world.terms(), self.world.sidecars()
        submission.wait_until(lambda: self.world.terms() > terms, what="it had the lease")
        started = time.monotonic()
        second = self.submit("overlap", self.world.entrypoint("raycronjob-curate.yaml"))
        submission.wait_until(lambda: self.world.sidecars() > sidecars, what="it had scored")
        self.cluster.lose(name)
        done = self.world.sidecars() - sidecars
        outcome = f"{name} is killed when {done} units of the night are scored"
        self.tell(Step(name="lost worker", outcome=outcome))
        codes = (second.wait(), self.cluster.exit_code(second))
        self.checks.equal("exit codes of `ray job submit` and of the job that met", codes, (1, 3))
        [said] = [line for line in second.told().splitlines() if "held by" in line][-1:] or [""]
        self.checks.equal("it says who holds the curation", "and it is alive" in said, True)
        outcome = "turned away by the lease, exit code 3: " + said.partition("error: ")[2]
        self.tell(Step(name="overlap", outcome=outcome, seconds=time.monotonic() - started))

    def compare_with_laptop(self) -> None:
        """One run over the whole pool, without cluster and bucket, in fp32."""
        started = time.monotonic()
        folder = self.world.folder
        self.world.store.get(f"{BUCKET}/ranker/", f"{folder}/ranker/", recursive=True)
        out = folder / "laptop"
        command = [sys.executable, "-m", "jobs.curate", "--pool", f"{folder}/pool/"]
        command += ["--ranker", f"{folder}/ranker", "--keep", "10%", "--out", str(out)]
        print(f"\nlaptop\n$ {' '.join(['python', *command[1:]])}", flush=True)
        environment = own_environment(f"{self.cluster.mark}.laptop", folder / "home")
        log = folder / "logs" / "laptop.log"
        run = Submission(command, environment=environment, log=log)
        if run.wait():
            raise RuntimeError(f"the run on this machine alone failed:\n{run.told()[-5000:]}")
        selected = check_same_as_laptop(self.world, self.checks, self.newest, out)
        outcome = "one run over the whole pool, no cluster: the very rows of the last night"
        if self.checks.wrong:
            outcome = "one run over the whole pool, no cluster: see what is wrong below"
        self.tell(
            Step(
                name="laptop",
                outcome=outcome,
                scored=self.world.rows,
                selected=selected,
                seconds=time.monotonic() - started,
            )
        )

    def _finish(self, submission: Submission) -> None:
        codes = submission.wait()
        if codes or self.cluster.exit_code(submission):
            raise RuntimeError(f"{submission.log.stem} failed:\n{submission.told()[-5000:]}")
