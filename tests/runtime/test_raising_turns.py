"""Turns that raise: what becomes of the image that is to blame, of its neighbours, of the replica.

The test's thread is the engine's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, with_model
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import EngineFault, ReplicaUnwell
from serve_app.core.service.events import Progress
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Failed
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import ConstantDenoiser, analytic_model, engine_over
from tests.support.clock import Clock
from tests.support.engine_runs import Heard, drain, sample_of

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
POISON = replace(SPEC, guidance=6)
END = StageSegment(Stage.BASE, 10, last=True)


class RaisingDenoiser(ConstantDenoiser):
    """Raises while an image of `POISON` is in the batch, or else when `is_broken`.

    What it returns depends on the latents, so that repeated or skipped noise shows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        if self.is_broken or POISON.guidance in [at.conditioning.guidance_scale for at in inputs]:
            self.batches.append((len(inputs), 0))
            raise RuntimeError("a secret inside")
        return super().__call__(x, inputs, lanes) + x / 8


def engine_with_self_test(denoiser: ConstantDenoiser, clock: Clock | None = None) -> Engine:
    """Return an engine over a model whose self-test is recorded."""
    model = analytic_model(denoiser)
    model.record_self_test()
    return Engine(ModelCache.of(model), snapshot_every=5, clock=clock or Clock())


def submit(engine: Engine, spec: ImageSpec, id: str = "one") -> Heard:
    heard = Heard()
    engine.submit(sample_of(spec, id), END, heard)
    return heard


def submit_and_drain(engine: Engine, spec: ImageSpec, id: str = "one") -> Heard:
    heard = submit(engine, spec, id)
    drain(engine)
    return heard


@pytest.mark.parametrize("sampler", [Sampler.EULER_A, Sampler.UNIPC])
def test_only_the_image_that_raises_ends_and_its_neighbours_keep_their_bytes(
    sampler: Sampler,
) -> None:
    spec = replace(SPEC, sampler=sampler)
    undisturbed = submit_and_drain(engine_over(RaisingDenoiser()), spec)
    denoiser = RaisingDenoiser()
    engine = engine_over(denoiser)
    neighbours = [submit(engine, spec, str(number)) for number in range(3)]
    for _ in range(6):
        engine.turn()
    poisoned = submit(engine, replace(POISON, sampler=sampler), "poison")
    drain(engine)
    assert isinstance(poisoned.failed.error, EngineFault)
    assert "secret" not in str(poisoned.failed.error)
    latents = undisturbed.finished.sample.latents
    assert latents is not None
    for heard in neighbours:
        assert heard.finished.sample.latents == pytest.approx(latents, abs=0)
    together = [images for images, _ in denoiser.batches]
    assert together == [3, 3, 3, 4, 1, 1, 1, 1, *[3] * 6]


def test_images_whose_batch_ran_out_of_memory_are_made_one_by_one() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures = [torch.OutOfMemoryError("CUDA out of memory")]
    engine = engine_over(denoiser)
    images = [submit(engine, SPEC, str(number)) for number in range(2)]
    drain(engine)
    assert all(heard.finished for heard in images)
    assert denoiser.batches == [(1, 8)] * 2 + [(2, 8)] * 9


def test_an_image_that_leaves_before_it_is_retried_alone_holds_up_nobody() -> None:
    denoiser = ConstantDenoiser()
    denoiser.failures = [RuntimeError("once")]
    engine = engine_over(denoiser)
    leaving, staying = submit(engine, SPEC, "leaving"), submit(engine, SPEC, "staying")
    for _ in range(3):
        engine.turn()
    engine.cancel("leaving", leaving)
    drain(engine)
    assert staying.finished
    assert not leaving.ended


def test_callers_whose_images_raise_never_make_a_replica_unwell() -> None:
    engine = engine_with_self_test(RaisingDenoiser())
    for number in range(6):
        assert isinstance(submit_and_drain(engine, POISON, str(number)).failed.error, EngineFault)
        engine.check()
    assert submit_and_drain(engine, SPEC).finished
    engine.check()


def test_a_device_on_which_everything_raises_is_unwell_and_its_images_go_on_elsewhere() -> None:
    denoiser = RaisingDenoiser()
    engine = engine_with_self_test(denoiser)
    denoiser.is_broken = True
    images = [submit(engine, SPEC, str(number)) for number in range(4)]
    drain(engine)
    images.append(submit_and_drain(engine, SPEC, "late"))
    for heard in images:
        assert isinstance(heard.failed.error, ReplicaUnwell)
    with pytest.raises(EngineFault, match="the self-test fails: it could not run: RuntimeError"):
        engine.check()


def test_a_device_that_breaks_after_a_test_that_it_passed_is_found_soon() -> None:
    clock, denoiser = Clock(), RaisingDenoiser()
    engine = engine_with_self_test(denoiser, clock)
    assert isinstance(submit_and_drain(engine, POISON).failed.error, EngineFault)
    denoiser.is_broken = True
    ends = []
    for number in range(8):
        clock.now += 0.25
        ends.append(type(submit_and_drain(engine, SPEC, str(number)).failed.error))
    assert ends == [EngineFault] * 3 + [ReplicaUnwell] * 5
    with pytest.raises(EngineFault, match="the self-test fails"):
        engine.check()


def test_a_process_whose_device_is_broken_ends_as_in_a_crash_before_it_blames_its_images() -> None:
    denoiser, events = RaisingDenoiser(), list[object]()
    model = analytic_model(denoiser)
    model.record_self_test()
    engine = Engine(
        ModelCache.of(model), snapshot_every=5, pause=events.append, on_unwell=events.append
    )
    denoiser.is_broken = True
    engine.submit(sample_of(SPEC), END, events.append)
    drain(engine)
    begun, reason, *after = events
    assert begun == Progress(0)
    assert reason == "the self-test fails: it could not run: RuntimeError"
    assert isinstance(after[0], Failed)  # where the process goes on all the same


def test_images_of_a_process_whose_numbers_are_wrong_know_it_before_it_ends() -> None:
    denoiser, events = ConstantDenoiser(), list[object]()
    model = analytic_model(denoiser)
    model.record_self_test()
    engine = Engine(
        ModelCache.of(model), snapshot_every=5, pause=events.append, on_unwell=events.append
    )
    denoiser.target = float("nan")
    for number in range(2):
        engine.submit(
            sample_of(SPEC, str(number)), StageSegment(Stage.BASE, 1, last=False), events.append
        )
    drain(engine)
    ends = [event.error for event in events if isinstance(event, Failed)]
    assert [type(error) for error in ends] == [ReplicaUnwell] * 2
    reason = "the self-test fails: the image's latents are not finite (NaN or infinite)"
    assert events[-2:] == [1.0, reason]


class StuckLatents(torch.Tensor):
    """Latents that can't be copied to the host."""

    def cpu(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("the copy fails")


class StuckDenoiser(ConstantDenoiser):
    """Returns latents that can't be copied, when two images step together."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        denoised = super().__call__(x, inputs, lanes)
        return denoised.as_subclass(StuckLatents) if len(inputs) == 2 else denoised


def test_images_whose_last_latents_can_t_be_copied_end_too() -> None:
    engine, ending, staying = engine_over(StuckDenoiser()), Heard(), Heard()
    engine.submit(sample_of(SPEC, "ending"), StageSegment(Stage.BASE, 1, last=False), ending)
    engine.submit(sample_of(SPEC, "staying"), StageSegment(Stage.BASE, 2, last=False), staying)
    drain(engine)
    for heard in (ending, staying):
        assert isinstance(heard.failed.error, EngineFault)
    assert engine.stats().positions == {}


def test_a_load_that_fails_unforeseen_is_blamed_on_a_replica_that_has_no_model_left() -> None:
    class BrokenDevice:
        def offload(self) -> None:
            raise RuntimeError("CUDA error: unspecified launch failure")

        def restore(self) -> None:
            raise AssertionError

    def load(name: str) -> Callable[..., StageModel]:
        return lambda *_: analytic_model(ConstantDenoiser(), model=name, parking=BrokenDevice())

    keys = [ModelKey(Stage.BASE, name) for name in ("a", "b")]
    models = ModelCache({key: load(str(key.name)) for key in keys}, offload_capacity=1)
    engine, heard = Engine(models, snapshot_every=5, clock=Clock()), Heard()
    engine.submit(with_model(sample_of(SPEC), keys[1]), END, heard)
    drain(engine)
    assert isinstance(heard.failed.error, ReplicaUnwell)
    with pytest.raises(EngineFault, match="no model is in memory"):
        engine.check()
