"""configs/kuberay.yaml says what KubeRay understands, and starts what docs/cluster.md promises.

The fields are those of KubeRay's API, as far as the file uses them: rayjob_types.go and raycluster_types.go (`v1`) of
ray-project/kuberay at 0057210e and 026f1433, and `authOptions` of release 1.5.1. Ray's own reader of such files, a part
of its autoscaler, reads it as well.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.behaviour.cluster.test_cluster import ROOT
from tests.behaviour.precompute.test_precompute import make_images
from tests.faults.harness import in_child
from theworld.pipeline.cli.main import app

FILE = ROOT / "configs" / "kuberay.yaml"

RESOURCES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
CONTAINER = {
    "name": str,
    "image": str,
    "resources": {"limits": RESOURCES, "requests": RESOURCES},
    "env": [{"name": str, "value": str}],
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {"spec": {"containers": [CONTAINER], "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}]}}
STRINGS = dict.fromkeys(("num-cpus", "num-gpus", "object-store-memory"), str)
WORKERS = {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": STRINGS}
RAY_JOB: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "headGroupSpec": {"rayStartParams": STRINGS, "template": POD},
            "workerGroupSpecs": [{**WORKERS, "template": POD}],
        },
    },
}


def misfits(value: Any, shape: Any, place: str = "") -> list[str]:
    """What of a value has no place in a shape, or is of another type."""
    if isinstance(shape, dict) and isinstance(value, dict):
        unknown = [f"{place}.{name} is unknown" for name in value if name not in shape]
        known = [(name, each) for name, each in value.items() if name in shape]
        return unknown + [misfit for name, each in known for misfit in misfits(each, shape[name], f"{place}.{name}")]
    if isinstance(shape, list) and isinstance(value, list):
        return [misfit for each in value for misfit in misfits(each, shape[0], place)]
    return [] if isinstance(shape, type) and type(value) is shape else [f"{place} is {value!r}"]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_it_has_the_fields_of_a_ray_job_of_kuberay_and_no_others(job: dict[str, Any]) -> None:
    assert misfits(job, RAY_JOB) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        [container] = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["limits"] == container["resources"]["requests"]  # GPUs allow nothing else


def test_a_field_that_is_misspelt_or_of_another_type_would_be_seen(job: dict[str, Any]) -> None:
    assert misfits({**job, "kimd": "RayJob"}, RAY_JOB) == [".kimd is unknown"]
    assert misfits({"spec": {"backoffLimit": "20"}}, RAY_JOB) == [".spec.backoffLimit is '20'"]


def test_ray_reads_its_cluster_as_it_is_meant(job: dict[str, Any]) -> None:
    def read() -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        cluster = {"metadata": {"name": "theworld", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
        types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
        head, workers = types["headgroup"], types["gpus"]
        assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)  # no worker of ours is put there
        assert (workers["resources"]["CPU"], workers["resources"]["GPU"]) == (32, 8)
        assert workers["min_workers"] == workers["max_workers"]

    in_child(read)  # Ray keeps its settings for as long as its process lives: no session could be made in ours


def test_its_cluster_asks_for_a_token_and_holds_no_secret(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert tuple(map(int, job["spec"]["rayClusterSpec"]["rayVersion"].split("."))) >= (2, 52, 0)
    assert not any(word in FILE.read_text() for word in ("secretKeyRef", "RAY_AUTH_TOKEN", "stringData"))


def test_its_command_can_be_planned_and_waits_for_all_its_pods(job: dict[str, Any], tmp_path: Path) -> None:
    program, command, *options = shlex.split(job["spec"]["entrypoint"], comments=True)
    assert (program, command) == ("theworld", "precompute")
    pods = 1 + sum(group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert options[options.index("--nodes") + 1] == str(pods)
    make_images(tmp_path / "photos", 3)
    at = options.index("--world")  # whose weights are not here
    words = [word.replace("/shared", str(tmp_path)) for word in (*options[:at], *options[at + 2 :])]
    planned = CliRunner().invoke(app, [command, *words, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "3 rollouts" in planned.output
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert environment["env_vars"].keys() == {"RAY_JOB_STOP_WAIT_TIME_S"}
