"""The way of a request outside the engine: the real graph on Ray, over HTTP.

The stages return one encoded PNG at once. The parts are those of the Server-Timing header, which
the bare Ray application sends too; the rest of the time that the client waits is HTTP.
"""

import http.client
import json
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from ray import serve
from rich.console import Console
from rich.progress import track

from serve_app.bench.local_ray import local_ray
from serve_app.bench.overhead.applications import bind_ray_alone, bind_service
from serve_app.bench.sample_pictures import draw_picture
from serve_app.runtime.png import encode_png

SIDES = (64, 1024)
GENERATE, RAY_ALONE, BARE_PNG, REFINE = "/generate", "Ray alone", "bare PNG", "/refine"
HTTP = "HTTP"
PARTS = ("validate", "base", "refiner", "make", "write", HTTP)
_WARM_UP = 10  # requests of each case
_PAUSE = 0.3  # seconds between requests, in which the ledger writes of the last one end
_ENCODINGS = 9  # of a PNG, to measure one


@dataclass(frozen=True, slots=True)
class Case:
    """A request that is repeated."""

    label: str
    side: int
    route: str
    body: str
    accept: str = "application/json"


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """The milliseconds of each run of a case, in all and by part."""

    whole: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, whole: float, parts: dict[str, float]) -> None:
        """Add a run."""
        self.whole.append(whole)
        for part, milliseconds in parts.items():
            self.parts.setdefault(part, []).append(milliseconds)


@dataclass(frozen=True, slots=True)
class RequestCosts:
    """What was measured, by side and label, and of each side what its PNG takes."""

    times: dict[tuple[int, str], RequestTimes]
    encoding: dict[int, float]  # milliseconds of a PNG, in the last stage's replica
    sizes: dict[int, int]  # bytes of a PNG

    def excess(self, side: int) -> list[float]:
        """Return what /generate takes more than Ray alone, run by run."""
        ours, alone = (self.times[side, label].whole for label in (GENERATE, RAY_ALONE))
        return [a - b for a, b in zip(ours, alone, strict=True)]


def measure_requests(runs: int, console: Console) -> RequestCosts:
    """Return what requests cost, case by case; the cases take turns."""
    pngs, encoding = {}, {}
    for side in SIDES:
        picture, milliseconds = draw_picture("grain", side), []
        for _ in range(_ENCODINGS):
            start = time.perf_counter()
            pngs[side] = encode_png(picture)
            milliseconds.append((time.perf_counter() - start) * 1000)
        encoding[side] = median(milliseconds)
    with local_ray() as (port, folder):
        with console.status("starting Ray"):
            for side, png in pngs.items():
                ledger = folder / f"ledger{side}.sqlite"
                serve.run(
                    bind_service(png, side, ledger), name=f"ours{side}", route_prefix=_ours(side)
                )
                serve.run(bind_ray_alone(png, side), name=f"ray{side}", route_prefix=_ray(side))
        cases = [case for side, png in pngs.items() for case in _cases(side, png)]
        times = _measure(cases, port, runs, console)
    return RequestCosts(times, encoding, {side: len(png) for side, png in pngs.items()})


def _ours(side: int) -> str:
    return f"/ours{side}"


def _ray(side: int) -> str:
    return f"/ray{side}"


def _cases(side: int, png: bytes) -> list[Case]:
    fields = {
        "prompt": "a red fox in the snow",
        "seed": 7,
        "imageCount": 1,
    }
    generate = json.dumps(fields)
    refine = json.dumps(fields | {"images": [b64encode(png).decode()]})
    ours = _ours(side)
    return [
        Case(GENERATE, side, f"{ours}/generate", generate),
        Case(RAY_ALONE, side, f"{_ray(side)}/", generate),
        Case(BARE_PNG, side, f"{ours}/generate", generate, accept="image/png"),
        Case(REFINE, side, f"{ours}/refine", refine),
    ]


def _measure(
    cases: Sequence[Case], port: int, runs: int, console: Console
) -> dict[tuple[int, str], RequestTimes]:
    """Measure the cases in turns, so that a noisy machine disturbs all of them."""
    times = {(case.side, case.label): RequestTimes() for case in cases}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for run in track(range(_WARM_UP + runs), "requests", console=console, transient=True):
        for case in cases:
            time.sleep(_PAUSE)
            whole, parts = _send(connection, case)
            if run >= _WARM_UP:
                times[case.side, case.label].add(whole, parts)
    connection.close()
    return times


def _send(connection: http.client.HTTPConnection, case: Case) -> tuple[float, dict[str, float]]:
    """Send one request; return its milliseconds, in all and by part."""
    headers = {"Content-Type": "application/json", "Accept": case.accept}
    start = time.perf_counter()
    connection.request("POST", case.route, case.body, headers)
    response = connection.getresponse()
    response.read()
    whole = (time.perf_counter() - start) * 1000
    if response.status != 201:
        raise RuntimeError(f"{case.route} returned status {response.status}, expected 201")
    laps = read_laps(response.headers.get("Server-Timing", ""))
    return whole, {**laps, HTTP: whole - sum(laps.values())}


def read_laps(header: str) -> dict[str, float]:
    """Return the milliseconds of each name in a Server-Timing header, which may come again."""
    laps: dict[str, float] = {}
    for part in header.split(","):
        name, found, duration = part.strip().partition(";dur=")
        if found:
            laps[name] = laps.get(name, 0.0) + float(duration)
    return laps
