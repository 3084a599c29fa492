"""The most that this device computes: one large matrix product, measured in the same run."""

import torch

from serve_app.bench.gpu.timing import median_seconds
from serve_app.runtime.memory.device import Device


@torch.inference_mode()
def matmul_tflops(device: Device, dtype: torch.dtype, side: int, runs: int = 10) -> float:
    """Return the TFLOP/s of a product of two square matrices of random numbers."""
    left, right = (torch.randn(side, side, device=device.torch_device).to(dtype) for _ in range(2))
    seconds = median_seconds(device, lambda: left @ right, runs)
    return 2 * side**3 / seconds / 1e12
