"""The A1111 routes of what is being made: progress, interrupt and skip, of the caller's own jobs.

The web UI has one job at a time. Here it is the newest of the caller that runs.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import pybase64
from fastapi import APIRouter, Query, Request

from serve_app.core.service.job_errors import JobNotFound
from serve_app.core.service.job_events import ImagePreview, ImageProgress, JobEvent
from serve_app.core.service.jobs import Job
from serve_app.ingress.a1111.response_schemas import A1111Error, ProgressResponse
from serve_app.ingress.a1111.schemas import PREFIX
from serve_app.ingress.door import route_name
from serve_app.ingress.openapi import error_responses
from serve_app.ingress.services import ApiServices, Services
from serve_app.ingress.strict_json import StrictRoute

_ERRORS = error_responses(401, 403, 406, 503, model=A1111Error)

router = APIRouter(
    prefix=PREFIX,
    route_class=StrictRoute,
    tags=["A1111 API"],
    generate_unique_id_function=route_name,
)

SkipImage = Annotated[bool, Query(description="Whether the preview is left out")]


@router.get(
    "/progress",
    response_model=ProgressResponse,
    responses=error_responses(400, 401, 403, 406, 503, model=A1111Error),
)
async def get_progress(
    request: Request, services: Services, skip_current_image: SkipImage = False
) -> dict[str, Any]:
    """Return how far the caller's newest job is; whoever asks is shown previews."""
    job = await services.jobs.newest_running(request.state.caller)
    if job is None:
        return _progress(None, [], shows_preview=False)
    events = await services.jobs.views.glance(job.id, watches=not skip_current_image)
    return _progress(job, events, shows_preview=not skip_current_image)


@router.post("/interrupt", responses=_ERRORS)
async def interrupt(request: Request, services: Services) -> dict[str, Any]:
    """Cancel the caller's newest job; what is done of its images is returned."""
    await _cancel_newest(request, services)
    return {}


@router.post("/skip", responses=_ERRORS)
async def skip(request: Request, services: Services) -> None:
    """Cancel the caller's newest job, as `interrupt` does: its images are made together."""
    await _cancel_newest(request, services)


async def _cancel_newest(request: Request, services: ApiServices) -> None:
    caller = request.state.caller
    job = await services.jobs.newest_running(caller)
    if job is not None:
        with suppress(JobNotFound):  # it has just ended
            await services.jobs.cancel(job.id, caller)


def _progress(
    job: Job | None, events: Sequence[JobEvent], *, shows_preview: bool
) -> dict[str, Any]:
    """Return the progress of a job by the newest events of its images; None: nothing runs."""
    known = [event for event in events if isinstance(event, ImageProgress)]
    outlooks = [event.outlook for event in known]
    of = outlooks[0].of if outlooks else 0
    made = max((event.number for event in known), default=-1) + 1 - len(known)
    steps, total = made * of + sum(o.step for o in outlooks), (made + len(known)) * of
    furthest = max(outlooks, key=lambda outlook: outlook.step, default=None)
    previews = [event for event in events if isinstance(event, ImagePreview) and shows_preview]
    began = "" if job is None else _timestamp(job.created)
    return {
        "progress": 0.0 if job is None or not total else min(steps / total, 0.99),
        "eta_relative": max((outlook.eta or 0.0 for outlook in outlooks), default=0.0),
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "" if job is None else job.id,
            "job_count": 0 if job is None else max(1, len(known)),
            "job_timestamp": began,
            "job_no": made,
            "sampling_step": furthest.step if furthest else 0,
            "sampling_steps": furthest.of if furthest else 0,
        },
        "current_image": pybase64.b64encode(previews[-1].jpeg).decode() if previews else None,
        "textinfo": None,
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%S")
