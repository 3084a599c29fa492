"""Probe torch and the GPUs: the build of torch, the GPUs it sees, the driver, the PCI bus.

No judgement. torch is imported inside the probe, because that import is one of the things that
may fail.
"""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor and class
_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_BF16_CAPABILITY = (8, 0)  # Ampere
_MAX_CHARS = 300  # of an error


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as torch sees it."""

    name: str
    total: int  # bytes
    free: int  # bytes, when it was probed
    capability: tuple[int, int]  # compute capability
    has_bf16: bool  # in hardware, rather than by emulation

    @property
    def label(self) -> str:
        """Its name and how much of its memory is free."""
        return f"{self.name} ({gib(self.free)} of {gib(self.total)} free)"


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """How torch was built, and what it sees."""

    version: str
    cuda: str | None  # the CUDA version it was built for
    archs: tuple[str, ...]  # it has kernels for: sm_80, compute_90
    has_mps: bool
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class GpuReport:
    """Everything that decides which device can be used."""

    torch: TorchBuild | None
    problem: str  # why torch can't be imported, or its GPUs can't be read; "" if they can
    driver_cuda: tuple[int, int] | None  # the newest CUDA version that the NVIDIA driver supports
    has_nvidia_gpu: bool  # on the PCI bus, with or without a driver
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that torch sees."""
        return self.torch.gpus if self.torch else ()


def gib(size: int) -> str:
    """Return a number of bytes in GiB, as nvidia-smi and the labels of graphics cards show it."""
    return f"{size / 2**30:.1f} GiB"


def probe() -> GpuReport:
    """Probe this machine through torch, the NVIDIA driver and the PCI bus."""
    torch, problem = None, ""
    try:
        torch = _probe_torch()
    except Exception as error:  # a broken build fails in many ways, with many lines
        problem = " ".join(str(error).split()) or type(error).__name__
    return GpuReport(
        torch=torch,
        problem=problem[:_MAX_CHARS],
        driver_cuda=_driver_cuda(),
        has_nvidia_gpu=_has_nvidia_gpu(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _probe_torch() -> TorchBuild:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            capability = (properties.major, properties.minor)
            has_bf16 = capability >= _BF16_CAPABILITY
            gpus.append(Gpu(properties.name, total, free, capability, has_bf16))
    return TorchBuild(
        version=torch.__version__,
        cuda=torch.version.cuda,
        archs=tuple(torch.cuda.get_arch_list()) if gpus else (),
        has_mps=torch.backends.mps.is_available(),
        gpus=tuple(gpus),
    )


def _driver_cuda() -> tuple[int, int] | None:
    """Return what cuDriverGetVersion reports, which needs neither a GPU nor torch."""
    version = ctypes.c_int()
    with suppress(KeyError, OSError, AttributeError):
        library = ctypes.CDLL(_DRIVERS[sys.platform])
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return version.value // 1000, version.value % 1000 // 10
    return None


def _has_nvidia_gpu() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == _NVIDIA and kind.startswith(_DISPLAY):
                return True
    return False
