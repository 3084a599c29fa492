"""An engine on a device that works while the host prepares the next step."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.errors import ReplicaLost
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from tests.support.analytic_model import ConstantDenoiser, analytic_model, engine_over
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.queueing_device import (
    HOST_S,
    SPEC,
    STEP_S,
    QueueingDenoiser,
    QueueingDevice,
    engine_on,
    queueing_cpu,
    submit,
)


@pytest.fixture
def gpu() -> QueueingDevice:
    return queueing_cpu()


def test_each_step_is_queued_before_the_last_one_is_waited_for(gpu: QueueingDevice) -> None:
    engine = engine_on(gpu)
    heard = submit(engine)
    drain(engine)
    assert gpu.log == [
        "queued 1",
        "queued 2",
        "waited for 1",
        "queued 3",
        "waited for 2",
        "queued 4",
        "waited for 3",
        "waited for 4",  # its latents are decoded next
    ]
    assert heard.finished.sample.latents == pytest.approx(0.25, abs=1e-6)


def test_the_device_never_waits_for_the_host_and_each_step_is_charged_its_own_time(
    gpu: QueueingDevice,
) -> None:
    records: list[StepRecord] = []
    engine = engine_on(gpu, on_step=records.append)
    heard, start = submit(engine), gpu.clock.now
    drain(engine)
    assert gpu.clock.now - start == HOST_S + 4 * STEP_S
    assert [record.seconds for record in records] == [HOST_S + STEP_S, *[STEP_S] * 3]
    assert heard.finished.gpu_time.measured == HOST_S + 4 * STEP_S
    ends = [record.began + record.seconds for record in records]
    assert [record.began for record in records[1:]] == ends[:-1]
    assert engine.stats().turns == 4


@pytest.mark.parametrize("sampler", [Sampler.EULER_A, Sampler.UNIPC, Sampler.DPMPP_2M_SDE])
def test_an_image_has_the_bytes_that_it_has_on_a_device_that_is_waited_for(
    gpu: QueueingDevice, sampler: Sampler
) -> None:
    ahead, waiting = engine_on(gpu), engine_over(ConstantDenoiser())
    latents = []
    for engine in (ahead, waiting):
        heard = [
            submit(engine, replace(SPEC, sampler=sampler, steps=steps), str(steps))
            for steps in (2, 4, 7)
        ]
        drain(engine)
        latents.append([listener.finished.sample.latents for listener in heard])
    for queued, waited_for in zip(*latents, strict=True):
        assert queued is not None
        assert queued == pytest.approx(waited_for, abs=0)


def test_snapshots_come_as_often_and_each_is_waited_for(gpu: QueueingDevice) -> None:
    engine = engine_on(gpu, snapshot_every=3)
    heard = submit(engine, replace(SPEC, steps=8))
    drain(engine)
    assert [snapshot.index for snapshot in heard.snapshots] == [3, 6]
    assert gpu.log[:5] == ["queued 1", "queued 2", "waited for 1", "queued 3", "waited for 2"]
    assert gpu.log[5:7] == ["waited for 3", "queued 4"]


def test_snapshots_are_no_further_apart_than_on_a_device_that_is_waited_for(
    gpu: QueueingDevice,
) -> None:
    """Of quick steps, between which time decides and not their number."""

    class Quick(QueueingDenoiser):
        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            before = gpu.clock.now
            denoised = super().__call__(x, inputs, lanes)
            gpu.clock.now = before  # queueing it takes no time
            last = gpu.queued[-2].time if len(gpu.queued) > 1 else before
            gpu.queued[-1].time = max(before, last) + 0.03125
            return denoised

    engine = engine_on(gpu, Quick(gpu), snapshot_every=1)
    heard = submit(engine, replace(SPEC, steps=30))
    drain(engine)
    indices = [snapshot.index for snapshot in heard.snapshots]
    assert [b - a for a, b in pairwise(indices)] == [7] * (len(indices) - 1)
    assert len(indices) == 4


def test_a_sample_that_only_changes_its_stage_is_waited_for(gpu: QueueingDevice) -> None:
    engine, heard = engine_on(gpu), Heard()
    engine.submit(sample_of(SPEC), StageSegment(Stage.BASE, 2, last=False), heard)
    drain(engine)
    assert heard.finished.sample.index == 2
    assert gpu.log[-1] == "waited for 2"


def test_a_command_waits_for_the_step_on_its_way(gpu: QueueingDevice) -> None:
    records: list[StepRecord] = []
    engine = engine_on(gpu, on_step=records.append)
    heard = submit(engine, replace(SPEC, steps=20))
    for _ in range(4):
        engine.turn()
    assert gpu.log[-2:] == ["queued 3", "waited for 2"]
    engine.cancel("one", heard)
    assert not engine.turn()
    assert gpu.log[-1] == "waited for 3"
    stats = engine.stats()
    assert (stats.turns, stats.cancelled, stats.positions) == (3, 1, {})
    assert len(records) == 3
    assert stats.wasted_gpu_seconds == stats.gpu_seconds == HOST_S + 3 * STEP_S


def test_close_hands_out_the_step_on_its_way(gpu: QueueingDevice) -> None:
    engine = engine_on(gpu)
    heard = submit(engine, replace(SPEC, steps=20))
    for _ in range(4):
        engine.turn()
    engine.close()
    assert [snapshot.index for snapshot in heard.snapshots] == [3]
    assert isinstance(heard.failed.error, ReplicaLost)


def test_a_newcomer_is_conditioned_when_the_device_is_free(gpu: QueueingDevice) -> None:
    engine = engine_on(gpu)
    submit(engine, replace(SPEC, steps=20))
    for _ in range(4):
        engine.turn()
    submit(engine, replace(SPEC, seed=2), "two")
    engine.turn()
    assert gpu.log[-1] == "waited for 3"
    assert not gpu.is_busy


def test_a_suspect_is_the_only_one_on_the_device(gpu: QueueingDevice) -> None:
    """Or its neighbours would be blamed too when the process dies."""
    engine = engine_on(gpu, pause=lambda seconds: None)
    submit(engine, replace(SPEC, steps=30), alone=1)
    for _ in range(4):
        engine.turn()
    assert gpu.log == [f"{what} {step}" for step in (1, 2, 3) for what in ("queued", "waited for")]


def test_a_step_whose_lanes_must_be_proved_first_does_not_spoil_the_time_of_the_one_before(
    gpu: QueueingDevice,
) -> None:
    records: list[StepRecord] = []
    model = analytic_model(QueueingDenoiser(gpu), device=gpu, lane_counts=(1, 2, 8))
    engine = Engine(
        ModelCache.of(model), snapshot_every=99, clock=gpu.clock, on_step=records.append
    )
    submit(engine, replace(SPEC, steps=8, guidance_interval=(0, 3.0)))  # one row, and later two
    drain(engine)
    assert [record.lanes for record in records] == [1, 1, *[2] * 6]
    is_proof = [record.seconds > HOST_S + STEP_S for record in records]
    assert is_proof == [True, False, True, *[False] * 5]


def test_an_image_whose_deep_features_are_reused_is_made(gpu: QueueingDevice) -> None:
    """Its next step may be of another kind than the one on its way."""
    spec = replace(SPEC, steps=9, cache=StepCache.DEEPCACHE)
    latents = []
    for engine in (engine_on(gpu), engine_over(ConstantDenoiser())):
        heard = [submit(engine, spec, "one"), submit(engine, replace(spec, steps=7), "two")]
        drain(engine)
        latents += [listener.finished.sample.latents for listener in heard]
        assert engine.stats().steps == 16
    assert latents[0] == pytest.approx(latents[2], abs=0)
    assert latents[1] == pytest.approx(latents[3], abs=0)


def test_callers_take_turns_as_on_a_device_that_is_waited_for(gpu: QueueingDevice) -> None:
    """A step is planned before the last one is done, so it is charged what is expected."""
    records: list[StepRecord] = []
    engine = engine_on(gpu, on_step=records.append)
    for number, name in enumerate("abcd"):
        spec = replace(SPEC, steps=40, width=64 * (number + 1))  # they can't step together
        sample = replace(sample_of(spec, name), caller=Caller(name))
        engine.submit(sample, whole(sample), Heard())
    for _ in range(120):
        engine.turn()
    order = "".join(record.ids[0] for record in records)[40:]  # when all sizes were measured
    assert order == (order[:4] * len(order))[: len(order)]
    assert set(order[:4]) == set("abcd")


def test_callers_share_seconds_also_when_steps_take_longer_than_expected(
    gpu: QueueingDevice,
) -> None:
    records: list[StepRecord] = []

    class Slowing(QueueingDenoiser):
        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            denoised = super().__call__(x, inputs, lanes)
            if x.shape[-1] > 8:  # each one takes longer than those that were measured
                gpu.queued[-1].time += 0.5 * len(records)
            return denoised

    engine = engine_on(gpu, Slowing(gpu), on_step=records.append)
    for name, width in (("small", 64), ("wide", 512)):
        sample = sample_of(replace(SPEC, steps=150, width=width), name)
        engine.submit(replace(sample, caller=Caller(name)), whole(sample), Heard())
    for _ in range(100):
        engine.turn()
    seconds: dict[str, float] = defaultdict(float)
    for record in records:
        seconds[record.ids[0]] += record.seconds
    longest = max(record.seconds for record in records)
    assert abs(seconds["small"] - seconds["wide"]) < 2 * longest < 0.5 * sum(seconds.values())


def test_a_long_step_is_not_judged_by_the_limits_of_the_next_one(gpu: QueueingDevice) -> None:
    """While the next one waits on the device, the turn is that of the step before it."""
    judged: list[bool] = []

    class Watched(QueueingDenoiser):
        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            denoised = super().__call__(x, inputs, lanes)
            gpu.queued[-1].time += 11.0 * (x.shape[-1] > 8)  # a wide image takes twelve seconds
            gpu.queued[-1].heed = lambda: judged.append(engine.is_silent())
            return denoised

    engine, start = engine_on(gpu, Watched(gpu)), gpu.clock.now
    for name, width in (("small", 64), ("wide", 512)):
        spec = replace(SPEC, steps=150, width=width)
        sample = replace(sample_of(spec, name), caller=Caller(name))
        engine.submit(sample, whole(sample), Heard())
    while gpu.clock.now < start + 700:  # longer than a turn of which nothing is known may take
        engine.turn()
    assert len(judged) > 100
    assert not any(judged)


def test_only_a_cuda_device_works_ahead() -> None:
    devices = {
        kind: Device(torch.device(kind), kind, torch.float32, torch.float32, "sdpa", 1)
        for kind in ("cpu", "cuda", "mps")
    }
    assert {kind for kind, device in devices.items() if device.works_ahead} == {"cuda"}
    devices["cpu"].record_event().synchronize()
