"""The engine driven by hand: the test's thread is the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.sample import StageSegment, for_stage, new_sample, stage_segments
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import Snapshot
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.networks.vae import RgbImage

NOISE = NoiseConfig.from_scheduler_config(
    {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
)


@dataclass
class Heard:
    """A listener that records its events."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def snapshots(self) -> list[HostSample]:
        return [e.sample for e in self.events if isinstance(e, Snapshot)]

    @property
    def ended(self) -> bool:
        return any(isinstance(e, Finished | Failed) for e in self.events)

    @property
    def finished(self) -> Finished:
        (end,) = [e for e in self.events if isinstance(e, Finished)]
        return end

    @property
    def failed(self) -> Failed:
        (end,) = [e for e in self.events if isinstance(e, Failed)]
        return end

    @property
    def picture(self) -> RgbImage:
        assert self.finished.image is not None
        return self.finished.image


def whole(sample: HostSample) -> StageSegment:
    """The segment of all steps, on base alone."""
    return StageSegment(Stage.BASE, len(sample.schedule), last=True)


def sample_of(
    spec: ImageSpec,
    id: str = "one",
    source: bytes | None = None,
    *,
    refiner: bool = False,
    noise: NoiseConfig = NOISE,
) -> HostSample:
    """The sample of a spec, before its first stage."""
    schedule = make_schedule(noise, spec.sampler, spec.steps, spec.strength, spec.handoff)
    first = stage_segments(schedule, spec.handoff, refiner=refiner)[0]
    return new_sample(id, spec, schedule, first.stage, ImageInputs(source))


def drain(engine: Engine) -> None:
    while engine.turn():
        pass


def generate(engine: Engine, *specs: ImageSpec) -> list[bytes]:
    """Return the bytes of the image of each spec, all made together."""
    heard = [Heard() for _ in specs]
    for number, (spec, listener) in enumerate(zip(specs, heard, strict=True)):
        sample = sample_of(spec, f"image {number}")
        engine.submit(sample, whole(sample), listener)
    drain(engine)
    return [listener.picture.tobytes() for listener in heard]


def run_images(
    engines: dict[Stage, Engine],
    requests: Sequence[tuple[ImageSpec, bytes | None]],
    noise: NoiseConfig = NOISE,
) -> list[RgbImage]:
    """The images of several requests that run together through the stages."""
    samples = [
        sample_of(spec, f"image {i}", source, refiner=Stage.REFINER in engines, noise=noise)
        for i, (spec, source) in enumerate(requests)
    ]
    images: dict[str, RgbImage] = {}
    for stage, engine in engines.items():
        heard: dict[str, Heard] = {}
        for i, sample in enumerate(samples):
            segments = stage_segments(
                sample.schedule, sample.spec.handoff, refiner=Stage.REFINER in engines
            )
            for segment in segments:
                if segment.stage is stage:
                    heard[sample.id] = Heard()
                    engine.submit(for_stage(samples[i], stage), segment, heard[sample.id])
        drain(engine)
        for i, sample in enumerate(samples):
            if sample.id in heard:
                end = heard[sample.id].finished
                samples[i] = end.sample
                if end.image is not None:
                    images[sample.id] = end.image
    return [images[sample.id] for sample in samples]
