"""What to simulate: a number of GPUs and the traces that they are given.

The load is a share of the work that full batches could do: the most that a cluster could do if it
wasted nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from serve_app.simulator.comparison import work_of
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.traces import WORKLOADS, Arrival, Workload, draw_trace, read_trace

STEADY = "steady"
TRACES = 5  # of a workload that is not steady
_ROUNDS = 3  # of adjusting the rate: a drawn trace has another load than its rate promises


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster and its traces, all of one kind."""

    gpus: int
    seconds: float  # length of each trace
    traces: tuple[tuple[Arrival, ...], ...]

    @property
    def load(self) -> float:
        """The median load of the traces, as a share of what full batches could do."""
        return median(load_of(trace, self.gpus, self.seconds) for trace in self.traces)

    @property
    def images(self) -> float:
        """The median number of images of the traces."""
        return median(len(trace) for trace in self.traces)


def make_scenario(
    trace: str,
    *,
    gpus: int | None = None,
    load: float | None = None,
    seconds: float | None = None,
    seed: int = 1,
) -> Scenario:
    """Return the scenario for `trace`, the name of a workload or of a CSV file.

    What is None is chosen by the kind of trace. A file or a steady workload is one trace; other
    workloads are drawn with several seeds, from `seed` on. Raises `TraceError`.
    """
    steady = trace == STEADY
    gpus = gpus or (256 if steady else 16)
    load = load or (0.85 if steady else 0.25)
    seconds = seconds or (90.0 if steady else 960.0)
    workload = WORKLOADS.get(trace)
    if workload is None:
        arrivals = read_trace(Path(trace))
        return Scenario(gpus, max(seconds, arrivals[-1].at), (tuple(arrivals),))
    seeds = range(seed, seed + (1 if steady else TRACES))
    traces = [_draw_with_load(workload, load, gpus, seconds, number) for number in seeds]
    return Scenario(gpus, seconds, tuple(traces))


def load_of(trace: Sequence[Arrival], gpus: int, seconds: float) -> float:
    """Return the work of a trace, as a share of what full batches could do in `seconds`."""
    return sum(work_of(trace, GpuSpeed()).values()) / seconds / gpus


def _draw_with_load(
    workload: Workload, load: float, gpus: int, seconds: float, seed: int
) -> tuple[Arrival, ...]:
    rate, trace = float(gpus), list[Arrival]()
    for _ in range(_ROUNDS):
        trace = draw_trace(workload, rate=rate, seconds=seconds, rng=Random(seed))
        rate *= load / load_of(trace, gpus, seconds)
    return tuple(trace)
