"""The graph: settings in, bound Serve application out. The import_path of serve_config.yaml.

The builder runs in a Ray task on some node, not in your shell: it asks Ray what GPUs there are,
reads the settings once, and hands every deployment what it needs by value.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app import __version__
from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import (
    choose_device,
    find_checkpoints,
    max_batch_images,
    service_info,
)
from serve_app.config.settings import Settings
from serve_app.core.capacity.demand import to_wire
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.autoscaling import MAX_TOTAL_REPLICAS
from serve_app.deployments.clients import RemoteLedger, RemoteStage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.replica_counts import ingress_replicas, stage_replicas
from serve_app.deployments.router import REPORTS_EVERY
from serve_app.deployments.stage_replica import LoraSource, ModelSource, StageConfig, StageReplica
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.app import build_api
from serve_app.ingress.job_service import JobService
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint

ROUTER = "serve_app.deployments.router.OwedWorkRouter"
_CALLERS = 1000  # requests an ingress replica holds open
_HALTED = 5.0  # seconds in which every ingress replica should have heard of a cancelled job
_HEAD = {"node:__internal_head__": 0.001}  # a resource that Ray gives the head node alone


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """All an ingress replica needs to know, by value; of keys it has the digests alone."""

    info: ServiceInfo
    access_policy: AccessPolicy
    blocked_words: tuple[str, ...]
    rate_limit: RateLimit | None
    max_total_replicas: int | None = (
        None  # replicas of the stages that scale, all together; None: no limit
    )
    scale_to_zero: tuple[Stage, ...] = ()  # which may have none


class Ingress:
    """The CPU deployment that speaks HTTP: routes on a desk, a conductor and handles."""

    def __init__(
        self,
        config: IngressConfig,
        ledger: "DeploymentHandle[Any]",
        base: "DeploymentHandle[Any]",
        refiner: "DeploymentHandle[Any] | None",
    ) -> None:
        self._config = config
        self._meter = RayMeter()
        clients = _clients(base, refiner)
        self._conductor = Conductor(*clients, config.info.models, self._meter, config.scale_to_zero)
        here = serve.get_replica_context()
        self._all = serve.get_deployment_handle(here.deployment, here.app_name)
        self._desk = JobService(
            self._conductor,
            RemoteLedger(ledger),
            config.info,
            prompt_filter=WordList(config.blocked_words) if config.blocked_words else None,
            rate_limit=config.rate_limit,
            cancel_everywhere=self._halt_everywhere,
        )

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI app; Serve asks for it in the replica, so nothing of it is ever pickled."""
        config = self._config
        return build_api(
            self._desk,
            self._conductor,
            config.info,
            config.access_policy,
            version=__version__,
            proxy_names=True,
            meter=self._meter,
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What is wanted of the stages by what was accepted here: Serve tells it to the policy."""
        numbers = to_wire(await self._conductor.demands())
        return (
            numbers
            if self._config.max_total_replicas is None
            else numbers | {MAX_TOTAL_REPLICAS: self._config.max_total_replicas}
        )

    async def halt(self, job: str) -> None:
        """The job is cancelled, if it is worked at here."""
        self._desk.stop(job)

    async def drain(self) -> None:
        """Nothing new is taken, all that was accepted has ended, and the ledger knows."""
        await self._conductor.drain()
        await self._desk.drain()

    async def __del__(self) -> None:
        """Serve calls this before a replica retires; jobs whose caller left would else be lost."""
        await self.drain()

    async def _halt_everywhere(self, job: str) -> None:
        with suppress(TimeoutError, RayError, DeploymentUnavailableError):  # the ledger will tell
            calls = self._all.broadcast("halt", job)
            await calls.results_async(timeout_s=_HALTED, return_exceptions=True)


def build(args: AppArgs) -> Application:
    """The application, bound. Raises `OperatorError` with one line that says what to do."""
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = min([os.cpu_count() or 1, *(int(cpus) for cpus in machines if cpus)])
    return bind_service(args, ray.cluster_resources().get("GPU", 0), cpus)


def bind_service(args: AppArgs, gpus_there: float, cpus: int) -> Application:
    """The application for a cluster with so many GPUs, whose smallest machine has so many CPUs."""
    settings = Settings.read(args.settings)
    device = choose_device(settings.model_device, gpus=gpus_there)
    lineup = find_checkpoints(settings)
    refiner = lineup.refiner
    gpus = min(gpus_there, settings.total_gpus or gpus_there)
    args = args.with_defaults(device, gpus, refiner=refiner is not None)
    scales = args.scales(refiner=refiner is not None)
    if device == "cuda" and gpus_there < 1 and scales[0].num_gpus is None:
        raise SettingsError(
            "MODEL_DEVICE=cuda, but Ray sees no GPU, so replicas would wait for ever. Check "
            "nvidia-smi, or set MODEL_DEVICE=cpu. Where GPU nodes come later, say num_gpus: 1 for "
            "each stage in the args"
        )
    images = max_batch_images(settings, device)
    share = args.gpu_share(gpus, refiner=refiner is not None)
    pool = args.max_total_replicas(settings.total_gpus, device, share, refiner=refiner is not None)
    threads = settings.model_cpu_threads or _threads(scales, cpus)
    loras = tuple(LoraSource(one.info.name, one.file.path, one.info.models) for one in lineup.loras)

    def bind_stage(name: str, scale: DeploymentScale, *checkpoints: Checkpoint) -> Application:
        gpus = scale.gpus_on(device, share)
        config = StageConfig(
            models=tuple(map(_source, checkpoints)),
            device=device,
            precision=settings.model_precision,
            xformers=settings.enable_xformers,
            cpu_threads=threads,
            max_batch_images=images,
            strict=settings.model_determinism == "strict",
            snapshot_interval_steps=settings.snapshot_interval_steps,
            safety_checker_dir=settings.safety_checker_dir,
            max_loaded_models=settings.max_loaded_models,
            loras=loras if checkpoints[0].stage is Stage.BASE else (),
            max_loaded_loras=settings.max_loaded_loras,
            memory_fraction=min(gpus or 1.0, 1.0),
        )
        return deploy_stage(
            StageReplica, name, scale, images=images, gpus=gpus, drain=args.drain_seconds
        ).bind(config, RayMeter)

    config = IngressConfig(
        info=service_info(settings, lineup, device),
        access_policy=AccessPolicy(
            keys=digests(settings.api_keys),
            anonymous=settings.allow_anonymous,
            hosts=settings.hosts,
            origins=settings.origins,
            max_body_bytes=settings.max_body_mib * 2**20,
        ),
        blocked_words=settings.blocked_words(),
        rate_limit=settings.rate_limit,
        max_total_replicas=pool,
        scale_to_zero=() if all(scale.min_replicas for scale in scales) else (Stage.REFINER,),
    )
    bases = [model.checkpoint for model in lineup.models]
    second: Application | None
    if refiner and args.combined:
        first = second = bind_stage("BaseAndRefiner", args.combined, *bases, refiner)
    else:
        first = bind_stage("BaseGenerator", scales[0], *bases)
        second = bind_stage("Refiner", args.refiner, refiner) if refiner else None
    return bind_graph(config, settings.ledger, first, second, args.ingress, args.drain_seconds)


def deploy_stage(
    kind: type,
    name: str,
    scale: DeploymentScale,
    *,
    images: int,
    gpus: float,
    drain: float,
    router: str = ROUTER,
) -> Deployment:
    """A stage as a deployment, not yet bound; `images` step together on each replica, and one that
    retires may finish for `drain` seconds: then its images go on elsewhere."""
    return cast(Deployment, serve.deployment(kind)).options(
        name=name,
        max_ongoing_requests=(MAX_QUEUED_BATCHES + 1)
        * images,  # one more: several ingresses know late
        graceful_shutdown_timeout_s=drain,
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
        **stage_replicas(scale.min_replicas, scale.max_total, images),
    )


def bind_graph(
    config: IngressConfig,
    ledger_file: Path,
    base: Application,
    refiner: Application | None,
    scale: DeploymentScale,
    drain: float,
) -> Application:
    """The ingress over its ledger and its stages, which may be the same one.

    The ledger is on the head node, with its file: whatever node it were restarted on would have
    another one.
    """
    ledger = cast(Deployment, serve.deployment(Ledger)).options(
        name="Ledger",
        num_replicas=1,
        max_ongoing_requests=_CALLERS,
        health_check_period_s=1,
        graceful_shutdown_timeout_s=1,
        ray_actor_options={"num_cpus": 0, "num_gpus": 0, "resources": _HEAD},
    )
    return (
        cast(Deployment, serve.deployment(serve.ingress()(Ingress)))
        .options(
            name="Ingress",
            max_ongoing_requests=_CALLERS,
            graceful_shutdown_timeout_s=drain,
            ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": 0},
            **ingress_replicas(scale.min_replicas, scale.max_total, _CALLERS),
        )
        .bind(config, ledger.bind(ledger_file), base, refiner)
    )


def _clients(
    base: "DeploymentHandle[Any]", refiner: "DeploymentHandle[Any] | None"
) -> tuple[RemoteStage, RemoteStage | None]:
    """The stages behind handles: one client where one deployment runs both, for it counts what each
    of its replicas has to do."""
    if refiner is None:
        return RemoteStage("base", base), None
    if refiner.deployment_id == base.deployment_id:
        both = RemoteStage("base and refiner", base)
        return both, both
    return RemoteStage("base", base), RemoteStage("refiner", refiner)


def _source(checkpoint: Checkpoint) -> ModelSource:
    """Where a replica finds a checkpoint: the demo lies in the package, wherever that is there."""
    own = checkpoint.path == demo_folder(checkpoint.stage)
    configs = checkpoint.folder if checkpoint.file else None
    return ModelSource(checkpoint.name, None if own else checkpoint.path, configs, checkpoint.stage)


def _threads(scales: Sequence[DeploymentScale], cpus: int) -> int:
    """CPU threads of each stage replica: a fair share of the smallest machine, as a power of two.

    The number decides bits, so it depends on the machines and on how many replicas the args may
    come to. A power of two, because kernels split uneven shares unevenly, and then a row's slot
    shows in its last bits.
    """
    share = max(1, cpus // sum(scale.max_total for scale in scales))
    return 1 << (share.bit_length() - 1)
