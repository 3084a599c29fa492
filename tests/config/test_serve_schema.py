"""`ServeFile` against the schema of the Ray Serve that is installed: the same keys, all over."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from ray.serve import config as of_code
from ray.serve import schema as of_files

from serve_app.config import serve_schema as serve_file

SERVES = {
    serve_file.ServeFile: of_files.ServeDeploySchema,
    serve_file.HttpOptions: of_files.HTTPOptionsSchema,
    serve_file.GrpcOptions: of_files.gRPCOptionsSchema,
    serve_file.ControllerOptions: of_files.ControllerOptions,
    serve_file.LoggingOptions: of_files.LoggingConfig,
    serve_file.TracingOptions: of_files.TracingConfig,
    serve_file.ServedApplication: of_files.ServeApplicationSchema,
    serve_file.DeploymentOverride: of_files.DeploymentSchema,
    serve_file.ActorOptions: of_files.RayActorOptionsSchema,
    serve_file.BackpressureOptions: of_code.BackpressureConfig,
    serve_file.AutoscalingOptions: of_code.AutoscalingConfig,
    serve_file.PolicyOptions: of_code.AutoscalingPolicy,
    serve_file.RouterOptions: of_code.RequestRouterConfig,
    serve_file.GangOptions: of_code.GangSchedulingConfig,
    serve_file.DeploymentActor: of_code.DeploymentActorConfig,
}
REFUSED = {"host", "port"}  # by Serve too, in an application


def sections(annotation: Any) -> set[type[BaseModel]]:
    """The models that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {one for part in get_args(annotation) for one in sections(part)}


@pytest.mark.parametrize(("ours", "serves"), SERVES.items(), ids=lambda one: one.__name__)
def test_a_section_has_the_keys_that_serve_knows(
    ours: type[BaseModel], serves: type[BaseModel]
) -> None:
    application = ours is serve_file.ServedApplication
    assert set(ours.model_fields) == set(serves.model_fields) - (REFUSED if application else set())
    for name, field in ours.model_fields.items():
        theirs = sections(serves.model_fields[name].annotation)
        for section in sections(field.annotation) & set(SERVES):
            assert not theirs or SERVES[section] in theirs


def test_every_section_is_compared() -> None:
    found: set[type[BaseModel]] = set()

    def walk(model: type[BaseModel]) -> None:
        found.add(model)
        for field in model.model_fields.values():
            for section in sections(field.annotation) - found:
                walk(section)

    walk(serve_file.ServeFile)
    assert found - set(SERVES) == {serve_file.ControllerEnv}  # whose keys Serve checks itself
    controller = of_files.ControllerOptions
    controller.model_validate({"runtime_env": {"env_vars": {"A": "1"}}})
    with pytest.raises(ValidationError):
        controller.model_validate({"runtime_env": {"pip": ["a"]}})


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
                }
            ],
        }
    ],
}


def test_what_serve_takes_is_taken() -> None:
    of_files.ServeDeploySchema.model_validate(EVERYTHING)
    serve_file.ServeFile.model_validate(EVERYTHING)


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxy_location": "Everywhere"},
        {"http_options": {"port": "four"}},
        {"http_options": {"keep_alive_timeout_s": "long"}},
        {"logging_config": {"encoding": "XML"}},
        {"target_capacity": 101},
        {"applications": [OURS | {"name": ""}]},
        {"applications": [OURS | {"port": 1}]},
        {"applications": [OURS | {"args": None}]},
        {"applications": [OURS | {"deployments": [{"name": "Ingress", "num_replicas": 0}]}]},
        {"applications": [OURS | {"deployments": [{"num_replicas": 1}]}]},
        {"applications": [{}]},
    ],
    ids=str,
)
def test_what_serve_refuses_is_refused(wrong: dict[str, Any]) -> None:
    for schema in (of_files.ServeDeploySchema, serve_file.ServeFile):
        with pytest.raises(ValidationError):
            schema.model_validate({"applications": [OURS]} | wrong)
