"""What the walk-through works on: a pool that grows, a bucket, the files of cluster/ filled in."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.sample.__main__ import encoder_folder, write_pool
from tests import manifests
from tests.jobs_harness import ROOT
from tests.s3_server import BUCKET

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import s3fs

MOUNT = "/etc/scar-curate"
"""Where raycluster.yaml mounts the config files of values.yaml."""
HEAD_SERVICE = "http://scar-curate-head-svc:8265"
CURATED = f"{BUCKET}/curated"
CHANGES: dict[str, dict[str, Any]] = {
    # Fake GPUs give a training nothing to compute with.
    "train.yaml": {"gpus_per_worker": 0, "cpus_per_worker": 1, "epochs": 1, "batch_size": 8},
    # Files of a thousand rows are one unit by default; a walk wants to see some come and go. And
    # signs of life every 5 s: nights of a minute have no time to wait for those of hours.
    "curate.yaml": {"unit_rows": 64, "lease_seconds": 40},
}
"""What the walk-through sets in values.yaml beside the bucket and the encoder."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A command as a manifest has it, and the variables that it gives to its container."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As it is typed."""
        return shlex.join(self.command)


@dataclass(kw_only=True)
class World:
    """A bucket, a folder that mirrors its pool, and the files of cluster/ with values put in."""

    folder: Path
    store: s3fs.S3FileSystem
    dashboard: str
    """URL that stands for the head's service."""
    token: str
    rows: int = 0
    """Rows in the pool so far."""
    unscorable: int = 0
    """Those that lack a text."""

    @property
    def config(self) -> Path:
        """The folder that stands for MOUNT."""
        return self.folder / "etc"

    def write_config(self) -> None:
        """Write values.yaml's config files with the walk-through's values."""
        values = {"BUCKET": BUCKET, "FacebookAI/roberta-base": str(encoder_folder())}
        [config_map] = [
            document
            for document in manifests.read(manifests.CLUSTER / "values.yaml")
            if document["kind"] == "ConfigMap"
        ]
        self.config.mkdir()
        for name, text in config_map["data"].items():
            for old, new in values.items():
                text = text.replace(old, new)  # noqa: PLW2901 - one value after the other
            filled = yaml.safe_load(text) | CHANGES[name]
            (self.config / name).write_text(yaml.safe_dump(filled), "utf-8")

    def upload_quads(self) -> None:
        """The embedded sample quadruples."""
        source = ROOT / "jobs/sample/quads.jsonl"
        self.store.put_file(str(source), f"{BUCKET}/quads/quads.jsonl")

    def grow(self, day: str, table: pa.Table) -> int:
        """Add a day's partition to the pool; how many rows it has."""
        path = self.folder / "pool" / f"dt={day}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, row_group_size=64)
        self.store.put_file(str(path), f"{BUCKET}/pool/{path.parent.name}/{path.name}")
        self.rows += table.num_rows
        self.unscorable += table.num_rows - len(_with_texts(table))
        return int(table.num_rows)

    def entrypoint(self, file: str) -> Pod:
        """`ray job submit` of the entrypoint of a RayJob or RayCronJob, as README.md submits."""
        [manifest] = manifests.read(manifests.CLUSTER / file)
        spec = manifest["spec"].get("jobTemplate", manifest["spec"])
        submit = ["ray", "job", "submit", f"--address={HEAD_SERVICE}", "--"]
        return self._pod([*submit, *shlex.split(spec["entrypoint"])], self.nightly().environment)

    def nightly(self) -> Pod:
        """What the container of cronjob-curate.yaml runs."""
        [manifest] = manifests.read(manifests.CLUSTER / "cronjob-curate.yaml")
        pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        secrets = {("scar-curate-ray-token", "auth_token"): self.token}
        environment = {}
        for variable in container["env"]:
            value = variable.get("value")
            if value is None:
                reference = variable["valueFrom"]["secretKeyRef"]
                value = secrets[reference["name"], reference["key"]]
            environment[variable["name"]] = value
        return self._pod([*container["command"], *container["args"]], environment)

    def _pod(self, words: list[str], environment: dict[str, str]) -> Pod:
        """A manifest's words with the places of the walk-through in those of a real cluster."""
        places = {HEAD_SERVICE: self.dashboard, MOUNT: str(self.config)}
        for old, new in places.items():
            words = [word.replace(old, new) for word in words]
        return Pod(command=words, environment=environment)

    def json(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """A JSON object of the bucket."""
        return json.loads(self.store.cat_file(path))

    def events(self, run: str) -> dict[str, dict[str, Any]]:
        """The newest event of each kind of a run, by kind."""
        lines = self.store.cat_file(f"{CURATED}/events/{run}.jsonl").splitlines()
        return {event["event"]: event for event in map(json.loads, lines)}

    def terms(self) -> int:
        """How often the curation's lease was taken, confirmed or released."""
        return len(self.store.glob(f"{CURATED}/lease/terms/*.json"))

    def sidecars(self) -> int:
        """Units that are scored."""
        return len(self.store.glob(f"{CURATED}/scores/sidecars/*/*.parquet"))


def the_sample(folder: Path) -> pa.Table:
    """The embedded pool as one table."""
    write_pool(folder)
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def growth(sample: pa.Table, sizes: Sequence[int]) -> list[pa.Table]:
    """A table of new rows for each size: instructions of the sample with others' responses.

    No pair comes twice. One response of each table is missing, as in real pools.
    """
    sample = sample.take(_with_texts(sample))
    count = sample.num_rows
    mixed = [place for place in range(count * count) if place // count != place % count]
    places = random.Random(7).sample(mixed, sum(sizes))
    return [_mixed(sample, [places.pop() for _ in range(size)]) for size in sizes]


def _with_texts(table: pa.Table) -> list[int]:
    """The rows that can be scored: both texts are there, and more than white space."""
    pairs = zip(table["instruction"].to_pylist(), table["response"].to_pylist(), strict=True)
    return [row for row, texts in enumerate(pairs) if all(text and text.strip() for text in texts)]


def _mixed(sample: pa.Table, places: list[int]) -> pa.Table:
    asked = sample.take([place // sample.num_rows for place in places])
    answered = sample.take([place % sample.num_rows for place in places])
    responses = answered["response"].to_pylist()
    responses[len(places) // 2] = None
    return pa.table(
        {
            "row_id": [f"mixed-{place:06d}" for place in places],
            "instruction": asked["instruction"],
            "response": pa.array(responses, pa.string()),
            "source": answered["source"],
            "lang": answered["lang"],
        }
    )


def run_of(log: str) -> str:
    """The run that a job's log says it has published."""
    found = re.findall(r"selected/(\S+)/manifest\.json", log)
    if not found:
        raise RuntimeError(f"no selection was published:\n{log[-3000:]}")
    return str(found[-1])
