"""Machines and GPUs as values, and the problems that doctor finds on them."""

from dataclasses import replace
from typing import Any

from serve_app.doctor.checks.gpu_probe import Gpu, GpuReport, TorchBuild
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.run import Probes, run

GIB = 2**30
SOUND_MACHINE = Machine(
    python=(3, 11, 9),
    in_virtualenv=True,
    system="Linux",
    release="6.8.0-45-generic",
    architecture="x86_64",
    wsl_distribution="",
    unmet_requirements=(),
    available_memory=32 * GIB,
    clock=1_800_000_000.0,  # 2027-01-15 08:00 UTC
    newest_source=1_790_000_000.0,
    is_synchronised=True,
    has_bf16=False,
)
WSL_2 = "5.15.153.1-microsoft-standard-WSL2"
ADA = Gpu("NVIDIA RTX 4090", 24 * GIB, 23 * GIB, (8, 9), has_bf16=True)
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90")
WITHOUT_GPU = GpuReport(
    torch=TorchBuild("2.13.0", "12.8", (), has_mps=False, gpus=()),
    problem="",
    driver_cuda=None,
    has_nvidia_gpu=False,
    visible_devices=None,
)


def machine(**changes: Any) -> Machine:
    """Return a machine on which nothing is wrong, except for the changes."""
    return replace(SOUND_MACHINE, **changes)


def with_gpus(*gpus: Gpu, archs: tuple[str, ...] = ARCHS) -> GpuReport:
    """Return the report of a machine whose torch sees these GPUs."""
    torch = TorchBuild("2.13.0", "12.8", archs, has_mps=False, gpus=gpus)
    return GpuReport(torch, "", driver_cuda=(12, 8), has_nvidia_gpu=True, visible_devices=None)


def problems(probes: Probes) -> list[tuple[str, str, str, str]]:
    """Return everything that doctor finds wrong: check, verdict, message and fix."""
    findings = [finding for section in run(probes) for finding in section.findings]
    return [(f.check, f.verdict.value, f.message, f.fix) for f in findings if f.fix]
