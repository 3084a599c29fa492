"""The manifest for KubeRay: what its pods have, and that it holds no secret."""

from typing import Any

import pytest
import yaml

from serve_app.config.serve_config import read_config
from serve_app.config.settings import VARIABLES
from tests.support.shipped_configs import MANIFEST, ROOT


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def manifest() -> Any:
    return next(yaml.safe_load_all(MANIFEST.read_text()))


def pods() -> dict[str, Any]:
    cluster = manifest()["spec"]["rayClusterConfig"]
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def environment(pod: Any) -> dict[str, Any]:
    return {entry["name"]: entry for entry in pod["containers"][0]["env"]}


def test_the_manifest_is_a_rayservice_of_the_ray_that_is_installed() -> None:
    import ray

    content = manifest()
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", "RayService")
    assert content["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__
    versions = (ROOT / "constraints.txt").read_text().splitlines()  # of the Dockerfile's image
    assert f"ray=={ray.__version__}" in versions
    assert "docker build --build-arg TORCH=" in MANIFEST.read_text()


def test_the_redis_of_the_manifest_is_in_it_and_has_a_password() -> None:
    _, deployment, service = yaml.safe_load_all(MANIFEST.read_text())
    options = manifest()["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    port = service["spec"]["ports"][0]["port"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port}"
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert (
        environment(pod["spec"])["REDIS_PASSWORD"]["valueFrom"]
        == (options["redisPassword"]["valueFrom"])
    )
    assert "--requirepass" in container["command"][-1]


def test_a_removed_pod_outlives_its_drain_and_that_outlives_the_replicas() -> None:
    args = read_config(MANIFEST).args
    for pod in pods().values():
        drain = environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"]
        assert args.drain_seconds < float(drain) < pod["terminationGracePeriodSeconds"]


def test_every_container_of_the_manifest_has_limits_named_ports_and_no_probe() -> None:
    http = read_config(MANIFEST).http
    for pod in pods().values():
        for container in pod["containers"]:
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(limits)
            assert limits == container["resources"]["requests"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["serve"] == http["port"]
            assert not {"livenessProbe", "readinessProbe"} & set(container)
    autoscaler = manifest()["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert autoscaler["resources"]["limits"]


def test_the_manifest_has_a_gpu_pod_for_every_replica_that_may_exist() -> None:
    cluster = manifest()["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    (container,) = pods()["gpu"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pods()["gpu"][
        "tolerations"
    ]
    scales = (read_config(MANIFEST).args.base, read_config(MANIFEST).args.refiner)
    assert sum(scale.min_replicas for scale in scales) == group["minReplicas"] == group["replicas"]
    assert int(read_config(MANIFEST).args.settings["TOTAL_GPUS"]) == group["maxReplicas"]
    assert all(scale.effective_max_replicas < group["maxReplicas"] for scale in scales)


def test_paths_in_the_settings_of_the_manifest_are_on_its_volumes() -> None:
    settings = read_config(MANIFEST).args.settings
    for name, pod in pods().items():
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        for setting in ("MODEL_CHECKPOINT_DIR", "MODEL_REFINER_CHECKPOINT_DIR"):
            assert settings[setting].startswith(mounts["models"]["mountPath"] + "/")
        assert mounts["models"]["readOnly"]
        if name == "head":  # where the ledger is
            assert settings["LEDGER_FILE"].startswith(mounts["ledger"]["mountPath"] + "/")
        else:
            assert mounts["shared-memory"]["mountPath"] == "/dev/shm"


def test_the_manifest_names_secrets_and_contains_none() -> None:
    cluster = manifest()["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    redis = cluster["gcsFaultToleranceOptions"]
    assert set(redis["redisPassword"]) == {"valueFrom"}
    for pod in pods().values():
        assert set(environment(pod)["API_KEYS"]) == {"name", "valueFrom"}
    assert "API_KEYS" not in read_config(MANIFEST).args.settings
