"""The whole application over replicas that sleep, scaled by its own policy on pretended GPUs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import POLICY
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import ReplicaState, serve_client
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_stage import SleepingStage, ingress_config, stage_config

GPUS = 4
SCALES = {
    Stage.BASE: DeploymentScale(max_replicas=3),
    Stage.REFINER: DeploymentScale(max_replicas=2),
}
DEPLOYMENTS = {Stage.BASE: "BaseGenerator", Stage.REFINER: "Refiner"}
_MAX_BATCH_IMAGES = 4
_TARGETS = {"downscale_delay_s": 10}  # short enough to wait for
_DRAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Observation:
    """The replicas of an application at one time, and the work that is left for them."""

    at: float  # seconds
    replicas: Mapping[Stage, int]  # running
    changing: Mapping[Stage, int]  # starting or draining
    owed: Mapping[Stage, float]  # predicted GPU seconds of the images in flight

    def since(self, start: float) -> "Observation":
        """Return the observation with its time counted from `start`."""
        return replace(self, at=self.at - start)


class SleepingArgs(BaseModel):
    """The `args:` of the application."""

    ledger: str


def build(args: SleepingArgs) -> Application:
    """Return the service's own graph over sleeping replicas."""
    base, refiner = (
        deploy_stage(
            SleepingStage,
            name,
            SCALES[stage],
            images=_MAX_BATCH_IMAGES,
            gpus=1,
            drain=_DRAIN_SECONDS,
        ).bind(stage_config(stage, images=_MAX_BATCH_IMAGES), GpuSpeed(), RayMeter)
        for stage, name in DEPLOYMENTS.items()
    )
    config = ingress_config(refiner=True, max_total_replicas=GPUS)
    ledger = LedgerFile(Path(args.ledger))
    return bind_graph(config, ledger, base, refiner, DeploymentScale(), _DRAIN_SECONDS)


def deploy(name: str, route: str, folder: str) -> None:
    """Deploy the application under a route prefix; its ledger is in the folder."""
    application = {
        "name": name,
        "route_prefix": route,
        "import_path": f"{__name__}:build",
        "args": {"ledger": f"{folder}/ledger.sqlite"},
        "autoscaling_policy": {"policy_function": POLICY, "policy_kwargs": _TARGETS},
    }
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def observe(name: str) -> Observation:
    """Return the replicas of the application now, and what its ingress says is left to do."""
    deployments = serve.status().applications[name].deployments
    states = {stage: deployments[DEPLOYMENTS[stage]].replica_states for stage in Stage}
    ingress: Any = serve.get_deployment_handle("Ingress", name)
    stats = ingress.record_autoscaling_stats.remote().result(timeout_s=10)
    running = {stage: states[stage].get(ReplicaState.RUNNING, 0) for stage in Stage}
    return Observation(
        at=time.perf_counter(),
        replicas=running,
        changing={stage: sum(states[stage].values()) - running[stage] for stage in Stage},
        owed={stage: stats[f"{stage}_owed"] for stage in Stage},
    )
