"""Previews: made only of images that somebody watches, and like what becomes of these."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import NumericFault
from serve_app.core.service.events import Progress
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import PreviewMade
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.previews import LatentToRgb, fit_latent_to_rgb, made_up_pictures
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import ConstantDenoiser, MeanPixels, analytic_model
from tests.support.clock import Clock
from tests.support.demo_models import Engines
from tests.support.engine_runs import Heard, drain, generate, sample_of, whole
from tests.support.queueing_device import QueueingDenoiser, queueing_cpu

SPEC = ImageSpec(prompt="a fox", seed=1, width=64, height=64, steps=20, guidance=5)
STEP_S = 0.0625  # a quarter of a preview's gap, and a bit
GREY = LatentToRgb(torch.full((3, 4), 0.25), torch.zeros(3))  # the mean of a latent's channels


class TimedDenoiser(ConstantDenoiser):
    """Each step takes the same time of a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self._clock.now += STEP_S
        return super().__call__(x, inputs, lanes)


@pytest.fixture
def engine() -> Engine:
    clock = Clock()
    model = analytic_model(TimedDenoiser(clock), latent_to_rgb=GREY)
    return Engine(ModelCache.of(model), snapshot_every=99, clock=clock)


def submit(engine: Engine, id: str, *, watched: bool) -> Heard:
    sample, heard = sample_of(SPEC, id), Heard()
    engine.submit(sample, replace(whole(sample), watched=watched), heard)
    return heard


def previews(heard: Heard) -> list[PreviewMade]:
    return [event for event in heard.events if isinstance(event, PreviewMade)]


def progress(heard: Heard) -> list[int]:
    return [event.index for event in heard.events if isinstance(event, Progress)]


def test_a_watched_image_has_a_preview_every_fifth_of_a_second(engine: Engine) -> None:
    heard = submit(engine, "watched", watched=True)
    drain(engine)
    assert [preview.index for preview in previews(heard)] == [0, 4, 8, 12, 16]
    assert {preview.image.shape for preview in previews(heard)} == {(8, 8, 3)}
    assert all((preview.image == 64).all() for preview in previews(heard))  # 0.25 of 255


def test_a_watched_image_shows_its_progress_ten_times_a_second(engine: Engine) -> None:
    watched, other = submit(engine, "a", watched=True), submit(engine, "b", watched=False)
    drain(engine)
    assert progress(watched) == list(range(0, 21, 2))  # the last before its decode
    assert progress(other) == [0, 16]


def test_an_image_that_nobody_watches_has_no_preview(engine: Engine) -> None:
    watched, other = submit(engine, "a", watched=True), submit(engine, "b", watched=False)
    drain(engine)
    assert previews(watched)
    assert not previews(other)


def test_who_begins_to_watch_in_the_middle_sees_it_from_there(engine: Engine) -> None:
    heard = submit(engine, "one", watched=False)
    for _ in range(11):
        engine.turn()
    assert not previews(heard)
    engine.watch("one", watched=True)
    for _ in range(3):
        engine.turn()
    assert len(previews(heard)) == 1
    engine.watch("one", watched=False)
    drain(engine)
    assert len(previews(heard)) == 1


def test_a_segment_of_the_release_before_says_nothing_of_watching(engine: Engine) -> None:
    sample, heard = sample_of(SPEC), Heard()
    segment = whole(sample)
    object.__delattr__(segment, "watched")  # as it is after pickle, without a value
    engine.submit(sample, segment, heard)
    drain(engine)
    assert heard.picture is not None


def test_nobody_can_watch_an_image_that_has_ended(engine: Engine) -> None:
    submit(engine, "one", watched=False)
    drain(engine)
    engine.watch("one", watched=True)
    assert not engine.turn()


def test_a_step_that_was_not_waited_for_has_its_preview_when_it_is_done() -> None:
    gpu = queueing_cpu()

    def to_rgb(latents: torch.Tensor) -> torch.Tensor:
        """Return what is copied to the host's memory by then: nobody waits who reads it."""
        return GREY(latents).as_subclass(torch.Tensor)

    model = analytic_model(QueueingDenoiser(gpu), device=gpu, latent_to_rgb=cast(Any, to_rgb))
    engine = Engine(ModelCache.of(model), snapshot_every=99, clock=gpu.clock)
    heard = submit(engine, "one", watched=True)
    drain(engine)
    assert previews(heard)
    assert "read" not in gpu.log


def test_a_watched_image_has_the_same_bytes(engines: Engines) -> None:
    spec = replace(SPEC, width=128, height=128, steps=6)
    (plain,) = generate(engines()[Stage.BASE], spec)
    engine = engines()[Stage.BASE]
    sample, heard = sample_of(spec), Heard()
    engine.submit(sample, replace(whole(sample), watched=True), heard)
    drain(engine)
    assert previews(heard)
    assert heard.picture.tobytes() == plain


def test_a_preview_of_the_demo_resembles_the_picture(
    models: dict[str, dict[Stage, StageModel]],
) -> None:
    ticks = count(0.0)  # so that every step is far enough from the last one for a preview
    cache = ModelCache.of(models["strict"][Stage.BASE])
    engine = Engine(cache, snapshot_every=99, clock=ticks.__next__)
    spec = replace(SPEC, prompt="a large yellow star on a black background", width=128, height=128)
    sample, heard = sample_of(spec), Heard()
    engine.submit(sample, replace(whole(sample), watched=True), heard)
    drain(engine)
    by_index = {preview.index: preview.image for preview in previews(heard)}
    last = by_index[max(by_index)]
    assert correlation(last, heard.picture) > 0.9


def correlation(preview: RgbImage, picture: RgbImage) -> float:
    side = preview.shape[0]
    small = picture.reshape(side, 8, side, 8, 3).mean((1, 3))
    return float(np.corrcoef(preview.ravel(), small.ravel())[0, 1])


class LinearPixels(MeanPixels):
    """A codec whose latents are a known linear map of mean colours."""

    weight = torch.tensor([[0.5, 0.1, 0.0], [0.0, -0.7, 0.2], [0.3, 0.0, 0.9], [0.1, 0.2, -0.3]])

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        pixels = torch.from_numpy(picture.copy()).float().permute(2, 0, 1) / 255
        colours = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.einsum("lc,cij->lij", self.weight, colours) - 0.25


def test_the_map_is_the_one_that_explains_the_codec() -> None:
    codec, device = LinearPixels(), torch.device("cpu")
    to_rgb = fit_latent_to_rgb(codec, device)
    assert to_rgb is not None
    picture = np.full((64, 64, 3), (200, 30, 120), np.uint8)
    latents = codec.encode(picture, torch.zeros(4, 8, 8))
    assert np.abs(to_rgb(latents[None])[0].numpy().astype(int) - (200, 30, 120)).max() <= 1


class BlindPixels(MeanPixels):
    """A codec that overflows."""

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        raise NumericFault("the latents are not finite")


def test_a_codec_that_overflows_leaves_the_model_without_previews() -> None:
    assert fit_latent_to_rgb(BlindPixels(), torch.device("cpu")) is None
    clock = Clock()
    engine = Engine(
        ModelCache.of(analytic_model(TimedDenoiser(clock))), snapshot_every=99, clock=clock
    )
    heard = submit(engine, "one", watched=True)
    drain(engine)
    assert not previews(heard)
    assert heard.picture is not None


def test_the_made_up_pictures_differ_and_span_the_colours() -> None:
    pictures = made_up_pictures()
    for picture, following in pairwise(pictures):
        assert (picture != following).any()
    assert min(picture.min() for picture in pictures) < 10
    assert max(picture.max() for picture in pictures) > 245
