"""What each tool does with a call."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from fastapi import Request
from mcp.server.session import ServerSession
from mcp_types import CallToolResult

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.sizes import ASPECTS
from serve_app.core.errors import InvalidRequest, TermsNotAccepted
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.job_errors import JobCancelled, JobFailed, JobNotFound
from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobDone,
    JobEvent,
    JobStarted,
    StageDone,
    last_result,
)
from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.ingress.generation import GenerationRequest, RefinementRequest
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.job_service import NO_SUCH_JOB
from serve_app.ingress.mcp import output
from serve_app.ingress.mcp.arguments import (
    DrawingArguments,
    GenerateArguments,
    JobArguments,
    NoArguments,
    RefineArguments,
    StatusArguments,
)
from serve_app.ingress.mcp.output import ModelOutput, ModelsOutput
from serve_app.ingress.mcp.progress import ProgressNotes
from serve_app.ingress.mcp.rerun import RERUN_FORMAT
from serve_app.ingress.services import ApiServices, request_context

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # the ledger is asked for no other
_LINK_QUALITY = 100  # of a PNG, which has none
_FIRST_WITH_LINKS = "2025-06-18"  # the first version of the protocol that has links in results


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool: the HTTP request that it came in, and who hears of its progress.

    `protocol` is the version that its client speaks.
    """

    services: ApiServices
    request: Request
    session: ServerSession
    protocol: str

    @property
    def caller(self) -> str:
        """Who calls."""
        caller: str = self.request.state.caller
        return caller


async def generate(call: Call, arguments: GenerateArguments) -> CallToolResult:
    """Make images from a prompt."""
    return await _draw(call, arguments, arguments.to_domain(call.services.info), [])


async def refine(call: Call, arguments: RefineArguments) -> CallToolResult:
    """Make images from an image and a prompt."""
    request = arguments.to_domain(call.services.info)
    if arguments.job_id is None:
        file: InputFile = call.request.state.file
    else:
        file = await _image_of(call, arguments.job_id, arguments.image_number)
    return await _draw(call, arguments, request, [InputFiles(file)])


async def job_status(call: Call, arguments: StatusArguments) -> CallToolResult:
    """Answer how far a job is, or with its images."""
    job = await _job(call, arguments.job_id)
    if not job.has_ended and arguments.wait_seconds:
        events = call.services.jobs.watch(job.id, call.caller, views=False)
        with suppress(JobFailed, JobCancelled, JobNotFound):  # what it ended with is asked below
            await _wait(events, ProgressNotes(call.session, job.id), arguments.wait_seconds)
        job = await _job(call, arguments.job_id)
    return await _state(call, job)


async def cancel_job(call: Call, arguments: JobArguments) -> CallToolResult:
    """Cancel a job if it is still running."""
    id = _checked(arguments.job_id)
    return await _state(call, await call.services.jobs.cancel(id, call.caller))


async def list_models(call: Call, arguments: NoArguments) -> CallToolResult:
    """Answer which models, LoRAs, samplers and aspect ratios there are."""
    info = call.services.info
    notices = [*info.warnings, *filter(None, [info.cloud_notice])]
    try:
        await call.services.jobs.terms.check(call.caller)
    except TermsNotAccepted as refusal:
        notices.append(str(refusal))
    return output.listed(
        ModelsOutput(
            models=[_model(model, info) for model in info.models],
            samplers=[sampler.value for sampler in Sampler],
            aspect_ratios=list(ASPECTS),
            notices=notices,
        )
    )


async def _draw(
    call: Call,
    arguments: DrawingArguments,
    request: GenerationRequest | RefinementRequest,
    files: Sequence[InputFiles],
) -> CallToolResult:
    """Run the job of a call; answer with its images, or with its id if it takes too long.

    A client that leaves while it waits cancels its job.
    """
    services = call.services
    job = await services.plan(request, files, RERUN_FORMAT, call.request.state, None)
    context = request_context(call.request, None, arguments, follows=True)
    events = services.stream(job, context, call.request)
    started = await anext(events)  # or it is refused
    assert isinstance(started, JobStarted)
    notes = ProgressNotes(call.session, started.id, len(job.images))
    detach = partial(services.jobs.detach, started.id)
    result = await _wait(events, notes, arguments.wait_seconds, detach)
    return output.running(started.id) if result is None else await _drawn(call, result)


async def _wait(
    events: AsyncGenerator[JobEvent, None],
    notes: ProgressNotes,
    seconds: float,
    on_timeout: Callable[[], None] = lambda: None,
) -> JobResult | None:
    """Return a job's result; None if it takes longer. Raises what the job raises.

    The client hears of its progress meanwhile. `on_timeout` is called before the events are closed
    because it took too long.
    """
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit, aclosing(events):

            def give_up() -> None:
                on_timeout()
                limit.reschedule(loop.time())

            timer = loop.call_later(seconds, give_up)
            try:
                async for event in events:
                    match event:
                        case ImageProgress(number, outlook):
                            await notes.add(number, outlook)
                        case JobDone(result):
                            return result
                        case JobStarted() | ImagePreview() | StageDone() | ImageMade():
                            pass
                        case _:
                            assert_never(event)
            finally:
                timer.cancel()
    return None


async def _drawn(call: Call, result: JobResult) -> CallToolResult:
    links = await call.services.addresses(result, call.request, "png", _LINK_QUALITY)
    has_blocks = call.protocol >= _FIRST_WITH_LINKS
    return await call.services.write(output.drawn, result, links, link_blocks=has_blocks)


async def _state(call: Call, job: Job) -> CallToolResult:
    """Answer with the images of a job, how far it is, or why there are none."""
    if job.result is not None:
        return await _drawn(call, job.result)
    if job.state is not JobState.RUNNING:
        return output.ended(job)
    events = await call.services.jobs.views.state(job.id)
    progress = [(e.number, e.outlook) for e in events if isinstance(e, ImageProgress)]
    return output.running(job.id, progress)


async def _job(call: Call, id: str) -> Job:
    """Return the caller's job. Raises `JobNotFound`."""
    return await call.services.jobs.get(_checked(id), call.caller)


def _checked(id: str) -> str:
    """Return what may be a job's id. Raises `JobNotFound`."""
    if not _JOB_ID.fullmatch(id):
        raise JobNotFound(NO_SUCH_JOB)
    return id


async def _image_of(call: Call, id: str, number: int) -> InputFile:
    """Return an image of the caller's job, once it is done.

    Raises `JobNotFound`, `InvalidRequest`, or what the job ended with.
    """
    job = await _job(call, id)
    result = job.result
    if result is None:
        if job.has_ended:
            raise InvalidRequest("job_id", f"has no images: the job is {job.state}")
        result = await last_result(call.services.jobs.watch(id, call.caller, views=False))
    if number >= len(result.pngs):
        raise InvalidRequest("image_number", f"must be below {len(result.pngs)}")
    return InputFile(result.pngs[number])


def _model(model: ModelInfo, info: ServiceInfo) -> ModelOutput:
    licenses = (license.name for license in info.licenses if license.model == model.name)
    is_local = model.cloud is None
    return ModelOutput(
        name=model.name,
        native_size=model.native_size,
        steps=model.defaults.steps if is_local else None,
        sampler=model.defaults.sampler.value if is_local else None,
        is_default=model == info.default_model,
        cloud=None if model.cloud is None else f"{model.cloud.provider}: {model.cloud.name}",
        license=next(licenses, None),
        loras=[lora.name for lora in info.extensions_of(LORA) if model.name in lora.models],
    )
