"""The graph of deployments: args and settings in, bound Serve application out.

Settings are read once, where the graph is built, and every deployment gets what it needs by value.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import (
    ModelCatalog,
    find_checkpoints,
    max_batch_images,
    precision_of,
    service_info,
)
from serve_app.config.cloud_model import with_cloud
from serve_app.config.settings import Settings
from serve_app.config.topology import StageDeployment, Topology, plan_stages
from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.capacity.placement import Cluster
from serve_app.core.capacity.routing import max_ongoing_images
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.ledger_place import LedgerFile, LedgerPlace
from serve_app.deployments.ingress_replica import IngressConfig, IngressReplica, OpenHttp
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import INGRESS_ROUTER
from serve_app.deployments.replica_log import DEFAULT_LOG, LogOptions
from serve_app.deployments.retirement import POLLED_EVERY_S
from serve_app.deployments.router import REPORTS_EVERY
from serve_app.deployments.scaling_options import ingress_scaling, stage_scaling
from serve_app.deployments.stage_config import ExtensionSource, ModelSource, StageConfig
from serve_app.deployments.watchdog import HEALTH_CHECK_PERIOD, HEALTH_CHECK_TIMEOUT
from serve_app.ledger_store.opening import check_place
from serve_app.ledger_store.store import LOCK_WAIT_S
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint

ROUTER = "serve_app.deployments.router.OwedWorkRouter"
# That Serve lets an ingress replica hold open: well above what the ingress itself admits, so that
# nothing waits in Serve, where not even /health would be answered.
_MAX_REQUESTS = 8000
_REQUESTS_PER_INGRESS = 100  # for which one ingress replica is enough, where they are scaled
_HEAD = {"node:__internal_head__": 0.001}  # a resource that Ray gives the head node alone
# Seconds between two checks of an ingress replica, and for an answer. Serve replaces a replica that
# has failed three checks in a row: one that is stopped, after 8.5 s at most.
_CHECK_PERIOD, _CHECK_TIMEOUT = 1.0, 2.5
_LEDGER_CHECK_TIMEOUT = 5.0  # seconds; its buckets and heartbeats are in memory, so be patient

HttpOf = Callable[[Settings, ServiceInfo], OpenHttp]


def bind_service(
    args: AppArgs, cluster: Cluster, cpus: int, http: HttpOf, session: str = ""
) -> Application:
    """Bind the application for a cluster.

    `cpus` is what its smallest machine has, and `http` makes what opens the HTTP side of an
    ingress replica. `session` names the Ray that runs: no other one may have the ledger. Raises
    `OperatorError`.
    """
    settings = Settings.read(args.settings)
    catalog = find_checkpoints(settings)
    place = replace(settings.ledger, service=session)
    if session:
        check_place(place, LOCK_WAIT_S)
    plan = plan_stages(args, settings, catalog, cluster)
    device, topology = plan.device, plan.topology
    # Imported only when the settings are right, because it imports torch, which takes seconds.
    from serve_app.deployments.stage_replica import StageReplica

    log = LogOptions(settings.log_level, settings.log_format == "json")
    images = max_batch_images(settings, device)
    threads = settings.model_cpu_threads or _cpu_threads(topology, cpus)
    ledger = bind_ledger(place, log)
    stages = [
        deploy_stage(
            StageReplica,
            stage.name,
            stage.scale,
            images=images,
            gpus=stage.num_gpus,
            drain=args.drain_seconds,
            log=log,
        ).bind(
            _stage_config(stage, settings, catalog, device, images, threads),
            RayMeter,
            ledger=ledger,
        )
        for stage in topology.deployments
    ]
    info = with_cloud(service_info(settings, catalog, device), settings)
    return bind_ingress(
        IngressConfig(
            http(settings, info),
            info.local_models,
            info.refiner,
            topology.max_total_replicas,
            topology.scale_to_zero,
            log,
            AdmissionLimits(settings.max_queue_seconds, settings.max_open_requests),
        ),
        ledger,
        stages[0],
        stages[-1] if catalog.refiner else None,
        plan.ingress,
        args.drain_seconds,
    )


def deploy_stage(
    kind: type,
    name: str,
    scale: DeploymentScale,
    *,
    images: int,
    gpus: float,
    drain: float,
    router: str = ROUTER,
    log: LogOptions = DEFAULT_LOG,
) -> Deployment:
    """Return a stage as a deployment, not yet bound.

    `images` are how many step together on each replica. A replica that retires may finish its
    images for `drain` seconds; then they are continued elsewhere.
    """
    return cast(Deployment, serve.deployment(kind)).options(
        name=name,
        max_ongoing_requests=max_ongoing_images(images),
        logging_config=serve_log(log),
        graceful_shutdown_timeout_s=drain,
        health_check_period_s=HEALTH_CHECK_PERIOD,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT,
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": gpus},
        request_router_config=RequestRouterConfig.model_validate(
            {
                "request_router_class": router,
                "request_router_kwargs": {"images": images},
                "request_routing_stats_period_s": REPORTS_EVERY,
                "initial_backoff_s": 0.005,
                "backoff_multiplier": 1.5,
                "max_backoff_s": 0.1,
            }
        ),
        **stage_scaling(scale.min_replicas, scale.effective_max_replicas, images),
    )


def bind_graph(
    config: IngressConfig,
    place: LedgerPlace,
    base: Application,
    refiner: Application | None,
    scale: DeploymentScale,
    drain: float,
) -> Application:
    """Bind the ingress over a ledger of its own and its stages, which may be one deployment."""
    return bind_ingress(config, bind_ledger(place, config.log), base, refiner, scale, drain)


def bind_ledger(place: LedgerPlace, log: LogOptions) -> Application:
    """Bind the ledger.

    In a file it runs on the head node, where the file is: elsewhere it would start a new one.
    """
    node = _HEAD if isinstance(place, LedgerFile) else {}
    ledger = cast(Deployment, serve.deployment(Ledger)).options(
        name="Ledger",
        logging_config=serve_log(log),
        num_replicas=1,
        max_ongoing_requests=_MAX_REQUESTS,
        health_check_period_s=_CHECK_PERIOD,
        health_check_timeout_s=_LEDGER_CHECK_TIMEOUT,
        graceful_shutdown_timeout_s=1,
        ray_actor_options={"num_cpus": 0, "num_gpus": 0, "resources": node},
    )
    return ledger.bind(place)


def bind_ingress(
    config: IngressConfig,
    ledger: Application | DeploymentHandle[Any],
    base: Application | DeploymentHandle[Any],
    refiner: Application | DeploymentHandle[Any] | None,
    scale: DeploymentScale,
    drain: float,
) -> Application:
    """Bind the ingress over what it calls, which may be running already."""
    return (
        cast(Deployment, serve.deployment(serve.ingress()(IngressReplica)))
        .options(
            name="Ingress",
            logging_config=serve_log(config.log),
            max_ongoing_requests=_MAX_REQUESTS,
            health_check_period_s=_CHECK_PERIOD,
            health_check_timeout_s=_CHECK_TIMEOUT,
            graceful_shutdown_timeout_s=drain,
            ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": 0},
            request_router_config=RequestRouterConfig.model_validate(
                {
                    "request_router_class": INGRESS_ROUTER,
                    "request_routing_stats_period_s": POLLED_EVERY_S,
                }
            ),
            **ingress_scaling(
                scale.min_replicas, scale.effective_max_replicas, _REQUESTS_PER_INGRESS
            ),
        )
        .bind(config, ledger, base, refiner)
    )


def serve_log(options: LogOptions) -> LoggingConfig:
    """Return how Serve writes the log of a deployment.

    Its own line for each request is off: it gives every route as the application's prefix, and
    counts every call between deployments.
    """
    return LoggingConfig(
        encoding="JSON" if options.as_json else "TEXT",
        log_level=options.level.upper(),
        enable_access_log=False,
    )


def _stage_config(
    stage: StageDeployment,
    settings: Settings,
    catalog: ModelCatalog,
    device: str,
    images: int,
    threads: int,
) -> StageConfig:
    checkpoints = [model.checkpoint for model in catalog.models]
    if Stage.BASE not in stage.stages:
        checkpoints = []
    if catalog.refiner and Stage.REFINER in stage.stages:
        checkpoints.append(catalog.refiner)
    return StageConfig(
        models=tuple(map(_model_source, checkpoints)),
        device=device,
        precision=precision_of(settings, device),
        xformers=settings.enable_xformers,
        cpu_threads=threads,
        max_batch_images=images,
        strict=settings.model_determinism == "strict",
        snapshot_interval_steps=settings.snapshot_interval_steps,
        safety_checker_dir=settings.safety_checker_dir,
        max_loaded_models=settings.max_loaded_models,
        extensions=extension_sources(catalog) if Stage.BASE in stage.stages else (),
        max_loaded_extensions=settings.max_loaded_loras,
        memory_fraction=min(stage.num_gpus or 1.0, 1.0),
        compile_mode=settings.model_compile,
        quantization=settings.model_quantization,
        remember_proofs=True,
    )


def extension_sources(catalog: ModelCatalog) -> tuple[ExtensionSource, ...]:
    """Return where a replica of the base stage finds the extensions."""
    return tuple(
        ExtensionSource(*extension.info.key, extension.file.path, extension.info.models)
        for extension in catalog.extensions
    )


def _model_source(checkpoint: Checkpoint) -> ModelSource:
    """Return where a replica finds a checkpoint.

    The demo checkpoint is part of the package, wherever that is installed on the replica's machine.
    """
    is_demo = checkpoint.path == demo_folder(checkpoint.stage)
    configs = checkpoint.folder if checkpoint.file else None
    path = None if is_demo else checkpoint.path
    return ModelSource(checkpoint.name, path, configs, checkpoint.stage)


def _cpu_threads(topology: Topology, cpus: int) -> int:
    """Return the CPU threads of each stage replica: its share of the smallest machine.

    The number decides bits, so it depends on the machines and on the largest number of replicas in
    the args. It is a power of two, because kernels divide other numbers of threads unevenly, and
    then the position of a row in its batch shows in its last bits.
    """
    share = max(1, cpus // topology.max_replicas)
    return 1 << (share.bit_length() - 1)
