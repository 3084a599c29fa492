"""Jobs that an ingress process works at when it is stopped."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx

from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.core.service.unfinished import Unfinished
from serve_app.ingress.contracts import Maker
from serve_app.ingress.job_service import JobService
from serve_app.ingress.job_spool import JobSpool
from tests.support.api import Client
from tests.support.fake_conductor import NOISE, WaitingConductor
from tests.support.job_requests import post
from tests.support.waiting import until_async


class HalfwayConductor(WaitingConductor):
    """Has taken some steps of every image that it was given."""

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.steps = steps

    def snapshot(self, id: str) -> ImageSnapshot | None:
        spec = next(task.spec for task in self.tasks if task.id == id)
        schedule = make_schedule(NOISE, spec.sampler, spec.steps, None, spec.handoff)
        sample: Sample[None] = new_sample(id, spec, schedule, Stage.BASE)
        return ImageSnapshot(replace(sample, index=self.steps))


def newest(client: Client) -> JobService:
    return client.jobs[-1]


def resume(
    client: Client, spool: JobSpool, maker: Maker | None = None, **options: Any
) -> httpx.AsyncClient:
    """Start a process that takes up spooled jobs; return a client of it."""
    http = client(maker, spool=spool, **options)
    newest(client).resume()
    return http


async def interrupt(
    client: Client,
    spool: JobSpool | None,
    maker: WaitingConductor,
    count: int = 1,
    **options: Any,
) -> tuple[Unfinished, list[httpx.Response]]:
    """Stop a process that works at as many jobs, with keys of their own."""
    http = client(maker, spool=spool, **options)
    calls = [
        asyncio.ensure_future(post(http, **{"Idempotency-Key": f"key-{number + 1}"}))
        for number in range(count)
    ]
    await until_async(lambda: len(maker.tasks) == count)
    unfinished = await newest(client).stop()
    return unfinished, await asyncio.gather(*calls)
