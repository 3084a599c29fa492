"""The picture that sleeping replicas make of a spec when nothing goes wrong."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.sample import Sample, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.live_sample import to_device, to_host
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import StageModel
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_networks import NOISE
from serve_app.testing.sleeping_stage import sleeping_model

_IMAGES = 1  # that step together: the bits are those of any company
_AT_ONCE = GpuSpeed().scaled(1e-9)


def expected_picture(spec: ImageSpec, inputs: ImageInputs = NO_INPUTS) -> RgbImage:
    """Return the picture of a spec by base and refiner, every step taken once."""
    spec = replace(spec, model=str(Stage.BASE), refiner=str(Stage.REFINER))
    schedule = make_schedule(NOISE, spec.sampler, spec.steps, spec.strength, spec.handoff)
    segments = stage_segments(schedule, spec.handoff, refiner=True)
    image: Sample[Any] = new_sample("reference", spec, schedule, segments[0].stage, inputs)
    for segment in segments:
        model = _model(segment.stage)
        at_stage = to_device(for_stage(image, segment.stage), torch.device("cpu"))
        sample = model.condition(at_stage)
        if sample.needs_encoding:
            sample = model.encode(sample)
        while sample.index < segment.stop:
            (sample,) = model.step([sample], model.profile.lanes)
        if segment.last:
            _, picture = model.decode(sample)
        model.forget(sample.id)
        image = to_host(sample)
    return picture


@cache
def _model(stage: Stage) -> StageModel:
    return sleeping_model(_AT_ONCE, stage, str(stage), _IMAGES)
