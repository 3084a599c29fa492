"""The shipped configs start what they promise, and a wrong config is reported."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.app import http
from serve_app.cli.check_config import check_configs
from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.lint import POLICY, SECTIONS
from serve_app.config.serve_config import ServeConfig, lint_file, read_config
from serve_app.config.settings import VARIABLES, check_given
from serve_app.core.capacity.placement import Cluster
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError
from serve_app.deployments.graph import bind_service
from serve_app.deployments.ingress_replica import IngressConfig
from tests.support.ray_private import build_app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
CONFIGS = [ROOT / "serve_config.yaml", *sorted(FOLDER.glob("*.yaml"))]
MANIFEST = FOLDER / "kuberay-rayservice.yaml"
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def served(path: Path) -> Any:
    """Return the serve config in the file, as Ray gets it."""
    content = next(yaml.safe_load_all(path.read_text()))
    return yaml.safe_load(content["spec"]["serveConfigV2"]) if path == MANIFEST else content


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_config_has_no_problem_and_serve_takes_it(path: Path) -> None:
    assert lint_file(path) == ()
    config = read_config(path)
    assert (config.application["name"], config.application["route_prefix"]) == ("aura", "/")
    assert config.http == {"host": config.http["host"], "port": 4000}
    assert config.http["host"] == ("0.0.0.0" if path == MANIFEST else "127.0.0.1")
    ServeDeploySchema.model_validate(served(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_config_says_what_it_is_for_and_the_readme_lists_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all(len(line) <= 100 for line in lines)
    name = str(path.relative_to(ROOT))
    assert f"({name})" in README
    command = "kubectl apply -f" if path == MANIFEST else "serve run|up --config|serve deploy"
    assert re.search(rf"({command}) {re.escape(name)}", path.read_text())


def bound(path: Path, gpus: float, device: str) -> dict[str, dict[str, Any]]:
    """Return the deployments of a config on a cluster with `gpus` GPUs, by name."""
    args = read_config(path).args
    demo = {"MODEL_CHECKPOINT_DIR": "", "MODEL_REFINER_CHECKPOINT_DIR": "", "MODEL_DEVICE": device}
    args = args.model_copy(update={"settings": args.settings | demo})
    application = bind_service(args, Cluster(({"CPU": 8, "GPU": gpus},)), 8, http)
    built = build_app(application, name="aura")
    found = {}
    for deployment in built.deployments:
        scaling = deployment._deployment_config.autoscaling_config
        options = deployment.ray_actor_options or {}
        found[deployment.name] = {
            "replicas": (scaling.min_replicas, scaling.max_replicas)
            if scaling
            else (deployment.num_replicas, deployment.num_replicas),
            "gpus": options["num_gpus"],
            "cpus": options["num_cpus"],
            "drain": deployment._deployment_config.graceful_shutdown_timeout_s,
            "node": options.get("resources"),
        }
    return found


SHAPES: dict[str, tuple[float, str, dict[str, tuple[tuple[int, int], float]]]] = {
    "serve_config.yaml": (0, "cpu", {"BaseGenerator": ((1, 1), 0), "Refiner": ((1, 1), 0)}),
    "cpu.yaml": (0, "cpu", {"BaseAndRefiner": ((1, 1), 0)}),
    "apple-mps.yaml": (1, "mps", {"BaseAndRefiner": ((1, 1), 0)}),
    "one-gpu-12gb.yaml": (1, "cuda", {"BaseAndRefiner": ((1, 1), 1)}),
    "one-gpu-24gb.yaml": (1, "cuda", {"BaseAndRefiner": ((1, 1), 1)}),
    "workstation-4gpu.yaml": (
        4,
        "cuda",
        {"BaseGenerator": ((3, 3), 1), "Refiner": ((1, 1), 1)},
    ),
    "cluster-autoscaling.yaml": (
        10,
        "cuda",
        {"BaseGenerator": ((1, 8), 1), "Refiner": ((1, 4), 1)},
    ),
    "kuberay-rayservice.yaml": (
        4,
        "cuda",
        {"BaseGenerator": ((1, 3), 1), "Refiner": ((1, 2), 1)},
    ),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_config_comes_to_the_deployments_that_it_promises(path: Path) -> None:
    gpus, device, stages = SHAPES[path.name]
    found = bound(path, gpus, device)
    assert {*found} == {"Ingress", "Ledger", *stages} <= {*SECTIONS}
    args = read_config(path).args
    for name, (replicas, each) in stages.items():
        assert (found[name]["replicas"], found[name]["gpus"]) == (replicas, each)
        assert found[name]["drain"] == found["Ingress"]["drain"] == args.drain_seconds
        assert found[name]["cpus"] < 1  # or small machines would have none left
    maximum = sum(replicas[1] * each for replicas, each in stages.values())
    assert min(maximum, int(args.settings.get("TOTAL_GPUS", maximum))) == gpus or device != "cuda"
    assert found["Ledger"]["node"] == {"node:__internal_head__": 0.001}
    assert {found["Ledger"]["cpus"], found["Ledger"]["gpus"], found["Ingress"]["gpus"]} == {0}


def ingress_of(args: dict[str, Any], gpus: float, **settings: str) -> IngressConfig:
    """Return the config of the ingress on a cluster with `gpus` GPUs."""
    app_args = AppArgs.model_validate(args | {"settings": {"MODEL_DEVICE": "cuda"} | settings})
    built = build_app(
        bind_service(app_args, Cluster(({"CPU": 8, "GPU": gpus},)), 8, http), name="aura"
    )
    (ingress,) = (entry for entry in built.deployments if entry.name == "Ingress")
    config: IngressConfig = ingress.init_args[0]
    return config


SCALING = {"base": {"max_replicas": 3}, "refiner": {"max_replicas": 2}}


def test_the_ingress_knows_how_many_replicas_fit_on_total_gpus() -> None:
    assert ingress_of(SCALING, 4).max_total_replicas is None
    assert ingress_of(SCALING, 4, TOTAL_GPUS="4").max_total_replicas == 4
    assert ingress_of(SCALING, 8, TOTAL_GPUS="4").max_total_replicas == 4
    assert ingress_of(SCALING, 4, TOTAL_GPUS="4", MODEL_DEVICE="cpu").max_total_replicas is None
    whole = {name: scale | {"num_gpus": 1} for name, scale in SCALING.items()}
    with pytest.raises(SettingsError, match="TOTAL_GPUS=1 has room for 1 replicas"):
        ingress_of(whole, 4, TOTAL_GPUS="1")


def test_stages_share_the_gpus_that_they_may_use_not_all_that_exist() -> None:
    assert ingress_of(SCALING, 8, TOTAL_GPUS="1").max_total_replicas == 2  # halves
    on_one_card = ingress_of({}, 8, TOTAL_GPUS="1")  # both stages, and neither scales
    assert on_one_card.max_total_replicas == 0


def test_the_ingress_knows_which_stage_may_scale_to_zero() -> None:
    to_zero = SCALING | {"refiner": {"min_replicas": 0, "max_replicas": 2}}
    assert ingress_of(to_zero, 4).scale_to_zero == (Stage.REFINER,)
    assert ingress_of(SCALING, 4).scale_to_zero == ()
    assert ingress_of({"combined": {"max_replicas": 2}}, 4).scale_to_zero == ()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.name)
def test_commented_out_keys_of_a_config_are_legal_too(path: Path) -> None:
    commented = re.findall(r"^ +# (\w+: [^ ].*)$", path.read_text(), re.MULTILINE)
    entries = [entry for line in commented for entry in yaml.safe_load(line).items()]
    settings = {name: str(value) for name, value in entries if name.isupper()}
    check_given(settings)
    assert settings or path == MANIFEST
    for name, value in entries:
        if isinstance(value, dict) and name in SECTIONS.values():
            DeploymentScale.model_validate(value)


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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a serve config: it has no keys"),
        ("applications: []", "applications: none has the import_path serve_app.app:build"),
        ("{", "is not a serve config"),
        ("- 1", "is not a serve config: it has no keys"),
        (
            "port: 1\nport: 2\n",
            "is not a serve config: duplicate key port in line 2, first in line 1",
        ),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {bsae: {}}}]",
            "applications[0].args.bsae: unknown key. Did you mean base?",
        ),
        (
            "http_option: {}\n"
            "applications: [{import_path: 'serve_app.app:build', args: {bsae: {}}}]",
            "http_option: unknown key. Did you mean http_options? (1 more: aura check-config ",
        ),
        ("kind: RayService", "is not a serve config: the manifest has no config under spec."),
        ("{kind: RayService, spec: {serveConfigV2: 'a: 1'}}", "applications: is missing"),
        ("{kind: RayService, spec: {serveConfigV2: 4}}", "is not a serve config"),
    ],
)
def test_a_wrong_config_is_reported_by_file_and_key(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"mine\.yaml.*{re.escape(sentence)}") as refused:
        read_config(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(SettingsError, match=r"missing\.yaml can't be read: No such file"):
        read_config(tmp_path / "missing.yaml")


def test_old_names_in_a_config_are_understood_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("""
applications:
  - import_path: serve_app.app:build
    autoscaling_policy:
      policy_function: serve_app.deployments.autoscaling:OwedWork
      policy_kwargs: { wait: 7, busy: 0.5, patience: 9 }
    args:
      both: { max_replicas: 2 }
      settings: { IMAGE_COUNT: 1 }
""")
    assert lint_file(path) == ()
    caplog.clear()
    config = read_config(path)
    assert config.application["autoscaling_policy"] == {
        "policy_function": POLICY,
        "policy_kwargs": {
            "target_drain_s": 7,
            "target_utilization": 0.5,
            "downscale_delay_s": 9,
        },
    }
    assert config.args.combined == DeploymentScale(max_replicas=2)
    assert config.args.settings == {"DEFAULT_IMAGE_COUNT": "1"}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 6
    assert f"{path}: both is deprecated and will be removed: use combined" in warnings


def test_an_old_key_beside_its_new_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "applications: [{import_path: 'serve_app.app:build', args: {both: {}, combined: {}}}]"
    )
    (problem,) = lint_file(path)
    assert str(problem).startswith("applications[0].args.both: unknown key")


def test_a_manifest_may_share_its_file_with_others(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(f"kind: Secret\n---\n{MANIFEST.read_text()}")
    assert read_config(path).args == read_config(MANIFEST).args


@pytest.mark.parametrize(
    "more",
    [
        "",
        "proxy_location: EveryNode",
        f"    autoscaling_policy: {{ policy_function: {POLICY} }}",
    ],
)
def test_up_applies_a_config_of_these_keys(tmp_path: Path, more: str) -> None:
    config_with(more, tmp_path).check_applied()


@pytest.mark.parametrize(
    ("more", "ignored"),
    [
        ("logging_config: { log_level: DEBUG }", "logging_config"),
        ("target_capacity: 50", "target_capacity"),
        ("    runtime_env: {}", "runtime_env"),
        ("    deployments: []", "deployments"),
        ("  - { name: other, import_path: 'a:b' }", "more than one application"),
    ],
)
def test_up_refuses_keys_that_it_would_not_apply(tmp_path: Path, more: str, ignored: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"has keys that up does not apply: {ignored}\. .* serve run .*mine"
    ):
        config_with(more, tmp_path).check_applied()


def config_with(more: str, folder: Path) -> ServeConfig:
    """Return a config of our application and of further lines."""
    path = folder / "mine.yaml"
    path.write_text(f"applications:\n  - import_path: serve_app.app:build\n{more}\n")
    return read_config(path)


def test_check_config_reports_every_problem_of_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS[0].read_text().replace("base:", "bsae:").replace("port:", "prot:"))
    assert check_configs([*CONFIGS]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CONFIGS)
    assert check_configs([CONFIGS[0], wrong]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{CONFIGS[0]}: every key is known",
        f"{wrong}: http_options.prot: unknown key. Did you mean port?",
        f"{wrong}: applications[0].args.bsae: unknown key. Did you mean base?",
    ]
    missing = tmp_path / "none.yaml"
    assert check_configs([missing, wrong]) == 2
    assert capsys.readouterr().err == f"error {missing} can't be read: No such file or directory\n"


def test_check_config_names_and_skips_what_is_no_serve_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, misspelt = tmp_path / "dashboard.json", tmp_path / "misspelt.yaml"
    board.write_text('{"panels": [], "title": "Aura Serve"}')
    misspelt.write_text("aplications: []")
    assert check_configs([CONFIGS[0], board, tmp_path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{CONFIGS[0]}: every key is known",
        f"{board}: skipped, it is no serve config",
        f"{tmp_path}: skipped, it is no serve config",
    ]
    assert check_configs([board]) == 2
    assert check_configs([misspelt]) == 1
    assert "aplications: unknown key. Did you mean applications?" in capsys.readouterr().out


def test_every_file_beside_the_configs_is_a_serve_config() -> None:
    assert check_configs(sorted(FOLDER.iterdir())) == 0
    assert all(file.suffix == ".yaml" for file in FOLDER.iterdir())


def test_up_and_check_config_report_the_same_before_ray_starts(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS[0].read_text().replace("base:", "bsae:"))
    expected = f"{wrong}: applications[0].args.bsae: unknown key. Did you mean base?"
    for command, status in ((["up", "--config"], 2), (["check-config"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "serve_app", *command, str(wrong)],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, (done.stdout + done.stderr).strip()[-len(expected) :]) == (
            status,
            expected,
        )
