"""Check torch and the GPUs: do they fit together, and which device and precision will be used?

Judges the report of `gpu_probe`. No checkpoints.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from serve_app.config.catalog import choose_device, precision_of
from serve_app.config.settings import Settings
from serve_app.doctor.checks.gpu_probe import Gpu, GpuReport, TorchBuild
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

_REINSTALL_TORCH = "python -m pip uninstall -y torch && python -m pip install -e ."
_INSTALL_DRIVER = "sudo ubuntu-drivers install"
_INSTALL_DRIVER_IN_WINDOWS = "explorer.exe https://www.nvidia.com/drivers"
_FEWER_STEPS = 'aura generate "a fox" --steps 12'


@dataclass(frozen=True, slots=True)
class XformersReport:
    """Whether xFormers is installed, and why it does not work: "" if it does."""

    problem: str
    is_installed: bool


def device_of(settings: Settings, report: GpuReport) -> str:
    """Return the device that the settings select on this machine: cpu, cuda or mps."""
    name = settings.model_device.partition(":")[0]
    return choose_device(name, gpus=len(report.gpus))


def selected_gpus(settings: Settings, report: GpuReport) -> tuple[Gpu, ...]:
    """Return the GPUs that the service may use: one if MODEL_DEVICE is cuda:N, else all."""
    _, colon, index = settings.model_device.partition(":")
    if not colon:
        return report.gpus
    return report.gpus[int(index) : int(index) + 1]


def check_torch(report: GpuReport, machine: Machine) -> Finding:
    """Check that torch, the driver and the GPUs fit together."""
    torch, driver = report.torch, report.driver_cuda
    if torch is None:
        return fail("torch", f"torch can't be used: {report.problem}", _REINSTALL_TORCH)
    build = f"torch {torch.version}, built " + (
        f"for CUDA {torch.cuda}" if torch.cuda else "without CUDA"
    )
    if torch.gpus:
        for gpu in torch.gpus:
            if not _has_kernels(torch, gpu):
                return fail(
                    "torch",
                    f"{build}, has kernels for {', '.join(torch.archs)}, but none for the "
                    f"{gpu.name} (compute capability {_dotted(gpu.capability)})",
                    "MODEL_DEVICE=cpu",
                )
        return fine("torch", f"{build}, which the driver supports")
    if not (report.has_nvidia_gpu or driver):
        return fine("torch", f"{build}; this machine has no NVIDIA GPU")
    if torch.cuda is None:
        return fail("torch", f"{build}, can't use the NVIDIA GPU of this machine", _REINSTALL_TORCH)
    install_driver = _INSTALL_DRIVER_IN_WINDOWS if machine.is_wsl else _INSTALL_DRIVER
    if driver is None:
        return fail(
            "torch",
            f"{build}, but the NVIDIA GPU of this machine has no driver that can be loaded",
            install_driver,
        )
    if driver[0] < int(torch.cuda.split(".")[0]):
        where = " in Windows" if machine.is_wsl else ""
        return fail(
            "torch",
            f"{build}, but the NVIDIA driver supports CUDA {_dotted(driver)} at most: install a "
            f"newer driver{where}",
            install_driver,
        )
    if report.visible_devices is not None:
        return fail(
            "torch",
            f"{build}, but CUDA_VISIBLE_DEVICES={report.visible_devices} hides the NVIDIA GPU",
            "unset CUDA_VISIBLE_DEVICES",
        )
    reason = f" ({report.problem})" if report.problem else ""
    return fail("torch", f"{build}, but it sees no GPU{reason}", "nvidia-smi")


def check_device(settings: Settings, report: GpuReport, *, is_demo: bool) -> Finding:
    """Check which device will generate the images, and whether that is to be expected."""
    setting, device, gpus = settings.model_device, device_of(settings, report), report.gpus
    if report.torch is None:
        return skip("device", "not checked, because torch can't be used")
    if setting.startswith("cuda"):
        if not gpus:
            return fail(
                "device", f"MODEL_DEVICE={setting}, but torch sees no GPU", "MODEL_DEVICE=auto"
            )
        if not selected_gpus(settings, report):
            return fail(
                "device",
                f"MODEL_DEVICE={setting}, but the number must be between 0 and {len(gpus) - 1}",
                f"MODEL_DEVICE=cuda:{len(gpus) - 1}",
            )
    if device == "cuda":
        return fine("device", " and ".join(gpu.label for gpu in selected_gpus(settings, report)))
    if device == "mps":
        if not report.torch.has_mps:
            return fail(
                "device",
                f"MODEL_DEVICE={setting}, but this machine has no Apple GPU",
                "MODEL_DEVICE=auto",
            )
        return fine("device", "the Apple GPU, which is slower than an NVIDIA GPU")
    if gpus:
        return warn(
            "device",
            f"MODEL_DEVICE=cpu leaves the {gpus[0].name} unused: images will be slow",
            "MODEL_DEVICE=auto",
        )
    if is_demo:
        return fine(
            "device", "the CPU: enough for the demo, but SDXL needs a GPU with 12 GB or more"
        )
    return warn(
        "device",
        "the CPU, because torch sees no GPU: SDXL will be slow without a GPU of 12 GB or more, and "
        "faster with fewer steps and smaller images",
        _FEWER_STEPS,
    )


def check_precision(settings: Settings, report: GpuReport, *, cpu_has_bf16: bool) -> Finding:
    """Check that the device computes at the precision that the settings select."""
    device = device_of(settings, report)
    precision = precision_of(settings, device, cpu_has_bf16=cpu_has_bf16)
    if report.torch is None:
        return skip("precision", "not checked, because torch can't be used")
    if device == "cpu" and precision == "fp16":
        return warn(
            "precision",
            "MODEL_PRECISION=fp16 on the CPU, where convolutions are many times slower than in "
            "fp32",
            "MODEL_PRECISION=fp32",
        )
    if device == "cpu" and precision == "bf16" and not cpu_has_bf16:
        return warn(
            "precision",
            "MODEL_PRECISION=bf16 on a processor without instructions for bf16, where it is "
            "several times slower than fp32 and takes half the memory",
            "MODEL_PRECISION=fp32",
        )
    if device == "cpu" and precision == "fp32" and cpu_has_bf16 and settings.model_checkpoint_dir:
        return fine(
            "precision",
            "fp32 on cpu; this processor computes bf16 too, which is faster and takes half the "
            "memory, at a slight loss of precision: MODEL_PRECISION=bf16",
        )
    if device == "cuda" and precision == "bf16":
        for gpu in selected_gpus(settings, report):
            if not gpu.has_bf16:
                return warn(
                    "precision",
                    f"MODEL_PRECISION=bf16, which the {gpu.name} only emulates, slowly: its "
                    f"compute capability is {_dotted(gpu.capability)}, and bf16 needs 8.0",
                    "MODEL_PRECISION=fp16",
                )
    return fine("precision", f"{precision} on {device}")


def check_xformers(settings: Settings, report: XformersReport | None) -> Finding:
    """Check that xFormers works if it is enabled."""
    if not settings.enable_xformers:
        return fine("xformers", "off: PyTorch's own attention is used")
    if report is None:
        return skip("xformers", "not checked, because the device can't be used")
    if not report.problem:
        return fine("xformers", "its attention works on this device")
    return warn(
        "xformers",
        f"ENABLE_XFORMERS=1, but {report.problem}: PyTorch's own attention is used",
        "ENABLE_XFORMERS=0" if report.is_installed else "python -m pip install -e '.[xformers]'",
    )


def check_compile(settings: Settings, report: GpuReport) -> Finding:
    """Check that the machine has what torch.compile needs, if it is enabled."""
    mode = settings.model_compile
    if mode == "off":
        return fine("compile", "off: the UNet runs eager")
    from serve_app.runtime.networks.compiler import compiler_problem  # imports torch

    problem = compiler_problem(device_of(settings, report))
    if problem:
        return fail("compile", f"MODEL_COMPILE={mode}, but {problem}", "MODEL_COMPILE=off")
    return fine("compile", f"{mode}: the first start compiles for minutes, later ones for seconds")


def check_quantization(settings: Settings, report: GpuReport) -> Finding:
    """Check that layers can be quantized on the device, if they should be."""
    mode = settings.model_quantization
    if mode == "off":
        return fine("quantization", "off: weights have the precision of MODEL_PRECISION")
    device = device_of(settings, report)
    if not report.torch or (device == "cuda" and not selected_gpus(settings, report)):
        return skip("quantization", "not checked, because the device can't be used")
    import torch

    from serve_app.runtime.networks.quantization import quantization_problem

    problem = quantization_problem(mode, torch.device(device))
    if problem:
        message = f"MODEL_QUANTIZATION={mode}, but {problem}"
        return fail("quantization", message, "MODEL_QUANTIZATION=off")
    return fine("quantization", f"{mode} works on this device")


def probe_xformers(settings: Settings, report: GpuReport) -> XformersReport | None:
    """Try xFormers on the selected device.

    Returns None if xFormers is not enabled or the device can't be used.
    """
    device = device_of(settings, report)
    if (
        not settings.enable_xformers
        or not report.torch
        or (device == "cuda" and not selected_gpus(settings, report))
    ):
        return None
    import torch

    from serve_app.runtime.memory.device import DTYPES, xformers_problem

    problem = xformers_problem(torch.device(device), DTYPES[precision_of(settings, device)])
    return XformersReport(problem, is_installed=find_spec("xformers") is not None)


def _has_kernels(torch: TorchBuild, gpu: Gpu) -> bool:
    """Return whether a build of torch has kernels for a GPU.

    Binary kernels (sm_80) run on their own major version, from their minor version on; PTX
    (compute_80) runs on everything newer.
    """
    major, minor = gpu.capability
    for arch in torch.archs:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("abcdefghijklmnopqrstuvwxyz")
        built_for = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and built_for <= gpu.capability:
            return True
        if kind == "sm" and built_for[0] == major and built_for[1] <= minor:
            return True
    return False


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
