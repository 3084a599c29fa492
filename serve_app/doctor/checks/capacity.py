"""Check that the replicas of a serve config fit: enough GPUs, and enough memory on each.

No files: the sizes of models and the memory of GPUs are passed in.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from serve_app.config.checkpoints import ENV_VAR
from serve_app.config.topology import Topology
from serve_app.core.capacity.placement import CPU, GPU, ReplicaDemand, find_shortage
from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks.gpu_memory import DtypeBytes, ModelSize, Replica, assign_to_gpus
from serve_app.doctor.checks.gpu_probe import Gpu, gib
from serve_app.doctor.finding import Finding, edit_command, fail, fine, skip, warn

_NO_REFINER = f"{ENV_VAR[Stage.REFINER]}="
_BOTH_LOADED = "MAX_LOADED_MODELS=2"
_UNKNOWN_MEMORY = "this system does not say how much memory is available"


@dataclass(frozen=True, slots=True)
class PlannedLoad:
    """What the service starts: its replicas, and how each of them runs."""

    replicas: tuple[Replica, ...]
    images: int  # that step together on each replica
    precision: str
    vae_half: bool  # whether the VAE may run in bf16
    cpu_has_bf16: bool = False  # whether bf16 is an alternative to fp32 without a GPU

    def total_bytes(
        self,
        replicas: Iterable[Replica],
        *,
        images: int | None = None,
        precision: str | None = None,
        on_host: bool = False,
    ) -> int:
        """Return the bytes that replicas need, perhaps with fewer images or another precision.

        `on_host` counts the models that are offloaded to host memory too.
        """
        return sum(
            replica.total_bytes(
                images or self.images,
                precision or self.precision,
                vae_half=self.vae_half,
                on_host=on_host,
            )
            for replica in replicas
        )

    def host_copy_bytes(self, precision: str | None = None) -> int:
        """Return the bytes of host memory that hold the models which take turns on a GPU."""
        dtypes = DtypeBytes.of(precision or self.precision, vae_half=self.vae_half)
        return sum(
            replica.weight_bytes(dtypes, on_host=True)
            for replica in self.replicas
            if replica.swaps_stages
        )

    @property
    def label(self) -> str:
        """How the replicas run, in words."""
        images = f"{self.images} images together" if self.images > 1 else "one image at a time"
        loaded = max(min(replica.max_loaded, len(replica.models)) for replica in self.replicas)
        models = f", {loaded} models in memory" if loaded > 1 else ""
        return f"{self.precision}, {images}{models}"


def planned_replicas(
    topology: Topology, bases: Sequence[ModelSize], refiner: ModelSize | None, max_loaded: int
) -> tuple[Replica, ...]:
    """Return the replicas that a topology starts with."""
    models = {Stage.BASE: tuple(bases), Stage.REFINER: (refiner,) if refiner else ()}
    return tuple(
        Replica(
            tuple(model for stage in deployment.stages for model in models[stage]),
            deployment.num_gpus,
            max_loaded,
            offloaded=len(deployment.stages) - 1,
        )
        for deployment in topology.deployments
        for _ in range(deployment.scale.min_replicas)
    )


def check_placement(
    demands: Sequence[ReplicaDemand], cpus: int, gpus: int, config: Path
) -> Finding:
    """Check that Ray finds what every replica requests, on this machine alone."""
    shortage = find_shortage(demands, [{CPU: cpus, GPU: gpus}])
    if shortage is not None:
        return fail(
            "gpus" if shortage.demand.resources.get(GPU) else "cpus",
            f"{shortage.demand.deployment} can't start: {shortage}",
            edit_command(config),
        )
    asking = [demand for demand in demands if demand.resources.get(GPU)]
    replicas = sum(demand.count for demand in asking)
    requested = sum(demand.count * demand.resources[GPU] for demand in asking)
    return fine(
        "gpus",
        f"{_count(replicas, 'replica')} {'needs' if replicas == 1 else 'need'} "
        f"{requested:g} of {_count(gpus, 'GPU')}",
    )


def check_gpu_memory(load: PlannedLoad, gpus: Sequence[Gpu]) -> Finding:
    """Check that each GPU has the memory for the replicas on it; return the worst finding."""
    layout = assign_to_gpus(load.replicas, len(gpus))
    if layout is None:
        layout = (tuple(r for r in load.replicas if Stage.BASE in r.stages)[:1],)
    findings = [
        _check_one_gpu(load, replicas, gpu)
        for replicas, gpu in zip(layout, gpus, strict=False)
        if replicas
    ]
    return next((finding for finding in findings if finding.fix), findings[0])


def check_ram(load: PlannedLoad, available: int) -> Finding:
    """Check that the machine's own memory is enough for all replicas; 0 means unknown."""
    needed = load.total_bytes(load.replicas, on_host=True)
    if not available:
        return skip("memory", _UNKNOWN_MEMORY)
    message = (
        f"the models need {gib(needed)} of memory ({load.label}), and {gib(available)} are "
        "available"
    )
    if needed <= available:
        return fine("memory", message)
    return fail("memory", message, _remedy(load, load.replicas, available, on_gpu=False))


def check_host_copies(load: PlannedLoad, gpus: Sequence[Gpu], available: int) -> Iterator[Finding]:
    """Check that host memory can hold the models that take turns on a GPU; 0 means unknown."""
    needed = load.host_copy_bytes()
    if not needed:
        return
    if not available:
        yield skip("host memory", _UNKNOWN_MEMORY)
        return
    message = (
        f"the models that take turns on the GPU need {gib(needed)} of pinned host memory for their "
        f"copies, and {gib(available)} are available"
    )
    if needed <= available:
        yield fine("host memory", message)
    elif load.host_copy_bytes("fp16") <= available:
        yield fail("host memory", message, "MODEL_PRECISION=fp16")
    elif any(_fits_both(load, load.replicas, gpu) for gpu in gpus):
        yield fail("host memory", message, _BOTH_LOADED)
    else:
        yield fail("host memory", message, _NO_REFINER)


def _fits_both(load: PlannedLoad, replicas: Sequence[Replica], gpu: Gpu) -> bool:
    """Return whether a GPU has memory for a base and a refiner that need not take turns then."""
    loaded = [replace(replica, max_loaded=2) for replica in replicas if replica.swaps_stages]
    return (
        len(loaded) == len(replicas) == 1
        and not loaded[0].swaps_stages
        and load.total_bytes(loaded) <= gpu.free
    )


def _check_one_gpu(load: PlannedLoad, replicas: Sequence[Replica], gpu: Gpu) -> Finding:
    needed = load.total_bytes(replicas)
    stages = list(dict.fromkeys(stage.value for replica in replicas for stage in replica.stages))
    names = " and ".join(stages)
    if any(replica.swaps_stages for replica in replicas):
        names += " in turn"
    message = (
        f"{names} {'needs' if len(stages) == 1 else 'need'} {gib(needed)} ({load.label}), and the "
        f"{gpu.name} has {gib(gpu.total)}"
    )
    if needed > gpu.total:
        fallback = "MODEL_MAX_BATCH_SIZE=1" if load.images > 1 else "ENABLE_XFORMERS=1"
        return warn(
            "memory",
            f"{message}: fewer images will be generated at once, or all of them more slowly",
            _remedy(load, replicas, gpu.total, fallback=fallback),
        )
    if needed > gpu.free:
        return warn(
            "memory",
            f"{message}, of which other processes leave {gib(gpu.free)} free",
            _remedy(load, replicas, gpu.free, fallback="nvidia-smi"),
        )
    hint = f"; with {_BOTH_LOADED} both stay loaded" if _fits_both(load, replicas, gpu) else ""
    return fine("memory", f"{message}, {gib(gpu.free)} of it free{hint}")


def _remedy(
    load: PlannedLoad,
    replicas: Sequence[Replica],
    available: int,
    *,
    fallback: str = "MODEL_CHECKPOINT_DIR=",
    on_gpu: bool = True,
) -> str:
    """Return the first setting that makes replicas fit, the one that costs least first."""
    total_bytes = partial(load.total_bytes, on_host=not on_gpu)
    one_model = [replica.with_one_model for replica in replicas]
    if one_model != list(replicas) and total_bytes(one_model) <= available:
        return "MAX_LOADED_MODELS=1"
    half = "fp16"
    if not on_gpu:  # a CPU gains nothing from fp16, and only some gain from bf16
        half = "bf16" if load.cpu_has_bf16 else load.precision
    if half != load.precision and total_bytes(replicas, precision=half) <= available:
        return f"MODEL_PRECISION={half}"
    for images in range(load.images - 1, 0, -1):
        if total_bytes(replicas, images=images) <= available:
            return f"MODEL_MAX_BATCH_SIZE={images}"
    if half != load.precision and total_bytes(replicas, images=1, precision=half) <= available:
        return f"MODEL_PRECISION={half}"  # the next run of `doctor` will suggest fewer images
    bases = [replica.without_refiner for replica in replicas if Stage.BASE in replica.stages]
    is_smaller = bases and bases != list(replicas)
    if is_smaller and total_bytes(bases, images=1, precision=half) <= available:
        return _NO_REFINER
    return fallback


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
