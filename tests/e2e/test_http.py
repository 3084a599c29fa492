"""Through Ray and over HTTP: concurrent callers, replicas that die, clients that disconnect.

Each replica has one CPU thread, so that `LONG` takes seconds.
"""

import base64
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.cli.generate import generate
from serve_app.core.service.events import ReplicaStats
from tests.support.service import LONG, START_TIMEOUT_S, Service
from tests.support.waiting import until

pytestmark = pytest.mark.ray

SNAPSHOT_INTERVAL = 5


def png(response: httpx.Response) -> bytes:
    assert response.status_code == 201, response.text
    return base64.b64decode(response.json()["images"][0])


def test_health_counts_the_replicas(service: Service) -> None:
    body = httpx.get(f"{service.address}/health").json()
    assert body["status"] == "ready"
    assert body["replicas"] == {"base": 2, "refiner": 2}
    assert (body["model"], body["device"], body["precision"]) == ("demo", "cpu", "fp32")
    assert "MODEL_CHECKPOINT_DIR" in body["warnings"][0]


def test_generate_and_refine_respond_as_the_contract_says(service: Service) -> None:
    generated = service.post("/generate", prompt="a red fox", steps=8, seed=3, aspectRatio="3:2")
    assert generated.status_code == 201
    meta = generated.json()["meta"]
    assert (meta["model"], meta["refined"], meta["seeds"]) == ("demo", True, [3, 4])
    assert "demo checkpoint" in meta["warnings"][0]
    size = Image.open(BytesIO(png(generated))).size
    assert size == (meta["width"], meta["height"]) == (152, 104)
    refined = service.post(
        "/refine", baseImages=generated.json()["images"], refinePrompt="warmer", config={"steps": 8}
    )
    assert Image.open(BytesIO(png(refined))).size == size
    assert len(refined.json()["images"]) == 2
    assert png(refined) != png(generated)


def test_the_command_without_a_server_writes_the_service_s_files(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CPU_THREADS", "1")  # as the replicas have it
    monkeypatch.setenv("MODEL_MAX_BATCH_SIZE", "4")
    fields = {"prompt": "a red heart", "seed": 8, "steps": 6, "imageCount": 4}
    response = service.post("/generate", **fields)
    assert response.status_code == 201
    assert generate(fields, tmp_path / "heart.png") == 0
    files = [(tmp_path / f"heart-{n}.png").read_bytes() for n in (1, 2, 3, 4)]
    assert files == [base64.b64decode(image) for image in response.json()["images"]]


def test_eight_callers_with_mixed_steps_are_all_served(service: Service) -> None:
    def call(number: int) -> httpx.Response:
        return service.post(
            "/generate",
            prompt=f"caller {number}",
            steps=(4, 10, 10, 20)[number % 4],
            sampler=("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras")[number % 4],
            guidanceScale=(1, 5, 6.9, 9)[number // 2],
            imageCount=1 + number % 2,
        )

    with ThreadPoolExecutor(8) as callers:
        responses = list(callers.map(call, range(8)))
    assert [response.status_code for response in responses] == [201] * 8
    assert [len(response.json()["images"]) for response in responses] == [1, 2] * 4


def test_a_short_image_is_back_before_the_long_ones_beside_it(service: Service) -> None:
    with ThreadPoolExecutor(1) as caller:
        long = caller.submit(service.post, "/generate", **(LONG | {"steps": 60, "imageCount": 2}))
        # both long images are being made, on whichever replica is predicted to be faster
        until(lambda: sum(len(stats.engine.positions) for stats in service.stats("base")) == 2)
        assert service.post("/generate", prompt="quick", steps=4, imageCount=1).status_code == 201
        assert not long.done()
        assert long.result().status_code == 201


def work(service: Service) -> list[tuple[int, int]]:
    """Return the turns and steps of every replica."""
    return [
        (stats.engine.turns, stats.engine.steps)
        for stage in ("base", "refiner")
        for stats in service.stats(stage)
    ]


def test_bad_input_never_reaches_a_replica(service: Service) -> None:
    previous = work(service)
    bad: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"prompt": "a", "temperature": 7}),
        ("/generate", {"prompt": ""}),
        ("/generate", {"prompt": "a", "steps": 0}),
        ("/generate", {"prompt": "a", "width": 100, "height": 100}),
        ("/refine", {"prompt": "a", "images": ["!"]}),
    ]
    for route, body in bad:
        response = service.post(route, **body)
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"code", "message", "details", "requestId"}
        assert "Traceback" not in response.text
    assert service.post("/generate", prompt="a", model="other").status_code == 404
    assert work(service) == previous


def test_a_client_that_disconnects_frees_the_engine_before_its_image_is_done(
    service: Service,
) -> None:
    cancelled = sum(stats.engine.cancelled for stats in service.stats("base"))
    finished = sum(stats.engine.finished for stats in service.stats("base"))
    # Base alone calls its network 299 times, which no machine does before the client leaves.
    body = LONG | {"steps": 150, "sampler": "heun", "refine": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.address}/generate", json=body, timeout=1.5)
    until(lambda: not service.is_busy("base"))
    assert sum(stats.engine.cancelled for stats in service.stats("base")) == cancelled + 1
    assert sum(stats.engine.finished for stats in service.stats("base")) == finished


@pytest.mark.long  # the short chaos tests kill one of each too, with sleeping networks
@pytest.mark.parametrize(
    ("stage", "handoff", "far"), [("base", 0.8, 40), ("refiner", 0.2, 60)], ids=["base", "refiner"]
)
def test_an_image_whose_replica_is_killed_continues_to_the_same_bytes(
    service: Service, stage: str, handoff: float, far: int
) -> None:
    service.wait_ready(stage)  # the other one may still lack a replica that was killed
    expected = base64.b64decode(service.expected_image(handoff))
    previous = {stats.pid: stats.engine.steps for stats in service.stats(stage)}
    with ThreadPoolExecutor(1) as caller:
        response = caller.submit(lambda: service.post("/generate", **LONG, handoff=handoff))

        def working() -> ReplicaStats | None:
            for stats in service.stats(stage):
                if max(stats.engine.positions.values(), default=0) >= far:
                    return stats
            return None

        victim = until(working, START_TIMEOUT_S)
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        assert png(response.result()) == expected
    reached = max(victim.engine.positions.values())  # it may have taken one more before it died
    taken = {
        stats.pid: stats.engine.steps - previous[stats.pid]
        for stats in service.stats(stage)
        if stats.pid in previous
    }
    (survivor,) = (steps for pid, steps in taken.items() if pid != victim.pid)
    total = victim.engine.steps - previous[victim.pid] + survivor
    repeated = total - _segment_steps(stage, handoff)
    print(f"{stage}: killed at step {reached}, {repeated} steps repeated")
    assert repeated <= SNAPSHOT_INTERVAL


def _segment_steps(stage: str, handoff: float) -> int:
    """Return the stage's steps of 100: Euler's timesteps are evenly spaced by 10."""
    cutoff = round(1000 - handoff * 1000)
    base = sum(10 * i + 1 >= cutoff for i in range(100))
    return base if stage == "base" else 100 - base
