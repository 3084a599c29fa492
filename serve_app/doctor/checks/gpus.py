"""torch and the GPUs: do they match, which device do the settings come to, at which precision?

Judges what `graphics.py` saw. Knows no checkpoints.
"""

from serve_app.config.catalog import choose_device, precision_of
from serve_app.config.settings import Settings
from serve_app.doctor.checks.gpu_probe import Card, GpuReport, Torch
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

_TORCH = "python -m pip uninstall -y torch && python -m pip install -e ."
_DRIVER, _DRIVER_IN_WINDOWS = (
    "sudo ubuntu-drivers install",
    "explorer.exe https://www.nvidia.com/drivers",
)
_SMALLER = 'aura generate "a fox" --steps 12'


def device_of(settings: Settings, graphics: GpuReport) -> str:
    """cpu, cuda or mps: what the settings come to here."""
    name = settings.model_device.partition(":")[0]
    return choose_device(name, gpus=len(graphics.cards))


def chosen(settings: Settings, graphics: GpuReport) -> tuple[Card, ...]:
    """The cards that the service may use: one of them, where the settings name one."""
    _, colon, number = settings.model_device.partition(":")
    if not colon:
        return graphics.cards
    return graphics.cards[int(number) : int(number) + 1]


def check_torch(graphics: GpuReport, machine: Machine) -> Finding:
    """Whether torch, the driver and the cards fit together."""
    torch, driver = graphics.torch, graphics.driver
    if torch is None:
        return fail("torch", f"torch can't be used: {graphics.problem}", _TORCH)
    built = f"torch {torch.version}, " + (
        f"for CUDA {torch.cuda}" if torch.cuda else "without CUDA"
    )
    if torch.cards:
        for card in torch.cards:
            if not _has_kernels(torch, card):
                return fail(
                    "torch",
                    f"{built}, has kernels for {', '.join(torch.archs)}, none of them for the "
                    f"{card.name} (compute capability {'.'.join(map(str, card.capability))})",
                    "MODEL_DEVICE=cpu",
                )
        return fine("torch", f"{built}, which the driver runs")
    if not (graphics.nvidia or driver):
        return fine("torch", f"{built}; there is no NVIDIA card that it could use")
    if torch.cuda is None:
        return fail("torch", f"{built}, so the NVIDIA card of this machine stays unused", _TORCH)
    if driver is None:
        return fail(
            "torch",
            f"{built}, but the NVIDIA card of this machine has no driver that can be loaded",
            _DRIVER_IN_WINDOWS if machine.is_wsl else _DRIVER,
        )
    if driver[0] < int(torch.cuda.split(".")[0]):
        return fail(
            "torch",
            f"{built}, but the NVIDIA driver runs nothing newer than CUDA "
            f"{'.'.join(map(str, driver))}: a newer driver is needed"
            + (", in Windows" if machine.is_wsl else ""),
            _DRIVER_IN_WINDOWS if machine.is_wsl else _DRIVER,
        )
    if graphics.visible is not None:
        return fail(
            "torch",
            f"{built}, but CUDA_VISIBLE_DEVICES={graphics.visible} hides the NVIDIA card",
            "unset CUDA_VISIBLE_DEVICES",
        )
    reason = f" ({graphics.problem})" if graphics.problem else ""
    return fail("torch", f"{built}, but it sees no card{reason}", "nvidia-smi")


def check_device(settings: Settings, graphics: GpuReport, *, demo: bool) -> Finding:
    """Which device makes the pictures, and whether that is what somebody may expect."""
    asked, device, cards = settings.model_device, device_of(settings, graphics), graphics.cards
    if graphics.torch is None:
        return skip("device", "not examined, because torch can't be used")
    if asked.startswith("cuda"):
        if not cards:
            return fail(
                "device", f"MODEL_DEVICE={asked}, but no CUDA device is seen", "MODEL_DEVICE=auto"
            )
        if not chosen(settings, graphics):
            return fail(
                "device",
                f"MODEL_DEVICE={asked}, but there are {len(cards)} cards, numbered from 0",
                f"MODEL_DEVICE=cuda:{len(cards) - 1}",
            )
    if device == "cuda":
        return fine("device", " and ".join(card.label for card in chosen(settings, graphics)))
    if device == "mps":
        if not graphics.torch.mps:
            return fail(
                "device", f"MODEL_DEVICE={asked}, but this is no Apple GPU", "MODEL_DEVICE=auto"
            )
        return fine("device", "the Apple GPU, slower than an NVIDIA card")
    if cards:
        return warn(
            "device",
            f"MODEL_DEVICE=cpu leaves the {cards[0].name} unused: pictures will be slow",
            "MODEL_DEVICE=auto",
        )
    if demo:
        return fine(
            "device",
            "the CPU: enough for the demo; real SDXL is slow without a GPU (12 GB or more)",
        )
    return warn(
        "device",
        "the CPU, since no GPU is seen: SDXL pictures will be slow; smaller ones with fewer steps "
        "are quicker, a GPU of 12 GB or more is the cure",
        _SMALLER,
    )


def check_precision(settings: Settings, graphics: GpuReport) -> Finding:
    """Whether the device computes at the precision of the settings."""
    device = device_of(settings, graphics)
    precision = precision_of(settings, device)
    if graphics.torch is None:
        return skip("precision", "not examined, because torch can't be used")
    if device == "cpu" and precision == "fp16":
        return warn(
            "precision",
            "MODEL_PRECISION=fp16 on the CPU, whose convolutions are many times slower in it than "
            "in fp32",
            "MODEL_PRECISION=fp32",
        )
    if device == "cuda" and precision == "bf16":
        for card in chosen(settings, graphics):
            if not card.bf16:
                return warn(
                    "precision",
                    f"MODEL_PRECISION=bf16, which the {card.name} only emulates, slowly: compute "
                    f"capability {'.'.join(map(str, card.capability))}, and 8.0 is needed",
                    "MODEL_PRECISION=fp16",
                )
    return fine("precision", f"{precision} on {device}")


def check_xformers(settings: Settings, trouble: str | None) -> Finding:
    """Whether xFormers runs where it is wanted; `trouble` is the probe's, None without one."""
    if not settings.enable_xformers:
        return fine("xformers", "off: attention is PyTorch's own")
    if trouble is None:
        return skip("xformers", "not probed, because the device can't be used")
    if not trouble:
        return fine("xformers", "a probe of its attention ran on the device")
    mend = "ENABLE_XFORMERS=0"
    if "not installed" in trouble:
        mend = "python -m pip install -e '.[xformers]'"
    return warn(
        "xformers", f"ENABLE_XFORMERS=1, but {trouble}, so attention is PyTorch's own", mend
    )


def probe_xformers(settings: Settings, graphics: GpuReport) -> str | None:
    """Why xFormers does not run on the device of the settings; None when that is no question."""
    device = device_of(settings, graphics)
    if (
        not settings.enable_xformers
        or not graphics.torch
        or (device == "cuda" and not chosen(settings, graphics))
    ):
        return None
    import torch

    from serve_app.runtime.memory.device import DTYPES, xformers_problem

    return xformers_problem(torch.device(device), DTYPES[precision_of(settings, device)])


def _has_kernels(torch: Torch, card: Card) -> bool:
    """Kernels run on their own major version from their minor on; PTX on whatever is newer."""
    major, minor = card.capability
    for arch in torch.archs:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("abcdefghijklmnopqrstuvwxyz")
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and built <= card.capability:
            return True
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
    return False
