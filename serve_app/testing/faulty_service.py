"""The whole application over a stated number of sleeping replicas, for tests that break it."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile
from serve_app.deployments.graph import bind_graph, bind_ingress, deploy_stage
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.ingress.access import AccessPolicy, by_caller, digests
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_stage import SleepingStage, ingress_config, stage_config

ORIGIN = "https://pages.example"  # of pages that may call the application
DEPLOYMENTS = {Stage.BASE: "BaseGenerator", Stage.REFINER: "Refiner"}


class FaultyArgs(BaseModel):
    """The `args:` of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ledger: Path
    strikes: Path  # see `SleepingDenoiser`
    ledger_url: str = ""  # of a PostgreSQL database, in place of the file
    base: int = 2  # replicas
    refiner: int = 2
    ingress: int = 1
    images: int = 4  # that step together
    seconds_scale: float = 1.0  # of every turn's time
    drain_seconds: float = 60.0
    keys: tuple[str, ...] = ()  # API keys
    weights: Mapping[str, float] = {}  # of some of these keys
    spool: Path | None = None  # DRAIN_SPOOL


def build(args: FaultyArgs) -> Application:
    """Return the service's own graph over sleeping replicas, which need no GPU."""
    speed = speed_of(args)
    base, refiner = (
        deploy_stage(
            SleepingStage,
            DEPLOYMENTS[stage],
            DeploymentScale(min_replicas=replicas),
            images=args.images,
            gpus=0,
            drain=args.drain_seconds,
        ).bind(stage_config(stage, images=args.images), speed, RayMeter, args.strikes)
        for stage, replicas in ((Stage.BASE, args.base), (Stage.REFINER, args.refiner))
    )
    ingress = DeploymentScale(min_replicas=args.ingress)
    url = args.ledger_url
    place = LedgerDatabase(url) if url else LedgerFile(args.ledger)
    return bind_graph(_ingress_config(args), place, base, refiner, ingress, args.drain_seconds)


def build_ingress(args: FaultyArgs, app: str) -> Application:
    """Return an ingress of its own over the ledger and the stages of a running application."""
    ledger, base, refiner = (
        serve.get_deployment_handle(name, app) for name in ("Ledger", *DEPLOYMENTS.values())
    )
    scale = DeploymentScale(min_replicas=1)
    return bind_ingress(_ingress_config(args), ledger, base, refiner, scale, args.drain_seconds)


def _ingress_config(args: FaultyArgs) -> IngressConfig:
    access = AccessPolicy(keys=digests(args.keys), origins=(ORIGIN,))
    weights = by_caller(args.weights)
    return ingress_config(
        refiner=True, access_policy=access, caller_weights=weights, spool=args.spool
    )


def speed_of(args: FaultyArgs) -> GpuSpeed:
    """Return the pretended speed of the replicas."""
    return GpuSpeed().scaled(args.seconds_scale)
