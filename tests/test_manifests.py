"""Cluster files, image and Kubernetes job, held to Ray's own readers, Kubernetes' schemas and the rules they state.

Nothing is launched: which group of nodes a step would get is decided by Ray's autoscaler itself, in this process.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

ROOT = Path(__file__).parents[1]
LAUNCHED = ("cluster.yaml", "cluster-gcp.yaml")
MANIFESTS = (*LAUNCHED, "rayjob.yaml")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
KUBERNETES = "1.31"
MARKET = "ray.io/market-type"
SPOT_NODES = (("karpenter.sh/capacity-type", "spot"), ("cloud.google.com/gke-spot", "true"))

# What KubeRay reads of a ray.io/v1 RayJob (its Go types, 1.7); a key that is not here would be dropped or refused.
KNOWN = {
    "spec": """entrypoint runtimeEnvYAML jobId submissionMode submitterPodTemplate submitterConfig backoffLimit
        activeDeadlineSeconds preRunningDeadlineSeconds ttlSecondsAfterFinished shutdownAfterJobFinishes suspend
        clusterSelector deletionStrategy managedBy entrypointNumCpus entrypointNumGpus entrypointResources metadata
        rayClusterSpec""",
    "rayClusterSpec": """rayVersion enableInTreeAutoscaling autoscalerOptions authOptions gcsFaultToleranceOptions
        headGroupSpec workerGroupSpecs headServiceAnnotations historyServerOptions managedBy networkPolicy suspend
        tlsOptions upgradeStrategy""",
    "autoscalerOptions": """version idleTimeoutSeconds upscalingMode image imagePullPolicy resources securityContext
        env envFrom volumeMounts command args""",
    "authOptions": "mode secretName enableK8sTokenAuth",
    "gcsFaultToleranceOptions": "backend storage redisAddress redisUsername redisPassword externalStorageNamespace",
    "storage": "size storageClassName accessModes subPath claimName deletionPolicy",
    "headGroupSpec": """template headService enableIngress ingressOptions resources labels rayStartParams
        serviceType""",
    "workerGroupSpecs": """groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources labels
        rayStartParams template scaleStrategy numOfHosts suspend""",
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def prepared(name: str) -> dict[str, Any]:
    """A cluster file as Ray uses it: what it leaves out comes from the launcher's stock defaults."""
    (config,) = documents(name)
    return prepare_config(copy.deepcopy(config))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents("rayjob.yaml") if document["kind"] == kind)
    return found


def cluster_spec() -> dict[str, Any]:
    return of_kind("RayJob")["spec"]["rayClusterSpec"]


def pod_templates() -> dict[str, dict[str, Any]]:
    spec = cluster_spec()
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"headgroup": spec["headGroupSpec"]["template"]} | workers


def autoscaler(name: str) -> AutoscalingConfig:
    """The manifest as Ray's autoscaler reads it."""
    if name in LAUNCHED:
        return AutoscalingConfig(prepared(name), skip_content_hash=True)
    cluster = {"metadata": {"name": "pd", "namespace": "default"}, "spec": cluster_spec()}
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)


def launched(name: str, resources: dict[str, float], market: str | None = None, n: int = 1) -> dict[str, int]:
    """Nodes by group that Ray's autoscaler would start for n such tasks or actors on a cluster without workers."""
    config = autoscaler(name)
    selectors = [[(MARKET, LabelSelectorOperator.LABEL_OPERATOR_IN, [market])]] if market else None
    wanted = [ResourceRequestUtil.make(resources, label_selectors=selectors)] * n
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(wanted),
        )
    )
    head = config.get_head_node_type()
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != head}


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_cluster_file_is_one_that_this_ray_reads(name: str) -> None:
    validate_config(prepared(name))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_start_of_ray_wants_the_token_and_the_job_server_listens_on_loopback(name: str) -> None:
    config = prepared(name)
    (head,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in config["worker_start_ray_commands"] if "ray start" in line)
    assert "RAY_AUTH_MODE=token ray start --head" in head and "RAY_AUTH_MODE=token ray start --address" in worker
    assert "--dashboard-host=127.0.0.1" in head and "dashboard" not in worker
    assert "0.0.0.0" not in str(config)
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHED)
def test_only_the_token_and_the_list_of_packages_travel_to_a_node(name: str) -> None:
    assert set(prepared(name)["file_mounts"].values()) == {"~/.ray/auth_token", "constraints.txt", "pyproject.toml"}
    for path in ("constraints.txt", "pyproject.toml"):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_node_installs_torch_first_by_its_pin_and_then_the_project_by_the_constraints(name: str) -> None:
    installs = [command for command in prepared(name)["setup_commands"] if "pip install" in command]
    assert ["^torch==" in command for command in installs] == [True, False]
    assert "-c ~/project/constraints.txt" in installs[1]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_group_of_workers_comes_from_nothing_and_ends(name: str) -> None:
    config = autoscaler(name)
    groups = config.get_node_type_configs()
    head = groups.pop(config.get_head_node_type())
    assert head.resources["CPU"] == 0 and "GPU" not in head.resources
    assert set(groups) == {"train", "sample", "cpu"}
    assert all(group.min_worker_nodes == 0 < group.max_worker_nodes for group in groups.values())
    assert sum(group.max_worker_nodes for group in groups.values()) <= config.get_max_num_worker_nodes()
    assert 0 < config.get_idle_timeout_s() <= 600


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("resources", "market", "group"),
    [
        ({"CPU": 1}, None, "cpu"),
        ({"CPU": 1}, "on-demand", "cpu"),
        ({"CPU": 1, "GPU": 1}, "on-demand", "train"),
        ({"CPU": 1, "GPU": 1}, "spot", "sample"),
        ({"CPU": 1, "GPU": 0.25}, "spot", "sample"),
    ],
)
def test_what_a_step_asks_for_decides_its_group(
    name: str, resources: dict[str, float], market: str | None, group: str
) -> None:
    assert launched(name, resources, market) == {group: 1}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pool_larger_than_its_group_stops_at_the_group_s_limit(name: str) -> None:
    limit = autoscaler(name).get_node_type_configs()["sample"].max_worker_nodes
    assert launched(name, {"CPU": 1, "GPU": 1}, "spot", n=limit + 5) == {"sample": limit}


def test_only_the_group_for_sampling_is_on_spot_machines_and_says_so() -> None:
    def on_aws(group: dict[str, Any]) -> bool:
        return group["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}

    def on_gcp(group: dict[str, Any]) -> bool:
        return {"preemptible": True} in group["node_config"].get("scheduling", [])

    for name, is_spot in zip(LAUNCHED, (on_aws, on_gcp), strict=True):
        groups = prepared(name)["available_node_types"]
        assert [group for group in groups if is_spot(groups[group])] == ["sample"], name
    for name in MANIFESTS:
        groups = autoscaler(name).get_node_type_configs()
        assert [group for group in groups if groups[group].labels.get(MARKET) == "spot"] == ["sample"], name
    pods = {group: template["spec"].get("nodeSelector", {}) for group, template in pod_templates().items()}
    assert [group for group in pods if set(SPOT_NODES) & set(pods[group].items())] == ["sample"]


def test_images_hold_the_ray_of_the_constraints() -> None:
    version, python = PINS["ray"], "py311"
    for name in LAUNCHED:
        images = [value for key, value in prepared(name)["docker"].items() if key.endswith("image")]
        assert images == [f"rayproject/ray:{version}-{python}-gpu"], name
    assert re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M) == [images[0]]
    assert cluster_spec()["rayVersion"] == version
    pods = [container for template in pod_templates().values() for container in template["spec"]["containers"]]
    assert {container["image"].rpartition(":")[2] for container in pods} == {version}


def test_an_image_takes_only_what_is_named() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    taken = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[0] == "*" and taken == {"constraints.txt", "pyproject.toml", "pipeline", "jobs"}


def test_a_disk_is_encrypted_and_ends_with_its_node() -> None:
    aws, gcp = (prepared(name) for name in LAUNCHED)
    assert aws["provider"]["cache_stopped_nodes"] is False and not gcp["provider"].get("cache_stopped_nodes")
    for group in aws["available_node_types"].values():
        assert [device["Ebs"]["Encrypted"] for device in group["node_config"]["BlockDeviceMappings"]] == [True]
    for group in gcp["available_node_types"].values():
        assert [disk["autoDelete"] for disk in group["node_config"]["disks"]] == [True]


@pytest.mark.parametrize("group", ["headgroup", "train", "sample", "cpu"])
def test_a_pod_is_one_that_kubernetes_takes(group: str) -> None:
    template = copy.deepcopy(pod_templates()[group])
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", ["ServiceAccount", "NetworkPolicy"])
def test_what_stands_beside_the_job_is_what_kubernetes_takes(kind: str) -> None:
    kubernetes_validate.validate(of_kind(kind), KUBERNETES, strict=True)


def test_every_field_of_the_job_is_one_that_kuberay_reads() -> None:
    job = of_kind("RayJob")
    assert job["apiVersion"] == "ray.io/v1" and set(job) == {"apiVersion", "kind", "metadata", "spec"}
    seen: set[str] = set()

    def walk(node: dict[str, Any], name: str) -> None:
        seen.add(name)
        assert set(node) <= set(KNOWN[name].split()), name
        for key, value in node.items():
            for child in value if isinstance(value, list) else [value]:
                if key in KNOWN and isinstance(child, dict):
                    walk(child, key)

    walk(job["spec"], "spec")
    assert seen == set(KNOWN)


def test_the_job_wants_a_token_and_only_operator_and_submitter_reach_its_server() -> None:
    assert cluster_spec()["authOptions"] == {"mode": "token"}
    assert not {"headService", "serviceType", "enableIngress"} & set(cluster_spec()["headGroupSpec"])
    policy = of_kind("NetworkPolicy")["spec"]
    own = policy["podSelector"]
    assert all(template["metadata"]["labels"] == own["matchLabels"] for template in pod_templates().values())
    within, outside = policy["ingress"]
    assert within == {"from": [{"podSelector": own}]}
    assert outside["ports"] == [{"port": 8265}]
    submitter, operator = outside["from"]
    assert submitter == {
        "podSelector": {"matchLabels": {"ray.io/originated-from-cr-name": of_kind("RayJob")["metadata"]["name"]}}
    }
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


def test_the_job_is_one_that_kueue_can_queue() -> None:
    """Its conditions: a queue, suspended, an own cluster that ends with the job, elastic, every pod's size known."""
    job = of_kind("RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert job["spec"]["suspend"] is True and job["spec"]["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in job["spec"] and "deletionStrategy" not in job["spec"]
    assert cluster_spec()["enableInTreeAutoscaling"] is True
    for group, template in pod_templates().items():
        resources = template["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"] and {"cpu", "memory"} <= set(resources["requests"]), group
        assert template["spec"].get("restartPolicy", "Never") == "Never", group  # or autoscaler v2 refuses


def test_the_head_keeps_ray_s_state_on_a_volume_and_a_failed_job_starts_again() -> None:
    assert cluster_spec()["gcsFaultToleranceOptions"] == {"backend": "rocksdb", "storage": {"size": "1Gi"}}
    assert of_kind("RayJob")["spec"]["backoffLimit"] >= 1
