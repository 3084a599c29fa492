"""GPUs and planned loads for the checks of capacity."""

from serve_app.doctor.checks.capacity import (
    PlannedLoad,
)
from serve_app.doctor.checks.gpu_memory import Replica
from serve_app.doctor.checks.gpu_probe import Gpu
from tests.support.machines import GIB


def gpu(total: float, free: float | None = None, *, name: str = "NVIDIA RTX") -> Gpu:
    free = total if free is None else free
    return Gpu(name, int(total * GIB), int(free * GIB), (8, 6), has_bf16=True)


def load(*replicas: Replica, images: int = 4, precision: str = "fp16") -> PlannedLoad:
    return PlannedLoad(replicas, images, precision, vae_half=True)
