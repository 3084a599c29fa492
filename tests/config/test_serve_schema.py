"""The checked-in schema of serve configs against the Ray Serve that is installed."""

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from scripts.generate_serve_schema import FILE, generate
from serve_app.config.serve_schema import schema_errors

OURS = {"import_path": "serve_app.app:build"}
EVERYTHING: dict[str, Any] = {
    "proxy_location": "EveryNode",
    "http_options": {"host": "127.0.0.1", "port": 4000, "request_timeout_s": None},
    "grpc_options": {"port": 9001},
    "controller_options": {"runtime_env": {"env_vars": {"A": "1"}}},
    "logging_config": {"encoding": "JSON", "log_level": "DEBUG", "enable_access_log": False},
    "tracing_config": {"enabled": False, "sampling_ratio": 0.5},
    "target_capacity": 50,
    "applications": [
        OURS
        | {
            "route_prefix": None,
            "runtime_env": {"env_vars": {"A": "1"}},
            "external_scaler_enabled": False,
            "deployments": [
                {
                    "name": "Ingress",
                    "num_replicas": "auto",
                    "backpressure_config": {"status_code": 429, "retry_after_s": 5},
                    "ray_actor_options": {"num_cpus": 0.5, "resources": {"disk": 1}},
                    "max_replicas_per_node": 2,
                    "request_router_config": {"max_backoff_s": 0.1},
                    "graceful_shutdown_timeout_s": 5,
                },
                {
                    "name": "Refiner",
                    "autoscaling_config": {"min_replicas": 0, "aggregation_function": "max"},
                    "deployment_actors": [{"name": "a", "actor_class": "a:B"}],
                },
            ],
        }
    ],
}


def test_the_file_is_what_the_installed_ray_gives() -> None:
    assert json.loads(FILE.read_text()) == generate(), "run python scripts/generate_serve_schema.py"


def test_what_serve_takes_is_taken() -> None:
    ServeDeploySchema.model_validate(EVERYTHING)
    assert list(schema_errors(EVERYTHING)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxy_location": "Everywhere"},
        {"http_options": {"port": "four"}},
        {"http_options": {"keep_alive_timeout_s": "long"}},
        {"logging_config": {"encoding": "XML"}},
        {"controller_options": {"runtime_env": {"pip": ["a"]}}},
        {"target_capacity": 101},
        {"applications": [OURS | {"name": ""}]},
        {"applications": [OURS | {"port": 1}]},
        {"applications": [OURS | {"args": None}]},
        {"applications": [OURS | {"deployments": [{"name": "Ingress", "num_replicas": 0}]}]},
        {"applications": [OURS | {"deployments": [{"name": "Ingress", "num_replicas": "all"}]}]},
        {"applications": [OURS | {"deployments": [{"num_replicas": 1}]}]},
        {"applications": [{}]},
    ],
    ids=str,
)
def test_what_serve_refuses_is_refused(wrong: dict[str, Any]) -> None:
    config = {"applications": [OURS]} | wrong
    with pytest.raises(ValidationError):
        ServeDeploySchema.model_validate(config)
    assert len(list(schema_errors(config))) == 1


def test_a_key_that_serve_ignores_is_found() -> None:
    config = {"applications": [OURS], "proxy_locaton": "HeadOnly"}
    ServeDeploySchema.model_validate(config)
    (error,) = schema_errors(config)
    assert error.location == ("proxy_locaton",)
    assert "proxy_location" in error.known_keys


def test_configs_are_checked_without_ray() -> None:
    script = "import sys, serve_app.config.serve_config; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
