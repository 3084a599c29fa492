"""The shipped configs start what they promise."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.app import http
from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import SECTIONS
from serve_app.config.serve_config import lint_file, read_config
from serve_app.config.settings import VARIABLES, check_given
from serve_app.core.capacity.placement import Cluster
from serve_app.deployments.graph import bind_service
from tests.support.ray_private import build_app
from tests.support.shipped_configs import CONFIGS, FOLDER, MANIFEST, ROOT

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


def bound(path: Path, gpus: float, device: str, url: str = "") -> dict[str, dict[str, Any]]:
    """Return the deployments of a config on a cluster with `gpus` GPUs, by name."""
    args = read_config(path).args
    demo = {"MODEL_CHECKPOINT_DIR": "", "MODEL_REFINER_CHECKPOINT_DIR": "", "MODEL_DEVICE": device}
    database = {"LEDGER_URL": url}
    args = args.model_copy(update={"settings": args.settings | demo | database})
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
    database = "postgresql://u:p@db.example/pictures"  # which outlives the head
    assert bound(path, gpus, device, database)["Ledger"]["node"] == {}
    assert {found["Ledger"]["cpus"], found["Ledger"]["gpus"], found["Ingress"]["gpus"]} == {0}


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
