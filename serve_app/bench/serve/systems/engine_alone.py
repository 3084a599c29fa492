"""The engine without a service: what is left of it over HTTP is what serving costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Any

from serve_app.bench.serve.answer import OK, TIMED_OUT
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.workload import GUIDANCE, ImageRequest
from serve_app.core.diffusion.sample import new_sample, plan_segments
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.deployments.model_loading import load_models
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Failed, Finished
from serve_app.runtime.png import encode_png

ENGINE = "engine alone"


@dataclass(frozen=True, slots=True)
class EngineAlone:
    """The engine of a replica, in this process, in one mode."""

    setup: Setup
    strict: bool

    @property
    def name(self) -> str:
        """See `System`."""
        return f"{ENGINE}, {'strict' if self.strict else 'fast'}"

    @property
    def note(self) -> str:
        """See `System`."""
        return "in the benchmark's own process, PNG included"

    @contextmanager
    def start(self) -> Iterator["EngineClient"]:
        """See `System`."""
        setup = self.setup
        models = load_models(
            StageConfig(
                models=(ModelSource("demo", None, None, Stage.BASE),),
                device="cpu",
                precision="fp32",
                xformers=False,
                cpu_threads=setup.threads,
                max_batch_images=setup.images,
                strict=self.strict,
                snapshot_interval_steps=5,
                safety_checker_dir=None,
            )
        )
        engine = Engine(models, snapshot_every=5)
        engine.start()
        try:
            yield EngineClient(engine, setup)
        finally:
            engine.close()


class EngineClient:
    """Sends requests to an engine."""

    def __init__(self, engine: Engine, setup: Setup) -> None:
        self._engine = engine
        self._noise = inspect(setup.checkpoint, Stage.BASE).noise_config
        self._numbers = count()

    def send(self, request: ImageRequest, timeout: float | None) -> tuple[str, bytes]:
        """See `Client`."""
        spec = ImageSpec(
            prompt=request.prompt,
            seed=request.seed,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance=GUIDANCE,
            model="demo",
        )
        schedule, segments = plan_segments(self._noise, spec, refiner=False)
        sample: Any = new_sample(str(next(self._numbers)), spec, schedule, Stage.BASE)
        events: SimpleQueue[Event] = SimpleQueue()
        self._engine.submit(sample, segments[0], events.put)
        while True:
            match events.get():
                case Finished(_, image) if image is not None:
                    return OK, encode_png(image)
                case Failed(error):
                    return TIMED_OUT if timeout else error.code, b""
