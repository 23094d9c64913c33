"""Kubernetes manifests of cluster/ for tests: read, rendered, checked against their schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "kuberay"
"""KubeRay 1.7's custom resource definitions, where a checkout has them beside it."""

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def tool() -> list[str] | None:
    """The command that renders a kustomization; None where there is none on this machine."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


def rendered(folder: Path = CLUSTER) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    command = tool()
    assert command is not None
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def _kuberay_schemas() -> dict[tuple[str, str], Draft202012Validator]:
    """By (apiVersion, kind) what checks a KubeRay resource, unknown fields refused."""
    found = {}
    for path in CRDS.glob("*.yaml"):
        # 3 MB: the pure Python loader takes half a minute.
        spec = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # A CRD says no more of metadata than that it is an object.
            schema["properties"]["metadata"] = {"type": "object"}
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[key] = Draft202012Validator(schema)
    return found


def strict(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """A structural schema of Kubernetes as JSON Schema, in which an unknown field is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {
        name: {field: strict(item) for field, item in value.items()}
        if name == "properties"
        else strict(value)
        for name, value in schema.items()
    }
    if out.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | (
            {"pattern": out["pattern"]} if "pattern" in out else {}
        )
    open_ended = out.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in out
    if "properties" in out and not open_ended:
        out["additionalProperties"] = False
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def kuberay_errors(manifest: Manifest) -> list[str]:
    """What KubeRay's API server would refuse in one of its resources; empty: nothing."""
    validator = _kuberay_schemas()[manifest["apiVersion"], manifest["kind"]]
    return sorted(
        f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
        for error in validator.iter_errors(manifest)
    )


def kubernetes_errors(manifest: Manifest) -> list[str]:
    """What is wrong with a resource of Kubernetes' own."""
    import kubernetes_validate  # type: ignore[import-untyped]  # noqa: PLC0415 - seconds

    try:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


def cluster_spec(manifest: Manifest) -> Manifest:
    """The RayCluster in a KubeRay resource."""
    spec: Manifest = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(manifest: Manifest) -> dict[str, Manifest]:
    """The groups of pods of a KubeRay resource by name; the head's is `head`."""
    spec = cluster_spec(manifest)
    workers = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"], **workers}


def container(group: Manifest) -> Manifest:
    """The Ray container of a group."""
    found: Manifest = group["template"]["spec"]["containers"][0]
    return found


def as_text(value: object) -> str:
    """For searching in all of a manifest."""
    return json.dumps(value)


def size(text: str) -> float:
    """A Kubernetes quantity as a number: 500m, 8Gi."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
