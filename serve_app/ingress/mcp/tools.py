"""The tools: their names, what they take and answer, and what each does with a call."""

import re
from asyncio import timeout
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, assert_never

from fastapi import Request
from mcp.server.session import ServerSession
from mcp_types import CallToolResult, Tool, ToolAnnotations

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.sizes import ASPECTS
from serve_app.core.errors import InvalidRequest, TermsNotAccepted
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.job_errors import JobFailed, JobNotFound
from serve_app.core.service.job_events import (
    ImageMade,
    ImagePreview,
    ImageProgress,
    JobDone,
    JobEvent,
    JobStarted,
    StageDone,
)
from serve_app.core.service.jobs import Job, JobResult, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.generation import GenerationRequest, RefinementRequest
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.job_service import NO_SUCH_JOB
from serve_app.ingress.mcp import output
from serve_app.ingress.mcp.arguments import (
    Arguments,
    DrawingArguments,
    GenerateArguments,
    JobArguments,
    NoArguments,
    RefineArguments,
    StatusArguments,
    input_schema,
)
from serve_app.ingress.mcp.output import JobOutput, ModelOutput, ModelsOutput, progress_text
from serve_app.ingress.mcp.rerun import GENERATE, REFINE, RERUN_FORMAT
from serve_app.ingress.services import ApiServices, request_context

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # the ledger is asked for no other
_LINK_QUALITY = 100  # of a PNG, which has none


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool: the HTTP request that it came in, and who hears of its progress."""

    services: ApiServices
    request: Request
    session: ServerSession

    @property
    def caller(self) -> str:
        """Who calls."""
        caller: str = self.request.state.caller
        return caller


class ProgressNotes:
    """Notes of how far a call is, in steps of all its images; each higher than the last one.

    They name the job: a client that waits no longer can ask for it, or cancel it.
    """

    def __init__(self, session: ServerSession, job: str, images: int) -> None:
        self._session = session
        self._job = job
        self._images = images
        self._steps: dict[int, int] = {}  # taken, by image
        self._last = -1

    async def add(self, number: int, outlook: Outlook) -> None:
        """Send a note of an image's progress, unless the client has heard of as much."""
        self._steps[number] = outlook.step
        taken = sum(self._steps.values())
        if taken > self._last:
            self._last = taken
            image = "" if self._images == 1 else f", image {number}"
            message = f"job {self._job}{image}: {progress_text(outlook)}"
            await self._session.report_progress(taken, outlook.of * self._images, message)


async def generate(call: Call, arguments: GenerateArguments) -> CallToolResult:
    """Make images from a prompt."""
    return await _draw(call, arguments, arguments.to_domain(call.services.info), [])


async def refine(call: Call, arguments: RefineArguments) -> CallToolResult:
    """Make images from an image and a prompt."""
    request = arguments.to_domain(call.services.info)
    file = arguments.image
    if arguments.job_id is not None:
        file = await _image_of(call, arguments.job_id, arguments.image_number)
    assert file is not None
    return await _draw(call, arguments, request, [InputFiles(file)])


async def job_status(call: Call, arguments: StatusArguments) -> CallToolResult:
    """Answer how far a job is, or with its images."""
    job = await _job(call, arguments.job_id)
    if not job.has_ended and arguments.wait_seconds:
        with suppress(TimeoutError, JobFailed, JobNotFound):  # what it ended with is asked below
            async with timeout(arguments.wait_seconds):
                await _watch(call, call.services.jobs.watch(job.id, call.caller), images=1)
        job = await _job(call, arguments.job_id)
    return await _state(call, job)


async def cancel_job(call: Call, arguments: JobArguments) -> CallToolResult:
    """Cancel a job if it is still running."""
    await _job(call, arguments.job_id)
    return await _state(call, await call.services.jobs.cancel(arguments.job_id, call.caller))


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


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as a client sees it, and what runs it."""

    title: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Call, Any], Awaitable[CallToolResult]]
    output: type[JobOutput] | type[ModelsOutput] = JobOutput
    hints: Mapping[str, bool] = field(default_factory=dict)

    def described(self, name: str, info: ServiceInfo) -> Tool:
        """Return the tool as it is listed, with the limits of this service."""
        notice = f" Note: {info.cloud_notice}." if info.cloud_notice else ""
        return Tool(
            name=name,
            title=self.title,
            description=self.description + notice,
            input_schema=input_schema(self.arguments, info),
            output_schema=self.output.model_json_schema(mode="serialization"),
            annotations=ToolAnnotations(title=self.title, **self.hints),
        )


_DRAWS = {"read_only_hint": False, "destructive_hint": False, "open_world_hint": False}
_READS = {"read_only_hint": True, "open_world_hint": False}
TOOLS: Mapping[str, ToolDefinition] = {
    GENERATE: ToolDefinition(
        "Generate an image",
        "Draw images from a prompt with Stable Diffusion XL. Describe what is to be seen, not what "
        "to do. Answers a small JPEG to look at, and a link to the whole PNG for the user. The "
        "same arguments and seed give the same image.",
        GenerateArguments,
        generate,
        hints=_DRAWS,
    ),
    REFINE: ToolDefinition(
        "Change an image",
        "Draw an image anew, by a prompt and a strength: an image of an earlier job, or a file.",
        RefineArguments,
        refine,
        hints=_DRAWS,
    ),
    "job_status": ToolDefinition(
        "Status of a job",
        "How far a job is, or its images, which are kept for ten minutes.",
        StatusArguments,
        job_status,
        hints=_READS,
    ),
    "cancel_job": ToolDefinition(
        "Cancel a job",
        "Cancel a job that still runs; its images are lost.",
        JobArguments,
        cancel_job,
        hints={"read_only_hint": False, "destructive_hint": True, "idempotent_hint": True},
    ),
    "list_models": ToolDefinition(
        "List the models",
        "The models that draw, with their LoRAs, and the samplers and aspect ratios.",
        NoArguments,
        list_models,
        output=ModelsOutput,
        hints=_READS,
    ),
}


async def _draw(
    call: Call,
    arguments: DrawingArguments,
    request: GenerationRequest | RefinementRequest,
    files: Sequence[InputFiles],
) -> CallToolResult:
    """Run the job of a call and answer with its images, or with its id."""
    services = call.services
    job = await services.plan(request, files, RERUN_FORMAT, call.request.state, None)
    context = request_context(call.request, None, arguments, is_detached=not arguments.wait)
    events = services.stream(job, context, call.request)
    if arguments.wait:
        return await _drawn(call, await _watch(call, events, images=len(job.images)))
    started = await anext(events)
    assert isinstance(started, JobStarted)
    await events.aclose()
    return output.running(started.id)


async def _watch(call: Call, events: AsyncGenerator[JobEvent, None], images: int) -> JobResult:
    """Wait for a job, telling the client of its progress. Raises what the job raises."""
    notes = ProgressNotes(call.session, "", images)
    async with aclosing(events):
        async for event in events:
            match event:
                case JobStarted(id):
                    notes = ProgressNotes(call.session, id, images)
                case ImageProgress(number, outlook):
                    await notes.add(number, outlook)
                case JobDone(result):
                    return result
                case ImagePreview() | StageDone() | ImageMade():
                    pass
                case _:
                    assert_never(event)
    raise JobNotFound(NO_SUCH_JOB)


async def _drawn(call: Call, result: JobResult) -> CallToolResult:
    links = await call.services.addresses(result, call.request, "png", _LINK_QUALITY)
    return await call.services.write(output.drawn, result, links)


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
    if not _JOB_ID.fullmatch(id):
        raise JobNotFound(NO_SUCH_JOB)
    return await call.services.jobs.get(id, call.caller)


async def _image_of(call: Call, id: str, number: int) -> InputFile:
    """Return an image of the caller's job. Raises `JobNotFound` or `InvalidRequest`."""
    job = await _job(call, id)
    if job.result is None:
        raise InvalidRequest("job_id", f"has no images: the job is {job.state}")
    if number >= len(job.result.pngs):
        raise InvalidRequest("image_number", f"must be below {len(job.result.pngs)}")
    return InputFile(job.result.pngs[number])


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
