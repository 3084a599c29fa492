"""The routes of jobs: list, read, watch and cancel them. Any ingress process can answer."""

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from serve_app.core.errors import LedgerAway
from serve_app.core.service.job_errors import JobNotFound
from serve_app.core.service.job_events import ImageProgress
from serve_app.core.service.jobs import Job, JobFilter, JobPlace, JobState
from serve_app.ingress.access import is_address
from serve_app.ingress.door import route_name
from serve_app.ingress.http_errors import Unauthorized
from serve_app.ingress.job_service import NO_SUCH_JOB
from serve_app.ingress.native.event_stream import (
    STREAM_RESPONSES,
    event_stream,
    images_sent,
    progress_of,
)
from serve_app.ingress.native.response_schemas import ErrorEnvelope, JobResponse, JobsResponse
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.responses import ImagesJSONResponse, images_content
from serve_app.ingress.services import ApiServices, Services
from serve_app.ingress.sse import EVENT_STREAM
from serve_app.ingress.strict_json import StrictRoute

_JOB_RESPONSES = error_responses(401, 403, 404, 406, 503, model=ErrorEnvelope)
_JOBS_RESPONSES = error_responses(400, 401, 403, 406, 503, model=ErrorEnvelope)
_MAX_JOBS = 100  # on one page
_ID = r"[A-Za-z0-9_-]{1,64}"  # what may be a job's id
_PLACE = rf"^\d{{1,12}}\.\d{{1,9}}-{_ID}$"  # the `next` of a page: of its last job


async def _job_id(
    id: Annotated[str, Path(description="The jobId of a response's meta")],
) -> str:
    """Return what may be a job's id. Raises `JobNotFound`: the ledger is asked for no other.

    A plain function would be called in a thread, of which a crowd of readers starts forty.
    """
    if not re.fullmatch(_ID, id):
        raise JobNotFound(NO_SUCH_JOB)
    return id


JobId = Annotated[str, Depends(_job_id)]

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="The id of the last event that the client got: images that it has are left out",
    ),
]


class JobsQuery(BaseModel):
    """Which jobs are listed."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    state: JobState | None = Field(None, description="Only jobs in this state")
    limit: int = Field(20, ge=1, le=_MAX_JOBS, description="Jobs on the page")
    before: str | None = Field(None, description="The `next` of the page before", pattern=_PLACE)


router = APIRouter(route_class=StrictRoute, tags=["images"], generate_unique_id_function=route_name)


@router.get("/jobs", response_model=JobsResponse, responses=_JOBS_RESPONSES)
async def list_jobs(
    request: Request,
    services: Services,
    query: Annotated[JobsQuery, Query()],
) -> Response:
    """Return the caller's jobs of the last minutes, newest first, without their results."""
    place = None if query.before is None else _place(query.before)
    wanted = JobFilter(_key_of(request), query.state, place, query.limit + 1)
    found = await services.jobs.find(wanted)
    page, more = found[: query.limit], found[query.limit :]
    return JSONResponse(
        {
            "jobs": [_summary(job) for job in page],
            "next": f"{page[-1].created:.9f}-{page[-1].id}" if more else None,
        }
    )


@router.get("/jobs/{id}", response_model=JobResponse, responses=_JOB_RESPONSES)
async def get_job(id: JobId, request: Request, services: Services) -> Response:
    """Return a job's state, and its result for ten minutes after it ended."""
    return await _job_response(await services.jobs.get(id, request.state.caller), services)


@router.get("/jobs/{id}/events", responses=STREAM_RESPONSES | _JOB_RESPONSES)
async def watch_job(
    id: JobId,
    request: Request,
    services: Services,
    last_event_id: LastEventId = None,
) -> Response:
    """Stream a job's events from its present state on, whichever replica works at it."""
    sent = images_sent(last_event_id)
    if getattr(request.state, "is_head", False):
        await services.jobs.get(id, request.state.caller)
        return Response(media_type=EVENT_STREAM)
    events = services.jobs.watch(id, request.state.caller)
    await anext(events)  # raises if there is no such job
    return event_stream(id, events, request, services, sent)


@router.delete("/jobs/{id}", response_model=JobResponse, responses=_JOB_RESPONSES)
async def cancel_job(id: JobId, request: Request, services: Services) -> Response:
    """Cancel a job if it is still running, and return it."""
    return await _job_response(await services.jobs.cancel(id, request.state.caller), services)


async def submitted(id: str, request: Request, services: ApiServices) -> Response:
    """Return where a job can be found that its caller does not wait for."""
    try:
        job = await services.jobs.get(id, request.state.caller)
    except (LedgerAway, JobNotFound):  # it is being made, whether the ledger knows or not
        job = Job(id, request.state.caller, owner="", created=time.time())
    response = await _job_response(job, services, status=202)
    response.headers["Location"] = location_of(id, request)
    response.headers["Preference-Applied"] = "respond-async"
    return response


def location_of(id: str, request: Request) -> str:
    """Return the path of a job, under the prefix that the service has."""
    return str(request.scope.get("root_path", "")).rstrip("/") + f"/jobs/{id}"


async def _job_response(job: Job, services: ApiServices, status: int = 200) -> Response:
    progress = None
    if job.state is JobState.RUNNING:
        progress = [
            progress_of(event.outlook) | {"image": event.number}
            for event in await services.jobs.views.state(job.id)
            if isinstance(event, ImageProgress)
        ]
    result = images_content(job.result) if job.result else None
    content = _summary(job) | {"progress": progress, "result": result}
    return await services.write(ImagesJSONResponse, content, status)


def _summary(job: Job) -> dict[str, Any]:
    """Return what is said of a job wherever it is named."""
    created = datetime.fromtimestamp(job.created, UTC).isoformat(timespec="milliseconds")
    return {
        "id": job.id,
        "state": job.state,
        "createdAt": created.replace("+00:00", "Z"),
        "error": asdict(job.error) if job.error else None,
    }


def _key_of(request: Request) -> str:
    """Return the caller's name if it is that of a key. Raises `Unauthorized`.

    Everybody behind one address would be one caller.
    """
    caller: str = request.state.caller
    if is_address(caller):
        raise Unauthorized(
            "jobs are listed only for an API key, and none is configured",
            remedy="The service's operator can set API_KEYS",
        )
    return caller


def _place(token: str) -> JobPlace:
    created, _, id = token.partition("-")
    return JobPlace(float(created), id)
