"""GPU seconds: whose they are, and whether they were foretold, by a device that takes a stated time
for everything it does."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.core.capacity.forecast import forecast, pending_work
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import StageSegment, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Finished
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.vae import DecodedImage, RgbImage
from tests.support.analytic_model import ConstantDenoiser, MeanPixels, analytic_model
from tests.support.engine_runs import Heard, drain, sample_of
from tests.support.keys import REFINER, base_key

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
WIDE = replace(SPEC, width=128)
END = StageSegment(Stage.BASE, 10, last=True)
EXACT = 1e-9


class Timer:
    """A clock that moves when a model works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedDenoiser(ConstantDenoiser):
    """A denoiser whose calls take seconds per call, and per row and latent pixel."""

    def __init__(self, timer: Timer, call: float, pixel: float) -> None:
        super().__init__()
        self._timer, self._call, self._pixel = timer, call, pixel

    def __call__(
        self, x: torch.Tensor, points: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self._timer.now += self._call + self._pixel * lanes * x[0, 0].numel()
        return super().__call__(x, points, lanes)


class TimedPixels(MeanPixels):
    """A codec whose encodes and decodes take time by the image's area."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def decode(self, latents: torch.Tensor) -> DecodedImage:
        self._timer.now += 1e-3 * latents[0].numel()
        return super().decode(latents)

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        self._timer.now += 5e-4 * posterior_noise[0].numel()
        return super().encode(picture, posterior_noise)


def timed(lane_counts: tuple[int, ...] = (8,)) -> tuple[Engine, Timer, TimedDenoiser]:
    """Base and refiner on one engine, each with its own speed."""
    timer = Timer()
    base, refiner = TimedDenoiser(timer, 0.1, 1e-3), TimedDenoiser(timer, 0.05, 2e-3)
    models = {
        key: analytic_model(
            denoiser,
            lane_counts=lane_counts,
            stage=key.stage,
            model=str(key),
            pixels=TimedPixels(timer),
        )
        for key, denoiser in ((base_key("fox"), base), (REFINER, refiner))
    }
    makers = {
        name: lambda reserve_for, previous_plan, model=model: model
        for name, model in models.items()
    }
    cache = ModelCache(makers, capacity=2, pinned=[REFINER])
    return Engine(cache, snapshot_every=10**9, clock=timer), timer, base


class TimedImage:
    """An image that submits its next segment by itself, and the GPU time it has used."""

    def __init__(self, engine: Engine, spec: ImageSpec, id: str) -> None:
        source = None if spec.strength is None else bytes(3 * spec.width * spec.height)
        spec = replace(spec, model="fox")
        self.sample = sample_of(spec, id, source, refiner=True)
        self.segments = stage_segments(self.sample.schedule, spec.handoff, refiner=True)
        self.spent = GpuTime()
        self._engine = engine

    def submit(self) -> None:
        segment, *_ = self.segments
        self._engine.submit(
            replace(self.sample, stage=segment.stage, solver_state=(), profile=None), segment, self
        )

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Finished), event
        self.spent = GpuTime(
            self.spent.measured + event.gpu_time.measured,
            self.spent.predicted + event.gpu_time.predicted,
        )
        self.sample, self.segments = event.sample, self.segments[1:]
        if self.segments:
            self.submit()


MIXTURE = [
    replace(
        size,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        strength=strength,
        handoff=handoff,
    )
    for size in (SPEC, WIDE)
    for steps, sampler in ((4, Sampler.EULER), (10, Sampler.HEUN), (7, Sampler.DPMPP_2M))
    for guidance in (1.0, 5.0)
    for strength, handoff in ((None, 1.0), (None, 0.7), (0.5, 0.8))
]


def run_mixture(engine: Engine, gap: int) -> list[TimedImage]:
    """Submit the mixture, an image every `gap` turns, and run it to the end."""
    images = [TimedImage(engine, spec, str(number)) for number, spec in enumerate(MIXTURE)]
    for image in images:
        image.submit()
        for _ in range(gap):
            engine.turn()
    drain(engine)
    return images


@pytest.mark.parametrize(("counts", "off"), [((8,), EXACT), ((2, 4, 8), EXACT), ((), 0.01)])
def test_once_every_turn_was_measured_an_images_time_is_predicted_exactly(
    counts: tuple[int, ...], off: float
) -> None:
    """In fast mode some numbers of rows are rare, and their costs are interpolated."""
    engine, _, _ = timed(counts)
    for gap in (0, 3, 9):
        run_mixture(engine, gap)
    for gap in (0, 5, 30):
        for image in run_mixture(engine, gap):
            assert image.spent.predicted == pytest.approx(image.spent.measured, rel=off)


def test_the_images_gpu_times_add_up_to_the_time_the_device_was_busy() -> None:
    engine, timer, _ = timed()
    images = run_mixture(engine, 4)
    assert sum(image.spent.measured for image in images) == pytest.approx(timer.now)
    stats = engine.stats()
    assert stats.gpu_seconds == pytest.approx(timer.now)
    assert stats.wasted_gpu_seconds == 0


def test_idle_time_is_charged_to_no_image() -> None:
    engine, timer, _ = timed()
    run_mixture(engine, 0)
    busy = engine.stats().gpu_seconds
    timer.now += 1000
    (image, *_) = images = run_mixture(engine, 0)
    assert image.spent.measured < 10
    assert sum(image.spent.measured for image in images) == pytest.approx(busy)


@pytest.mark.parametrize("number", [1, 4, 7])
def test_the_owed_seconds_are_the_seconds_that_the_work_takes(number: int) -> None:
    engine, timer, _ = timed()
    run_mixture(engine, 0)
    for n in range(number):
        spec = replace(SPEC, model="fox", steps=4 + n, guidance=1.0 + n % 2)
        engine.submit(sample_of(spec, str(n)), StageSegment(Stage.BASE, 4 + n, last=True), Heard())
    for _ in range(number + 2):
        engine.turn()
    owed, began = forecast(engine.pending(), engine.stats().costs).seconds, timer.now
    drain(engine)
    assert owed == pytest.approx(timer.now - began, rel=EXACT)


def test_a_mixture_takes_its_owed_seconds_except_for_the_order_of_readiness() -> None:
    """A forecast lets all images step at once, though encodes and decodes run one by one."""
    engine, timer, _ = timed()
    run_mixture(engine, 0)
    images = [TimedImage(engine, spec, str(number)) for number, spec in enumerate(MIXTURE)]
    work = [pending for image in images for pending in pending_work(image.sample, image.segments)]
    owed, began = forecast(work, engine.stats().costs).seconds, timer.now
    for image in images:
        image.submit()
    drain(engine)
    assert owed == pytest.approx(timer.now - began, rel=0.1)


def test_a_size_that_was_never_measured_is_predicted_by_its_work() -> None:
    engine, timer, _ = timed()
    for side in (64, 128, 256):
        spec = replace(SPEC, model="fox", width=side, height=side)
        engine.submit(sample_of(spec), END, Heard())
        drain(engine)
    fresh = sample_of(replace(SPEC, model="fox", width=192, height=192))
    owed = forecast(pending_work(fresh, [END]), engine.stats().costs).seconds
    began = timer.now
    engine.submit(fresh, END, Heard())
    drain(engine)
    assert owed == pytest.approx(timer.now - began, rel=0.1)


def test_the_time_of_cancelled_and_failed_images_is_wasted_and_no_other_time() -> None:
    engine, timer, base = timed()
    departed, beside = Heard(), Heard()
    for id, heard in (("cancelled", departed), ("beside", beside)):
        engine.submit(sample_of(replace(SPEC, model="fox"), id), END, heard)
    for _ in range(6):
        engine.turn()
    engine.cancel("cancelled", departed)
    drain(engine)
    wasted = engine.stats().wasted_gpu_seconds
    assert wasted == pytest.approx(4 * (0.1 + 8 * 64 * 1e-3) / 2)
    base.failures = [ValueError("broken")]
    engine.submit(sample_of(replace(SPEC, model="fox"), "broken"), END, Heard())
    drain(engine)
    assert engine.stats().wasted_gpu_seconds == pytest.approx(wasted + 0.1 + 8 * 64 * 1e-3)
    whole = beside.finished.gpu_time.measured + engine.stats().wasted_gpu_seconds
    assert whole == pytest.approx(engine.stats().gpu_seconds) == timer.now


def test_the_time_of_an_image_that_continues_elsewhere_is_not_wasted() -> None:
    engine, timer, _ = timed()
    heard = Heard()
    engine.submit(sample_of(replace(SPEC, model="fox")), END, heard)
    for _ in range(4):
        engine.turn()
    engine.close()
    engine.turn()
    assert heard.snapshots[-1].index == 3
    assert engine.stats().gpu_seconds == pytest.approx(timer.now)
    assert engine.stats().wasted_gpu_seconds == 0
