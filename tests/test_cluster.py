"""What runs the jobs on a cluster agrees with Kubernetes, with KubeRay and with the jobs."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jobs import cli
from jobs.actors import READER_CPUS, WRITER_CPUS, parse_actors
from tests import manifests
from tests.manifests import CLUSTER, Manifest, as_text, container, groups, size
from tests.test_readme import CONFIGS

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.curate import CurateConfig
    from jobs.train_inputs import TrainConfig

FILES = sorted(CLUSTER.glob("*.yaml"))
MANIFESTS = [
    (path.name, document)
    for path in FILES
    for document in manifests.read(path)
    if document.get("kind") not in {None, "Kustomization", "Values"}
]
VALUES = next(d for d in manifests.read(CLUSTER / "values.yaml") if d["kind"] == "Values")
CONFIG_FILES = next(d for d in manifests.read(CLUSTER / "values.yaml") if d["kind"] == "ConfigMap")
MOUNT = "/etc/scar-curate"

needs_crds = pytest.mark.skipif(
    not manifests.CRDS.is_dir(), reason=f"no KubeRay CRDs in {manifests.CRDS}"
)
needs_kustomize = pytest.mark.skipif(
    manifests.tool() is None, reason="neither kubectl nor kustomize is installed"
)


@pytest.fixture(scope="module")
def applied() -> list[Manifest]:
    """Everything as it would be sent to a cluster."""
    return manifests.rendered()


def of_kuberay(documents: list[Manifest]) -> list[Manifest]:
    return [document for document in documents if document["apiVersion"].startswith("ray.io/")]


@needs_crds
@pytest.mark.parametrize(
    "manifest",
    of_kuberay([manifest for _, manifest in MANIFESTS]),
    ids=lambda manifest: str(manifest["metadata"]["name"]),
)
def test_every_kuberay_manifest_is_one_that_kuberay_takes(manifest: Manifest) -> None:
    """Each file by itself, before any value is put in."""
    assert manifests.kuberay_errors(manifest) == []


@needs_crds
@needs_kustomize
def test_what_is_applied_is_what_kuberay_takes(applied: list[Manifest]) -> None:
    """With the values, and with the cluster's groups in the jobs."""
    kinds = [manifest["kind"] for manifest in of_kuberay(applied)]
    assert sorted(kinds) == ["RayCluster", "RayCronJob", "RayJob", "RayJob"]
    for manifest in of_kuberay(applied):
        assert manifests.kuberay_errors(manifest) == []


@needs_crds
@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.headGroupSpec.rayStartParam", {}, "rayStartParam"),
        ("spec.autoscalerOptions.idleTimeoutSeconds", "300", "integer"),
        ("spec.autoscalerOptions.version", "v3", "v3"),
        ("spec.authOptions.mode", "tokens", "tokens"),
        ("spec.headGroupSpec.template.spec.containers.0.imagee", "x", "imagee"),
        ("spec.headGroupSpec.template.spec.containers.0.resources", {"cpu": 2}, "cpu"),
        ("spec.headGroupSpec.template", None, "None"),
    ],
)
def test_the_check_of_kuberay_manifests_is_strict(path: str, value: object, told: str) -> None:
    """A misspelled field is not ignored, as a server may do, but an error."""
    manifest = copy.deepcopy(next(m for name, m in MANIFESTS if name == "raycluster.yaml"))
    *parents, last = path.split(".")
    place: Any = manifest
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    errors = manifests.kuberay_errors(manifest)
    assert len(errors) >= 1
    assert told in errors[0]


@needs_kustomize
def test_the_other_manifests_are_what_kubernetes_takes(applied: list[Manifest]) -> None:
    """Its own kinds: strictly, too."""
    others = [manifest for manifest in applied if manifest not in of_kuberay(applied)]
    assert sorted(m["kind"] for m in others) == [
        "ConfigMap",
        "CronJob",
        "Deployment",
        "Service",
        "ServiceAccount",
    ]
    for manifest in others:
        assert manifests.kubernetes_errors(manifest) == []
    night = next(m for m in others if m["kind"] == "CronJob")
    # An enum that the schema lacks.
    assert night["spec"]["concurrencyPolicy"] == "Forbid"
    night["spec"]["jobTemplate"]["spec"]["backofLimit"] = 2
    assert "backofLimit" in manifests.kubernetes_errors(night)[0]


def job_spec(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]
    return spec["jobTemplate"] if manifest["kind"] == "RayCronJob" else spec


RAY_JOBS = [m for _, m in MANIFESTS if m["kind"] in {"RayJob", "RayCronJob"}]


@pytest.mark.parametrize("manifest", RAY_JOBS, ids=lambda m: str(m["metadata"]["name"]))
def test_a_ray_job_keeps_the_rules_that_no_schema_tells(manifest: Manifest) -> None:
    """What KubeRay's operator refuses only when the job is there already."""
    spec = job_spec(manifest)
    assert len(manifest["metadata"]["name"]) <= 47
    assert "shutdownAfterJobFinishes" not in spec  # not together with deletion rules
    assert "ttlSecondsAfterFinished" not in spec
    by_status: dict[str, dict[str, int]] = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        condition = rule["condition"]
        [status] = set(condition) - {"ttlSeconds"}  # one of the two kinds of status
        policies = by_status.setdefault(condition[status], {})
        assert rule["policy"] not in policies
        policies[rule["policy"]] = condition["ttlSeconds"]
    for policies in by_status.values():
        assert "DeleteWorkers" not in policies  # not with autoscaling
        assert policies["DeleteCluster"] <= policies.get("DeleteSelf", policies["DeleteCluster"])
    # However it ends, nothing that costs is left.
    assert set(by_status) == {"SUCCEEDED", "FAILED", "Failed"}
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] >= 1


def test_the_llm_is_found_where_the_page_says_so() -> None:
    """Its Service leads to its pods; values are placeholders until kustomize puts them in."""
    deployment, service = manifests.read(CLUSTER / "vllm.yaml")
    for manifest in (deployment, service):
        assert manifests.kubernetes_errors(manifest) == []
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    [part] = pod["spec"]["containers"]
    assert [port["name"] for port in part["ports"]] == [service["spec"]["ports"][0]["targetPort"]]
    assert part["args"][:2] == ["--model", "LLM_MODEL"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert not part["securityContext"]["allowPrivilegeEscalation"]
    page = (CLUSTER / "README.md").read_text("utf-8")
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/v1"
    assert page.count(f"--base-url {address}") == 2
    assert page.count(f"--model {VALUES['llm']['model']}") == 2


def test_nights_end_before_the_next_begin() -> None:
    """Only the lease keeps nights of a RayCronJob apart; they should not need it."""
    night = next(m for m in RAY_JOBS if m["kind"] == "RayCronJob")
    assert job_spec(night)["activeDeadlineSeconds"] < 24 * 3600


@needs_kustomize
def test_each_value_stands_in_one_place(tmp_path: Path) -> None:
    """Whoever edits values.yaml has edited everything: no old value is left anywhere."""
    folder = tmp_path / "cluster"
    shutil.copytree(CLUSTER, folder)
    edited = (folder / "values.yaml").read_text("utf-8")
    changes = {
        "REGISTRY/": "example.org/team/",
        "BUCKET": "our-bucket",
        "REDIS_HOST": "redis.example.org",
        "eks.amazonaws.com/role-arn: arn:aws:iam::ACCOUNT:role/scar-curate": "iam.gke.io/a: b@c.d",
        '"0 1 * * *"': '"30 3 * * 6"',
        "Etc/UTC": "Europe/Vienna",
        "maxReplicas: 4": "maxReplicas: 77",
        'cpu: "2", memory: 8Gi': 'cpu: "3", memory: 9Gi',
        'cpu: "8", memory: 16Gi': 'cpu: "88", memory: 160Gi',
        'cpu: "4", memory: 24Gi': 'cpu: "44", memory: 240Gi',
        "3Gi": "33Gi",
        "2147483648": "22222222222",
    }
    for old, new in changes.items():
        assert old in edited, old
        edited = edited.replace(old, new)
    (folder / "values.yaml").write_text(edited, "utf-8")
    documents = manifests.rendered(folder)
    text = as_text(documents)
    for old in ("REGISTRY", "BUCKET", "REDIS_HOST", "ACCOUNT", "0 1 * * *", "UTC", "16Gi", "24Gi"):
        assert old not in text, old
    assert "iam.gke.io/a" in text
    assert text.count('"redisAddress": "redis.example.org:6379"') == 1
    assert text.count('"schedule": "30 3 * * 6"') == text.count('"Europe/Vienna"') == 2
    for manifest in of_kuberay(documents):
        found = groups(manifest)
        assert [found[name]["maxReplicas"] for name in ("cpu", "gpu")] == [77, 77]
        cores = [container(found[name])["resources"]["limits"]["cpu"] for name in found]
        assert cores == ["3", "88", "44"]
        images = [container(found[name])["image"].partition("/")[2] for name in found]
        assert [image.rpartition("-")[2] for image in images] == ["cpu", "cpu", "gpu"]
        assert as_text(manifest).count("33Gi") == as_text(manifest).count("22222222222") == 3


def test_nothing_that_is_a_users_is_in_the_other_files() -> None:
    """Buckets and accounts belong in values.yaml; images and addresses there are placeholders."""
    for path in FILES:
        if path.name in {"values.yaml", "ray_up.yaml"}:
            continue
        text = path.read_text("utf-8")
        assert not re.findall(r"(?:s3|gs|abfss?)://\S+", text), path.name
        assert set(re.findall(r"image: (\S+?):", text)) <= {"REGISTRY/scar-curate"}, path.name


def in_place(words: list[str], folder: Path) -> list[str]:
    """A command's words with the paths of mounted files led to copies of them."""
    for name, text in CONFIG_FILES["data"].items():
        (folder / name).write_text(text, "utf-8")
    return [word.replace(MOUNT, str(folder)) for word in words]


def parsed(words: list[str], folder: Path) -> object:
    """The config of a `python -m jobs.…` command."""
    python, dash_m, module, *argv = in_place(words, folder)
    assert [python.rpartition("/")[2], dash_m] == ["python", "-m"]
    config_class = getattr(import_module(module), CONFIGS[module])
    return cli.parse(config_class, argv, prog=module, description="")


def entrypoints() -> list[list[str]]:
    """The commands of the manifests."""
    found = [shlex.split(job_spec(manifest)["entrypoint"]) for manifest in RAY_JOBS]
    night = next(m for _, m in MANIFESTS if m["kind"] == "CronJob")
    [submit] = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert submit["command"] == ["ray", "job", "submit"]
    return [*found, submit["args"][submit["args"].index("--") + 1 :]]


def told_commands() -> list[list[str]]:
    """The commands in the pages, and in the comments of the manifests."""
    found = []
    for path in [*FILES, *CLUSTER.glob("*.md")]:
        text = path.read_text("utf-8")
        if path.suffix == ".yaml":
            text = "".join(re.findall(r"^#.*\n", text, re.MULTILINE))
        text = re.sub(r"\\\n#?", " ", text)
        found += re.findall(r"python -m jobs\.\w+ +--(?!help).+", text)
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize(
    "command", [*entrypoints(), *told_commands()], ids=lambda words: " ".join(words)[:70]
)
def test_every_command_is_one_that_the_jobs_take(command: list[str], tmp_path: Path) -> None:
    """With the very values of values.yaml where it reads them."""
    # Slurm's cron line names a copy of the same file.
    words = [f"{MOUNT}/{word}" if word == "curate.yaml" else word for word in command]
    assert parsed(words, tmp_path) is not None


def test_there_are_commands_to_check() -> None:
    """The search for commands finds those that a reader sees."""
    assert len(entrypoints()) == 4
    assert len(told_commands()) >= 6


@needs_kustomize
def test_files_that_a_command_reads_are_mounted(applied: list[Manifest]) -> None:
    """On the head, where the driver runs, also that of a job sent by the CronJob."""
    names = {word for command in entrypoints() for word in command if word.startswith(MOUNT)}
    assert {name.removeprefix(f"{MOUNT}/") for name in names} == set(CONFIG_FILES["data"])
    for manifest in of_kuberay(applied):
        pod = groups(manifest)["head"]["template"]["spec"]
        mounts = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts[MOUNT]]["configMap"]["name"] == CONFIG_FILES["metadata"]["name"]


@needs_kustomize
def test_the_groups_have_what_the_jobs_ask_for(applied: list[Manifest], tmp_path: Path) -> None:
    """An actor or a training worker that fits no pod would wait for ever."""
    curate: CurateConfig = parsed(entrypoints()[-1], tmp_path)  # type: ignore[assignment]
    training = next(words for words in entrypoints() if "jobs.train" in words)
    train: TrainConfig = parsed(training, tmp_path)  # type: ignore[assignment]
    bounds = parse_actors(curate.actors)
    assert bounds is not None, "from zero nodes, `auto` sees no GPU"
    for manifest in of_kuberay(applied):
        found = groups(manifest)
        limits = {name: container(group)["resources"]["limits"] for name, group in found.items()}
        gpus = float(limits["gpu"]["nvidia.com/gpu"])
        most = found["gpu"]["maxReplicas"]
        assert 0 < curate.gpus_per_actor <= gpus
        assert bounds[1] <= most * gpus / curate.gpus_per_actor
        assert train.workers <= most
        assert train.gpus_per_worker <= gpus
        assert (train.cpus_per_worker or 1) <= size(limits["gpu"]["cpu"])
        assert size(limits["cpu"]["cpu"]) >= READER_CPUS + WRITER_CPUS
        assert found["head"]["rayStartParams"]["num-cpus"] == "0"


@needs_kustomize
def test_memory_fits_into_memory(applied: list[Manifest]) -> None:
    """Ray's store in /dev/shm, /dev/shm and the processes in the pod."""
    for manifest in of_kuberay(applied):
        for group in groups(manifest).values():
            store = float(group["rayStartParams"]["object-store-memory"])
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            shared = volumes["shared-memory"]["emptyDir"]
            assert shared["medium"] == "Memory"
            memory = size(container(group)["resources"]["limits"]["memory"])
            assert store < size(shared["sizeLimit"]) < memory / 2
            resources = container(group)["resources"]
            # Ray plans by the limits; less than them is an eviction in the middle of the night.
            assert resources["requests"] == resources["limits"]


@needs_kustomize
def test_workers_scale_from_zero_and_stand_spot_nodes(applied: list[Manifest]) -> None:
    """Idle costs the head alone; a GPU node keeps others off by a taint."""
    for manifest in of_kuberay(applied):
        spec, found = manifests.cluster_spec(manifest), groups(manifest)
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        for name in ("cpu", "gpu"):
            assert (found[name]["replicas"], found[name]["minReplicas"]) == (0, 0)
            assert 0 < found[name]["idleTimeoutSeconds"] <= 600
            keys = {taint["key"] for taint in found[name]["template"]["spec"]["tolerations"]}
            assert "cloud.google.com/gke-spot" in keys
            assert ("nvidia.com/gpu" in keys) == (name == "gpu")
            assert "restartPolicy" not in found[name]["template"]["spec"]  # refused with v2


@needs_kustomize
def test_the_cluster_that_stays_survives_its_head_and_asks_for_a_token(
    applied: list[Manifest],
) -> None:
    """The jobs' own clusters ask for it, too; they need no Redis."""
    night = next(m for m in applied if m["kind"] == "CronJob")
    for manifest in of_kuberay(applied):
        spec = manifests.cluster_spec(manifest)
        assert spec["authOptions"] == {"mode": "token", "secretName": "scar-curate-ray-token"}
        stays = manifest["kind"] == "RayCluster"
        assert ("gcsFaultToleranceOptions" in spec) == stays
        if stays:
            assert f"http://{manifest['metadata']['name']}-head-svc:8265" in as_text(night)
    assert "scar-curate-ray-token" in as_text(night)


@needs_kustomize
def test_pods_are_not_root_and_hold_no_secret(applied: list[Manifest]) -> None:
    """Secrets are named, never written; each is made by a command of the README."""
    readme = (CLUSTER / "README.md").read_text("utf-8")
    made = set(re.findall(r"kubectl create secret generic (\S+)", readme))
    used = set()
    for manifest in applied:
        text = as_text(manifest)
        used |= set(re.findall(r'"secretName": "([^"]+)"', text))
        used |= set(re.findall(r'"secret(?:Key)?Ref": {[^}]*"name": "([^"]+)"', text))
        assert "hostPath" not in text
    assert used == made
    pods = [g["template"]["spec"] for m in of_kuberay(applied) for g in groups(m).values()]
    night = next(m for m in applied if m["kind"] == "CronJob")
    pods.append(night["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for part in pod["containers"]:
            assert not part["securityContext"]["allowPrivilegeEscalation"]
            for variable in part.get("env", []):
                assert "valueFrom" in variable or variable == {
                    "name": "RAY_AUTH_MODE",
                    "value": "token",
                }


def test_ray_up_takes_its_file() -> None:
    """The check that `ray up` makes before it does anything."""
    from ray.autoscaler._private import util  # noqa: PLC0415 - half a second

    config = manifests.read(CLUSTER / "ray_up.yaml")[0]
    util.validate_config(util.prepare_config(copy.deepcopy(config)))
    store = VALUES["objectStore"]["bytes"]
    for command in (config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]):
        assert f"--object-store-memory={store}" in command
        assert command.startswith("RAY_AUTH_MODE=token ")
    with pytest.raises(Exception, match="head_start_ray_command"):
        util.validate_config(util.prepare_config({**config, "head_start_ray_command": []}))


def test_shell_of_the_slurm_page_is_shell() -> None:
    """Every block that a reader copies."""
    page = (CLUSTER / "SLURM.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_readme_lists_every_file() -> None:
    """Each with when to use it."""
    readme = (CLUSTER / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\S+)` \|", readme, re.MULTILINE)
    files = {path.name for path in CLUSTER.iterdir()}
    assert files - {"README.md", "SCALING.md", "Dockerfile.dockerignore"} <= set(listed) <= files
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("path", [*FILES, CLUSTER / "Dockerfile"], ids=lambda path: path.name)
def test_every_file_opens_by_saying_when_to_use_it(path: Path) -> None:
    """A newcomer opens any of them first."""
    comment = re.match(r"(?:#.*\n)+", path.read_text("utf-8"))
    assert comment
    assert len(comment[0]) > 100


@needs_kustomize
def test_every_part_can_be_applied_by_itself(applied: list[Manifest]) -> None:
    """The labels that the README's commands pick are there, and each has its command."""
    labels = {m["metadata"]["labels"]["app.kubernetes.io/component"] for m in applied}
    text = "".join(path.read_text("utf-8") for path in CLUSTER.iterdir())
    assert labels == set(re.findall(r"-l app\.kubernetes\.io/component=([\w-]+)", text))


def test_config_files_are_yaml_that_says_nothing_twice() -> None:
    """A field given twice would silently be the later one."""
    for text in CONFIG_FILES["data"].values():
        names = re.findall(r"^(\w+):", text, re.MULTILINE)
        assert sorted(names) == sorted(yaml.safe_load(text))
