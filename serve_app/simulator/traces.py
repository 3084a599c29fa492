"""Traces: which images are requested, and when. Drawn by a seeded generator or read from a file.

Times are in seconds from the start.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, sin
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.core.diffusion.spec import GUIDANCE_RANGE, SIGMA_RANGE, STEPS_RANGE, StepCache
from serve_app.core.errors import OperatorError
from serve_app.core.suggest import suggest
from serve_app.core.validation_message import validation_message

_IMAGES_OF_HEAVY_REQUEST = 8


class TraceError(OperatorError):
    """A trace file can't be read, or has a line that is not a requested image."""

    code = "INVALID_TRACE"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One requested image."""

    at: float
    steps: int
    width: int = 1024
    height: int = 1024
    guidance: float = 6.9
    handoff: float = 1.0  # 1: base alone
    guidance_low: float = SIGMA_RANGE[0]  # ends of the guidance interval, in sigma
    guidance_high: float = SIGMA_RANGE[1]
    cache: StepCache = StepCache.OFF
    caller: str = ""
    weight: float = 1.0  # of the caller
    timeout_s: float | None = None  # seconds that its caller allows, where there is admission


@dataclass(frozen=True, slots=True)
class RequestMix:
    """What is requested: each value is as likely as it is often in its tuple."""

    steps: Sequence[int] = (4, 20, 20, 30, 30, 30, 50, 150)
    sizes: Sequence[tuple[int, int]] = ((1024, 1024), (1024, 1024), (1344, 768))
    guidance: Sequence[float] = (6.9, 6.9, 6.9, 1.0)
    handoffs: Sequence[float] = (0.8, 1.0)
    heavy: float = 0.05  # the share of requests that are for eight images at once

    @property
    def images_per_request(self) -> float:
        """The mean number of images of a request."""
        return 1 + (_IMAGES_OF_HEAVY_REQUEST - 1) * self.heavy

    def draw(self, at: float, rng: Random) -> list[Arrival]:
        """Draw the images of one request."""
        width, height = rng.choice(self.sizes)
        arrival = Arrival(
            at,
            rng.choice(self.steps),
            width,
            height,
            rng.choice(self.guidance),
            rng.choice(self.handoffs),
        )
        return [arrival] * (_IMAGES_OF_HEAVY_REQUEST if rng.random() < self.heavy else 1)


@dataclass(frozen=True, slots=True)
class Workload:
    """The rate of requests at each time, relative to the mean, and their mix."""

    rate: Callable[[float], float]
    mix: Callable[[float], RequestMix]


MIX = RequestMix()
DRAFTS, FINALS = RequestMix(steps=(4, 4, 8)), RequestMix(steps=(30, 50, 150))
_BURST_SECONDS, _BURST_INTERVAL = 60, 240


def _mix_of_bursts(at: float) -> RequestMix:
    """Bursts of drafts and of finals alternate: equal numbers of images, very different work."""
    if at % _BURST_INTERVAL >= _BURST_SECONDS:
        return MIX
    return DRAFTS if at // _BURST_INTERVAL % 2 else FINALS


WORKLOADS: dict[str, Workload] = {
    "steady": Workload(lambda at: 1.0, lambda at: MIX),
    "bursts": Workload(
        lambda at: 2.5 if at % _BURST_INTERVAL < _BURST_SECONDS else 0.5, _mix_of_bursts
    ),
    "day": Workload(lambda at: 1 + 0.8 * sin(2 * pi * at / 600), lambda at: MIX),  # in ten minutes
}


def draw_trace(workload: Workload, *, rate: float, seconds: float, rng: Random) -> list[Arrival]:
    """Draw requests that come independently of each other, `rate` images per second on average.

    The process is Poisson with a rate that changes over time, drawn by thinning (Lewis and Shedler
    1979).
    """
    max_rate = max(workload.rate(at * seconds / 1000) for at in range(1000))
    arrivals: list[Arrival] = []
    at = 0.0
    while True:
        mix = workload.mix(at)
        at += rng.expovariate(rate * max_rate / mix.images_per_request)
        if at >= seconds:
            return arrivals
        if rng.random() * max_rate < workload.rate(at):
            arrivals += workload.mix(at).draw(at, rng)


_Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


class _Row(BaseModel):
    """A row of a trace file: the legal values of `Arrival`, which has the defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    at: float = Field(ge=0)
    steps: int = Field(ge=STEPS_RANGE[0], le=STEPS_RANGE[1])
    width: _Side = 0
    height: _Side = 0
    guidance: float = Field(0.0, ge=GUIDANCE_RANGE[0], le=GUIDANCE_RANGE[1])
    handoff: float = Field(0.0, ge=0, le=1)
    guidance_low: float = Field(0.0, ge=SIGMA_RANGE[0], le=SIGMA_RANGE[1])
    guidance_high: float = Field(0.0, ge=SIGMA_RANGE[0], le=SIGMA_RANGE[1])
    cache: StepCache = StepCache.OFF
    caller: str = ""
    weight: float = Field(0.0, gt=0)


_COLUMNS = tuple(_Row.model_fields)


def read_trace(file: Path) -> list[Arrival]:
    """Read a CSV file whose header names fields of `Arrival`; the others have their defaults.

    Returns them in order of time. Raises `TraceError`, which names the line and the column.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restkey="", strict=True)
            _check_header(reader.fieldnames or (), file)
            arrivals = [_arrival(row, f"{file}, line {reader.line_num}:") for row in reader]
    except OSError as error:
        raise TraceError(f"can't be read: {error.strerror}", subject=str(file)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"is no CSV file: {error}", subject=str(file)) from None
    if not arrivals:
        raise TraceError("has no images", subject=str(file))
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _check_header(names: Sequence[str], file: Path) -> None:
    remedy = f"The columns are {', '.join(_COLUMNS)}; at and steps are required"
    for name in names:
        if name not in _COLUMNS:
            meant = suggest(name, _COLUMNS)
            raise TraceError(
                f"has an unknown column {name}",
                subject=str(file),
                remedy=f"Did you mean {meant}?" if meant else remedy,
            )
    for name in ("at", "steps"):
        if name not in names:
            raise TraceError(f"has no column {name}", subject=str(file), remedy=remedy)


def _arrival(row: dict[str, str], where: str) -> Arrival:
    """Return the image of a row. Raises `TraceError`."""
    if "" in row:
        raise TraceError("has more values than there are columns", subject=where.rstrip(":"))
    try:
        arrival = Arrival(**_Row.model_validate(row).model_dump(exclude_unset=True))
    except ValidationError as error:
        first = error.errors()[0]
        (column,) = first["loc"]
        problem = f"{validation_message(first)}, got {first['input'] or 'nothing'}"
        raise TraceError(problem, subject=f"{where} {column}") from None
    if arrival.guidance_low >= arrival.guidance_high:
        problem = f"must be below guidance_high, got {arrival.guidance_low:g}"
        raise TraceError(problem, subject=f"{where} guidance_low")
    return arrival
