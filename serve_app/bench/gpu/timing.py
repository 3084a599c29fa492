"""Times of work on a device: by its own events on CUDA, by the clock elsewhere."""

import time
from collections.abc import Callable
from statistics import median

import torch

from serve_app.runtime.memory.device import Device


def median_seconds(device: Device, work: Callable[[], object], runs: int) -> float:
    """Return the median time of `runs` runs of some work, after one that warms up."""
    work()
    device.synchronize()
    return median(_seconds(device, work) for _ in range(runs))


def _seconds(device: Device, work: Callable[[], object]) -> float:
    if device.torch_device.type != "cuda":
        start = time.perf_counter()
        work()
        device.synchronize()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    work()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1000
