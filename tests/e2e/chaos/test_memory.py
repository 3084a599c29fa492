"""The largest legal bodies, again and again: what the ingress keeps of them.

The Ray of these tests has the environment that `aura up` gives it.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.bench.body_memory import Resident
from serve_app.ingress.access import BODY_LIMIT
from tests.e2e.chaos.load import Call, Load
from tests.e2e.chaos.measure import sampled
from tests.e2e.chaos.processes import MIB, resident
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import judge

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

BODIES = 16
BODY = BODY_LIMIT  # bytes, which the text of the PNG nearly fills
ROUNDS = 3
REST = 30.0  # seconds
GROWTH = 64.0  # MiB


@pytest.fixture(scope="module")
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a fast service."""
    with own_service(
        ray_of_its_own, tmp_path_factory.mktemp("memory"), seconds_scale=0.1
    ) as service:
        yield service


@cache
def large_png() -> str:
    """Return a PNG of noise whose base64 fills the body."""
    side = int((BODY * 3 / 4 / 3) ** 0.5) - 8
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png", compress_level=0)
    return base64.b64encode(file.getvalue()).decode()


def refine_body(seed: int) -> dict[str, Any]:
    return {
        "prompt": "a fox",
        "images": [large_png()],
        "seed": seed,
        "steps": 4,
        "imageCount": 1,
    }


def test_the_ingress_gives_back_the_memory_of_the_largest_bodies(service: ChaosService) -> None:
    with Load(service.address) as load:  # what the first body of all loads is not its own
        load.send([Call({**refine_body(0), "images": [small_png()]}, route="/refine")])
        (first,) = load.answers()
    assert first.status == 201, first.body
    ingress, proxy = service.processes.ingress(), service.processes.proxy()
    before = Resident.of(ingress), Resident.of(proxy)
    verdicts: Counter[str] = Counter()
    rests: list[tuple[Resident, Resident]] = []
    peaks = [0.0, 0.0]
    for number in range(ROUNDS):
        with (
            sampled(lambda: (resident(ingress), resident(proxy)), 0.2) as memory,
            Load(service.address) as load,
        ):
            load.send(Call(refine_body(100 * number + n), route="/refine") for n in range(BODIES))
            verdicts.update(str(judge(answer, compares=False)) for answer in load.answers())
        for _, sizes in memory:
            peaks = [max(pair) for pair in zip(peaks, sizes or (0.0, 0.0), strict=True)]
        time.sleep(REST)
        rests.append((Resident.of(ingress), Resident.of(proxy)))
    processes = [
        f"{name} {text(before[index])} to {peaks[index]:.0f} MiB, after {REST:.0f} s "
        f"{', '.join(text(rest[index]) for rest in rests)}"
        for index, name in enumerate(("ingress", "proxy"))
    ]
    report(
        f"{BODIES} x /refine with bodies of nearly {BODY // MIB} MiB, {ROUNDS} times",
        f"{dict(verdicts)}; resident, in brackets without what is shared: {'; '.join(processes)}",
        f"the ingress is back within {GROWTH:.0f} MiB",
    )
    assert set(verdicts) <= {"made", "503 OVERLOADED"}
    assert verdicts["made"] >= ROUNDS
    assert max(rest.all for rest, _ in rests) - before[0].all <= GROWTH


def text(size: Resident) -> str:
    return f"{size.all:.0f} [{size.own:.0f}]"


def small_png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
