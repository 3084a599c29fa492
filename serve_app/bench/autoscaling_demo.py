"""Autoscaling, demonstrated: the real application on four pretended GPUs, over HTTP.

The load grows, moves from base to the refiner, and goes. The replicas sleep for as long as a step
would take.
"""

import threading
import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from random import Random

from ray import serve
from rich.console import Console
from rich.table import Table

from serve_app.bench.load_generator import Response, replay
from serve_app.bench.local_ray import local_ray
from serve_app.bench.timeline import plot_timeline
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.simulator.summary import percentile
from serve_app.simulator.traces import Arrival, RequestMix, Workload, draw_trace
from serve_app.testing.sleeping_service import GPUS, Observation, deploy, observe

_APP = "bench"
_PHASES = (  # of the load: share of the time, images per second, hand-off
    (0.10, 0.25, 0.8),
    (0.35, 2.2, 1.0),
    (0.25, 1.6, 0.2),
    (0.30, 0.25, 0.8),
)
_ROW_INTERVAL = 5.0  # seconds between two rows of the table
console = Console(highlight=False)


def run(*, seconds: float, seed: int, output: Path) -> None:
    """Print the replicas and the work over time, and plot them to a PNG file."""
    trace = load(seconds, seed)
    with running() as port, _watching() as observations:
        start = time.perf_counter()
        console.print(f"[dim]{len(trace)} images in {seconds:.0f} s[/]")
        responses = replay(trace, port)
        while time.perf_counter() - start < seconds:
            time.sleep(0.1)
    timeline = [point.since(start) for point in observations if point.at >= start]
    _print(timeline, responses)
    try:
        plot_timeline(timeline, responses, GPUS, output)
    except OperatorError as error:
        console.print(f"[yellow]{error}[/]")
    else:
        console.print(f"Plot: {output}")


def load(seconds: float, seed: int) -> list[Arrival]:
    """Return a trace: light, then heavy for base, then heavy for the refiner, then light."""
    ends = [end * seconds for end in accumulate(share for share, _, _ in _PHASES)]

    def rate(at: float) -> float:
        return _PHASES[bisect(ends, at)][1] if at < seconds else 0.0

    def mix(at: float) -> RequestMix:
        handoff = _PHASES[min(bisect(ends, at), len(_PHASES) - 1)][2]
        return RequestMix((30,), ((1024, 1024),), (6.9,), (handoff,), heavy=0.0)

    return draw_trace(Workload(rate, mix), rate=1.0, seconds=seconds, rng=Random(seed))


@contextmanager
def running() -> Iterator[int]:
    """Run the application on a Ray of its own, and yield its port."""
    with local_ray(GPUS) as (port, folder):
        with console.status("starting the service"):
            deploy(_APP, "/", str(folder))
            while serve.status().applications[_APP].status != "RUNNING":
                time.sleep(0.1)
        yield port


@contextmanager
def _watching() -> Iterator[list[Observation]]:
    """Yield a list that grows by an observation every second; raise at the end if one failed."""
    observations, done = list[Observation](), threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            observations.append(observe(_APP))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield observations
        finally:
            done.set()
        watching.result()


def _print(timeline: Sequence[Observation], responses: Sequence[Response]) -> None:
    table = Table(
        title=f"Replicas on {GPUS} pretended GPUs, scaled by owed work",
        caption="changing: replicas that start or drain. owes: GPU seconds of images in flight",
    )
    for heading in ("s", "base", "refiner", "changing", "base owes", "refiner owes", "in flight"):
        table.add_column(heading, justify="right")
    next_row = 0.0
    for point in timeline:
        if point.at < next_row:
            continue
        next_row = point.at - point.at % _ROW_INTERVAL + _ROW_INTERVAL
        table.add_row(
            f"{point.at:.0f}",
            *(str(point.replicas[stage]) for stage in Stage),
            str(sum(point.changing.values())),
            *(f"{point.owed[stage]:.1f}" for stage in Stage),
            str(sum(response.in_flight(point.at) for response in responses)),
        )
    console.print(table)
    first, last = timeline[0], timeline[-1]
    for stage in Stage:
        highest = max(point.replicas[stage] for point in timeline)
        console.print(f"{stage}: {first.replicas[stage]} -> {highest} -> {last.replicas[stage]}")
    seconds = sorted(response.seconds for response in responses)
    failed = sum(response.status != 201 for response in responses)
    running = max(sum(point.replicas.values()) for point in timeline)
    console.print(
        f"{len(responses)} images, [bold]{failed} failed[/]; seconds: median "
        f"{percentile(seconds, 0.5):.1f}, 95th percentile {percentile(seconds, 0.95):.1f}. "
        f"At most {running} replicas ran at once, on {GPUS} GPUs"
    )
