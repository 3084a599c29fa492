"""What the Docker files promise: no secret in an image, no open port, no default password."""

import json
import re
import shlex
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STEPS: list[dict[str, str]] = DockerfileParser(
    fileobj=BytesIO((ROOT / "Dockerfile").read_bytes())
).structure
PRIVATE = [
    ".env",
    ".env.local",
    ".git/config",
    ".venv/bin/python",
    "models/sdxl-base/model_index.json",
    "configs/.env.local",
    "serve_app/.env.local",
    "serve_app/cli/__pycache__/main.cpython-311.pyc",
    "serve_app/demo/training/dataset.py",
    "tests/conftest.py",
    "my.key",
    "out.png",
]


def steps(kind: str) -> list[str]:
    return [step["value"] for step in STEPS if step["instruction"] == kind]


def copied() -> list[str]:
    """Return the files and folders of the repository that the Dockerfile copies."""
    words = [shlex.split(value) for value in steps("COPY")]
    return [name for *names, _ in words if not names[0].startswith("--") for name in names]


def test_nothing_private_enters_an_image(tmp_path: Path) -> None:
    kept = [name if "." in name else f"{name}/__init__.py" for name in copied()]
    for name in (*PRIVATE, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in IGNORED if line and not line.startswith("#")]
    assert patterns[0] == "*"  # what is not named stays out
    entered = {name for name in exclude_paths(str(tmp_path), patterns) if "." in Path(name).name}
    assert entered - {"Dockerfile", ".dockerignore"} == set(kept)


def test_the_image_runs_as_a_numbered_user_from_a_base_with_a_tag() -> None:
    (base,) = [value for value in steps("ARG") if value.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-\w+", base)
    assert {value.split()[0] for value in steps("FROM")} == {"${PYTHON_IMAGE}", "torch"}
    assert steps("USER") == ["1000"]
    assert all(isinstance(json.loads(value), list) for value in steps("CMD") + steps("ENTRYPOINT"))
    (health,) = steps("HEALTHCHECK")
    assert "/livez" in health
    assert not {"ADD", "MAINTAINER"} & {step["instruction"] for step in STEPS}


@pytest.mark.parametrize(
    ("settings", "netloc"),
    [
        ({"HOST": "0.0.0.0"}, "127.0.0.1:4000"),
        ({}, "127.0.0.1:4000"),
        ({"HOST": "::", "BACKEND_PORT": "8000"}, "[::1]:8000"),
        ({"HOST": "[::]"}, "[::1]:4000"),
        ({"HOST": "192.168.1.5"}, "192.168.1.5:4000"),
        ({"HOST": "fd00::7"}, "[fd00::7]:4000"),
        ({"HOST": "[fd00::7]"}, "[fd00::7]:4000"),
        ({"HOST": "0.0.0.0", "AURA_HOST": "10.0.0.7", "AURA_BACKEND_PORT": "9"}, "10.0.0.7:9"),
    ],
)
def test_the_health_check_asks_where_the_service_listens(
    tmp_path: Path, settings: dict[str, str], netloc: str
) -> None:
    """A `wget` that prints its address stands in for the image's."""
    wget = tmp_path / "wget"
    wget.write_text('#!/bin/sh\nfor address; do :; done; echo "$address"\n')
    wget.chmod(0o755)
    (health,) = steps("HEALTHCHECK")
    command = json.loads(health.partition(" CMD ")[2])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"http://{netloc}/livez\n"


def test_only_the_service_is_published_beyond_this_machine() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert name == "aura" or str(port).startswith("127.0.0.1:"), (name, port)
    assert "network_mode" not in str(COMPOSE)
    assert "privileged" not in str(COMPOSE).replace("no-new-privileges", "")


def test_the_service_demands_a_key_and_nothing_has_a_default_password() -> None:
    assert SERVICES["aura"]["environment"]["API_KEYS"].startswith("${API_KEYS:?")
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert re.match(r"\$\{\w+:\?", str(value)), name
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # no admin/admin
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_models_are_read_only_and_a_drain_has_time() -> None:
    aura = SERVICES["aura"]
    assert "./models:/home/aura/models:ro" in aura["volumes"]
    assert aura["environment"]["LEDGER_FILE"].startswith("/var/lib/aura/")
    assert "ledger:/var/lib/aura" in aura["volumes"]
    assert aura["stop_grace_period"] == "11m"
    assert aura["shm_size"] == "2gb"


def test_prometheus_and_grafana_are_optional_and_find_the_metrics_and_the_dashboard() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == {
        "prometheus",
        "grafana",
    }
    port = SERVICES["aura"]["environment"]["METRICS_PORT"]
    assert targets(ROOT / "monitoring" / "prometheus.yml") == [f"aura:{port}"]
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    provisioning = ROOT / mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "aura-serve.yaml").read_text())[
        "providers"
    ]
    dashboards = ROOT / mounts[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert json.loads((dashboards / Path(home).name).read_text())["uid"] == "aura-serve"


def targets(file: Path) -> list[str]:
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    return [target for group in job["static_configs"] for target in group["targets"]]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_every_image_but_our_own_has_a_version(name: str) -> None:
    for service in yaml.safe_load((ROOT / name).read_text())["services"].values():
        image = service["image"]
        assert image.startswith("aura-serve") or re.search(r":v?\d+\.\d+\.\d+$", image)


def test_every_mounted_file_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./m") or source == "./models" or (ROOT / source).exists()
