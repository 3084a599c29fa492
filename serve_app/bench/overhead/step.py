"""The engine's bookkeeping: what of a step is not the UNet, on the demo checkpoint.

The engine's own records say when each turn began and how long it took, up to the last result. Hooks
on the UNet say when its call began and ended. What is left is plan and gather before the call,
solver and scatter after it, and settling. On a CPU the UNet empties the processor's caches, so that
the same bookkeeping takes longer after it than after a UNet that computes nothing.
"""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import new_sample, plan_segments
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.stage_model import StageModel

PARTS = ("plan, gather", "UNet", "solver, scatter", "settle")
_WARM_UP = 8  # turns
_GUIDANCE, _SNAPSHOT_EVERY = 6.9, 5  # steps between two snapshots, the service's default


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The milliseconds of each part of a step, in the order of `PARTS`, of every measured turn."""

    images: int
    lanes: int
    turns: tuple[tuple[float, ...], ...]

    def part(self, number: int) -> float:
        """Return the median of a part."""
        return median(turn[number] for turn in self.turns)

    @property
    def bookkeeping(self) -> float:
        """Median of all parts but the UNet."""
        return median(sum(turn) - turn[PARTS.index("UNet")] for turn in self.turns)

    @property
    def share(self) -> float:
        """Median of the bookkeeping's share of its step."""
        unet = PARTS.index("UNet")
        return median(1 - turn[unet] / sum(turn) for turn in self.turns)


@dataclass(slots=True)
class _UNetCalls:
    """When the calls of a UNet began and ended, by the engine's clock."""

    computes: bool  # or returns zeros at once
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def load(self, checkpoint: Checkpoint, device: Device) -> Modules:
        """Load a checkpoint whose UNet is watched."""
        modules = load(checkpoint, device)
        unet: Any = modules.unet
        if not self.computes:
            unet.forward = lambda sample, *_, **__: (torch.zeros_like(sample),)
        unet.register_forward_pre_hook(lambda *_: self.began.append(time.monotonic()))
        unet.register_forward_hook(lambda *_: self.ended.append(time.monotonic()))
        return modules


def measure_steps(images: int, *, turns: int, threads: int, computes: bool = True) -> StepTimes:
    """Return the parts of steps of so many guided images together, on the demo.

    In fast mode, where a call of the UNet has all their rows on any machine. Unless it `computes`,
    the UNet returns zeros at once.
    """
    checkpoint = inspect(demo_folder(Stage.BASE), Stage.BASE)
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
    calls, records, settled = _UNetCalls(computes), list[StepRecord](), list[float]()

    def load_model(reserve_for: int, previous_plan: MemoryPlan | None) -> StageModel:
        return build_stage_model(
            checkpoint,
            device,
            reserve_for,
            previous_plan,
            images=images,
            strict=False,
            load_modules=calls.load,
        )

    def on_step(record: StepRecord) -> None:
        records.append(record)
        settled.append(time.monotonic())

    models = ModelCache({ModelKey(Stage.BASE, checkpoint.name): load_model})
    engine = Engine(models, snapshot_every=_SNAPSHOT_EVERY, on_step=on_step)
    _submit(engine, checkpoint, images, turns + _WARM_UP + 1)
    while len(records) < turns + _WARM_UP:
        engine.turn()
        del calls.began[: len(calls.began) - len(records)]  # the self-test calls the UNet too
        del calls.ended[: len(calls.ended) - len(records)]
    times = [
        tuple(1000 * (later - earlier) for earlier, later in pairwise(marks))
        for marks in zip(
            settled[_WARM_UP - 1 :],
            calls.began[_WARM_UP:],
            calls.ended[_WARM_UP:],
            [record.began + record.seconds for record in records[_WARM_UP:]],
            settled[_WARM_UP:],
            strict=False,
        )
    ]
    return StepTimes(images, records[-1].lanes, tuple(times))


def _submit(engine: Engine, checkpoint: Checkpoint, images: int, steps: int) -> None:
    side = checkpoint.native_size
    for number in range(images):
        spec = ImageSpec(
            prompt=f"picture {number}",
            seed=number,
            width=side,
            height=side,
            steps=steps,
            guidance=_GUIDANCE,
            model=checkpoint.name,
        )
        schedule, segments = plan_segments(checkpoint.noise_config, spec, refiner=False)
        sample: Any = new_sample(str(number), spec, schedule, Stage.BASE)
        engine.submit(sample, segments[0], lambda event: None)
