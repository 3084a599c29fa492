"""`ServeFile`: a serve config with the keys that Ray Serve 2.60 has, and no others.

Serve passes over what it does not know. Knows no Ray, so that a file is read before Ray starts and
where Ray is broken; a test holds it against Serve's own schema, key by key.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]


class StrictModel(BaseModel):
    """Keys of which each has its meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpOptions(StrictModel):
    """Where Serve's proxies listen."""

    host: str = "0.0.0.0"
    port: Port = 8000
    root_path: str = ""
    request_timeout_s: float | None = None
    keep_alive_timeout_s: int = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None


class GrpcOptions(StrictModel):
    """Serve's other proxy, which this service does without."""

    port: Port = 9000
    grpc_servicer_functions: list[str] = []
    request_timeout_s: float | None = None
    enable_reflection: bool = True


class ControllerEnv(StrictModel):
    """All that a controller's runtime_env may have."""

    env_vars: dict[str, str] = {}


class ControllerOptions(StrictModel):
    """The process that minds all replicas."""

    runtime_env: ControllerEnv = ControllerEnv()


class LoggingOptions(StrictModel):
    """What Serve writes of what it does."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = []


class TracingOptions(StrictModel):
    """Where traces go."""

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = Field(0.01, ge=0, le=1)


class BackpressureOptions(StrictModel):
    """What is answered where a queue is full."""

    status_code: Literal[503, 429] = 503
    retry_after_s: Seconds | None = None


class AutoscalingOptions(StrictModel):
    """How Serve chooses a number of replicas."""

    min_replicas: int = Field(1, ge=0)
    initial_replicas: int | None = Field(None, ge=0)
    max_replicas: int = Field(1, gt=0)
    target_ongoing_requests: PositiveSeconds | None = None
    metrics_interval_s: PositiveSeconds = 10
    look_back_period_s: PositiveSeconds = 30
    smoothing_factor: PositiveSeconds = 1
    upscale_smoothing_factor: PositiveSeconds | None = None
    downscale_smoothing_factor: PositiveSeconds | None = None
    upscaling_factor: PositiveSeconds | None = None
    downscaling_factor: PositiveSeconds | None = None
    downscale_delay_s: Seconds = 600
    downscale_to_zero_delay_s: Seconds | None = None
    upscale_delay_s: Seconds = 30
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    policy: "PolicyOptions | None" = None


class PolicyOptions(StrictModel):
    """Another way to choose it."""

    policy_function: str = ""
    policy_kwargs: dict[str, Any] = {}


class RouterOptions(StrictModel):
    """Which replica a request goes to."""

    request_router_class: str = ""
    request_router_kwargs: dict[str, Any] = {}
    request_routing_stats_period_s: PositiveSeconds = 10
    request_routing_stats_timeout_s: PositiveSeconds = 30
    initial_backoff_s: PositiveSeconds = 0.025
    backoff_multiplier: PositiveSeconds = 2
    max_backoff_s: PositiveSeconds = 0.5


class GangOptions(StrictModel):
    """Replicas that start and end together."""

    gang_size: int = Field(ge=1)
    gang_placement_strategy: Literal["PACK", "SPREAD"] = "PACK"
    runtime_failure_policy: str = "RESTART_GANG"


class DeploymentActor(StrictModel):
    """An actor beside the replicas of a deployment."""

    name: str
    actor_class: str
    init_args: list[Any] = []
    init_kwargs: dict[str, Any] = {}
    actor_options: dict[str, Any] = {}


class ActorOptions(StrictModel):
    """What each replica asks of Ray."""

    runtime_env: dict[str, Any] = {}
    num_cpus: Seconds | None = None
    num_gpus: Seconds | None = None
    memory: Seconds | None = None
    resources: dict[str, float] = {}
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None


class DeploymentOverride(StrictModel):
    """Options of one deployment, which win over those in code."""

    name: str
    num_replicas: Annotated[int, Field(gt=0)] | Literal["auto"] | None = None
    max_ongoing_requests: int = Field(5, gt=0)
    max_queued_requests: int = -1
    backpressure_config: BackpressureOptions = BackpressureOptions()
    user_config: dict[str, Any] | None = None
    autoscaling_config: AutoscalingOptions | None = None
    graceful_shutdown_wait_loop_s: Seconds = 2
    graceful_shutdown_timeout_s: Seconds = 20
    health_check_period_s: PositiveSeconds = 10
    health_check_timeout_s: PositiveSeconds = 30
    ray_actor_options: ActorOptions = ActorOptions()
    placement_group_bundles: list[dict[str, float]] = []
    placement_group_strategy: str = "PACK"
    placement_group_bundle_label_selector: list[dict[str, str]] = []
    max_replicas_per_node: int = Field(100, ge=1, le=100)
    logging_config: LoggingOptions = LoggingOptions()
    request_router_config: RouterOptions = RouterOptions()
    gang_scheduling_config: GangOptions | None = None
    deployment_actors: list[DeploymentActor] | None = None
    rolling_update_percentage: float = Field(0.2, gt=0, le=1)
    max_surge_percent: int = Field(0, ge=0, le=100)


class ServedApplication(StrictModel):
    """One application; its args are its own affair."""

    import_path: str
    name: str = Field("default", min_length=1)
    route_prefix: str | None = "/"
    runtime_env: dict[str, Any] = {}
    args: dict[str, Any] = {}
    deployments: list[DeploymentOverride] = []
    autoscaling_policy: PolicyOptions | None = None
    logging_config: LoggingOptions | None = None
    external_scaler_enabled: bool = False


class ServeFile(StrictModel):
    """The whole file."""

    applications: list[ServedApplication]
    proxy_location: Literal["EveryNode", "HeadOnly", "Disabled"] = "EveryNode"
    http_options: HttpOptions = HttpOptions()
    grpc_options: GrpcOptions = GrpcOptions()
    controller_options: ControllerOptions | None = None
    logging_config: LoggingOptions | None = None
    tracing_config: TracingOptions | None = None
    target_capacity: float | None = Field(None, ge=0, le=100)
