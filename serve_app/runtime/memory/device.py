"""The device a stage runs on: opened, measured, and named in the numeric profile.

Errors name the settings that chose the device; nothing here reads them.
"""

import gc
import logging
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Protocol

import torch

from serve_app.core.diffusion.numeric_profile import NumericProfile, default_precision
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeviceError
from serve_app.core.scheduling.memory_plan import MemorySaving
from serve_app.runtime.networks.compiler import compiler_problem
from serve_app.runtime.networks.prepacked import prepacking_problem
from serve_app.runtime.networks.quantization import quantization_problem

logger = logging.getLogger("aura.runtime")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Use of the device's memory, in bytes."""

    peak: int  # since the last `Device.empty_cache`
    limit: int  # of this process


class DeviceEvent(Protocol):
    """A point in the work of a device, as `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Wait until the device has come to it; raise what the work before it failed with."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a stage, with everything about it that decides bits."""

    torch_device: torch.device
    kind: str  # for example "cpu AVX512" or "NVIDIA H200"
    dtype: torch.dtype
    vae_dtype: torch.dtype  # never fp16: SDXL's VAE overflows there
    attention: str  # "sdpa" or "xformers"
    cpu_threads: int
    memory_fraction: float = 1.0  # of the GPU's memory; the rest is left to other processes
    compile_mode: str = "off"  # of `COMPILE_MODES`
    quantization: str = "off"  # or a key of `QUANTIZATIONS`
    prepacked: bool = False  # whether weights are laid out for its kernels when they are loaded

    def numeric_profile(
        self,
        stage: Stage,
        lanes: int,
        model: str,
        memory_savings: tuple[MemorySaving, ...] = (),
        weights: str = "",
    ) -> NumericProfile:
        """Return the numeric profile of a stage's model, whose files have the digest `weights`."""
        return NumericProfile(
            stage=stage,
            device=self.kind,
            dtype=str(self.dtype).removeprefix("torch."),
            vae_dtype=str(self.vae_dtype).removeprefix("torch."),
            attention=self.attention,
            lanes=lanes,
            memory_savings=memory_savings,
            cpu_threads=self.cpu_threads,
            torch=torch.__version__,
            model=model,
            libraries=_libraries(self.attention),
            compile=self.compile_mode_with(memory_savings),
            quantization=self.quantization,
            prepacked=self.prepacked,
            weights=weights,
        )

    def compile_mode_with(self, memory_savings: tuple[MemorySaving, ...]) -> str:
        """Return how UNets are compiled: not at all where the device holds no whole one."""
        return "off" if MemorySaving.UNET_ON_CPU in memory_savings else self.compile_mode

    def claim_thread(self) -> None:
        """Make the calling thread compute with the profile's number of CPU threads.

        That number decides bits. Ray sets OMP_NUM_THREADS from a replica's num_cpus, so it is set
        again here, to the same number with and without Ray.
        """
        torch.set_num_threads(self.cpu_threads)

    @property
    def has_own_memory(self) -> bool:
        """Whether it is a GPU with its own memory, so that a copy on the host saves time."""
        return self.torch_device.type == "cuda"

    def pinned(self, size: int) -> torch.Tensor:
        """Return page-locked host memory, (size,) of uint8, which the device reads by DMA.

        Raises `RuntimeError` when the system can pin no more memory.
        """
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def fetch(self, copy: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device without waiting: work queued there later sees the copy."""
        return copy.to(self.torch_device, non_blocking=True)

    @property
    def works_ahead(self) -> bool:
        """Whether the host may queue a step before the device has done the one before it."""
        return self.torch_device.type == "cuda"

    def record_event(self) -> DeviceEvent:
        """Return the point after all work that is queued so far."""
        if self.torch_device.type != "cuda":
            return self
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.torch_device))
        return event

    def synchronize(self) -> None:
        """Wait until all work queued on the device is done."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Free cached memory of the device, and start a new measurement of the peak."""
        gc.collect()  # after a failure, tensors are kept by a traceback in a reference cycle
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.empty_cache()

    def memory_usage(self) -> MemoryUsage | None:
        """Return the peak use since `empty_cache`; None on a CPU, where it is not measured."""
        if self.torch_device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.torch_device)
            reserved = torch.cuda.memory_reserved(self.torch_device)
            limit = min(free + reserved, int(self.memory_fraction * total))
            return MemoryUsage(torch.cuda.max_memory_allocated(self.torch_device), limit)
        if self.torch_device.type == "mps":  # it has no peak, but returns no memory to the system
            return MemoryUsage(
                torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
            )
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch means that memory ran out.

    Only CUDA's allocator raises a class of its own; others are recognized by their message.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in message
        or "can't allocate memory" in message
        or "CUBLAS_STATUS_ALLOC_FAILED" in message
    )


def open_device(
    name: str,
    *,
    precision: str | None,
    xformers: bool,
    cpu_threads: int,
    memory_fraction: float = 1.0,
    compile_mode: str = "off",
    quantization: str = "off",
) -> Device:
    """Return a device that is ready for use.

    `name` is `cpu`, `cuda` or `mps`. `precision` is a key of `DTYPES`, or None for the device's
    default. On CUDA, this process takes at most `memory_fraction` of the GPU's memory. Raises
    `DeviceError` when the device is not available, since a replica that was promised CUDA must not
    run on a CPU, or when it lacks what `compile_mode` or `quantization` needs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise DeviceError(
            f"can't be used: this process sees no CUDA device (torch is built {build})",
            subject="MODEL_DEVICE=cuda",
            remedy="Check `nvidia-smi`, or set MODEL_DEVICE=cpu",
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "can't be used: this machine has no Apple GPU",
            subject="MODEL_DEVICE=mps",
            remedy="Set MODEL_DEVICE=cpu",
        )
    if compile_mode != "off" and (problem := compiler_problem(name)):
        raise DeviceError(
            f"can't be used: {problem}",
            subject=f"MODEL_COMPILE={compile_mode}",
            remedy="Install it, or set MODEL_COMPILE=off",
        )
    device = torch.device(name)
    dtype = DTYPES[precision or default_precision(name)]
    if name == "cuda":
        torch.backends.cudnn.benchmark = False  # timing would choose the kernel, which decides bits
        torch.backends.cudnn.deterministic = True
        torch.cuda.set_per_process_memory_fraction(memory_fraction)
    torch.set_num_threads(cpu_threads)
    if quantization != "off" and (problem := quantization_problem(quantization, device)):
        raise DeviceError(
            f"can't be used: {problem}",
            subject=f"MODEL_QUANTIZATION={quantization}",
            remedy="Set MODEL_QUANTIZATION=off",
        )
    vae_dtype = _vae_dtype(device, dtype)
    # torch.compile lays weights out itself, and both would have copies of their own.
    prepacked = compile_mode == "off" and _can_prepack(device, dtype, vae_dtype)
    return Device(
        torch_device=device,
        kind=_kind(device),
        dtype=dtype,
        vae_dtype=vae_dtype,
        attention="xformers" if xformers and _xformers_runs(device, dtype) else "sdpa",
        cpu_threads=cpu_threads,
        memory_fraction=memory_fraction,
        compile_mode=compile_mode,
        quantization=quantization,
        prepacked=prepacked,
    )


def _can_prepack(device: torch.device, *dtypes: torch.dtype) -> bool:
    if device.type != "cpu":
        return False
    for dtype in set(dtypes):
        if problem := prepacking_problem(dtype):
            logger.info("weights are not prepacked: %s", problem)
            return False
    return True


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def _vae_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return bf16 where the device computes it natively, and the weights are no fp32, else fp32.

    SDXL's VAE overflows in fp16.
    """
    if device.type == "cuda" and dtype is not torch.float32:
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = device.type == "cpu" and dtype is torch.bfloat16 and _cpu_has_bf16()
    return torch.bfloat16 if is_native else torch.float32


def _cpu_has_bf16() -> bool:
    """Return whether the processor has instructions for bf16, of x86 or of ARM."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def xformers_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Return why xFormers attention fails on a device, "" when it works.

    It is run once, because a build for another torch or GPU can be imported all the same.
    """
    if find_spec("xformers") is None:
        return "xFormers is not installed"
    try:
        from xformers.ops import memory_efficient_attention

        x = torch.ones(1, 16, 1, 64, device=device, dtype=dtype)  # (batch, tokens, heads, head_dim)
        memory_efficient_attention(x, x, x)
    except Exception as error:  # such a build fails in many ways
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        return f"xFormers does not run on {device} with {dtype} ({reason})"
    return ""


def _xformers_runs(device: torch.device, dtype: torch.dtype) -> bool:
    problem = xformers_problem(device, dtype)
    if problem:
        logger.warning("ENABLE_XFORMERS=1, but %s; PyTorch SDPA is used. See: aura doctor", problem)
    return not problem


def _libraries(attention: str) -> tuple[str, ...]:
    """Return the libraries that decide bits beside torch, with their versions."""
    names = [
        "diffusers",
        "transformers",
        "peft",
        *(["xformers"] if attention == "xformers" else []),
    ]
    return tuple(f"{name} {version(name)}" for name in names)
