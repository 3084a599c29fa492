"""Half an hour of mixed load, after which no process may have grown."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import DEPLOYMENTS
from tests.e2e.chaos.bodies import GENERATE, OPENAI, REFINE, image_body, openai_body, refine_body
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.measure import sampled
from tests.e2e.chaos.memory_fit import Slope, fit
from tests.e2e.chaos.processes import kill, resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, judge

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(4000)]

SECONDS = 1800.0
LEAKING_SECONDS = 900.0
LIMIT = 10.0  # MiB per hour
VISIBLE = 20.0  # MiB per hour: the smallest leak that the fit must be able to see
RATE = 4.0  # requests a second
# Images that a request has which leak: some ask for two, some are refused, and those of /refine
# don't come to the step.
IMAGES_A_REQUEST = 0.9
WINDOW = 30.0  # seconds of requests that are sent together, each at its own time
LEAK = 3 * VISIBLE  # MiB per hour that each base replica leaks on purpose
WATCHED = ("Ingress", "Ledger", *DEPLOYMENTS.values())


@pytest.fixture
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a fast service."""
    with own_service(ray_of_its_own, tmp_path_factory.mktemp("soak"), seconds_scale=0.1) as service:
        yield service


class Soak:
    """A mixed load, whose every answer is judged."""

    def __init__(self, service: ChaosService, prompt: str = "a fox") -> None:
        self.service, self.prompt = service, prompt
        self.verdicts: Counter[str] = Counter()
        self._chance, self._numbers = random.Random(0), itertools.count()

    def run(self, seconds: float) -> dict[str, Slope]:
        """Load the service for a time; return the slope of each process in the second half.

        A quarter in, a replica of each stage is killed. Its successor is then as old as the others
        were when they were watched first.
        """
        began = time.monotonic()
        self._load_until(began + seconds / 4)
        for deployment in DEPLOYMENTS.values():
            kill(self.service.processes.replicas(deployment)[0])
        self._load_until(began + seconds / 2)
        self.service.wait_whole()
        watched = {
            f"{name} {number}": process
            for name in WATCHED
            for number, process in enumerate(self.service.processes.replicas(name))
        } | {"proxy": self.service.processes.proxy()}
        with sampled(lambda: {name: resident(p) for name, p in watched.items()}, 1.0) as memory:
            self._load_until(began + seconds)
        sizes = [(at, found) for at, found in memory if found]
        return {name: fit([(at, found[name]) for at, found in sizes]) for name in watched}

    def _load_until(self, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            window = min(WINDOW, left)
            with Load(self.service.address) as load:
                load.send(self._call(window) for _ in range(max(1, int(window * RATE))))
                for answer in load.answers():
                    verdict = judge(answer)
                    self.verdicts[f"{answer.call.route} {verdict}"] += 1
                    assert verdict.kind in (Kind.MADE, Kind.ERROR, Kind.LEFT), verdict
            httpx.get(f"{self.service.address}/jobs/none", timeout=10)

    def _call(self, window: float) -> Call:
        """Return one of the requests that a service gets, at some time of the window."""
        chance, number = self._chance, next(self._numbers)
        route = chance.choices((GENERATE, REFINE, OPENAI), (6, 2, 2))[0]
        make = {GENERATE: image_body, REFINE: refine_body, OPENAI: openai_body}[route]
        body = make(number, steps=chance.choice((4, 10, 20)), prompt=self.prompt)
        if route == GENERATE and chance.random() < 0.25:
            body["imageCount"] = 2
        if chance.random() < 0.05:
            body["seed"] = -1
        return Call(
            body,
            at=chance.random() * window,
            route=route,
            key=f"soak-{number}" if chance.random() < 0.3 else None,
            leaves_after=0.2 if chance.random() < 0.05 else None,
        )


def smallest_visible(slopes: dict[str, Slope]) -> float:
    """Return the smallest leak, in MiB per hour, at which `check` fails whoever leaks."""
    return LIMIT + max(slope.error for slope in slopes.values())


def check(slopes: dict[str, Slope]) -> None:
    """Fail if a process has surely grown faster than the limit."""
    grown = {name: str(s) for name, s in slopes.items() if s.mib_per_hour - s.error > LIMIT}
    assert not grown, f"memory grows: {grown}"


def test_no_process_grows_in_half_an_hour(service: ChaosService) -> None:
    soak = Soak(service)
    slopes = soak.run(SECONDS)
    worst = max(slopes, key=lambda name: slopes[name].mib_per_hour)
    report(
        f"{SECONDS / 60:.0f} min of mixed load, {RATE:g} requests a second, a replica of each "
        "stage killed",
        f"{dict(soak.verdicts.most_common())}; fastest growth {worst} {slopes[worst]}; smallest "
        f"leak that is seen {smallest_visible(slopes):.1f} MiB/h",
        f"slope <= {LIMIT:.0f} MiB/h from mid-run; one of {VISIBLE:.0f} MiB/h would be seen",
    )
    check(slopes)
    assert smallest_visible(slopes) <= VISIBLE


def test_a_leak_is_seen(service: ChaosService) -> None:
    images = RATE * 3600 * IMAGES_A_REQUEST / service.args.base  # of one replica in an hour
    soak = Soak(service, f"a fox fault:leak@0x{LEAK / images:.6f}")
    slopes = soak.run(LEAKING_SECONDS)
    leaking = [str(s) for name, s in slopes.items() if DEPLOYMENTS[Stage.BASE] in name]
    report(
        f"{LEAKING_SECONDS / 60:.0f} min with a leak of {LEAK:.0f} MiB/h in each base replica",
        f"{' and '.join(leaking)}; smallest leak that is seen {smallest_visible(slopes):.1f} MiB/h",
        "the same check fails",
    )
    with pytest.raises(AssertionError, match="memory grows"):
        check({name: s for name, s in slopes.items() if DEPLOYMENTS[Stage.BASE] in name})
