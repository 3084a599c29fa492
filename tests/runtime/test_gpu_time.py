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
from serve_app.runtime.networks.vae import RgbImage
from tests.support.analytic_model import ConstantDenoiser, MeanPixels, analytic_model
from tests.support.engine_runs import Heard, drain, sample_of
from tests.support.keys import REFINER, base_key

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=10, guidance=5)
WIDE = replace(SPEC, width=128)
END = StageSegment(Stage.BASE, 10, last=True)
EXACT = 1e-9


class Timer:
    """A clock that moves when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedDenoiser(ConstantDenoiser):
    """Each call takes its seconds: so many for a call, and for each row and latent pixel."""

    def __init__(self, timer: Timer, call: float, pixel: float) -> None:
        super().__init__()
        self._timer, self._call, self._pixel = timer, call, pixel

    def __call__(
        self, x: torch.Tensor, points: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self._timer.now += self._call + self._pixel * lanes * x[0, 0].numel()
        return super().__call__(x, points, lanes)


class TimedPixels(MeanPixels):
    """Pictures take time by their area, either way."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def decode(self, latents: torch.Tensor) -> RgbImage:
        self._timer.now += 1e-3 * latents[0].numel()
        return super().decode(latents)

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        self._timer.now += 5e-4 * posterior_noise[0].numel()
        return super().encode(picture, posterior_noise)


def timed(lanes: int = 8) -> tuple[Engine, Timer, TimedDenoiser]:
    """Base and refiner on one engine, each with a speed of its own."""
    timer = Timer()
    base, refiner = TimedDenoiser(timer, 0.1, 1e-3), TimedDenoiser(timer, 0.05, 2e-3)
    models = {
        key: analytic_model(
            denoiser, lanes=lanes, stage=key.stage, model=str(key), pixels=TimedPixels(timer)
        )
        for key, denoiser in ((base_key("fox"), base), (REFINER, refiner))
    }
    makers = {name: lambda to_come, before, item=item: item for name, item in models.items()}
    shelf = ModelCache(makers, capacity=2, pinned=[REFINER])
    return Engine(shelf, snapshot_every=10**9, clock=timer), timer, base


class Walking:
    """An image that goes on to its next leg by itself; and what it has spent."""

    def __init__(self, engine: Engine, spec: ImageSpec, id: str) -> None:
        source = None if spec.strength is None else bytes(3 * spec.width * spec.height)
        spec = replace(spec, model="fox")
        self.sample = sample_of(spec, id, source, refiner=True)
        self.legs = stage_segments(self.sample.schedule, spec.handoff, refiner=True)
        self.spent = GpuTime()
        self._engine = engine

    def go(self) -> None:
        leg, *_ = self.legs
        self._engine.submit(
            replace(self.sample, stage=leg.stage, solver_state=(), profile=None), leg, self
        )

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Finished), event
        self.spent = GpuTime(
            self.spent.measured + event.gpu_time.measured,
            self.spent.predicted + event.gpu_time.predicted,
        )
        self.sample, self.legs = event.sample, self.legs[1:]
        if self.legs:
            self.go()


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


def send(engine: Engine, gap: int) -> list[Walking]:
    """The mixture, one image after so many turns; all have ended."""
    images = [Walking(engine, spec, str(number)) for number, spec in enumerate(MIXTURE)]
    for image in images:
        image.go()
        for _ in range(gap):
            engine.turn()
    drain(engine)
    return images


@pytest.mark.parametrize(("lanes", "off"), [(8, EXACT), (0, 0.01)])
def test_once_every_turn_was_seen_an_image_s_time_is_foretold_exactly(
    lanes: int, off: float
) -> None:
    """Without fixed lanes some numbers of rows are rare: what lies between others is set there."""
    engine, _, _ = timed(lanes)
    for gap in (0, 3, 9):
        send(engine, gap)
    for gap in (0, 5, 30):
        for image in send(engine, gap):
            assert image.spent.predicted == pytest.approx(image.spent.measured, rel=off)


def test_what_images_spend_together_is_what_the_device_was_busy() -> None:
    engine, timer, _ = timed()
    images = send(engine, 4)
    assert sum(image.spent.measured for image in images) == pytest.approx(timer.now)
    facts = engine.stats()
    assert facts.gpu_seconds == pytest.approx(timer.now)
    assert facts.wasted_gpu_seconds == 0


def test_time_in_which_nothing_is_here_is_nobody_s() -> None:
    engine, timer, _ = timed()
    send(engine, 0)
    busy = engine.stats().gpu_seconds
    timer.now += 1000
    (image, *_) = images = send(engine, 0)
    assert image.spent.measured < 10
    assert sum(item.spent.measured for item in images) == pytest.approx(busy)


@pytest.mark.parametrize("number", [1, 4, 7])
def test_what_is_owed_is_what_it_then_takes(number: int) -> None:
    engine, timer, _ = timed()
    send(engine, 0)
    for n in range(number):
        spec = replace(SPEC, model="fox", steps=4 + n, guidance=1.0 + n % 2)
        engine.submit(sample_of(spec, str(n)), StageSegment(Stage.BASE, 4 + n, last=True), Heard())
    for _ in range(number + 2):
        engine.turn()
    owed, began = forecast(engine.pending(), engine.stats().costs).seconds, timer.now
    drain(engine)
    assert owed == pytest.approx(timer.now - began, rel=EXACT)


def test_a_mixture_is_owed_what_it_then_takes_but_for_the_order_in_which_it_is_ready() -> None:
    """A forecast lets everybody step at once, though base images and pictures come one by one."""
    engine, timer, _ = timed()
    send(engine, 0)
    images = [Walking(engine, spec, str(number)) for number, spec in enumerate(MIXTURE)]
    known = [item for image in images for item in pending_work(image.sample, image.legs)]
    owed, began = forecast(known, engine.stats().costs).seconds, timer.now
    for image in images:
        image.go()
    drain(engine)
    assert owed == pytest.approx(timer.now - began, rel=0.1)


def test_a_size_that_was_never_seen_is_foretold_by_its_work() -> None:
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


def test_what_a_cancelled_or_failed_image_spent_was_wasted_and_what_it_leaves_others_is_not() -> (
    None
):
    engine, timer, base = timed()
    departed, beside = Heard(), Heard()
    for id, heard in (("gone", departed), ("beside", beside)):
        engine.submit(sample_of(replace(SPEC, model="fox"), id), END, heard)
    for _ in range(6):
        engine.turn()
    engine.cancel("gone", departed)
    drain(engine)
    wasted = engine.stats().wasted_gpu_seconds
    assert wasted == pytest.approx(4 * (0.1 + 8 * 64 * 1e-3) / 2)
    base.failures = [ValueError("broken")]
    engine.submit(sample_of(replace(SPEC, model="fox"), "broken"), END, Heard())
    drain(engine)
    assert engine.stats().wasted_gpu_seconds == pytest.approx(wasted + 0.1 + 8 * 64 * 1e-3)
    whole = beside.finished.gpu_time.measured + engine.stats().wasted_gpu_seconds
    assert whole == pytest.approx(engine.stats().gpu_seconds) == timer.now


def test_what_was_spent_on_an_image_that_goes_on_elsewhere_was_not_wasted() -> None:
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
