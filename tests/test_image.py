"""The image of cluster/Dockerfile agrees with the project, as far as that shows without Docker."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

from tests.manifests import CLUSTER, ROOT, read

if TYPE_CHECKING:
    from pathlib import Path

DOCKERFILE = (CLUSTER / "Dockerfile").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def test_versions_are_the_projects() -> None:
    """Package, Ray and Python: a new version is a failing test until all places have it."""
    version = PYPROJECT["project"]["version"]
    texts = {path.name: path.read_text("utf-8") for path in CLUSTER.iterdir()}
    tags = {tag for text in texts.values() for tag in re.findall(r"/scar-curate:([\w.-]+)", text)}
    assert tags == {f"{version}-cpu", f"{version}-gpu"}
    rays = [d["spec"]["rayVersion"] for d in read(CLUSTER / "raycluster.yaml")]
    assert rays == [PINS["ray"]]
    python = PYPROJECT["tool"]["mypy"]["python_version"]
    assert re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE) == [python]
    assert PYPROJECT["project"]["requires-python"] == f">={python}"


def stages() -> dict[str, list[str]]:
    """By name the instructions of the Dockerfile's stages, comments left out."""
    text = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = [line]
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_the_images_differ_in_torch_alone() -> None:
    """What was tested on one runs on the other; neither runs as root."""
    found = stages()
    assert found["cpu"][1:] == found["gpu"][1:]
    assert found["cpu"][0] == "FROM torch-cpu AS cpu"
    assert found["gpu"][0] == "FROM torch-gpu AS gpu"
    user = next(line for line in found["gpu"] if line.startswith("USER"))
    uid = found["base"][1].split("--uid ")[1].split()[0]
    assert user == f"USER {uid}:{uid}"
    installs = [line for lines in found.values() for line in lines if "pip install" in line]
    assert all("--constraint constraints.txt" in line or "--no-deps ." in line for line in installs)
    assert "torch" in PINS


def test_the_images_requirements_are_the_projects() -> None:
    """The line that the Dockerfile runs, run."""
    [line] = [line for line in stages()["base"] if "tomllib" in line]
    python, dash_c, code = shlex.split(line.removeprefix("RUN ").partition(" > ")[0])
    assert [python, dash_c] == ["python", "-c"]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    project = PYPROJECT["project"]
    assert done.stdout.split("\n")[:-1] == [
        *project["dependencies"],
        *project["optional-dependencies"]["ray"],
    ]


def test_the_files_that_the_image_copies_make_the_package(tmp_path: Path) -> None:
    """Nothing is missing from the build's context: the jobs start from the copy alone."""
    copied = [
        name
        for stage in ("base", "gpu")
        for line in stages()[stage]
        if line.startswith("COPY ")
        for name in line.split()[1:-1]
    ]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text("utf-8")
    assert sorted(re.findall(r"^!(.+)$", ignored, re.MULTILINE)) == sorted(copied)
    context = tmp_path / "context"
    context.mkdir()
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, context / name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('wheels'))"
    (context / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=context, capture_output=True, check=True)
    [wheel] = (context / "wheels").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", format="zip")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import jobs.curate; print(jobs.curate.__file__)"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "installed/jobs/curate.py")
    sample = tmp_path / "installed/jobs/sample"
    assert list(sample.glob("*.jsonl"))
