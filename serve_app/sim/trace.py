"""Traces: who asks for what, and when. Made by a seeded draw, or read from a file.

Knows no replicas. Times are seconds from the start.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
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
class Mix:
    """What is asked for, each value as often as it stands here."""

    steps: Sequence[int] = (4, 20, 20, 30, 30, 30, 50, 150)
    sizes: Sequence[tuple[int, int]] = ((1024, 1024), (1024, 1024), (1344, 768))
    guidance: Sequence[float] = (6.9, 6.9, 6.9, 1.0)
    handoffs: Sequence[float] = (0.8, 1.0)
    heavy: float = 0.05  # how many requests are for eight images at once

    def drawn(self, at: float, draw: Random) -> list[Arrival]:
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


Shape = Callable[[float], float]  # how much is asked for at a time, 1 being the mean

SHAPES: dict[str, Shape] = {
    "steady": lambda at: 1.0,
    "bursts": lambda at: 2.5 if at % 240 < 60 else 0.5,  # a minute in four
    "day": lambda at: 1 + 0.8 * sin(2 * pi * at / 600),  # a day in ten minutes
}


def drawn_trace(
    shape: Shape, *, rate: float, seconds: float, mix: Mix, draw: Random
) -> list[Arrival]:
    """Requests that come independently (Poisson), `rate` images a second on the mean, as often as
    the shape says at each time."""
    requests = rate / (1 + 7 * mix.heavy)
    most = max(shape(at * seconds / 1000) for at in range(1000))
    arrivals: list[Arrival] = []
    at = draw.expovariate(requests * most)
    while at < seconds:
        if draw.random() * most < shape(at):  # thinning: Lewis and Shedler 1979
            arrivals += mix.drawn(at, draw)
        at += draw.expovariate(requests * most)
    return arrivals


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


def heads(arrivals: Iterable[Arrival], seconds: float) -> list[Arrival]:
    """Those that come within so many seconds."""
    return [one for one in arrivals if one.at < seconds]
