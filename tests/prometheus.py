"""A real Prometheus on loopback that holds the history of a run, and what it answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus_client.samples import Sample

MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
"""Programs of Prometheus that are not on the PATH; Debian's package `prometheus` has both."""

START = 1_750_000_000
"""Of the history, in seconds since 1970."""
SCRAPE_SECONDS = 15
SCRAPES = 80
SECONDS = SCRAPES * SCRAPE_SECONDS
STARTS_WITHIN_SECONDS = 60.0


def history(samples: Iterable[Sample], first: Callable[[Sample], float]) -> str:
    """Twenty minutes in OpenMetrics that end with this scrape.

    Each series goes evenly from what `first` says of it to its value there.
    """
    lines = []
    for sample in samples:
        labels = ",".join(f"{name}={json.dumps(value)}" for name, value in sample.labels.items())
        start = first(sample)
        for scrape in range(SCRAPES + 1):
            value = start + (sample.value - start) * scrape / SCRAPES
            then = START + scrape * SCRAPE_SECONDS
            lines.append(f"{sample.name}{{{labels}}} {value!r} {then}")
    return "\n".join([*lines, "# EOF", ""])


class Prometheus:
    """A server that is up."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def query(self, expression: str, *, seconds: float) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series of an expression, so long after the start."""
        data = self.ask("query", query=expression, time=str(START + seconds))
        return [(found["metric"], float(found["value"][1])) for found in data["result"]]


@contextmanager
def prometheus(folder: Path, openmetrics: str) -> Iterator[Prometheus]:
    """A server for the length of a block that has scraped all this."""
    (folder / "history").write_text(openmetrics)
    (folder / "prometheus.yml").write_text("{}")
    fill = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history", "data"]
    subprocess.run(fill, cwd=folder, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {
        "config.file": "prometheus.yml",
        "storage.tsdb.path": "data",
        "storage.tsdb.retention.time": "100y",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *(f"--{name}={value}" for name, value in flags.items())],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not _is_ready(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
