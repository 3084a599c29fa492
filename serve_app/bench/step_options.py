"""What options of steps save on the demo, what they cost, and whether bytes hold.

The same held-out scenes are drawn with each option, by base and refiner at the service's default of
steps, and read by the demo's judge. Seconds are compared with those of the same images without the
option, in turns, so that a noisy machine disturbs both. Bytes are those of an image alone, against
the same image in company and continued from each of its snapshots.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.demo_quality import DEFAULT_STEPS, DemoRunner, score_all, share
from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import new_sample, plan_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.service.events import Snapshot
from serve_app.demo.evaluation import HANDOFF, Question, questions
from serve_app.runtime.build import model_loaders
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Event, Finished
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.memory.model_cache import ModelCache

INTERVAL = (0.28, 5.42)  # of Kynkäänniemi et al. 2024 for SDXL
PLAIN = "none"


@dataclass(frozen=True, slots=True)
class Option:
    """What is changed of an image's spec, and of the device."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "off"


OPTIONS = {
    PLAIN: Option(),
    f"guidanceInterval {list(INTERVAL)}": Option({"guidance_interval": INTERVAL}),
    "cache deepcache": Option({"cache": StepCache.DEEPCACHE}),
    "both": Option({"guidance_interval": INTERVAL, "cache": StepCache.DEEPCACHE}),
    "MODEL_QUANTIZATION=int8": Option(quantization="int8"),
}
_IMAGES = 4  # that step together with guidance
_SAMPLERS = (Sampler.EULER, Sampler.EULER_A, Sampler.DPMPP_2M_KARRAS, Sampler.HEUN)
_COMPARED_STEPS = 10  # of an image whose bytes are compared
console = Console(highlight=False)


@dataclass(slots=True)
class BytesCheck:
    """How many images were compared with the same one alone, and how many differ."""

    compared: int = 0
    different: int = 0

    def count(self, image: bytes, alone: bytes) -> None:
        """Compare one image."""
        self.compared += 1
        self.different += image != alone

    def __str__(self) -> str:
        if self.different:
            return f"{self.different} of {self.compared} differ"
        return f"{self.compared} of {self.compared} equal"


def compare(*, images: int, runs: int, threads: int) -> None:
    """Print for each option its speed, alone and in full batches, its marks and its bytes."""
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    exam = questions(images)
    runners = {
        size: {
            mode: DemoRunner(checkpoints, threads, images=size, strict=True, quantization=mode)
            for mode in dict.fromkeys(option.quantization for option in OPTIONS.values())
        }
        for size in (1, _IMAGES)
    }
    seconds = {size: _seconds(by_mode, exam, size, runs) for size, by_mode in runners.items()}
    table = Table(
        title=f"Step options on the demo: {DEFAULT_STEPS} steps, refined, {threads} CPU thread(s)",
        caption=f"Speed: seconds without the option divided by those with it, medians of {runs} "
        f"paired runs. Marks: all facts correct, per cent of {images} held-out scenes. In brackets "
        f"95 % intervals. Bytes: in company and continued from each snapshot, against alone, "
        f"{_COMPARED_STEPS} steps",
    )
    for heading in ("", "speed alone", f"{_IMAGES} together", "marks", "bytes"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, option in OPTIONS.items():
        runner = runners[_IMAGES][option.quantization]
        drawn = runner.generate([_spec(q, option) for q in exam], label=label)
        marks = [scores.all for scores in score_all(drawn, exam)]
        table.add_row(
            label,
            *(_ratio(seconds[size][PLAIN], seconds[size][label]) for size in runners),
            share(marks, [q.family for q in exam]),
            str(check_bytes(checkpoints[0], option, threads)),
        )
    console.print(table)


def check_bytes(
    checkpoint: Checkpoint,
    option: Option,
    threads: int,
    steps: int = _COMPARED_STEPS,
    samplers: Sequence[Sampler] = _SAMPLERS,
) -> BytesCheck:
    """Draw images by base in strict mode alone, together and from snapshots; compare their bytes.

    In company half of the images have the changes of the option, and half have none.
    """
    device = open_device(
        "cpu",
        precision="fp32",
        xformers=False,
        cpu_threads=threads,
        quantization=option.quantization,
    )
    models = ModelCache(model_loaders([checkpoint], device, images=_IMAGES, strict=True))
    specs = [
        replace(_spec(question, option), steps=steps, sampler=sampler, handoff=1.0)
        for question, sampler in zip(questions(len(samplers)), samplers, strict=True)
    ]
    runs = [_drawn(models, checkpoint, [_first(spec, checkpoint)]) for spec in specs]
    alone, check = [drawn.pictures["0"] for drawn in runs], BytesCheck()
    company = [
        replace(spec, seed=spec.seed ^ 1, guidance_interval=None, cache=StepCache.OFF)
        for spec in specs
    ]
    firsts = [_first(spec, checkpoint, str(n)) for n, spec in enumerate(specs + company)]
    together = _drawn(models, checkpoint, firsts)
    for number, picture in enumerate(alone):
        check.count(together.pictures[str(number)], picture)
        snapshots = [
            replace(snapshot, id=f"from {snapshot.index}") for snapshot in runs[number].snapshots
        ]
        for resumed in _drawn(models, checkpoint, snapshots).pictures.values():
            check.count(resumed, picture)
    return check


@dataclass(slots=True)
class _Drawn:
    """The pictures of an engine's samples by their ids, and the snapshots on the way."""

    pictures: dict[str, bytes] = field(default_factory=dict)
    snapshots: list[HostSample] = field(default_factory=list)


def _drawn(models: ModelCache, checkpoint: Checkpoint, samples: Sequence[HostSample]) -> _Drawn:
    """Run samples to the end by an engine whose clock allows a snapshot after every step."""
    clock, drawn = count(), _Drawn()
    engine = Engine(models, snapshot_every=1, clock=lambda: float(next(clock)))
    for sample in samples:
        _, segments = plan_segments(checkpoint.noise_config, sample.spec, refiner=False)
        engine.submit(sample, segments[0], _listener(sample.id, drawn))
    while engine.turn():
        pass
    return drawn


def _listener(id: str, drawn: _Drawn) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Snapshot):
            drawn.snapshots.append(event.sample)
        elif isinstance(event, Finished) and event.image is not None:
            drawn.pictures[id] = event.image.tobytes()

    return listen


def _first(spec: ImageSpec, checkpoint: Checkpoint, id: str = "0") -> HostSample:
    model = ModelKey(Stage.BASE, checkpoint.name)
    spec = replace(spec, model=model.name)
    schedule, _ = plan_segments(checkpoint.noise_config, spec, refiner=False)
    return new_sample(id, spec, schedule, Stage.BASE)


def _spec(question: Question, option: Option) -> ImageSpec:
    spec = question.spec(question.prompt(), handoff=HANDOFF)
    return replace(spec, steps=DEFAULT_STEPS, **option.changes)


def _seconds(
    runners: Mapping[str, DemoRunner], exam: Sequence[Question], size: int, runs: int
) -> dict[str, list[float]]:
    """Return the seconds of each run by option, after one run that warms up.

    Runners are by the quantization of their device.
    """
    seconds: dict[str, list[float]] = {label: [] for label in OPTIONS}
    for run in track(range(-1, runs), f"{size} together", console=console, transient=True):
        chosen = [exam[(run * size + number) % len(exam)] for number in range(size)]
        options = list(OPTIONS.items())
        for label, option in options if run % 2 else reversed(options):
            start = time.perf_counter()
            runners[option.quantization].generate([_spec(question, option) for question in chosen])
            if run >= 0:
                seconds[label].append(time.perf_counter() - start)
    return seconds


def _ratio(plain: Sequence[float], other: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(plain, other, strict=True)]
    low, high = bootstrap_interval(ratios, statistic=statistics.median)
    return f"{statistics.median(ratios):.2f} \\[{low:.2f}, {high:.2f}]"
