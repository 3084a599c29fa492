"""The device a stage runs on: found, asked what it can do, and named in the numeric profile.

Knows no settings files and no checkpoints: names and wishes are handed in.
"""

import gc
import logging
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from serve_app.core.diffusion.numeric_profile import NumericProfile, default_precision
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeviceError
from serve_app.core.scheduling.memory_plan import MemorySaving

logger = logging.getLogger("aura.runtime")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """What was used of the device's memory, in bytes."""

    peak: int
    limit: int  # that this process could have had


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how a stage computes."""

    torch_device: torch.device
    kind: str  # "cpu AVX512", "NVIDIA H200"
    dtype: torch.dtype
    vae_dtype: torch.dtype  # never fp16: SDXL's VAE overflows there
    attention: str  # "sdpa" or "xformers"
    cpu_threads: int
    memory_fraction: float = 1.0  # of the card's memory: others may be meant to have the rest

    def numeric_profile(
        self, stage: Stage, lanes: int, model: str, memory_savings: tuple[MemorySaving, ...] = ()
    ) -> NumericProfile:
        """The numeric profile of a stage's model here, with so many lanes and what it gave up."""
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
        )

    def claim_thread(self) -> None:
        """The calling thread computes with the profile's number of CPU threads.

        Ray sets OMP_NUM_THREADS from a replica's num_cpus; the number of threads decides bits,
        so it is set here, the same with and without Ray.
        """
        torch.set_num_threads(self.cpu_threads)

    @property
    def has_own_memory(self) -> bool:
        """Whether its memory is another than the host's, so that a copy there saves time."""
        return self.torch_device.type == "cuda"

    def pinned(self, bytes: int) -> torch.Tensor:
        """So many bytes of the host's memory, (bytes,) of uint8, that stay where they are: the
        device fetches from there by itself.

        Raises `RuntimeError` where the system gives no more of such memory.
        """
        return torch.empty(bytes, dtype=torch.uint8, pin_memory=True)

    def fetch(self, copy: torch.Tensor) -> torch.Tensor:
        """A tensor of the host's memory, on the device by the time that anything there uses it."""
        return copy.to(self.torch_device, non_blocking=True)

    def synchronize(self) -> None:
        """All work queued on the device is done."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Nothing is kept on the device that nobody uses, and the peak is counted from here."""
        gc.collect()  # what failed lies in a traceback, in a circle
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.empty_cache()

    def memory_usage(self) -> MemoryUsage | None:
        """The most that was used since `free`, where somebody counts it: not on a CPU."""
        if self.torch_device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.torch_device)
            reserved = torch.cuda.memory_reserved(self.torch_device)
            allowed = min(free + reserved, int(self.memory_fraction * total))
            return MemoryUsage(torch.cuda.max_memory_allocated(self.torch_device), allowed)
        if self.torch_device.type == "mps":  # which keeps what it once took
            return MemoryUsage(
                torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
            )
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device said that it has no room: only CUDA does so by a type of its own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in said
        or "can't allocate memory" in said
        or "CUBLAS_STATUS_ALLOC_FAILED" in said
    )


def open_device(
    name: str,
    *,
    precision: str | None,
    xformers: bool,
    cpu_threads: int,
    memory_fraction: float = 1.0,
) -> Device:
    """The device, ready. `name` is `cpu`, `cuda` or `mps`; `precision` None takes its default. On
    CUDA no more than a `share` of the card's memory is taken.

    Raises `DeviceError` when the device is not there: a replica promised CUDA must not run on CPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise DeviceError(
            f"MODEL_DEVICE=cuda, but this process sees no CUDA device (torch is built {built}). "
            "Check `nvidia-smi`, or set MODEL_DEVICE=cpu"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("MODEL_DEVICE=mps, but this is no Apple GPU. Set MODEL_DEVICE=cpu")
    device = torch.device(name)
    dtype = DTYPES[precision or default_precision(name)]
    if name == "cuda":
        torch.backends.cudnn.benchmark = False  # a kernel chosen by a race decides bits by luck
        torch.backends.cudnn.deterministic = True
        torch.cuda.set_per_process_memory_fraction(memory_fraction)
    torch.set_num_threads(cpu_threads)
    return Device(
        torch_device=device,
        kind=_kind(device),
        dtype=dtype,
        vae_dtype=_vae_dtype(device, dtype),
        attention="xformers" if xformers and _xformers_runs(device, dtype) else "sdpa",
        cpu_threads=cpu_threads,
        memory_fraction=memory_fraction,
    )


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def _vae_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    if dtype is torch.float32:
        return torch.float32
    fast_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast_bf16 else torch.float32


def xformers_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why xFormers attention does not compute here, "" when it does: an import proves nothing."""
    if find_spec("xformers") is None:
        return "xFormers is not installed"
    try:
        from xformers.ops import memory_efficient_attention

        x = torch.ones(1, 16, 1, 64, device=device, dtype=dtype)  # (batch, tokens, heads, width)
        memory_efficient_attention(x, x, x)
    except Exception as error:  # a foreign build fails in many ways, all of them mean no
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        return f"xFormers does not run on {device} with {dtype} ({reason})"
    return ""


def _xformers_runs(device: torch.device, dtype: torch.dtype) -> bool:
    trouble = xformers_problem(device, dtype)
    if trouble:
        logger.warning(
            "ENABLE_XFORMERS=1, but %s; PyTorch SDPA is used. See: aura doctor",
            trouble,
        )
    return not trouble
