"""`LocalPipeline`: both stages in one process, on the caller's own thread. No Ray, no HTTP.

For a command, a benchmark or a test: the same engine as in the service, and the same images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.schedule import Schedule, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import AuraError, ModelUnavailable, OperatorError
from serve_app.core.service.moderation import ImageFilter
from serve_app.runtime.build import model_loaders
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.extensions.extension_set import ExtensionFiles
from serve_app.runtime.extensions.registry import runtime_kinds
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.proof_file import ProofFile

OnProgress = Callable[[int], None]
OnWarning = Callable[[str], None]
_Results = dict[int, tuple[RgbImage, tuple[str, ...]] | AuraError]
_NEVER = 10**9  # steps between snapshots


class LocalPipeline:
    """Generates images, at most `images` of them stepping together.

    Base and refiner take turns on a card, and are both in memory on a device without memory of its
    own. `extensions` has the inspected files of extensions of the base model.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        device: Device,
        *,
        images: int,
        strict: bool = True,
        safety: ImageFilter | None = None,
        extensions: Mapping[ExtensionKey, Any] | None = None,
        proofs: ProofFile | None = None,
        load_modules: Callable[[Checkpoint, Device], Modules] = load,
    ) -> None:
        self._noise = {checkpoint.stage: checkpoint.noise_config for checkpoint in checkpoints}
        self._names = {checkpoint.stage: checkpoint.name for checkpoint in checkpoints}
        self._profiles: dict[Stage, str] = {}
        files = ExtensionFiles(
            runtime_kinds(EXTENSION_KINDS), extensions or {}, max(1, len(extensions or {}))
        )
        base = ModelKey(Stage.BASE, self._names[Stage.BASE])
        loaders = model_loaders(
            checkpoints,
            device,
            images=images,
            strict=strict,
            safety=safety,
            extensions={base: files},
            proofs=proofs,
            load_modules=load_modules,
        )
        pinned = [key for key in loaders if key.stage is Stage.REFINER]
        models = ModelCache(
            loaders,
            capacity=1 if device.has_own_memory else len(loaders),
            offload_capacity=len(pinned) if device.has_own_memory else 0,
            pinned=pinned,
            extension_capacity=files.capacity,
        )
        self._engine = Engine(models, snapshot_every=_NEVER)

    def profiles(self, spec: ImageSpec) -> dict[Stage, str]:
        """Return the numeric profile's name for each stage of an image that was generated."""
        _, segments = self._schedule(spec)
        return {segment.stage: self._profiles[segment.stage] for segment in segments}

    def generate(
        self,
        specs: Sequence[ImageSpec],
        inputs: Sequence[ImageInputs] | None = None,
        on_progress: OnProgress | None = None,
        on_warning: OnWarning | None = None,
    ) -> list[RgbImage]:
        """Return the image of each spec, in order, each from its inputs if there are any.

        `on_progress` gets the number of steps that all images together have taken, now and then.
        `on_warning` gets each warning once, at the end. Raises the error that ended an image; for a
        model or extension that can't be loaded, the reason, which a service writes to its log.
        """
        results: _Results = {}
        for number, spec in enumerate(specs):
            self._start(number, spec, inputs[number] if inputs else NO_INPUTS, results)
        steps_before = self._engine.stats().steps
        while self._engine.turn():
            if on_progress is not None:
                on_progress(self._engine.stats().steps - steps_before)
        images, warnings = [], dict[str, None]()
        for number in range(len(specs)):
            result = results[number]
            if isinstance(result, AuraError):
                raise _cause_of(result)
            images.append(result[0])
            warnings |= dict.fromkeys(result[1])
        if on_warning is not None:
            for warning in warnings:
                on_warning(warning)
        return images

    def _start(self, number: int, spec: ImageSpec, inputs: ImageInputs, results: _Results) -> None:
        refiner = self._names.get(Stage.REFINER)
        spec = replace(spec, model=spec.model or self._names[Stage.BASE], refiner=refiner)
        schedule, segments = self._schedule(spec)
        first: HostSample = new_sample(str(number), spec, schedule, segments[0].stage, inputs)

        def run(sample: HostSample, segment: StageSegment, *later: StageSegment) -> None:
            def listen(event: Event) -> None:
                if isinstance(event, Failed):
                    results[number] = event.error
                elif isinstance(event, Finished):
                    self._profiles[segment.stage] = event.sample.profile or ""
                    if event.image is None:
                        run(event.sample, *later)
                    else:
                        results[number] = event.image, event.sample.warnings

            self._engine.submit(for_stage(sample, segment.stage), segment, listen)

        run(first, *segments)

    def _schedule(self, spec: ImageSpec) -> tuple[Schedule, tuple[StageSegment, ...]]:
        schedule = make_schedule(
            self._noise[Stage.BASE], spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        has_refiner = Stage.REFINER in self._noise
        return schedule, stage_segments(schedule, spec.handoff, refiner=has_refiner)


def _cause_of(error: AuraError) -> AuraError:
    """Return the operator's error behind one that hides it from callers, or the error itself."""
    if isinstance(error, ModelUnavailable) and isinstance(error.__cause__, OperatorError):
        return error.__cause__
    return error
