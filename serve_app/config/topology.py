"""`Topology`: the stage deployments that a config's args result in on a cluster.

No Ray: what the cluster has is handed in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Self

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import ModelCatalog, choose_device
from serve_app.config.settings import Settings
from serve_app.core.capacity.placement import (
    CPU,
    GPU,
    Cluster,
    ReplicaDemand,
    Resources,
    find_shortage,
)
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError

_INGRESS_REPLICAS = 2  # at the start, where there are as many CPUs


@dataclass(frozen=True, slots=True)
class StageDeployment:
    """One Serve deployment, which runs one stage or both."""

    name: str
    stages: tuple[Stage, ...]
    scale: DeploymentScale
    num_gpus: float  # that each replica requests from Ray


@dataclass(frozen=True, slots=True)
class Topology:
    """The deployments of the stages, base first.

    `max_total_replicas` limits the replicas of all deployments that autoscale, together; None means
    no limit.
    """

    deployments: tuple[StageDeployment, ...]
    max_total_replicas: int | None

    @classmethod
    def resolve(
        cls,
        args: AppArgs,
        device: str,
        gpus: float,
        *,
        refiner: bool,
        total_gpus: int | None = None,
    ) -> Self:
        """Decide what the args leave open.

        `gpus` is what the cluster has, and `total_gpus` the part of it that the stages may use. On
        one GPU base and refiner take turns, unless the args scale either of them. Raises
        `SettingsError` where the stages can't share `total_gpus`.
        """
        gpus = min(gpus, total_gpus or gpus)
        scales = _scales(args, device, gpus, refiner=refiner)
        share = _gpu_share([scale for _, _, scale in scales], gpus)
        stages = tuple(
            StageDeployment(name, runs, scale, _num_gpus(scale, device, share))
            for name, runs, scale in scales
        )
        return cls(stages, _max_total_replicas(stages, total_gpus))

    @property
    def max_replicas(self) -> int:
        """The largest number of stage replicas, whatever `max_total_replicas` says."""
        return sum(stage.scale.effective_max_replicas for stage in self.deployments)

    @property
    def scale_to_zero(self) -> tuple[Stage, ...]:
        """The stages that may have no replica."""
        return tuple(
            stage
            for deployment in self.deployments
            if not deployment.scale.min_replicas
            for stage in deployment.stages
        )


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a config's args come to on a cluster."""

    device: str
    topology: Topology
    ingress: DeploymentScale
    demands: tuple[ReplicaDemand, ...]


def plan_stages(
    args: AppArgs, settings: Settings, catalog: ModelCatalog, cluster: Cluster
) -> StagePlan:
    """Return the device and the deployments for a cluster.

    Raises `SettingsError` if the replicas that start don't fit, unless nodes may join later.
    """
    gpus = cluster.gpus
    device = choose_device(settings.model_device, gpus=gpus)
    topology = Topology.resolve(
        args,
        device,
        gpus,
        refiner=catalog.refiner is not None,
        total_gpus=settings.total_gpus,
    )
    if device == "cuda" and gpus < 1 and topology.deployments[0].scale.num_gpus is None:
        raise SettingsError(
            "needs a GPU, and Ray sees none, so replicas would wait for ever",
            "MODEL_DEVICE",
            subject="MODEL_DEVICE=cuda",
            remedy="Check nvidia-smi, or set MODEL_DEVICE=cpu. If GPU nodes join later, set "
            "num_gpus: 1 for each stage in the args",
        )
    ingress = ingress_scale(args, cluster.cpus)
    plan = StagePlan(device, topology, ingress, replica_demands(topology, ingress))
    if not cluster.may_grow:
        check_placement(plan.demands, cluster.nodes)
    return plan


def ingress_scale(args: AppArgs, cpus: float) -> DeploymentScale:
    """Return the scale of the ingress: two replicas where there are two CPUs, or as the args say.

    While one of them is stopped or starts again, the other one answers.
    """
    scale = args.ingress
    if "min_replicas" in scale.model_fields_set:
        return scale
    replicas = min(_INGRESS_REPLICAS, scale.max_replicas or _INGRESS_REPLICAS)
    if cpus < _INGRESS_REPLICAS:
        replicas = 1
    return scale.model_copy(update={"min_replicas": replicas})


def replica_demands(topology: Topology, ingress: DeploymentScale) -> tuple[ReplicaDemand, ...]:
    """Return what the replicas that the service starts with request from Ray."""
    stages = [
        ReplicaDemand(
            stage.name,
            stage.scale.min_replicas,
            {GPU: stage.num_gpus, CPU: stage.scale.num_cpus},
        )
        for stage in topology.deployments
    ]
    return (*stages, ReplicaDemand("Ingress", ingress.min_replicas, {CPU: ingress.num_cpus}))


def check_placement(demands: Iterable[ReplicaDemand], nodes: Sequence[Resources]) -> None:
    """Check that all replicas fit on the nodes. Raises `SettingsError` that says what lacks."""
    shortage = find_shortage(demands, nodes)
    if shortage is None:
        return
    remedy = (
        "Lower num_gpus, num_cpus or min_replicas in the args of the config, or add nodes first"
    )
    if shortage.lacks_gpu:
        remedy = (
            "Check nvidia-smi, or use a config for a machine without a GPU, such as "
            "configs/cpu.yaml"
        )
    raise SettingsError(
        f"can't start: {shortage}", subject=shortage.demand.deployment, remedy=remedy
    )


def _scales(
    args: AppArgs, device: str, gpus: float, *, refiner: bool
) -> list[tuple[str, tuple[Stage, ...], DeploymentScale]]:
    """Return the name, the stages and the scale of each deployment."""
    combined = args.combined
    unscaled = args.base == args.refiner == DeploymentScale()
    if combined is None and unscaled and refiner and device == "cuda" and gpus == 1:
        combined = DeploymentScale()
    if not refiner:
        return [("BaseGenerator", (Stage.BASE,), combined or args.base)]
    if combined is not None:
        return [("BaseAndRefiner", (Stage.BASE, Stage.REFINER), combined)]
    return [
        ("BaseGenerator", (Stage.BASE,), args.base),
        ("Refiner", (Stage.REFINER,), args.refiner),
    ]


def _gpu_share(scales: list[DeploymentScale], gpus: float) -> float:
    """Return the part of a GPU for each replica whose args don't say.

    It is a whole GPU, or less where there are fewer GPUs than replicas at the start: otherwise the
    last of them would wait for ever.
    """
    sharing = sum(_min_capacity(scale) for scale in scales if scale.num_gpus is None)
    taken = sum(_min_capacity(scale) * (scale.num_gpus or 0) for scale in scales)
    available = gpus - taken
    if sharing == 0 or available <= 0 or sharing <= available:
        return 1
    if available < 1:  # a part of one GPU, in hundredths: a sum of thirds would miss it
        return floor(100 * available / sharing) / 100
    return 1 / ceil(sharing / int(available))


def _num_gpus(scale: DeploymentScale, device: str, share: float) -> float:
    """Return the GPUs of each replica on cuda, mps or cpu: what the args say, else the share."""
    if scale.num_gpus is not None:
        return scale.num_gpus
    return share if device == "cuda" else 0


def _max_total_replicas(stages: tuple[StageDeployment, ...], total_gpus: int | None) -> int | None:
    """Return the most replicas of the deployments that autoscale; None where nothing limits them.

    Raises `SettingsError` where `total_gpus` can't hold one replica of each.
    """
    sizes = sorted({stage.num_gpus for stage in stages})
    if total_gpus is None or sizes == [0]:
        return None
    if len(sizes) > 1:
        raise SettingsError(
            "is shared out in whole replicas, so base and refiner must ask for the same num_gpus, "
            f"not {sizes[0]:g} and {sizes[1]:g}",
            "TOTAL_GPUS",
            subject=f"TOTAL_GPUS={total_gpus}",
            remedy="Make them equal, or leave TOTAL_GPUS empty",
        )
    capacity = floor(total_gpus / sizes[0] + 1e-9)
    needed = sum(_min_capacity(stage.scale) for stage in stages)
    if needed > capacity:
        raise SettingsError(
            f"has room for {capacity} replicas of {sizes[0]:g} GPUs, and the stages need {needed}",
            "TOTAL_GPUS",
            subject=f"TOTAL_GPUS={total_gpus}",
            remedy=f"Set TOTAL_GPUS={ceil(needed * sizes[0])}, or lower min_replicas or num_gpus",
        )
    fixed = sum(
        stage.scale.effective_max_replicas for stage in stages if not stage.scale.autoscales
    )
    return capacity - fixed


def _min_capacity(scale: DeploymentScale) -> int:
    """Return the replicas that a stage must have room for: at least one.

    A stage may have no replica for a while, but not for ever.
    """
    return max(1, scale.min_replicas)
