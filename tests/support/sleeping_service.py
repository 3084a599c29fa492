"""The service in this event loop: HTTP, two ingresses, conductor and engine; networks sleep."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import EngineStats
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.sleeping_stage import SleepingStage, service_info, stage_config
from tests.support.census import Census, census_at_rest, nothing_is_left_since
from tests.support.http_server import serving_in_loop
from tests.support.ingress_processes import IngressProcesses
from tests.support.local_stage import LocalStage
from tests.support.raw_streams import RawStream, raw_stream

_MANY = 1000  # requests, more than a test sends
_BACKGROUND = {"Server.serve", "_shutdown_watcher"}  # tasks of the servers and of sse-starlette
_BODY = {"prompt": "a fox", "imageCount": 1, "width": 256, "height": 256, "handoff": 0.3}


@dataclass(frozen=True, slots=True)
class SleepingService:
    """Two ingress processes over one replica of both stages."""

    ports: list[int]  # of the processes
    _replica: SleepingStage
    _processes: IngressProcesses

    async def engine(self) -> EngineStats:
        """Return what the engine has done, and which samples it has."""
        return (await self._replica.stats()).engine

    @asynccontextmanager
    async def stream(self, process: int = 0, **more: Any) -> AsyncIterator[RawStream]:
        """Ask one process for images as a stream."""
        body = {**_BODY, **more, "stream": True}
        async with raw_stream(self.ports[process], "POST", "/generate", body) as stream:
            yield stream

    async def submit(self, **more: Any) -> str:
        """Ask the first process for a job that outlives the request; return the job's path."""
        headers = {"Prefer": "respond-async"}
        async with raw_stream(
            self.ports[0], "POST", "/generate", {**_BODY, **more}, headers
        ) as accepted:
            head = await accepted.until(b"\r\n\r\n")
        (location,) = re.findall(rb"\nlocation: (\S+)", head)
        return str(location.decode())

    async def at_rest(self) -> Census:
        """Return what there is without any job, once each process has had one."""
        for port in self.ports:
            body = {**_BODY, "steps": 2, "stream": True}
            async with raw_stream(port, "POST", "/generate", body) as stream:
                await stream.rest()
        await self.drain()
        return await census_at_rest(_BACKGROUND)

    async def nothing_is_left_since(self, before: Census) -> None:
        """Wait until all jobs have ended, and all that there was for them is gone."""
        await self.drain()
        await nothing_is_left_since(before)
        assert not (await self.engine()).positions

    async def drain(self) -> None:
        """Wait until all jobs have ended, and the ledger knows."""
        for jobs in self._processes.jobs:
            await jobs.drain()


@asynccontextmanager
async def sleeping_service(
    seconds_scale: float, *, images: int = 8, send_buffer: int = 0
) -> AsyncIterator[SleepingService]:
    """Serve over networks that take so many times SDXL's seconds, for so many images at once.

    See `serving_in_loop` for the last one.
    """
    info = service_info(refiner=True)
    config = stage_config(Stage.BASE, Stage.REFINER, images=images)
    replica = SleepingStage(config, GpuSpeed().scaled(seconds_scale))
    limits = AdmissionLimits(queue_seconds=600, open_requests=_MANY)
    stage = LocalStage(replica)
    conductor = Conductor(stage, stage, info.models, refiner_name=info.refiner, limits=limits)
    processes = IngressProcesses(conductor, Ledger(None), info, _MANY)
    async with AsyncExitStack() as stack:
        stack.callback(replica.close)
        ports = [
            await stack.enter_async_context(serving_in_loop(api, send_buffer))
            for api in processes.apis
        ]
        yield SleepingService(ports, replica, processes)
