"""Copies from the host's memory to a device that wait for nothing queued there."""

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device; work queued there later sees the copy.

    From pageable memory CUDA would wait until the device has done all work before. torch keeps the
    page-locked memory until the copy is done.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
