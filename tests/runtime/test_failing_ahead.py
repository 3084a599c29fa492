"""What becomes of images when a step fails that was queued ahead, or can't be queued."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.core.caller import Caller
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.errors import EngineFault, ReplicaUnwell
from serve_app.core.scheduling.work import WorkKind
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import StepRecord
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


class RaisingDenoiser(QueueingDenoiser):
    """Fails at its third call."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        if len(self.batches) == 2 and self.failures:
            raise self.failures.pop(0)
        failures, self.failures = self.failures, []
        try:
            return super().__call__(x, inputs, lanes)
        finally:
            self.failures = failures


def test_a_step_that_can_t_be_queued_is_not_blamed_on_the_one_before(gpu: QueueingDevice) -> None:
    denoiser, records = RaisingDenoiser(gpu), list[StepRecord]()
    denoiser.failures = [torch.OutOfMemoryError("CUDA out of memory")]
    engine = engine_on(gpu, denoiser, on_step=records.append)
    heard = [submit(engine, id=id) for id in ("one", "two")]
    drain(engine)
    for listener in heard:
        assert listener.finished.sample.latents == pytest.approx(0.25, abs=1e-6)
    # The third step is taken again, by each alone.
    assert [images for images, _ in denoiser.batches] == [2, 2, 1, 1, 2]
    assert engine.stats().steps == 4 + 2 + 2 + 2
    assert [record.seconds for record in records] == [
        *[HOST_S + STEP_S, STEP_S],
        0.0,  # it was not even queued
        *[HOST_S + STEP_S] * 3,  # retries are waited for, and so is the last step
    ]
    costs = engine.stats().costs.seconds_by_turn
    assert all(s >= STEP_S for kind, s in costs.items() if kind.work is WorkKind.STEP)


@pytest.mark.parametrize("cut_short", [False, True], ids=["by the next step", "by a command"])
def test_a_step_that_fails_on_the_device_is_taken_again_by_each_of_its_images_alone(
    gpu: QueueingDevice, *, cut_short: bool
) -> None:
    denoiser, records = QueueingDenoiser(gpu), list[StepRecord]()
    engine = engine_on(gpu, denoiser, on_step=records.append)
    undisturbed, start = engine_over(ConstantDenoiser()), gpu.clock.now
    spec = replace(SPEC, sampler=Sampler.UNIPC, steps=8)
    heard = [submit(engine, spec, id) for id in ("one", "two")]
    expected = submit(undisturbed, spec)
    drain(undisturbed)
    for _ in range(5):  # both prompts, and three steps, of which two were waited for
        engine.turn()
    gpu.faults.append(RuntimeError("CUDA error: unspecified launch failure"))
    gpu.queued[-1].time += 100.0
    if cut_short:
        engine.cancel("nobody", Heard())
    drain(engine)
    for listener in heard:
        assert listener.finished.sample.latents == pytest.approx(
            expected.finished.sample.latents, abs=0
        )
    dropped = [] if cut_short else [2]  # the fourth step, which began with what was not made
    assert [images for images, _ in denoiser.batches] == [2, 2, 2, *dropped, 1, 1, *[2] * 5]
    assert sum(record.seconds for record in records) == gpu.clock.now - start
    assert [record.seconds > 100 for record in records] == [False, False, True] + [False] * 7
    assert denoiser.forgotten == 1


def test_a_first_step_that_fails_says_nothing_of_what_such_a_step_costs(
    gpu: QueueingDevice,
) -> None:
    engine = engine_on(gpu)
    heard = submit(engine)
    for _ in range(2):
        engine.turn()
    gpu.queued[-1].time += 100.0
    gpu.faults.append(RuntimeError("CUDA error: unspecified launch failure"))
    drain(engine)
    assert heard.finished
    costs = engine.stats().costs.seconds_by_turn
    assert all(s < 2 for kind, s in costs.items() if kind.work is WorkKind.STEP)


def test_an_image_queued_behind_one_that_fails_is_made_though_the_device_tells_it_first(
    gpu: QueueingDevice,
) -> None:
    """As CUDA does: an error of a step is raised by whatever is asked for next."""

    class Telling(QueueingDenoiser):
        tells = False

        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            if self.tells:
                self.tells = False
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().__call__(x, inputs, lanes)

    denoiser = Telling(gpu)
    engine, heard = engine_on(gpu, denoiser), []
    for name, width in (("small", 64), ("wide", 128)):
        sample = replace(sample_of(replace(SPEC, steps=8, width=width), name), caller=Caller(name))
        heard.append(Heard())
        engine.submit(sample, whole(sample), heard[-1])
    for _ in range(5):
        engine.turn()
    gpu.faults.append(RuntimeError("CUDA error: unspecified launch failure"))
    denoiser.tells = True
    drain(engine)
    assert all(listener.finished for listener in heard)


def test_a_device_that_fails_for_good_ends_its_images_and_not_the_engine(
    gpu: QueueingDevice,
) -> None:
    engine = engine_on(gpu)
    heard = submit(engine, replace(SPEC, steps=20))
    for _ in range(4):
        engine.turn()
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    gpu.faults.extend([error, error])
    drain(engine)
    assert isinstance(heard.failed.error, EngineFault)
    assert "illegal" not in str(heard.failed.error)
    assert engine.stats().wasted_gpu_seconds == engine.stats().gpu_seconds
    last = submit(engine, id="last")
    drain(engine)
    assert last.finished


@pytest.mark.parametrize("ahead", [True, False])
def test_steps_that_succeed_between_failures_leave_a_replica_its_time(
    gpu: QueueingDevice, *, ahead: bool
) -> None:
    """Only failures in a row are examined in haste."""
    gpu = replace(gpu, ahead=ahead)

    class Poisoned(QueueingDenoiser):
        is_broken = False

        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            if self.is_broken or inputs[0].conditioning.guidance_scale == 6:
                raise RuntimeError("an image's own fault")
            return super().__call__(x, inputs, lanes)

    denoiser = Poisoned(gpu)
    model = analytic_model(denoiser, device=gpu)
    model.record_self_test()
    engine = Engine(ModelCache.of(model), snapshot_every=99, clock=gpu.clock)
    for number in range(4):  # of which the first is examined, and the others for lack of time not
        good = submit(engine, replace(SPEC, steps=20), f"good {number}")
        for _ in range(2):
            engine.turn()
        engine.cancel(f"good {number}", good)
        engine.turn()
        poison = submit(engine, replace(SPEC, guidance=6), f"poison {number}")
        drain(engine)
        assert isinstance(poison.failed.error, EngineFault)
    denoiser.is_broken = True
    gpu.clock.now += 10  # enough for haste, which would find that out
    late = submit(engine, id="late")
    drain(engine)
    assert isinstance(late.failed.error, EngineFault)
    assert not isinstance(late.failed.error, ReplicaUnwell)
    engine.check()
