"""Copies between the host's memory and a device that wait for nothing queued there."""

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device; work queued there later sees the copy.

    From pageable memory CUDA would wait until the device has done all work before. torch keeps the
    page-locked memory until the copy is done.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in the host's memory, which is complete when the device has got that far.

    Of a tensor that is there already, the tensor itself.
    """
    if tensor.device.type == "cpu":
        return tensor
    if tensor.device.type != "cuda":
        return tensor.cpu()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
