"""A CPU that keeps the time of a GPU: it takes work at once, and has done it some time later."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.clock import Clock
from tests.support.engine_runs import Heard, sample_of, whole

HOST_S = 0.25  # that the host takes to queue a step
STEP_S = 1.0  # that the device takes for one
_READS = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.item, torch.Tensor.__bool__)


@dataclass
class QueuedEvent:
    """The end of one step, at a time of the device's clock."""

    device: "QueueingDevice"
    number: int  # of the step, from 1
    time: float
    heed: Callable[[], None] = lambda: None  # called when it has happened, before the wait ends

    def synchronize(self) -> None:
        self.device.clock.now = max(self.device.clock.now, self.time)
        self.heed()
        self.device.log.append(f"waited for {self.number}")
        if self.device.faults:
            raise self.device.faults.pop(0)


@dataclass(frozen=True)
class QueueingDevice(Device):
    """Works ahead as CUDA does; the log has what was queued and waited for, in order."""

    clock: Clock = field(default_factory=Clock)
    log: list[str] = field(default_factory=list)
    queued: list[QueuedEvent] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)  # raised by the next waits
    ahead: bool = True

    @property
    def works_ahead(self) -> bool:
        return self.ahead

    def record_event(self) -> QueuedEvent:
        return self.queued[-1]

    def queue_step(self) -> None:
        """Take a step, which the device begins when it has done those before."""
        self.clock.now += HOST_S
        free_at = max(self.clock.now, *(event.time for event in self.queued[-1:]), 0.0)
        self.queued.append(QueuedEvent(self, len(self.queued) + 1, free_at + STEP_S))
        self.log.append(f"queued {len(self.queued)}")

    @property
    def is_busy(self) -> bool:
        """Whether it has work left at this time."""
        return bool(self.queued) and self.queued[-1].time > self.clock.now

    def read(self) -> None:
        """Let the host read a result, which waits for all work before it."""
        if self.is_busy:
            self.clock.now = self.queued[-1].time
            self.log.append("read")


def queueing_cpu() -> QueueingDevice:
    return QueueingDevice(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)


class QueueingDenoiser(ConstantDenoiser):
    """Queues its steps on such a device. Whoever reads what it returns waits for the device."""

    def __init__(self, device: QueueingDevice) -> None:
        super().__init__()
        self._device = device
        self._latents = _latents_of(device)

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        denoised = super().__call__(x.as_subclass(torch.Tensor), inputs, lanes)
        self._device.queue_step()
        return denoised.as_subclass(self._latents)


def _latents_of(device: QueueingDevice) -> type[torch.Tensor]:
    class QueuedLatents(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in _READS:
                device.read()
            plain: Any = super()
            return plain.__torch_function__(func, types, args, kwargs or {})

    return QueuedLatents


def engine_on(
    gpu: QueueingDevice, denoiser: ConstantDenoiser | None = None, **options: Any
) -> Engine:
    chosen: dict[str, Any] = {"snapshot_every": 99, "clock": gpu.clock} | options
    model = analytic_model(denoiser or QueueingDenoiser(gpu), device=gpu)
    return Engine(ModelCache.of(model), **chosen)


SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=4, guidance=5)


def submit(engine: Engine, spec: ImageSpec = SPEC, id: str = "one", alone: int = 0) -> Heard:
    sample, heard = sample_of(spec, id), Heard()
    engine.submit(sample, replace(whole(sample), alone=alone), heard)
    return heard
