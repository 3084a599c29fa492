"""`Solo`: the engine of both stages in one process, turned by hand on the caller's own thread.

Knows no Ray, HTTP or threads. What a service does with replicas, for a command, a benchmark or a
test: the same engine, the same pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.schedule import Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import AuraError
from serve_app.core.service.moderation import SafetyFilter
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import LoraFile
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import HostSample

OnProgress = Callable[[int], None]
OnWarning = Callable[[str], None]
_Ended = dict[int, tuple[RgbImage, tuple[str, ...]] | AuraError]
_NEVER = 10**9  # steps between snapshots


def _nobody(said: object) -> None:
    """Hears nothing of it."""


class LocalPipeline:
    """Draws pictures, at most `images` of them stepping together. Base and refiner are on a card in
    turn, and both in the memory of a machine that has no other."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        device: Device,
        *,
        images: int,
        strict: bool = True,
        safety: SafetyFilter | None = None,
        loras: Mapping[str, LoraFile] | None = None,
    ) -> None:
        self._noise = {one.stage: one.noise_config for one in checkpoints}
        self._profiles: dict[Stage, str] = {}
        room = len(loras) if loras else 1
        makers: dict[ModelKey, Loader] = {}
        for one in checkpoints:
            makers[ModelKey(one.stage, one.name)] = partial(
                build_stage_model,
                one,
                device,
                images=images,
                strict=strict,
                safety=safety,
                loras=loras if one.stage is Stage.BASE else None,
                lora_capacity=room,
            )
        later = [key for key in makers if key.stage is Stage.REFINER]
        shelf = ModelCache(
            makers,
            capacity=1 if device.has_own_memory else len(makers),
            offload_capacity=len(later) if device.has_own_memory else 0,
            pinned=later,
            lora_capacity=room,
        )
        self._engine = Engine(shelf, snapshot_every=_NEVER)

    def profiles(self, spec: ImageSpec) -> dict[Stage, str]:
        """The name of the numeric profile of each stage that the spec's picture, which must have
        been drawn, went through."""
        _, legs = self._way(spec)
        return {leg.stage: self._profiles[leg.stage] for leg in legs}

    def generate(
        self,
        specs: Sequence[ImageSpec],
        init_images: Sequence[bytes] | None = None,
        on_progress: OnProgress = _nobody,
        on_warning: OnWarning = _nobody,
    ) -> list[RgbImage]:
        """The picture of each spec, in order; `sources` are the RGB bytes of their base images.

        `tell` hears, now and then, how many steps all pictures together have taken; `warn` each
        warning once, at the end. Raises the named error that a picture ended with.
        """
        ended: _Ended = {}
        for number, spec in enumerate(specs):
            self._begin(number, spec, init_images[number] if init_images else None, ended)
        before = self._steps()
        while self._engine.turn():
            on_progress(self._steps() - before)
        pictures, warnings = [], dict[str, None]()
        for number in range(len(specs)):
            result = ended[number]
            if isinstance(result, AuraError):
                raise result
            pictures.append(result[0])
            warnings |= dict.fromkeys(result[1])
        for warning in warnings:
            on_warning(warning)
        return pictures

    def _begin(self, number: int, spec: ImageSpec, source: bytes | None, ended: _Ended) -> None:
        schedule, legs = self._way(spec)
        first: HostSample = new_sample(
            str(number), spec, schedule, legs[0].stage, ImageInputs(source)
        )

        def walk(sample: HostSample, leg: StageSegment, *ahead: StageSegment) -> None:
            def listen(event: Event) -> None:
                if isinstance(event, Failed):
                    ended[number] = event.error
                elif isinstance(event, Finished):
                    self._profiles[leg.stage] = event.sample.profile or ""
                    if event.image is None:
                        walk(event.sample, *ahead)
                    else:
                        ended[number] = event.image, event.sample.warnings

            self._engine.submit(for_stage(sample, leg.stage), leg, listen)

        walk(first, *legs)

    def _way(self, spec: ImageSpec) -> tuple[Schedule, tuple[StageSegment, ...]]:
        schedule = make_schedule(
            self._noise[Stage.BASE], spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        return schedule, stage_segments(
            schedule, spec.handoff, refiner=Stage.REFINER in self._noise
        )

    def _steps(self) -> int:
        return self._engine.stats().steps
