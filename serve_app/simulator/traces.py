"""Traces: who asks for what, and when. Made by a seeded draw, or read from a file.

Knows no replicas. Times are seconds from the start.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import pi, sin
from pathlib import Path
from random import Random

from serve_app.core.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One image asked for."""

    at: float
    steps: int
    width: int = 1024
    height: int = 1024
    guidance: float = 6.9
    handoff: float = 1.0  # 1: base alone


@dataclass(frozen=True, slots=True)
class RequestMix:
    """What is asked for, each value as often as it stands here."""

    steps: Sequence[int] = (4, 20, 20, 30, 30, 30, 50, 150)
    sizes: Sequence[tuple[int, int]] = ((1024, 1024), (1024, 1024), (1344, 768))
    guidance: Sequence[float] = (6.9, 6.9, 6.9, 1.0)
    handoffs: Sequence[float] = (0.8, 1.0)
    heavy: float = 0.05  # how many requests are for eight images at once

    def draw(self, at: float, draw: Random) -> list[Arrival]:
        """The images of one request."""
        width, height = draw.choice(self.sizes)
        one = Arrival(
            at,
            draw.choice(self.steps),
            width,
            height,
            draw.choice(self.guidance),
            draw.choice(self.handoffs),
        )
        return [one] * (8 if draw.random() < self.heavy else 1)


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is asked for at a time, 1 being the mean, and what."""

    rate: Callable[[float], float]
    mix: Callable[[float], RequestMix]


MIX = RequestMix()
DRAFTS, FINALS = RequestMix(steps=(4, 4, 8)), RequestMix(steps=(30, 50, 150))
_BURST, _APART = 60, 240  # seconds


def _bursts(at: float) -> RequestMix:
    """Bursts are of drafts and of finals in turn: as many images, and not the same work."""
    if at % _APART >= _BURST:
        return MIX
    return DRAFTS if at // _APART % 2 else FINALS


WORKLOADS: dict[str, Workload] = {
    "steady": Workload(lambda at: 1.0, lambda at: MIX),
    "bursts": Workload(lambda at: 2.5 if at % _APART < _BURST else 0.5, _bursts),
    "day": Workload(lambda at: 1 + 0.8 * sin(2 * pi * at / 600), lambda at: MIX),  # in ten minutes
}


def draw_trace(wave: Workload, *, rate: float, seconds: float, draw: Random) -> list[Arrival]:
    """Requests that come independently (Poisson), `rate` images a second on the mean, as often as
    the wave says at each time."""
    most = max(wave.rate(at * seconds / 1000) for at in range(1000))
    arrivals: list[Arrival] = []
    at = 0.0
    while True:
        mix = wave.mix(at)
        at += draw.expovariate(rate * most / (1 + 7 * mix.heavy))
        if at >= seconds:
            return arrivals
        if draw.random() * most < wave.rate(at):  # thinning: Lewis and Shedler 1979
            arrivals += wave.mix(at).draw(at, draw)


def read_trace(file: Path) -> list[Arrival]:
    """A CSV file with the fields of `Arrival` as its head; what is left out is as there.

    Raises `SettingsError` that names the line.
    """
    kinds = {one.name: int if one.type is int else float for one in fields(Arrival)}
    arrivals = []
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines), 2):
                try:
                    arrivals.append(
                        Arrival(**{name: kinds[name](value) for name, value in row.items()})  # type: ignore[arg-type]  # checked here
                    )
                except (KeyError, ValueError, TypeError) as error:
                    told = ", ".join(kinds)
                    raise SettingsError(
                        f"{file}, line {number}: {error}; a trace has the columns {told}, of which "
                        "at and steps must be there"
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} can't be read: {error}") from None
    return sorted(arrivals, key=lambda one: one.at)
