"""What can be checked of the manifests without the systems they are for: syntax, fields, names that refer to others."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.scripts.scripts import start as ray_start

from shoal.cli.main import app
from shoal.cluster.launch import DRIVER_RESOURCE, HEAD_MAY_DIE, HEALTH_CHECKS
from shoal.on_ray.metrics import COUNTERS, GAUGES

INFRA = Path(__file__).parents[2] / "infra"
YAML = sorted(path for path in INFRA.rglob("*.yaml"))

# fields of KubeRay's ray.io/v1, as its own samples use them
CLUSTER_FIELDS = {"rayVersion", "authOptions", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"}
JOB_FIELDS = {
    "entrypoint",
    "entrypointResources",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "rayClusterSpec",
}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def ray_start_options() -> set[str]:
    return {flag for parameter in ray_start.params for flag in parameter.opts}


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_file_parses_and_says_nothing_twice(path: Path) -> None:
    assert documents(path)
    for node in yaml.compose_all(path.read_text(), Loader=yaml.SafeLoader):
        assert duplicate_keys(node) == []


def duplicate_keys(node: Any) -> list[str]:
    found = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        found += [key for key in set(keys) if keys.count(key) > 1]
        for _, value in node.value:
            found += duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found += duplicate_keys(value)
    return found


def cluster_spec(name: str) -> dict[str, Any]:
    (document,) = documents(INFRA / "kuberay" / name)
    assert document["apiVersion"] == "ray.io/v1"
    if document["kind"] == "RayCluster":
        spec: dict[str, Any] = document["spec"]
    else:
        assert document["kind"] == "RayJob"
        assert set(document["spec"]) <= JOB_FIELDS
        spec = document["spec"]["rayClusterSpec"]
    return spec


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_clusters_use_known_fields_and_names_that_exist(name: str) -> None:
    spec = cluster_spec(name)
    assert set(spec) <= CLUSTER_FIELDS
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    redis = {(d["kind"], d["metadata"]["name"]): d for d in documents(INFRA / "kuberay" / "redis.yaml")}
    host, port = spec["gcsFaultToleranceOptions"]["redisAddress"].split(":")
    assert redis["Service", host]["spec"]["ports"][0]["port"] == int(port)
    container = redis["StatefulSet", host]["spec"]["template"]["spec"]["containers"][0]
    secret = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == secret
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert all(set(group) <= WORKER_FIELDS for group in spec["workerGroupSpecs"])
    options = ray_start_options()
    for group in groups:
        assert {f"--{option}" for option in group["rayStartParams"]} <= options
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for each in pod["containers"]:
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
            # nodes and head agree on how long a dead head is waited for, and leave health checks to the image
            assert {entry["name"]: entry["value"] for entry in each["env"]} == HEAD_MAY_DIE


def test_the_kuberay_job_and_the_cluster_that_stays_are_alike() -> None:
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")


def test_the_kuberay_driver_has_a_group_that_can_hold_it() -> None:
    (job,) = documents(INFRA / "kuberay" / "rayjob.yaml")
    wanted = json.loads(job["spec"]["entrypointResources"])
    offered = [
        json.loads(json.loads(group["rayStartParams"]["resources"]))
        for group in cluster_spec("rayjob.yaml")["workerGroupSpecs"]
        if "resources" in group["rayStartParams"]
    ]
    assert wanted in offered
    assert set(wanted) == {DRIVER_RESOURCE}


def test_the_aws_cluster_is_valid_by_rays_own_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    (cluster,) = documents(INFRA / "aws" / "cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    options = ray_start_options()
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        words = shlex.split(command)
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options
        if "start" in words:
            assert "RAY_AUTH_MODE=token" in words
    broken = copy.deepcopy(cluster) | {"max_nodes": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_compose_file_refers_to_what_exists() -> None:
    (compose,) = documents(INFRA / "docker" / "compose.yaml")
    options = ray_start_options()
    for service in compose["services"].values():
        assert set(service["secrets"]) <= set(compose["secrets"])
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        assert service["command"][:2] == ["ray", "start"]
        assert {word.split("=")[0] for word in service["command"][2:]} <= options
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    build = compose["services"]["head"]["build"]
    assert (INFRA / "docker" / build["context"] / build["dockerfile"]).resolve() == INFRA / "docker" / "Dockerfile"


def test_the_image_copies_what_exists() -> None:
    lines = (INFRA / "docker" / "Dockerfile").read_text().splitlines()
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert sources
    assert all((INFRA.parent / source).exists() for source in sources)
    torch = next(line for line in (INFRA.parent / "pyproject.toml").read_text().splitlines() if '"torch==' in line)
    assert torch.strip(' ",') in "\n".join(lines), "the image installs another torch than pyproject.toml pins"


def test_the_image_sets_the_health_checks_of_a_local_cluster() -> None:
    settings = (INFRA / "docker" / "Dockerfile").read_text().partition("\nENV ")[2].replace("\\\n", " ").split()
    found = dict(setting.split("=") for setting in settings)
    assert {key: value for key, value in found.items() if "health_check" in key} == HEALTH_CHECKS


def test_dashboard_and_alerts_name_metrics_that_shoal_exports() -> None:
    exported = {f"ray_{name}" for name in (*GAUGES, *COUNTERS)}
    for name in ("shoal-dashboard.json", "alerts.yaml"):
        used = set(re.findall(r"ray_shoal_\w+", (INFRA / "monitoring" / name).read_text()))
        assert used
        assert used <= exported
    dashboard = json.loads((INFRA / "monitoring" / "shoal-dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("readme", sorted(INFRA.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_each_readme_names_files_and_commands_that_exist(readme: Path) -> None:
    text = readme.read_text()
    for named in re.findall(r"(?:infra|tests|platform|docs)/[A-Za-z0-9_./-]*[A-Za-z0-9_]", text):
        assert (INFRA.parent / named).exists() or named == "infra/docker/token", named  # the user makes it
    for named in re.findall(r"`([\w-]+\.(?:yaml|json|py))`", text):
        assert (readme.parent / named).exists() or named in ("cluster.json", "prometheus.yaml"), named
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"\bshoal ([a-z]+)\b(?! *=)", text)) <= commands
