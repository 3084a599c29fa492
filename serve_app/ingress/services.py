"""What the route handlers of every door share, as a FastAPI dependency."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Header, Request
from starlette.datastructures import State
from starlette.responses import Response

from serve_app.core.diffusion.spec import SEED_RANGE
from serve_app.core.errors import InvalidRequest, LedgerAway
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.job_events import JobEvent, JobStarted, StageDone, last_result
from serve_app.core.service.jobs import JobResult
from serve_app.ingress.body_budget import BodyShare
from serve_app.ingress.contracts import Maker
from serve_app.ingress.generation import GenerationRequest, RefinementRequest
from serve_app.ingress.generation_job import GenerationJob, RerunFormat
from serve_app.ingress.image_input import RGB_BYTES, InputFiles, LoadedInputs, load_inputs
from serve_app.ingress.image_links import ImageFormat, ImageLinks
from serve_app.ingress.job_service import JobService
from serve_app.ingress.planning import check_names, plan_job
from serve_app.ingress.request_context import RequestContext
from serve_app.ingress.responses import add_warnings
from serve_app.ingress.server_timing import Stopwatch
from serve_app.process import allocator

T = TypeVar("T")
_IMAGE_THREADS = 2  # for reading and for writing: bounds memory, and leaves the event loop a core


class Identified(Protocol):
    """A request's body."""

    @property
    def identity(self) -> str:
        """The text of what the images are, by which two requests with one key are compared."""


class ApiServices:
    """The job service, and threads for image work that would block the event loop."""

    def __init__(
        self,
        jobs: JobService,
        conductor: Maker,
        info: ServiceInfo,
        version: str,
        base_url: str | None = None,
        webhook_urls: frozenset[str] = frozenset(),
    ) -> None:
        self.jobs = jobs
        self.links = ImageLinks(jobs.ledger)
        self._base_url = base_url  # IMAGE_SERVICE_BASE_URL
        self._webhook_urls = webhook_urls
        self.conductor = conductor
        self.info = info
        self.version = version
        self._reading = asyncio.Semaphore(_IMAGE_THREADS)
        self._readers = ThreadPoolExecutor(_IMAGE_THREADS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(_IMAGE_THREADS, thread_name_prefix="write")

    async def plan(
        self,
        request: GenerationRequest | RefinementRequest,
        files: Sequence[InputFiles],
        rerun: RerunFormat,
        state: State,
        key: str | None,
    ) -> GenerationJob:
        """Take a request's files, one after the other, and return the job that it becomes.

        `state` is that of the HTTP request, and `key` its idempotency key. The files cost most, so
        unknown names, illegal sizes, terms that were not accepted and a full queue are refused
        before they are read; with a key the job may be there already, so that the queue is asked
        later. Raises `InvalidRequest`, `ModelNotFound`, `TermsNotAccepted`, `LedgerAway`,
        `Overloaded`, `Draining` or `InvalidImage`.
        """
        loaded: list[LoadedInputs] = []
        if files:
            model = check_names(request, self.info)
            await self.jobs.terms.check(state.caller)
            size = request.size_for(model)
            if key is None:
                unread = LoadedInputs(size or model.sizes.for_aspect("Auto"))
                outline = plan_job(request, [unread], self.info, 0, rerun)
                allowed = request.timeout_s
                deadline = None if allowed is None else state.arrived + allowed
                caller = self.jobs.caller(state.caller)
                self.conductor.check_room(caller, outline.images[0].spec, deadline)
            loop = asyncio.get_running_loop()
            for number, image_files in enumerate(files):
                load = partial(
                    load_inputs, image_files, number, model.sizes, size, request.resize_mode
                )
                pixels = model.sizes.max_pixels if size is None else size[0] * size[1]
                loaded.append(await self._load(load, pixels * RGB_BYTES, state.body))
            loop.run_in_executor(self._readers, allocator.trim)
        return plan_job(request, loaded, self.info, draw_seed(), rerun)

    async def _load(
        self, load: Callable[[], LoadedInputs], max_bytes: int, share: BodyShare
    ) -> LoadedInputs:
        """Return the read files of one image, of at most `max_bytes`, counted in the share.

        Whoever waits for a thread counts nothing yet.
        """
        async with self._reading:
            share.add_image(max_bytes)
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(self._readers, load)
            share.give_back(max_bytes - loaded.byte_count)
            return loaded

    async def run(self, job: GenerationJob, context: RequestContext, request: Request) -> JobResult:
        """Return a job's images. Raises the named errors of the domain."""
        result = await last_result(self.stream(job, context, request))
        request.state.watch.lap("make")
        return result

    def stream(
        self, job: GenerationJob, context: RequestContext, request: Request
    ) -> AsyncGenerator[JobEvent, None]:
        """Return a job's events: see `JobService.stream`."""
        request.state.watch.lap("validate")
        request.state.body.release()  # its files have been read
        request.state.images = len(job.images)
        return _noted(self.jobs.stream(job, context), request)

    async def addresses(
        self, result: JobResult, request: Request, format: ImageFormat, quality: int
    ) -> list[str]:
        """Return the addresses of a job's images.

        An empty list if the ledger, which signs them, is away, or could not keep the images.
        """
        job: str = json.loads(result.meta)["jobId"]
        if (await self.jobs.ledger_health()).problem:
            return []
        try:
            if not await self.jobs.is_kept(job):
                return []
            return [
                self.address(request, await self.links.path(job, number, format, quality))
                for number in range(len(result.pngs))
            ]
        except LedgerAway:
            return []

    def address(self, request: Request, path: str) -> str:
        """Return the whole address of a path: below the public one, else where the request came."""
        root = request.scope.get("root_path", "").rstrip("/")
        base = self._base_url or f"{request.url.scheme}://{request.headers['host']}{root}"
        return base.rstrip("/") + path

    def check_webhook(self, url: str | None) -> None:
        """Check that a job may name a receiver. Raises `InvalidRequest`, which lists none."""
        if url is not None and url not in self._webhook_urls:
            raise InvalidRequest("webhook", "must be exactly an address of WEBHOOK_URLS")

    async def write(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what `work` returns, in a thread that never waits for an image to be read."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, partial(work, *args, **kwargs))


async def _noted(
    events: AsyncGenerator[JobEvent, None], request: Request
) -> AsyncGenerator[JobEvent, None]:
    """Yield a job's events; note its id for the log, and how its first image gets on."""
    watch: Stopwatch = request.state.watch
    async with aclosing(events):
        async for event in events:
            match event:
                case JobStarted(id):
                    request.state.job_id = id
                case StageDone(0, stage):
                    watch.lap(stage)
            yield event


async def _services(request: Request) -> ApiServices:
    services: ApiServices = request.app.state.services
    return services


Services = Annotated[ApiServices, Depends(_services)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Any 1 to 255 visible characters. Requests with the same key and body are run "
        "once and answered alike, for ten minutes after the first one ended. Default: none",
        examples=["5f0c0a1e-order-17"],
    ),
]


def draw_seed() -> int:
    """Return a random seed, for a request without one."""
    return secrets.randbelow(SEED_RANGE[1] + 1)


def request_context(
    request: Request,
    key: str | None,
    body: Identified,
    uploads: str = "",
    *,
    views: bool = False,
    follows: bool = False,
    is_detached: bool = False,
    webhook: str | None = None,
) -> RequestContext:
    """Return who sent the request, and under which key; see `RequestContext` for the last four.

    `uploads` are the digests of files that are not part of the body's text.
    """
    fingerprint = ""
    if key is not None:
        fingerprint = sha256((body.identity + uploads).encode()).hexdigest()
    return RequestContext(
        request.state.caller,
        request.state.path,
        key,
        fingerprint,
        request.state.arrived,
        request.state.body.hold_images,
        views,
        follows,
        is_detached,
        webhook,
    )


def completed(response: Response, request: Request, warnings: Sequence[str]) -> Response:
    """Add what headers say of a job's images, warnings and times, and return the response."""
    add_warnings(response, warnings)
    request.state.watch.lap("write")
    response.headers["Server-Timing"] = request.state.watch.header
    return response
