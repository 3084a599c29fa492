"""The engine driven by hand: the test's thread is the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.core.diffusion.sample import Leg, begin, handed_over, itinerary
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import Snapshot
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.networks.vae import Picture
from serve_app.runtime.stage_model import Packed

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
    """A listener that remembers."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def snapshots(self) -> list[Packed]:
        return [e.sample for e in self.events if isinstance(e, Snapshot)]

    @property
    def ended(self) -> bool:
        return any(not isinstance(e, Snapshot) for e in self.events)

    @property
    def finished(self) -> Finished:
        (end,) = [e for e in self.events if isinstance(e, Finished)]
        return end

    @property
    def failed(self) -> Failed:
        (end,) = [e for e in self.events if isinstance(e, Failed)]
        return end

    @property
    def picture(self) -> Picture:
        assert self.finished.picture is not None
        return self.finished.picture


def whole(sample: Packed) -> Leg:
    """All of its way, by base alone."""
    return Leg(Stage.BASE, len(sample.schedule), last=True)


def sample_of(
    spec: ImageSpec, id: str = "one", source: bytes | None = None, *, refiner: bool = False
) -> Packed:
    """The sample of a spec at the door of its first stage."""
    schedule = make_schedule(NOISE, spec.sampler, spec.steps, spec.strength, spec.handoff)
    first = itinerary(schedule, spec.handoff, refiner=refiner)[0]
    return begin(id, spec, schedule, first.stage, source)


def drain(engine: Engine) -> None:
    while engine.turn():
        pass


def walk(
    engines: dict[Stage, Engine], asked: Sequence[tuple[ImageSpec, bytes | None]]
) -> list[Picture]:
    """The pictures of several images that travel together through the stages."""
    samples = [
        sample_of(spec, f"image {i}", source, refiner=Stage.REFINER in engines)
        for i, (spec, source) in enumerate(asked)
    ]
    pictures: dict[str, Picture] = {}
    for stage, engine in engines.items():
        heard: dict[str, Heard] = {}
        for i, sample in enumerate(samples):
            legs = itinerary(sample.schedule, sample.spec.handoff, refiner=Stage.REFINER in engines)
            for leg in legs:
                if leg.stage is stage:
                    heard[sample.id] = Heard()
                    engine.submit(handed_over(samples[i], stage), leg, heard[sample.id])
        drain(engine)
        for i, sample in enumerate(samples):
            if sample.id in heard:
                end = heard[sample.id].finished
                samples[i] = end.sample
                if end.picture is not None:
                    pictures[sample.id] = end.picture
    return [pictures[sample.id] for sample in samples]
