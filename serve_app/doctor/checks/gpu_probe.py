"""torch and the GPUs, looked at: its build, the cards it sees, the driver, the PCI bus.

Judges nothing. torch is imported where it is asked, since that is what may fail.
"""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor and class
_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as torch sees it."""

    name: str
    total: int  # bytes
    free: int  # bytes, at the moment of the look
    capability: tuple[int, int]
    bf16: bool  # whether it computes bf16 itself, rather than by emulation

    @property
    def label(self) -> str:
        """Its name and how much of its memory is free."""
        return f"{self.name} ({gib(self.free)} of {gib(self.total)} free)"


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch is, and what it sees."""

    version: str
    cuda: str | None  # the CUDA version it is built for
    archs: tuple[str, ...]  # that it has kernels for: sm_80, compute_90
    mps: bool
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class GpuReport:
    """All that decides which device there is."""

    torch: Torch | None
    problem: str  # why torch can't be imported, or its cards can't be asked; "" when they can
    driver: tuple[int, int] | None  # the newest CUDA version that the NVIDIA driver runs
    nvidia: bool  # whether an NVIDIA card is in the machine, with or without a driver
    visible: str | None  # CUDA_VISIBLE_DEVICES

    @property
    def cards(self) -> tuple[Card, ...]:
        """The GPUs that torch sees."""
        return self.torch.cards if self.torch else ()


def gib(count: int) -> str:
    """Bytes as GiB, as nvidia-smi and the labels of cards have it."""
    return f"{count / 2**30:.1f} GiB"


def probe() -> GpuReport:
    """The graphics of this machine, by torch, the driver and the PCI bus."""
    torch, trouble = None, ""
    try:
        torch = _torch()
    except Exception as error:  # a broken build fails in many ways, with many lines
        trouble = " ".join(str(error).split()) or type(error).__name__
    return GpuReport(
        torch=torch,
        problem=trouble[:300],
        driver=_driver(),
        nvidia=_is_on_the_bus(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _torch() -> Torch:
    import torch

    cards = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            capability = (facts.major, facts.minor)
            cards.append(Card(facts.name, total, free, capability, bf16=capability >= (8, 0)))
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda,
        archs=tuple(torch.cuda.get_arch_list()) if cards else (),
        mps=torch.backends.mps.is_available(),
        cards=tuple(cards),
    )


def _driver() -> tuple[int, int] | None:
    """What cuDriverGetVersion says, which needs no card and no torch."""
    number = ctypes.c_int()
    with suppress(KeyError, OSError, AttributeError):
        library = ctypes.CDLL(_DRIVERS[sys.platform])
        if library.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
            return number.value // 1000, number.value % 1000 // 10
    return None


def _is_on_the_bus() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == _NVIDIA and kind.startswith(_DISPLAY):
                return True
    return False
