import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import new_sample, plan_segments
from serve_app.core.service.events import ImageEvent, SegmentDone
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.server_timing import Stopwatch
from tests.support.api import Client
from tests.support.fake_conductor import NOISE, FakeConductor


class StagedConductor(FakeConductor):
    """Says when an image has left each stage, as the service's own conductor does."""

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        schedule, segments = plan_segments(NOISE, task.spec, refiner=True)
        for segment in segments:
            sample: Any = new_sample(task.id, task.spec, schedule, segment.stage)
            yield SegmentDone(sample, None, GpuTime(), CostTable())
            for _ in range(10):  # a reader gets the newest event of each type
                await asyncio.sleep(0)
        async for event in super().run(task):
            yield event


def test_laps_are_listed_in_order_in_milliseconds() -> None:
    times = iter([1.0, 1.002, 1.5])
    watch = Stopwatch(clock=lambda: next(times))
    watch.lap("validate")
    watch.lap("make")
    assert watch.header == "validate;dur=2.00, make;dur=498.00"


async def test_an_answer_tells_where_its_time_went(client: Client) -> None:
    for route in ("/generate", "/v1/images/generations"):
        answer = await client().post(route, json={"prompt": "a"})
        header = answer.headers["server-timing"]
        assert re.fullmatch(r"validate;dur=[\d.]+, make;dur=[\d.]+, write;dur=[\d.]+", header)


async def test_the_parts_of_a_response_are_those_of_its_first_image(client: Client) -> None:
    answer = await client(StagedConductor()).post("/generate", json={"prompt": "a"})
    names = [part.partition(";")[0].strip() for part in answer.headers["server-timing"].split(",")]
    assert names == ["validate", "base", "refiner", "make", "write"]
