"""What to simulate: a number of GPUs and the traces that they are given.

The load is a share of the work that full batches could do: the most that a cluster could do if it
wasted nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

from serve_app.core.suggest import suggest
from serve_app.simulator.comparison import work_of
from serve_app.simulator.fairness import FLOOD, flood_trace
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.traces import (
    WORKLOADS,
    Arrival,
    TraceError,
    Workload,
    draw_trace,
    read_trace,
)

STEADY = "steady"
TRACES = 5  # of a workload that is not steady
_MIN_SECONDS = 1.0  # of a file's trace, whose images may all be requested at once
_ROUNDS = 3  # of adjusting the rate: see `draw_with_load`


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

    What is None is chosen by the kind of trace. A file, a flood or a steady workload is one trace;
    other workloads are drawn with several seeds, from `seed` on. A file says itself how long it is
    and what it asks for, and a flood has a load of its own. Raises `TraceError`.
    """
    if trace == FLOOD:
        if load is not None:
            raise TraceError(
                "has a load of its own, so --load can't be given", subject=f"--trace {trace}"
            )
        gpus, seconds = gpus or 4, seconds or 60.0
        return Scenario(gpus, seconds, (flood_trace(gpus, seconds),))
    steady = trace == STEADY
    gpus = gpus or (256 if steady else 16)
    workload = WORKLOADS.get(trace)
    if workload is None:
        return _scenario_of_file(trace, gpus, given=[*_given(load=load, seconds=seconds)])
    load = load or (0.85 if steady else 0.25)
    seconds = seconds or (90.0 if steady else 960.0)
    seeds = range(seed, seed + (1 if steady else TRACES))
    measure = partial(load_of, gpus=gpus, seconds=seconds)
    traces = [draw_with_load(workload, load, gpus, seconds, number, measure) for number in seeds]
    return Scenario(gpus, seconds, tuple(traces))


def _given(**options: float | None) -> Iterator[str]:
    return (name for name, value in options.items() if value is not None)


def _scenario_of_file(trace: str, gpus: int, given: Sequence[str]) -> Scenario:
    """Return the scenario of a CSV file: one trace, until its last image is requested."""
    file = Path(trace)
    if not file.exists():
        names = (*WORKLOADS, FLOOD)
        meant = suggest(trace, names)
        raise TraceError(
            f"is neither a file nor one of {', '.join(names)}, overload",
            subject=f"--trace {trace}",
            remedy=f"Did you mean {meant}?" if meant else "",
        )
    arrivals = read_trace(file)
    if given:
        raise TraceError(
            f"says what is requested and when, so --{' and --'.join(given)} can't be given",
            subject=f"--trace {trace}",
        )
    return Scenario(gpus, max(_MIN_SECONDS, arrivals[-1].at), (tuple(arrivals),))


def load_of(trace: Sequence[Arrival], gpus: int, seconds: float) -> float:
    """Return the work of a trace, as a share of what full batches could do in `seconds`."""
    return sum(work_of(trace, GpuSpeed()).values()) / seconds / gpus


def draw_with_load(
    workload: Workload,
    load: float,
    gpus: int,
    seconds: float,
    seed: int,
    load_of: Callable[[Sequence[Arrival]], float],
    rounds: int = _ROUNDS,
) -> tuple[Arrival, ...]:
    """Draw a trace whose load, by `load_of`, is about `load`.

    A drawn trace has another load than its rate promises, so the rate is adjusted in some rounds.
    """
    rate, trace = float(gpus), list[Arrival]()
    for _ in range(rounds):
        trace = draw_trace(workload, rate=rate, seconds=seconds, rng=Random(seed))
        rate *= load / load_of(trace)
    return tuple(trace)
